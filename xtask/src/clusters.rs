//! `cargo xtask clusters`: what policies come to in random clusters, held to a reference that was written apart. The tests look at some
//! thousands; this at as many as somebody has time for.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{process, workspace::Workspace};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many, for each property
    #[arg(long, default_value_t = 1_000_000)]
    number: u32,
}

/// Runs the properties of policies with optimizations.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let mut cargo = process::cargo();
    cargo.args(["test", "--release", "--package", "kubeveil-core", "--lib", "policy::tests"]);
    cargo.env("KUBEVEIL_CLUSTERS", arguments.number.to_string()).current_dir(&workspace.root);
    Ok(if cargo.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
