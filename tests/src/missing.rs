//! What a machine lacks of what the lab's tests need.

use std::process::Command;

use crate::lab::program_path;

/// What this machine lacks, in the words that `cargo xtask test` knows.
#[derive(Clone, Debug, Default)]
pub struct Missing {
    /// For every scenario.
    pub root: Option<String>,
    /// For those that need a daemon.
    daemon: Option<String>,
}

impl Missing {
    /// Looks.
    pub fn look() -> Self {
        let root = !rustix::process::geteuid().is_root();
        Self { root: root.then(|| "needs root".to_owned()), daemon: without_daemon() }
    }

    /// Why a scenario can't be played.
    pub fn of(&self, bare: bool) -> Option<String> {
        self.root.clone().or_else(|| self.daemon.clone().filter(|_| !bare))
    }
}

fn without_daemon() -> Option<String> {
    // Made and taken away again: the kernel may have to load a module for it.
    let device = "kubeveil-try";
    let made = Command::new("ip").args(["link", "add", "name", device, "type", "wireguard"]).output();
    if !made.is_ok_and(|output| output.status.success()) {
        return Some("needs wireguard in the kernel".to_owned());
    }
    let _ = Command::new("ip").args(["link", "del", "dev", device]).output();
    let there = std::env::split_paths(&program_path()).any(|folder| folder.join("kubeveild").exists());
    (!there).then(|| "needs kubeveild on PATH".to_owned())
}
