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
    /// For those that set the clock.
    clock: Option<String>,
}

impl Missing {
    /// Looks.
    pub fn look() -> Self {
        let root = !rustix::process::geteuid().is_root();
        // Written by what starts the guest (`xtask/vm/run.sh`).
        let is_guest =
            std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains(" guest.limit="));
        Self {
            root: root.then(|| "needs root".to_owned()),
            daemon: without_daemon(),
            clock: (!is_guest).then(|| "needs clock: one that nobody else goes by, as in the VM".to_owned()),
        }
    }

    /// Why a scenario can't be played.
    pub fn of(&self, bare: bool, sets_clock: bool) -> Option<String> {
        let daemon = self.daemon.clone().filter(|_| !bare);
        self.root.clone().or(daemon).or_else(|| self.clock.clone().filter(|_| sets_clock))
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
