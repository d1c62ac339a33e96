//! Which API server a command speaks with, and as whom: as kubectl finds it.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use kube::Client;
use kubeveil_kubernetes::{Origin, Pace};

/// Options of every command that asks an API server.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Its kubeconfig file, whose current context counts. If not given: $KUBECONFIG, ~/.kube/config, or the account of the pod that
    /// this runs in.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

impl Server {
    pub(crate) async fn client(&self) -> Result<Client> {
        self.origin().client(&Pace::default()).await.map_err(|problem| anyhow!("{problem}"))
    }

    fn origin(&self) -> Origin {
        self.kubeconfig.clone().map_or(Origin::Usual, Origin::Kubeconfig)
    }
}
