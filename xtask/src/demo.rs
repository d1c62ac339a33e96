//! `cargo xtask demo`: the main job as a story. The story itself is the program
//! `kubeveil-demo` (in tests/); here it is built, run, and its summary kept.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build, cluster,
    machine::{self, Kernel, Machine, Request},
    report::say,
    workspace::Workspace,
};

/// Under emulation, beside other work, on a machine that is slow.
const TIME_LIMIT: u64 = 900;

#[derive(Args)]
pub(crate) struct Arguments {
    /// host, 6.12, 6.1 or canary; the machine's own where that has WireGuard, else 6.12 in a VM
    #[arg(long)]
    kernel: Option<Kernel>,
    /// Colours, whatever standard output is
    #[arg(long)]
    color: bool,
    /// On a real Kubernetes: installed by helm, rotated, agents killed, removed
    #[arg(long, conflicts_with_all = ["kernel", "color"])]
    kubernetes: bool,
}

/// Runs the demo; success only if all held.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if arguments.kubernetes {
        return cluster::demo(workspace);
    }
    machine::refuse_without_wireguard(arguments.kernel.as_ref())?;
    let programs = build::programs(workspace)?;
    let machine = Machine::ensure(workspace, arguments.kernel.as_ref())?;
    let out = workspace.fresh_folder("demo")?;
    let mut environment = machine::terminal_environment();
    if arguments.color || machine::wants_colors() {
        environment.push(("CLICOLOR_FORCE".to_owned(), "1".to_owned()));
    }
    let request = Request {
        command: vec!["kubeveil-demo".to_owned()],
        programs,
        out: Some(out.clone()),
        timeout: Some(TIME_LIMIT),
        environment,
        ..Request::default()
    };
    let status = machine.child(&request)?.status().context("start the demo")?;
    let summary = out.join("summary.json");
    if !status.success() {
        say(format!("the demo failed ({status})"));
        return Ok(ExitCode::FAILURE);
    }
    if !summary.exists() {
        bail!("the demo said that all held, and left no {}", summary.display());
    }
    say(format!("the same facts for programs: {}", summary.display()));
    Ok(ExitCode::SUCCESS)
}
