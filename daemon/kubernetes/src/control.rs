//! The API server as a person's command sees it, by that person's own credentials.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::core::{
    Request,
    params::{ListParams, Patch, PatchParams, PostParams},
};
use kubeveil_api::{mesh::EncryptionMesh, names, problem::Problem};
use kubeveil_core::{
    control::{Control, Refusal, Sight},
    snapshot::NodeFacts,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::{
    connect::{Line, Origin},
    object::Metadata,
    pace::Pace,
    trouble::{Deed, Failure},
};

/// Field manager of what a person changes by the command.
const MANAGER: &str = "kubeveil";
/// Nodes a page of a list, of which little more than the annotations comes.
const PAGE: u32 = 1000;
/// The API server's answer to a change of what is not any more as it was.
const CONFLICT: u16 = 409;

/// An API server, to be looked at and changed now and then.
pub struct KubernetesControl {
    origin: Origin,
    line: Line,
    runtime: Handle,
}

/// A mesh, with what tells whether it is the one that was seen.
#[derive(Deserialize)]
struct Versioned {
    metadata: Metadata,
}

/// A list of objects of which only the metadata was asked for.
#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    /// `null` where there is none.
    items: Option<Vec<Versioned>>,
}

#[derive(Deserialize)]
struct PageMetadata {
    #[serde(default)]
    r#continue: String,
}

/// `authentication.k8s.io/v1` SelfSubjectReview.
#[derive(Deserialize)]
struct Review {
    status: ReviewStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReviewStatus {
    user_info: UserInfo,
}

#[derive(Deserialize)]
struct UserInfo {
    username: String,
}

impl KubernetesControl {
    /// The API server of `origin`; calls block on `runtime`.
    pub fn new(origin: Origin, pace: Pace, runtime: &Handle) -> Self {
        Self { line: Line::new(origin.clone(), pace), origin, runtime: runtime.clone() }
    }

    fn ask(&mut self, request: Request, deed: Deed, how: How<'_>) -> Result<String, Refused> {
        let request = match how {
            How::Get => request.get(names::MESH, &Default::default()),
            How::List(params) => request.list_metadata(params),
            How::Create(body) => request.create(&PostParams::default(), body),
            How::Patch(patch) => {
                let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
                request.patch(names::MESH, &params, &Patch::Merge(patch))
            }
        };
        let runtime = self.runtime.clone();
        runtime.block_on(self.line.ask(request)).map_err(|failure| {
            let problem = self.line.problem(&failure, deed, Timestamp::now());
            self.line.failed(&failure);
            Refused { code: failure.code(), problem }
        })
    }

    fn read<T: DeserializeOwned>(&self, text: &str, deed: Deed) -> Result<T, Problem> {
        serde_json::from_str(text).map_err(|e| self.line.problem(&Failure::Answer(e), deed, Timestamp::now()))
    }

    fn nodes(&mut self) -> Result<BTreeMap<String, std::sync::Arc<NodeFacts>>, Problem> {
        const LIST: Deed = Deed { verb: "list", resource: "nodes" };
        let mut params = ListParams::default().limit(PAGE);
        let mut nodes = BTreeMap::new();
        loop {
            let text = self
                .ask(Request::new("/api/v1/nodes"), LIST, How::List(&params))
                .map_err(|refused| refused.problem)?;
            let page: Page = self.read(&text, LIST)?;
            nodes.extend(page.items.into_iter().flatten().map(|node| {
                let announcement = node.metadata.announcement();
                let (uid, labels) = (node.metadata.uid, node.metadata.labels.unwrap_or_default());
                let facts = NodeFacts { uid, announcement, labels, ..NodeFacts::default() };
                (node.metadata.name, facts.into())
            }));
            if page.metadata.r#continue.is_empty() {
                return Ok(nodes);
            }
            params = ListParams::default().limit(PAGE).continue_token(&page.metadata.r#continue);
        }
    }
}

/// What came of it instead.
struct Refused {
    /// The API server's answer as HTTP has it, if it answered.
    code: Option<u16>,
    problem: Problem,
}

/// What is asked.
enum How<'a> {
    Get,
    List(&'a ListParams),
    Create(Vec<u8>),
    Patch(&'a Value),
}

const MESHES: &str = "encryptionmeshes.kubeveil.io";

fn meshes() -> Request {
    Request::new(format!("/apis/{}/encryptionmeshes", names::API_VERSION))
}

impl Control for KubernetesControl {
    fn name(&self) -> String {
        self.origin.to_string()
    }

    fn look(&mut self) -> Result<Sight, Problem> {
        const GET: Deed = Deed { verb: "get", resource: MESHES };
        let text = self.ask(meshes(), GET, How::Get).map_err(|refused| refused.problem)?;
        let Versioned { metadata } = self.read(&text, GET)?;
        let mesh: EncryptionMesh = self.read(&text, GET)?;
        Ok(Sight { mesh, version: metadata.resource_version, nodes: self.nodes()? })
    }

    fn who(&mut self) -> Result<String, Problem> {
        const CREATE: Deed = Deed { verb: "create", resource: "selfsubjectreviews.authentication.k8s.io" };
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let request = Request::new("/apis/authentication.k8s.io/v1/selfsubjectreviews");
        let how = How::Create(review.to_string().into_bytes());
        let text = self.ask(request, CREATE, how).map_err(|refused| refused.problem)?;
        Ok(self.read::<Review>(&text, CREATE)?.status.user_info.username)
    }

    fn change(&mut self, seen: &Sight, patch: &Value) -> Result<(), Refusal> {
        const PATCH: Deed = Deed { verb: "patch", resource: MESHES };
        let mut patch = patch.clone();
        patch["metadata"] = json!({"resourceVersion": seen.version});
        match self.ask(meshes(), PATCH, How::Patch(&patch)) {
            Ok(_) => Ok(()),
            Err(refused) if refused.code == Some(CONFLICT) => Err(Refusal::Changed),
            Err(refused) => Err(Refusal::Problem(refused.problem)),
        }
    }

    fn keeps_status(&self) -> bool {
        false
    }
}
