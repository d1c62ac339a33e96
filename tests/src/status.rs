//! What tools say of a node.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::address::Node;
use crate::lab::{Daemon, program_path};
use crate::{namespace, process};

/// `kubeveil status -o json` of a daemon, also of one that has problems to tell of.
pub fn of(daemon: &Daemon) -> Result<Value> {
    let (_, said) = asked(daemon, &["-o", "json"])?;
    serde_json::from_slice(&said).context("what `kubeveil status -o json` says")
}

/// `kubeveil status` of a daemon, as people read it, and whether it says that there is nothing for them to do.
pub fn read(daemon: &Daemon) -> Result<(bool, String)> {
    let (is_well, said) = asked(daemon, &[])?;
    Ok((is_well, String::from_utf8(said)?))
}

fn asked(daemon: &Daemon, arguments: &[&str]) -> Result<(bool, Vec<u8>)> {
    const FINDING: i32 = 1;
    let mut command = Command::new("kubeveil");
    command.env("PATH", program_path()).arg("status").args(arguments).arg("--socket");
    let output = command.arg(daemon.file("kubeveild.sock")).output().context("start kubeveil")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    ensure!(matches!(code, Some(0 | FINDING)), "kubeveil status: {}", said.trim());
    Ok((code == Some(0), output.stdout))
}

/// What a program says on its standard output, run in a node's namespace.
pub fn said_in(node: Node, program: &str, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
    let mut command = Command::new(program);
    command.env("PATH", program_path()).args(arguments);
    namespace::within(&node.name(), || process::run(&mut command, ""))
}

/// A peer of a WireGuard device, by `wg show DEVICE dump`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Its public key.
    pub key: String,
    /// Seconds since the epoch, 0 for never.
    pub handshake: u64,
    /// Bytes received and sent.
    pub bytes: [u64; 2],
    /// It has a keepalive.
    pub has_keepalive: bool,
}

/// The peers of a device; the device's own line, which has the private key, is left out.
pub fn wireguard_peers(node: Node, device: &str) -> Result<Vec<WireguardPeer>> {
    let text = said_in(node, "wg", &["show", device, "dump"])?;
    let peer = |line: &str| {
        let fields: Vec<_> = line.split('\t').collect();
        Some(WireguardPeer {
            key: (*fields.first()?).to_owned(),
            handshake: fields.get(4)?.parse().ok()?,
            bytes: [fields.get(5)?.parse().ok()?, fields.get(6)?.parse().ok()?],
            has_keepalive: *fields.get(7)? != "off",
        })
    };
    text.lines().skip(1).map(|line| peer(line).context("what `wg show dump` says")).collect()
}

/// The WireGuard devices of a node.
pub fn wireguard_devices(node: Node) -> Result<Vec<String>> {
    let text = said_in(node, "wg", &["show", "interfaces"])?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}
