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
    let mut build = process::cargo();
    build.args(["test", "--workspace", "--no-run", "--exclude", BPF]);
    built(workspace, object, build, |built, package| package != LAB || !built.target.is("test"))
}

/// The programs under BPF_PROG_TEST_RUN.
pub(crate) fn bpf(workspace: &Workspace, object: &Path) -> Result<Vec<Suite>> {
    let mut build = process::cargo();
    build.args(["test", "--no-run", "--package", BPF]);
    built(workspace, object, build, |_, _| true)
}

fn built(
    workspace: &Workspace,
    object: &Path,
    mut build: std::process::Command,
    wanted: impl Fn(&Built, &str) -> bool,
) -> Result<Vec<Suite>> {
    build.arg("--message-format=json-render-diagnostics").current_dir(&workspace.root);
    build.env(build::EBPF_OBJECT, object);
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
