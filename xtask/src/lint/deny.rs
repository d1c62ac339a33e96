//! cargo-deny: licences, advisories, bans and sources of what we depend on (deny.toml).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{process, report::say, workspace::Workspace};

/// Its rules and output change between versions.
const VERSION: &str = "0.20.2";

/// Runs it; the advisories only where their database is to be had.
pub(super) fn run(workspace: &Workspace, fast: bool) -> Result<()> {
    let Some(deny) = ensure(workspace, fast)? else {
        say("cargo-deny: left out, it is not installed yet (`cargo xtask lint` does it)");
        return Ok(());
    };
    let mut failed = Vec::new();
    for manifest in ["Cargo.toml", "ebpf/programs/Cargo.toml", "tests/fuzz/Cargo.toml"] {
        say(format!("cargo-deny: licences, bans, sources of {manifest}"));
        let mut check = check(&deny, workspace, manifest, &["licenses", "bans", "sources"]);
        if process::run(&mut check).is_err() {
            failed.push(format!("licences, bans or sources of {manifest}"));
        }
    }
    if let Some(what) = advisories(&deny, workspace) {
        failed.push(what);
    }
    if failed.is_empty() { Ok(()) } else { bail!("cargo-deny: {}", failed.join(", ")) }
}

/// The program, installed where it is missing. It compiles for minutes, once a machine.
fn ensure(workspace: &Workspace, fast: bool) -> Result<Option<PathBuf>> {
    let root = workspace.cache.join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if program.exists() {
        return Ok(Some(program));
    }
    if fast {
        return Ok(None);
    }
    let mut install = process::cargo();
    install.args(["install", "cargo-deny", "--version", VERSION, "--locked", "--root"]).arg(&root);
    // It runs for a second: no need to spend minutes on making it quick.
    install.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_LTO", "off");
    install.env("CARGO_TARGET_DIR", root.join("build"));
    process::step(
        &format!("cargo install cargo-deny {VERSION} (checks licences; some minutes, once)"),
        &mut install,
    )?;
    std::fs::remove_dir_all(root.join("build"))?;
    Ok(Some(program))
}

/// cargo-deny over one workspace, with our rules.
fn with_rules(deny: &Path, workspace: &Workspace, manifest: &str) -> Command {
    let mut command = process::command(deny);
    command.arg("--manifest-path").arg(workspace.root.join(manifest));
    command.arg("--config").arg(workspace.root.join("deny.toml")).current_dir(&workspace.root);
    command
}

fn check(deny: &Path, workspace: &Workspace, manifest: &str, what: &[&str]) -> Command {
    let mut check = with_rules(deny, workspace, manifest);
    // The eBPF programs share the file, and have no need of its exceptions.
    check.args(["check", "--hide-inclusion-graph", "-A", "license-exception-not-encountered"]).args(what);
    check
}

/// Known vulnerabilities. The database is a git repository; where it can't be had, that is
/// said, and is no finding.
fn advisories(deny: &Path, workspace: &Workspace) -> Option<String> {
    let mut fetch = with_rules(deny, workspace, "Cargo.toml");
    fetch.env("GIT_TERMINAL_PROMPT", "0");
    if let Err(error) = process::output(fetch.args(["fetch", "db"])) {
        say("cargo-deny: advisories are NOT checked: their database is not to be had here");
        say(format!("cargo-deny: ({})", last_words(&error)));
        return None;
    }
    say("cargo-deny: advisories");
    let mut check = check(deny, workspace, "Cargo.toml", &["advisories"]);
    process::run(&mut check).is_err().then(|| "advisories".to_owned())
}

/// The last clause of an error's last line: what it came down to.
fn last_words(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.lines().last().unwrap_or_default();
    line.rsplit_once("ERROR] ").map_or(line, |(_, words)| words).to_owned()
}
