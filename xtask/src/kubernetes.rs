//! A real Kubernetes: what tests need of it, made once.

use std::path::PathBuf;

use anyhow::Result;

use crate::{process, setup, workspace::Workspace};

/// Names the folder of etcd, kube-apiserver, kubectl and helm for the tests that want them.
pub(crate) const VARIABLE: &str = "KUBEVEIL_KUBERNETES";

/// The folder of etcd, kube-apiserver, kubectl and helm: `xtask/kubernetes/control-plane.sh` says how they are made.
pub(crate) fn control_plane(workspace: &Workspace) -> Result<PathBuf> {
    setup::ensure(workspace, &[setup::GO])?;
    let mut script = process::command(workspace.script("kubernetes/control-plane.sh"));
    script.arg(&workspace.cache).env("SUDO", if process::is_root() { "" } else { "sudo" });
    let path = process::step("an API server of Kubernetes, etcd and helm (some minutes, once)", &mut script)?;
    Ok(PathBuf::from(path.trim_end()))
}
