//! `kubeveild controller`, and `kubeveild hook`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use kubeveil_cli::SourceArg;
use kubeveil_controller::{Options, hook};
use kubeveil_kubernetes::Origin;
use tokio::runtime::Runtime;

use crate::{
    args::{self, Args, Controller, Hook},
    run,
};

pub(crate) fn run(args: &Args, options: &Controller) -> Result<ExitCode> {
    run::log(args)?;
    let origin = origin(&options.source)?;
    runtime()?.block_on(kubeveil_controller::run(Options {
        origin: origin.clone(),
        namespace: options.namespace.clone(),
        identity: options.identity.clone(),
        health_address: options.health_address,
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Exit code where nodes are left after the time was up.
const LEFT: u8 = 4;

pub(crate) fn hook(args: &Args, hook: &Hook) -> Result<ExitCode> {
    run::log(args)?;
    match hook {
        Hook::ApplyCrds { source } => runtime()?.block_on(hook::apply_definitions(&origin(source)?))?,
        Hook::Uninstall { source, timeout } => {
            if let Err(hook::Left(nodes)) =
                runtime()?.block_on(hook::uninstall(&origin(source)?, *timeout))?
            {
                tracing::error!(
                    "after {} s there may be something of kubeveil on {} nodes still: {}. Where an agent is gone, run `kubeveild uninstall` on its node",
                    timeout.as_secs(),
                    nodes.len(),
                    nodes.join("; ")
                );
                return Ok(ExitCode::from(LEFT));
            }
        }
        Hook::TestEcho { port } => runtime()?.block_on(hook::serve_echo(*port))?,
        Hook::Test { source, node, namespace, echo, port, timeout } => {
            let trial = hook::Trial {
                origin: origin(source)?,
                node: node.clone(),
                namespace: namespace.clone(),
                selector: echo.clone(),
                port: *port,
                timeout: *timeout,
            };
            let seen = runtime()?.block_on(hook::try_traffic(&trial))?;
            tracing::info!("{seen}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn origin(source: &SourceArg) -> Result<Origin> {
    match source {
        SourceArg::Kubernetes(file) => Ok(args::origin(file.as_ref())),
        SourceArg::Folder(_) => {
            bail!("--source: must be an API server: a folder of manifests has no controller")
        }
    }
}

fn runtime() -> Result<Runtime> {
    Runtime::new().context("start the async runtime")
}
