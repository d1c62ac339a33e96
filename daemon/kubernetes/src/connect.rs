//! Which API server, and as whom.

use std::{fmt, future::Future, path::PathBuf};

use jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use kubeveil_api::{
    names,
    problem::{Problem, causes},
};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    pace::Pace,
    trouble::{Deed, Failure},
};

/// Where address and credentials of the API server come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The service account of the pod that we run in.
    InCluster,
    /// A kubeconfig file, its current context.
    Kubeconfig(PathBuf),
    /// What `kubectl` would take: `KUBECONFIG`, else `~/.kube/config`, else the pod's.
    Usual,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCluster | Self::Usual => f.write_str("kubernetes"),
            Self::Kubeconfig(path) => write!(f, "kubernetes:{}", path.display()),
        }
    }
}

/// A kind of ours.
pub fn ours(kind: &str, plural: &str) -> ApiResource {
    let version = names::API_VERSION.rsplit('/').next().unwrap_or_default();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(names::GROUP, version, kind), plural)
}

/// A kind of Kubernetes' own, in version v1 of its group; `""` is the core's. Objects of such kinds are read field by field: the
/// full types of the API, of which a Pod's alone has hundreds, would make the program a tenth larger.
pub fn theirs(group: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
}

/// The entries of a list in an object that is read field by field; none where it is no list.
pub fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Whether such an object's status has this condition, and that it is so.
pub fn holds(status: &Value, condition: &str) -> bool {
    entries(&status["conditions"]).any(|entry| entry["type"] == condition && entry["status"] == "True")
}

/// A client of one API server.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// Its address, for people.
    pub(crate) server: String,
}

/// A way to one API server, made when it is first needed and given up when it no longer serves.
pub(crate) struct Line {
    origin: Origin,
    pub(crate) pace: Pace,
    connection: Option<Connection>,
}

impl Line {
    pub(crate) fn new(origin: Origin, pace: Pace) -> Self {
        Self { origin, pace, connection: None }
    }

    pub(crate) async fn connection(&mut self) -> Result<Connection, Failure> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        Ok(self.connection.insert(self.origin.connect(&self.pace).await?).clone())
    }

    /// What it answers to a request.
    pub(crate) async fn ask(&mut self, request: Unsent) -> Result<String, Failure> {
        let request = request.map_err(unbuilt)?;
        let connection = self.connection().await?;
        self.within(connection.client.request_text(request)).await
    }

    /// An answer, within the time that one may take.
    pub(crate) async fn within<T>(
        &self,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(self.pace.answer, answer).await {
            Ok(answer) => answer.map_err(Failure::Request),
            Err(_) => Err(Failure::Late(self.pace.answer)),
        }
    }

    /// For people.
    pub(crate) fn problem(&self, failure: &Failure, deed: Deed, since: Timestamp) -> Problem {
        let server = self.connection.as_ref().map_or("API server", |c| &c.server);
        failure.problem(server, deed, since)
    }

    /// After that it failed so.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        if !failure.keeps_connection() {
            self.connection = None;
        }
    }
}

/// A request, if it could be made.
type Unsent = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

pub(crate) fn unbuilt(error: kube::core::request::Error) -> Failure {
    Failure::Request(kube::Error::BuildRequest(error))
}

impl Origin {
    /// A client, for who asks in ways of his own.
    pub async fn client(&self, pace: &Pace) -> Result<Client, Problem> {
        let connected = self.connect(pace).await;
        let deed = Deed { verb: "get", resource: "the API" };
        connected
            .map(|connection| connection.client)
            .map_err(|e| e.problem("API server", deed, Timestamp::now()))
    }

    /// What is written there is read anew each time, as it may have been renewed.
    pub(crate) async fn connect(&self, pace: &Pace) -> Result<Connection, Failure> {
        let config = match self {
            Self::InCluster => Config::incluster().map_err(|e| self.unreadable(&e)),
            Self::Usual => Config::infer().await.map_err(|e| self.unreadable(&e)),
            Self::Kubeconfig(path) => match Kubeconfig::read_from(path) {
                Ok(read) => Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await,
                Err(e) => Err(e),
            }
            .map_err(|e| self.unreadable(&e)),
        };
        let mut config = config?;
        let server = config.cluster_url.to_string();
        config.connect_timeout = Some(pace.answer);
        config.write_timeout = Some(pace.answer);
        // A watch may be silent; how long an answer may take is our own affair, and so is when to ask again.
        config.read_timeout = None;
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|e| self.unreadable(&e))?;
        Ok(Connection { client, server: format!("API server {}", server.trim_end_matches('/')) })
    }

    fn unreadable(&self, error: &dyn std::error::Error) -> Failure {
        let object = match self {
            Self::InCluster => "service account of this pod".to_owned(),
            Self::Usual => "KUBECONFIG".to_owned(),
            Self::Kubeconfig(path) => format!("file {}", path.display()),
        };
        Failure::Origin { object, why: causes(error) }
    }
}
