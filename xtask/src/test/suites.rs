//! The binaries of the workspace that hold tests, built in one go.
//!
//! They are started by us and not by `cargo test`: some need root, and one that crashes is
//! then known by name.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Built},
    process,
    workspace::Workspace,
};

/// Its scenarios need the lab; the tests within its library and programs do not.
const LAB: &str = "kubeveil-tests";
/// Its tests load programs into the kernel.
const BPF: &str = "kubeveil-tests-bpf";
/// Its tests need an API server.
const KUBERNETES: &str = "kubeveil-tests-kubernetes";

/// A test binary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    /// The package's folder: where tests expect to be run.
    pub(crate) folder: PathBuf,
}

/// Everything that needs neither root nor a kernel of its own.
pub(crate) fn unit(workspace: &Workspace, object: &Path) -> Result<Vec<Suite>> {
    built(workspace, object, &["--workspace"], |built, package| {
        ![BPF, KUBERNETES].contains(&package) && (package != LAB || !built.target.is("test"))
    })
}

/// The programs under BPF_PROG_TEST_RUN. Built with the rest where the rest is built too: alone,
/// its dependencies have other features, and would be compiled once more.
pub(crate) fn bpf(workspace: &Workspace, object: &Path, alone: bool) -> Result<Vec<Suite>> {
    let scope: &[&str] = if alone { &["--package", BPF] } else { &["--workspace"] };
    built(workspace, object, scope, |_, package| package == BPF)
}

/// What holds the sources to a real API server. Built with all else, see [`bpf`].
pub(crate) fn kubernetes(workspace: &Workspace, object: &Path) -> Result<Vec<Suite>> {
    built(workspace, object, &["--workspace"], |_, package| package == KUBERNETES)
}

fn built(
    workspace: &Workspace,
    object: &Path,
    scope: &[&str],
    wanted: impl Fn(&Built, &str) -> bool,
) -> Result<Vec<Suite>> {
    let mut build = process::cargo();
    build.args(["test", "--no-run", "--message-format=json-render-diagnostics"]).args(scope);
    build.current_dir(&workspace.root).env(build::EBPF_OBJECT, object);
    let mut suites = Vec::new();
    for built in build::executables(&mut build)?.into_iter().filter(Built::is_test) {
        let folder = built.manifest_path.parent().context("a manifest without a folder")?.to_owned();
        let package = workspace.packages.iter().find(|p| p.manifest_path == built.manifest_path);
        let package = package.map_or("", |p| p.name.as_str());
        if !wanted(&built, package) {
            continue;
        }
        let name = format!("{package}: {}", built.target.name);
        suites.push(Suite { name, executable: built.executable.context("no executable")?, folder });
    }
    if suites.is_empty() {
        bail!("no test binary came of {}", process::name_of(&build));
    }
    Ok(suites)
}
