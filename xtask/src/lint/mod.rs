//! `cargo xtask lint`: everything that can be judged without running the programs.

mod deny;
mod dependencies;
mod files;
mod text;

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{build, codegen, process, report, workspace::Workspace};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Leave out what compiles: clippy, and cargo-deny where it is not there yet
    #[arg(long)]
    fast: bool,
}

/// A rule of the repository, and where it is broken.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Each is a sentence that names the place.
    pub(crate) findings: Vec<String>,
    /// What deserves a look, and breaks nothing.
    pub(crate) warnings: Vec<String>,
}

impl Check {
    fn new(name: &'static str, findings: Vec<String>) -> Self {
        Self { name, findings, warnings: Vec::new() }
    }
}

/// The rules that are checked here, without another tool.
pub(crate) fn checks(workspace: &Workspace) -> Result<Vec<Check>> {
    let mut checks = dependencies::checks(workspace)?;
    checks.extend(text::checks(&files::tracked(&workspace.root)?));
    Ok(checks)
}

/// Runs every linter; all of them, also after one has found something.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let mut failed = Vec::new();
    for check in checks(workspace)? {
        check.warnings.iter().for_each(|warning| report::say(format!("warning: {}: {warning}", check.name)));
        check.findings.iter().for_each(|finding| report::say(format!("{}: {finding}", check.name)));
        if !check.findings.is_empty() {
            failed.push(check.name.to_owned());
        }
    }
    for (name, mut tool) in tools(workspace, arguments)? {
        report::say(&name);
        if let Err(error) = process::run(&mut tool) {
            report::failure(&error);
            failed.push(name);
        }
    }
    if !arguments.fast {
        report::say("codegen");
        let findings = codegen::differences(workspace)?;
        findings.iter().for_each(report::say);
        if !findings.is_empty() {
            failed.push("codegen".to_owned());
        }
    }
    if let Err(error) = deny::run(workspace, arguments.fast) {
        report::failure(&error);
        failed.push("cargo-deny".to_owned());
    }
    if failed.is_empty() {
        report::say("lint: nothing found");
        return Ok(ExitCode::SUCCESS);
    }
    report::say(format!("lint: broken: {}", failed.join(", ")));
    Ok(ExitCode::FAILURE)
}

/// rustfmt and clippy, over the workspace and over the eBPF programs (a workspace of their own); the fuzz targets are formatted.
fn tools(workspace: &Workspace, arguments: &Arguments) -> Result<Vec<(String, Command)>> {
    let programs = workspace.root.join("ebpf/programs");
    let fmt = |folder, all: Option<&str>| {
        let mut fmt = process::cargo();
        fmt.arg("fmt").args(all).arg("--check").current_dir(folder);
        fmt
    };
    let mut tools = vec![
        ("fmt".to_owned(), fmt(&workspace.root, Some("--all"))),
        ("fmt of ebpf/programs".to_owned(), fmt(&programs, None)),
        ("fmt of tests/fuzz".to_owned(), fmt(&workspace.root.join("tests/fuzz"), None)),
    ];
    if arguments.fast {
        return Ok(tools);
    }
    let object = build::ebpf(workspace)?;
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"]);
    clippy.current_dir(&workspace.root).env(build::EBPF_OBJECT, object);
    tools.push(("clippy".to_owned(), clippy));

    // For the host's target: what can be said of the programs does not depend on it, and the
    // compiler that has a `core` for BPF may come without clippy. aya-ebpf needs the features.
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--target", &build::host_triple()?, "--", "-Dwarnings"]).current_dir(&programs);
    clippy.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", workspace.target.join("ebpf-clippy"));
    tools.push(("clippy of ebpf/programs".to_owned(), clippy));
    Ok(tools)
}
