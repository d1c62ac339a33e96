//! The guest: a kernel of Debian's with WireGuard, emulated, with the machine's tools.

use std::{
    env::consts::ARCH,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{process, setup, workspace::Workspace};

/// What a guest boots from.
pub(crate) struct Images {
    /// Folder of the kernel, its modules and the first file system.
    pub(crate) kernel: PathBuf,
    /// The root's image.
    pub(crate) tools: PathBuf,
    /// The kernel's full version.
    pub(crate) release: String,
}

/// Makes what is missing of a guest with kernel `version`.
pub(crate) fn ensure_images(workspace: &Workspace, version: &str) -> Result<Images> {
    ensure!(
        ARCH == "x86_64",
        "the VM's kernel is x86_64 and this machine is {ARCH}: use a kernel that has WireGuard, and --kernel host"
    );
    setup::ensure(workspace, &[setup::EMULATOR, setup::LAB])?;
    let kernel = script(workspace, "vm/kernel.sh", &format!("kernel {version} of the VM"), Some(version))?;
    let tools = script(workspace, "vm/tools.sh", "the VM's tools (from this machine)", None)?;
    let release = read_release(&kernel)?;
    Ok(Images { kernel, tools, release })
}

fn script(workspace: &Workspace, name: &str, what: &str, argument: Option<&str>) -> Result<PathBuf> {
    let mut script = process::command(workspace.script(name));
    script.arg(workspace.cache.join("vm")).args(argument);
    script.env("SUDO", if process::is_root() { "" } else { "sudo" });
    let printed = process::step(what, &mut script)?;
    let path = printed.lines().last().with_context(|| format!("{name} printed no path"))?;
    Ok(PathBuf::from(path))
}

fn read_release(kernel: &Path) -> Result<String> {
    let file = kernel.join("release");
    let release = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    Ok(release.trim().to_owned())
}
