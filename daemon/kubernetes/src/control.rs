//! The API server as a person's command sees it, by that person's own credentials.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kube::core::{
    Request,
    params::{ListParams, Patch, PatchParams, PostParams},
};
use kubeveil_api::{mesh::EncryptionMesh, names, policy::PolicyMode, problem::Problem, veil_node::VeilNode};
use kubeveil_core::{
    agent::{Agent, Life},
    control::{Control, Refusal, Sight},
    policy::{Policies, census::Census, services::Services},
    snapshot::NodeFacts,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::{
    connect::{Line, Origin},
    object::{Metadata, NamespaceObject, NodeObject, PodObject, PolicyObject, SliceObject, refused},
    pace::Pace,
    trouble::{Deed, Failure},
};

/// Field manager of what a person changes by the command.
const MANAGER: &str = "kubeveil";
/// Objects a page of a list.
const PAGE: u32 = 500;
/// The API server's answer to a change of what is not any more as it was.
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;

/// Is the change refused by such an answer: by rights (403), by the definition's rules or a policy (422), by a webhook (400)? Who is not
/// known (401), or asks too often (429), has none yet.
fn is_an_answer(code: u16) -> bool {
    matches!(code, 400 | 403 | 405 | 413 | 422)
}

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

/// A page of a list.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Page<T> {
    metadata: PageMetadata,
    /// `null` where there is none.
    items: Option<Vec<T>>,
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
            How::Get(name) => request.get(name, &Default::default()),
            How::List(params) => request.list_metadata(params),
            How::ListWhole(params) => request.list(params),
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

    /// All objects of a collection, page by page; `is_whole`: with more than their metadata.
    fn list<T: DeserializeOwned>(
        &mut self,
        path: &str,
        resource: &'static str,
        is_whole: bool,
    ) -> Result<Vec<T>, Problem> {
        self.list_some(path, resource, is_whole, &ListParams::default())
    }

    /// The same of those that `params` select.
    fn list_some<T: DeserializeOwned>(
        &mut self,
        path: &str,
        resource: &'static str,
        is_whole: bool,
        params: &ListParams,
    ) -> Result<Vec<T>, Problem> {
        let deed = Deed { verb: "list", resource };
        let mut params = params.clone().limit(PAGE);
        let mut all = Vec::new();
        loop {
            let how = if is_whole { How::ListWhole(&params) } else { How::List(&params) };
            let text = self.ask(Request::new(path), deed, how).map_err(|refused| refused.problem)?;
            let page: Page<T> = self.read(&text, deed)?;
            all.extend(page.items.into_iter().flatten());
            if page.metadata.r#continue.is_empty() {
                return Ok(all);
            }
            params = params.continue_token(&page.metadata.r#continue);
        }
    }

    /// What nodes announce, and little else.
    fn nodes(&mut self) -> Result<BTreeMap<String, Arc<NodeFacts>>, Problem> {
        let nodes: Vec<Versioned> = self.list(NODES, "nodes", false)?;
        let facts = nodes.into_iter().map(|node| {
            let announcement = node.metadata.announcement();
            let (uid, labels) = (node.metadata.uid, node.metadata.labels.unwrap_or_default());
            let facts = NodeFacts { uid, announcement, labels, ..NodeFacts::default() };
            (node.metadata.name, facts.into())
        });
        Ok(facts.collect())
    }

    fn mesh(&mut self) -> Result<(EncryptionMesh, String), Problem> {
        const GET: Deed = Deed { verb: "get", resource: MESHES };
        let text = self.ask(meshes(), GET, How::Get(names::MESH)).map_err(|refused| refused.problem)?;
        let Versioned { metadata } = self.read(&text, GET)?;
        Ok((self.read(&text, GET)?, metadata.resource_version))
    }

    /// Both kinds; one that can't be read is told.
    fn policies(&mut self) -> Result<Policies, Problem> {
        let of_namespaces: Vec<PolicyObject> = self.list(POLICIES, "encryptionpolicies.kubeveil.io", true)?;
        let of_cluster: Vec<PolicyObject> =
            self.list(CLUSTER_POLICIES, "clusterencryptionpolicies.kubeveil.io", true)?;
        let mut policies = BTreeMap::new();
        for policy in of_namespaces.into_iter().chain(of_cluster).map(|policy| policy.read(None)) {
            if let Some(problem) = policy.problems.into_iter().next() {
                return Err(problem);
            }
            policies.extend(policy.value);
        }
        Ok(Policies::new(policies))
    }
}

