//! The lab's network as data: what has to be made, in which order. Pure.
//!
//! ```text
//!  pod-1a   pod-1b        pod-2a   pod-2b
//!   eth0     eth0          eth0     eth0      10.244.n.10, .11   fd00:244:n::10, ::11
//!     |       |              |       |
//!   veth-a  veth-b         veth-a  veth-b
//!     +--cni0-+              +--cni0-+        10.244.n.1         fd00:244:n::1
//!      node-1                 node-2
//!       eth0                   eth0           192.0.2.n          2001:db8::n
//!        |                      |
//!      port-1 ---- wire0 ---- port-2          namespace `wire`; captures listen on wire0
//! ```

use std::net::IpAddr;

use super::overlay::{self, Overlay};
use crate::address::{Families, Family, Node, Pod, nodes};

/// The namespace of the wire.
pub const WIRE: &str = "wire";
/// The bridge in it, which every frame between nodes crosses.
pub const BRIDGE: &str = "wire0";
/// A node's bridge, on which its pods hang.
pub(super) const PODS: &str = "cni0";

/// One setting below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sysctl {
    /// Its path, with slashes.
    pub(super) key: &'static str,
    /// What is written.
    pub(super) value: &'static str,
}

/// What is done inside one namespace, by one `ip -batch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    /// Its name.
    pub(super) namespace: String,
    /// Written after the namespace is made, before it has a device: devices take over defaults.
    pub(super) sysctls: Vec<Sysctl>,
    /// Lines of `ip -batch`.
    pub(super) lines: Vec<String>,
}

/// The whole network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// Lines of `ip -batch`, outside of all namespaces, that make the devices in pairs.
    pub(super) links: Vec<String>,
    /// Each namespace.
    pub(super) inner: Vec<Inner>,
}

impl Network {
    /// The network of so many nodes.
    pub(super) fn plan(count: u8, families: Families, overlay: Overlay) -> Self {
        let mut inner = vec![wire(count)];
        let mut links = Vec::new();
        for node in nodes(count) {
            links.push(pair("eth0", &node.name(), &format!("port-{}", node.0), WIRE));
            inner.push(node_inner(node, count, families, overlay));
            for pod in node.pods() {
                links.push(link_of(pod));
                inner.push(Inner {
                    namespace: pod.name(),
                    sysctls: common(),
                    lines: pod_lines(pod, families),
                });
            }
        }
        Self { links, inner }
    }

    /// The lines that make the namespaces.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.inner.iter().map(|inner| format!("netns add {}", inner.namespace)).collect()
    }
}

/// Makes the devices of a pod.
pub(super) fn link_of(pod: Pod) -> String {
    pair("eth0", &pod.name(), &device_of(pod), &pod.node.name())
}

/// The node's end of them.
pub(super) fn device_of(pod: Pod) -> String {
    format!("veth-{}", pod.letter)
}

/// What takes a pod off its node's bridge, and gives it a route of its own, as plugins that route do.
pub(super) fn routed_lines(pod: Pod, families: Families) -> Vec<String> {
    let device = device_of(pod);
    let mut lines = vec![format!("link set dev {device} nomaster up")];
    for &family in families.all() {
        let whole = if family == Family::V4 { 32 } else { 128 };
        lines.push(address(pod.node.gateway(family), whole, &device, family));
        lines.push(format!("route add {}/{whole} dev {device}", pod.address(family)));
    }
    lines
}

fn pair(device: &str, namespace: &str, peer: &str, peer_namespace: &str) -> String {
    format!("link add {device} netns {namespace} type veth peer name {peer} netns {peer_namespace}")
}

fn wire(count: u8) -> Inner {
    // No snooping: what the bridge does not know as a group's member would not be forwarded to it,
    // and neighbour discovery would depend on timing.
    let mut lines = vec![
        format!("link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0"),
        format!("link set dev {BRIDGE} up"),
    ];
    for node in nodes(count) {
        lines.push(format!("link set dev port-{} master {BRIDGE} up", node.0));
    }
    // The wire is a cable, so it has no addresses of its own.
    let mut sysctls = common();
    sysctls.push(Sysctl { key: "net/ipv6/conf/default/disable_ipv6", value: "1" });
    Inner { namespace: WIRE.to_owned(), sysctls, lines }
}

/// No duplicate address detection: addresses are the lab's, and it would cost a second each. No router
/// advertisements: nobody sends any. No word from who waits in vain for the rest of a packet (after 30 seconds, by ICMP, with its first
/// bytes): on a slow machine it could pass for what a later test sent.
pub(super) fn common() -> Vec<Sysctl> {
    vec![
        Sysctl { key: "net/ipv4/ipfrag_time", value: "3600" },
        Sysctl { key: "net/ipv6/ip6frag_time", value: "3600" },
        Sysctl { key: "net/ipv6/conf/default/accept_dad", value: "0" },
        Sysctl { key: "net/ipv6/conf/default/dad_transmits", value: "0" },
        Sysctl { key: "net/ipv6/conf/default/accept_ra", value: "0" },
        Sysctl { key: "net/ipv6/conf/default/router_solicitations", value: "0" },
    ]
}

