//! The process' own view of mounts and its duty towards orphans, so that a lab leaves nothing behind
//! and two labs on one machine do not meet.

use std::fs;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{getpid, set_child_subreaper};

use crate::namespace;

/// Gives the calling thread, and what it starts, a mount namespace with an empty `/run/netns`; and
/// makes the process the parent of orphans among its descendants. Call it before there are threads.
///
/// Names of network namespaces are mounts. In a mount namespace of its own the lab's fixed names clash
/// with nobody's, and the kernel takes them away with the last process, however that ended.
pub fn make_private() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (are you root?)")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("keep mounts from leaving the new namespace")?;
    fs::create_dir_all(namespace::FOLDER).context("make the folder of network namespaces")?;
    mount("tmpfs", namespace::FOLDER, "tmpfs", MountFlags::empty(), None)
        .context("mount an empty folder of network namespaces")?;
    set_child_subreaper(Some(getpid())).context("become the parent of orphans")
}
