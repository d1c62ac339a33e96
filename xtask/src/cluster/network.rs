//! The pods' network: the bridge plugin on each node, and between the nodes plain routes, or flannel.

use std::{fmt::Write, time::Duration};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{
    Cluster, guest,
    plan::{Plan, on_link, on_wire},
    processes,
};

/// A node's ranges of pod addresses, IPv4 first.
struct NodeRanges {
    node: u8,
    pods: [String; 2],
}

/// How packets get from one node's pods to another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Cni {
    /// Plain routes
    Bridge,
    /// flannel's vxlan
    Flannel,
    /// Routes that flannel sets
    FlannelHostGw,
}

impl Cni {
    /// Where a cluster of it is kept: each has a folder of its own, so that the logs of one outlive the next.
    pub(super) const fn folder(self) -> &'static str {
        match self {
            Self::Bridge => "cluster",
            Self::Flannel => "cluster-flannel",
            Self::FlannelHostGw => "cluster-flannel-host-gw",
        }
    }

    /// flannel's, where it is one.
    pub(super) fn manifest(self) -> Option<String> {
        let backend = match self {
            Self::Bridge => return None,
            Self::Flannel => r#"{"Type": "vxlan", "VNI": 1, "Port": 8472}"#,
            Self::FlannelHostGw => r#"{"Type": "host-gw"}"#,
        };
        Some(include_str!("../../kubernetes/flannel/flannel.yaml").replacen(
            "\"Backend\": @BACKEND@",
            &format!("\"Backend\": {backend}"),
            1,
        ))
    }

    /// What fits through from pod to pod: a vxlan between IPv6 nodes takes 70 bytes.
    const fn mtu(self) -> u32 {
        match self {
            Self::Bridge | Self::FlannelHostGw => 1500,
            Self::Flannel => 1430,
        }
    }
}

/// Asks kubectl for the nodes' ranges, in the form of [`read_ranges`].
const RANGES: &str =
    "jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDRs[0]} {.spec.podCIDRs[1]}{\"\\n\"}{end}";

/// Reads lines of `node-1 10.244.0.0/24 fd00:10:244::/64`; `None` while a node still lacks a range.
fn read_ranges(lines: &str, nodes: u8) -> Option<Vec<NodeRanges>> {
    let ranges = lines.lines().map(|line| {
        let mut words = line.split_whitespace();
        let node = words.next()?.strip_prefix("node-")?.parse().ok()?;
        Some(NodeRanges { node, pods: [words.next()?.to_owned(), words.next()?.to_owned()] })
    });
    let ranges = ranges.collect::<Option<Vec<_>>>()?;
    (ranges.len() == usize::from(nodes)).then_some(ranges)
}

/// What nodes may take to register under emulation on a busy machine, and to be given their ranges.
const REGISTERED: Duration = Duration::from_secs(600);

impl Cluster {
    /// As the plugins of a cluster do it when nodes come.
    pub(super) fn lay_network(&mut self) -> Result<()> {
        let mut list = self.kubectl(&["get", "nodes", "-o", RANGES]);
        let (mut ranges, nodes) = (Vec::new(), self.plan.nodes);
        self.processes.wait_until("the nodes have their ranges", REGISTERED, || {
            let lines = processes::output(&mut list).unwrap_or_default();
            read_ranges(&lines, nodes).map(|read| ranges = read).is_some()
        })?;
        // Whoever is asked before its first process has made its root is in the VM's.
        for node in 1..=nodes {
            let port = self.plan.guest;
            self.processes.wait_until(&format!("node-{node} has a root"), REGISTERED, || {
                guest::run(port, &node.to_string(), "[[ -S /run/containerd/containerd.sock ]]", b"").is_ok()
            })?;
        }
        lay(&self.plan, self.cni, &ranges)
    }
}

/// Lays it. The guest itself gets routes to the pods too: by them the API server reaches webhooks.
fn lay(plan: &Plan, cni: Cni, ranges: &[NodeRanges]) -> Result<()> {
    let mut routes = String::new();
    for own in ranges {
        let at = format!("the network of node-{}", own.node);
        let write = "cat >/etc/cni/net.d/10-bridge.conflist";
        guest::run(plan.guest, &own.node.to_string(), write, plugin(own, cni.mtu()).as_bytes())
            .context(at)?;
        writeln!(routes, "ip route replace {} via {}", own.pods[0], on_link(own.node))?;
        // flannel sets those between the nodes.
        let others = ranges.iter().filter(|other| other.node != own.node && cni == Cni::Bridge);
        for other in others {
            for (pods, via) in other.pods.iter().zip(on_wire(other.node)) {
                writeln!(routes, "ip -n node-{} route replace {pods} via {via}", own.node)?;
            }
        }
    }
    guest::run(plan.guest, "vm", &format!("set -e\n{routes}"), b"").context("routes between the nodes")?;
    Ok(())
}

fn plugin(own: &NodeRanges, mtu: u32) -> String {
    let [pods4, pods6] = &own.pods;
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
 {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": {mtu}, "enabledad": false,
  "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{pods4}"}}], [{{"subnet": "{pods6}"}}]],
           "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
 {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_waited_for_until_all_have_both_ranges() {
        let two = "node-1 10.244.0.0/24 fd00:10:244::/64\nnode-2 10.244.1.0/24 fd00:10:244:1::/64\n";
        let ranges = read_ranges(two, 2).expect("complete");
        assert_eq!((ranges[1].node, ranges[1].pods[1].as_str()), (2, "fd00:10:244:1::/64"));
        assert!(read_ranges(two, 3).is_none());
        assert!(read_ranges("node-1 10.244.0.0/24\n", 1).is_none());
        assert!(read_ranges("", 1).is_none());
    }
}