const VEIL_NODES: &str = "/apis/kubeveil.io/v1alpha1/veilnodes";
const PODS: &str = "/api/v1/pods";
const NODES: &str = "/api/v1/nodes";
const ENDPOINTS: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const SLICES: &str = "/apis/kubeveil.io/v1alpha1/veilpodslices";
const POLICIES: &str = "/apis/kubeveil.io/v1alpha1/encryptionpolicies";
const CLUSTER_POLICIES: &str = "/apis/kubeveil.io/v1alpha1/clusterencryptionpolicies";

/// What came of it instead.
struct Refused {
    /// The API server's answer as HTTP has it, if it answered.
    code: Option<u16>,
    problem: Problem,
}

/// What is asked.
enum How<'a> {
    Get(&'a str),
    List(&'a ListParams),
    ListWhole(&'a ListParams),
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
        let (mesh, version) = self.mesh()?;
        Ok(Sight { mesh, version, nodes: self.nodes()? })
    }

    fn census(&mut self) -> Result<Census, Problem> {
        let (mesh, _) = self.mesh()?;
        let mesh = mesh
            .spec
            .in_force(mesh.status.as_ref())
            .map_err(|(field, why)| refused(&format!("EncryptionMesh {}", names::MESH), &field, &why))?;
        let policies = self.policies()?;
        let namespaces: Vec<NamespaceObject> = self.list("/api/v1/namespaces", "namespaces", true)?;
        let pods: Vec<PodObject> = self.list(PODS, "pods", true)?;
        let nodes: Vec<NodeObject> = self.list(NODES, "nodes", true)?;
        // Who may not read them is not told who was told.
        let slices: Vec<SliceObject> =
            self.list(SLICES, "veilpodslices.kubeveil.io", true).unwrap_or_default();
        let told = slices.into_iter().flat_map(|slice| {
            let asked = Arc::unwrap_or_clone(slice.read().value).into_iter();
            asked.filter(|(_, standing)| standing.mode == PolicyMode::Require).map(|(address, _)| address)
        });
        let told = told.collect();
        let namespaces: Vec<_> = namespaces.into_iter().map(NamespaceObject::read).collect();
        let nodes = nodes.into_iter().map(|node| node.read(""));
        Ok(Census {
            mesh: mesh.spec,
            policies,
            ending: namespaces.iter().filter(|read| read.value.ends).map(|read| read.name.clone()).collect(),
            namespaces: namespaces.into_iter().map(|read| (read.name, read.value.labels)).collect(),
            pods: pods.into_iter().map(PodObject::resident).collect(),
            nodes: nodes.map(|read| (read.name, read.value)).collect(),
            // An agent watches the pods of its own node, and of others hears by slices.
            told: Some(told),
        })
    }

    fn services(&mut self) -> Result<Services, Problem> {
        let services = self.list("/api/v1/services", "services", true)?;
        Ok(Services::new(services, self.list(ENDPOINTS, "endpointslices.discovery.k8s.io", true)?))
    }

    fn agent(&mut self, node: &str) -> Result<Agent, Problem> {
        const GET: Deed = Deed { verb: "get", resource: "veilnodes.kubeveil.io" };
        let said = match self.ask(Request::new(VEIL_NODES), GET, How::Get(node)) {
            Ok(text) => self.read::<VeilNode>(&text, GET)?.status,
            Err(refused) if refused.code == Some(NOT_FOUND) => None,
            Err(refused) => return Err(refused.problem),
        };
        let of_node = format!("spec.nodeName={node}");
        let agents = ListParams::default().labels(names::AGENTS).fields(&of_node);
        let pods: Vec<PodObject> = self.list_some(PODS, "pods", true, &agents)?;
        let is_ready = pods.iter().map(PodObject::is_ready).reduce(|one, other| one || other);
        Ok(Agent { life: Life::of_pod(is_ready), said })
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
            Err(refused) if refused.code.is_some_and(is_an_answer) => Err(Refusal::Refused(refused.problem)),
            Err(refused) => Err(Refusal::Problem(refused.problem)),
        }
    }

    fn keeps_status(&self) -> bool {
        false
    }
}
