//! The plan of addresses and ports; `xtask/kubernetes/node/plan` holds the guest's part of it.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result};

/// This machine, as the guest's network shows it (QEMU's user network).
pub(super) const OUTSIDE: &str = "10.0.2.2";
pub(super) const PODS: &str = "10.244.0.0/16,fd00:10:244::/56";
pub(super) const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The first of the services' addresses: the API server's.
pub(super) const API_SERVICE: &str = "10.96.0.1";

/// A node on the wire.
pub(super) fn on_wire(node: u8) -> [String; 2] {
    [format!("10.99.0.1{node}"), format!("fd99::1{node}")]
}

/// A node on its own link to the guest, by which the API server reaches it.
pub(super) fn on_link(node: u8) -> String {
    format!("10.98.{node}.2")
}

/// A cluster that is being made: how large, where it is kept, and on which ports of the loopback it listens.
pub(super) struct Plan {
    pub(super) nodes: u8,
    /// Its state and its logs.
    pub(super) folder: PathBuf,
    /// What stands for the identities' passwords in this one cluster.
    pub(super) token: String,
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
    pub(super) api: u16,
    pub(super) controllers: u16,
    pub(super) scheduler: u16,
    /// The guest's way in.
    pub(super) guest: u16,
}

impl Plan {
    /// A plan with ports that nobody listens on.
    pub(super) fn new(nodes: u8, folder: PathBuf, token: String) -> Result<Self> {
        let [etcd, etcd_peer, api, controllers, scheduler, guest] = free_ports()?;
        Ok(Self { nodes, folder, token, etcd, etcd_peer, api, controllers, scheduler, guest })
    }

    /// The folder that the guest sees as a disk.
    pub(super) fn handed_in(&self) -> PathBuf {
        self.file("handed-in")
    }

    /// A file of the cluster's folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Ports of the loopback that are free now; all held until the last is found, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port on 127.0.0.1")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_has_the_same_plan() {
        let theirs = include_str!("../../kubernetes/node/plan");
        let (pods4, pods6) = PODS.split_once(',').expect("two ranges");
        for line in [format!("OUTSIDE={OUTSIDE} "), format!("PODS4={pods4} PODS6={pods6}")] {
            assert!(theirs.contains(&line), "{line}");
        }
        let [wire4, wire6] = on_wire(1);
        assert!(theirs.contains(&format!("WIRE4={} WIRE6={}", &wire4[..7], &wire6[..5])));
        assert!(theirs.contains(&format!("LINK={} ", &on_link(1)[..5])));
    }

    #[test]
    fn ports_differ() {
        let mut ports = free_ports::<6>().expect("free ports").to_vec();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }
}
