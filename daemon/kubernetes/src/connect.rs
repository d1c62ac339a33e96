//! Which API server, and as whom.

use std::{fmt, path::PathBuf};

use jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use kubeveil_api::problem::{Problem, causes};

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
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCluster => f.write_str("kubernetes"),
            Self::Kubeconfig(path) => write!(f, "kubernetes:{}", path.display()),
        }
    }
}

/// A client of one API server.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// Its address, for people.
    pub(crate) server: String,
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
            Self::Kubeconfig(path) => format!("file {}", path.display()),
        };
        Failure::Origin { object, why: causes(error) }
    }
}