fn node_inner(node: Node, count: u8, families: Families, overlay: Overlay) -> Inner {
    let mut sysctls = common();
    sysctls.extend([
        Sysctl { key: "net/ipv4/ip_forward", value: "1" },
        Sysctl { key: "net/ipv6/conf/all/forwarding", value: "1" },
        // As systemd's 50-default.conf has it on Debian and its kin: loose, by the default alone.
        Sysctl { key: "net/ipv4/conf/all/rp_filter", value: "0" },
        Sysctl { key: "net/ipv4/conf/default/rp_filter", value: "2" },
    ]);
    Inner { namespace: node.name(), sysctls, lines: node_lines(node, count, families, overlay) }
}

fn node_lines(node: Node, count: u8, families: Families, overlay: Overlay) -> Vec<String> {
    let mut lines = vec![
        "link set dev lo up".to_owned(),
        // A packet of many segments is cut before it leaves, so that a capture shows frames as a real
        // wire carries them. What pods hand to the node stays large, as on a real node.
        format!("link set dev eth0 address {} gso_max_segs 1 up", node.mac()),
        // As plugins do it: one of its own, or it would change as pods come and go, and those that stay would send to what it was.
        format!("link add cni0 address 06:00:00:00:00:{:02x} type bridge stp_state 0", node.0),
        "link set dev veth-a master cni0 up".to_owned(),
        "link set dev veth-b master cni0 up".to_owned(),
        "link set dev cni0 up".to_owned(),
    ];
    for &family in families.all() {
        let (node_length, pod_length) = prefix_lengths(family);
        lines.push(address(node.address(family), node_length, "eth0", family));
        lines.push(address(node.gateway(family), pod_length, "cni0", family));
    }
    for other in nodes(count).filter(|&other| other != node) {
        lines.extend(overlay::lines(overlay, node, other, families));
    }
    lines
}

/// What is done in a pod that has a device.
pub(super) fn pod_lines(pod: Pod, families: Families) -> Vec<String> {
    let mut lines = vec!["link set dev lo up".to_owned(), "link set dev eth0 up".to_owned()];
    for &family in families.all() {
        let (_, length) = prefix_lengths(family);
        let gateway = pod.node.gateway(family);
        lines.push(address(pod.address(family), length, "eth0", family));
        lines.push(format!("route add {} via {gateway} dev eth0", default_route(family)));
    }
    lines
}

fn address(address: IpAddr, length: u8, device: &str, family: Family) -> String {
    let nodad = if family == Family::V6 { " nodad" } else { "" };
    format!("address add {address}/{length} dev {device}{nodad}")
}

/// Of a node's address, and of a pod's.
fn prefix_lengths(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (24, 24),
        Family::V6 => (64, 64),
    }
}

fn default_route(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(network: &Network, namespace: &str) -> Vec<String> {
        let found = network.inner.iter().find(|inner| inner.namespace == namespace);
        found.expect("a namespace").lines.clone()
    }

    #[test]
    fn the_namespaces_of_the_contract() {
        let names: Vec<_> = Network::plan(2, Families::Dual, Overlay::None)
            .inner
            .into_iter()
            .map(|inner| inner.namespace)
            .collect();
        assert_eq!(names, ["wire", "node-1", "pod-1a", "pod-1b", "node-2", "pod-2a", "pod-2b"]);
    }

    #[test]
    fn a_node_has_a_route_to_each_other_nodes_pods() {
        let lines = lines_of(&Network::plan(3, Families::Dual, Overlay::None), "node-2");
        let routes: Vec<_> = lines.iter().filter(|line| line.starts_with("route")).collect();
        assert_eq!(
            routes,
            [
                "route add 10.244.1.0/24 via 192.0.2.1 dev eth0",
                "route add fd00:244:1::/64 via 2001:db8::1 dev eth0",
                "route add 10.244.3.0/24 via 192.0.2.3 dev eth0",
                "route add fd00:244:3::/64 via 2001:db8::3 dev eth0",
            ]
        );
    }

    #[test]
    fn a_family_that_is_absent_leaves_no_trace() {
        for (families, absent) in [(Families::Ipv4, "::"), (Families::Ipv6, ".244.")] {
            let network = Network::plan(3, families, Overlay::None);
            let found =
                network.inner.iter().flat_map(|inner| &inner.lines).find(|line| line.contains(absent));
            assert_eq!(found, None);
        }
    }
}
