//! `cargo xtask simulate`: rotation apart from the kernel (tests/simulation): in many schedules, in every order, of thousands of nodes.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{process, workspace::Workspace};

#[derive(Args)]
pub(crate) struct Arguments {
    /// What kubeveil-simulate is told; `--help` says what that may be
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds the simulation with optimizations and runs it.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let mut cargo = process::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "kubeveil-tests-simulation", "--"]);
    cargo.args(&arguments.arguments).current_dir(&workspace.root);
    Ok(if cargo.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
