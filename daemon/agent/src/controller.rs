//! `kubeveild controller`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use kubeveil_controller::Options;
use tokio::runtime::Runtime;

use crate::{
    args::{Args, Controller, SourceArg},
    run,
};

pub(crate) fn run(args: &Args, options: &Controller) -> Result<ExitCode> {
    run::log(args)?;
    let SourceArg::Kubernetes(origin) = &options.source else {
        bail!("--source: a folder of manifests has no controller: write the mesh's ranges into it");
    };
    let runtime = Runtime::new().context("start the async runtime")?;
    runtime.block_on(kubeveil_controller::run(Options {
        origin: origin.clone(),
        namespace: options.namespace.clone(),
        identity: options.identity.clone(),
        health_address: options.health_address,
    }))?;
    Ok(ExitCode::SUCCESS)
}
