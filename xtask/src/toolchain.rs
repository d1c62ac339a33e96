//! A cargo that builds for BPF with a stable compiler: `xtask/ebpf/toolchain.sh` says how.

use std::path::PathBuf;

use anyhow::Result;

use crate::{process, setup, workspace::Workspace};

/// Makes the toolchain where it is missing, and gives the path of its cargo.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    setup::ensure(workspace, &[setup::COMPILER])?;
    let mut script = process::command(workspace.script("ebpf/toolchain.sh"));
    script.arg(&workspace.cache).env("SUDO", if process::is_root() { "" } else { "sudo" });
    let path =
        process::step("eBPF toolchain (a stable rustc has no core and no linker for BPF)", &mut script)?;
    Ok(PathBuf::from(path.trim_end()))
}
