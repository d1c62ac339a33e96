//! What a cluster is made of: built or downloaded once, into the cache.

use std::path::PathBuf;

use anyhow::Result;

use crate::{kubernetes, machine, process, setup, vm, workspace::Workspace};

/// Folders of programs and disks.
pub(super) struct Programs {
    /// etcd, kube-apiserver, kubectl and helm.
    pub(super) control: PathBuf,
    /// kube-controller-manager, kube-scheduler and the nodes' root disk.
    pub(super) nodes: PathBuf,
    /// The kernel under the nodes.
    pub(super) kernel: PathBuf,
}

impl Programs {
    /// Makes what is missing.
    pub(super) fn ensure(workspace: &Workspace) -> Result<Self> {
        let control = kubernetes::control_plane(workspace)?;
        setup::ensure(workspace, &[setup::CLUSTER, setup::EMULATOR])?;
        let mut script = process::command(workspace.script("kubernetes/nodes.sh"));
        script.arg(&workspace.cache).env("SUDO", if process::is_root() { "" } else { "sudo" });
        let printed =
            process::step("programs and disk of Kubernetes' nodes (some minutes, once)", &mut script)?;
        let kernel = vm::ensure_images(workspace, machine::DEFAULT_VERSION)?.kernel;
        Ok(Self { control, nodes: PathBuf::from(printed.trim_end()), kernel })
    }
}
