//! Overlay networks, as CNIs lay them: one device for each other node, and a route by it to that node's pods. Pure.

use std::fmt;

use crate::address::{Families, Family, Node};

/// How packets of pods get from node to node while nobody encrypts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Overlay {
    /// As they are: each node has routes to the others' pods.
    #[default]
    None,
    /// In VXLAN, by devices with an address among the node's pods, as flannel has them.
    Vxlan,
    /// In Geneve, by devices without an address.
    Geneve,
    /// In IP itself: IPIP and SIT, or over IPv6 ip6tnl.
    Ipip,
    /// In GRE.
    Gre,
}

impl Overlay {
    /// All that put packets into envelopes.
    pub const ENVELOPES: [Self; 4] = [Self::Vxlan, Self::Geneve, Self::Ipip, Self::Gre];
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Ipip => "ipip",
            Self::Gre => "gre",
        })
    }
}

/// The lines of `ip -batch` by which `node` reaches the pods of `other`. Envelopes go over IPv4 where there is some.
pub(super) fn lines(overlay: Overlay, node: Node, other: Node, families: Families) -> Vec<String> {
    let device = format!("over-{}", other.0);
    let (own, far) = families.first(|family| (node.address(family), other.address(family)));
    let is_v6 = own.is_ipv6();
    // The same number on both sides, and for no other pair.
    let (low, high) = (node.0.min(other.0), node.0.max(other.0));
    let id = u32::from(low) << 8 | u32::from(high);
    let mac = mac(node, other);
    let mut lines = Vec::new();
    match overlay {
        Overlay::None => {
            for &family in families.all() {
                let (to, by) = (other.pod_cidr(family), other.address(family));
                lines.push(format!("route add {to} via {by} dev eth0"));
            }
            return lines;
        }
        Overlay::Vxlan => lines.push(format!(
            "link add {device} address {mac} type vxlan id {id} local {own} remote {far} dstport 8472"
        )),
        Overlay::Geneve => lines
            .push(format!("link add {device} address {mac} type geneve id {id} remote {far} dstport 6081")),
        Overlay::Ipip if is_v6 => {
            lines.push(format!("link add {device} type ip6tnl mode any local {own} remote {far}"));
        }
        Overlay::Ipip => {
            lines.push(format!("link add {device} type ipip local {own} remote {far}"));
            lines.push(format!("link add {device}-six type sit local {own} remote {far}"));
            lines.push(format!("link set dev {device}-six up"));
        }
        Overlay::Gre => {
            let kind = if is_v6 { "ip6gre" } else { "gre" };
            lines.push(format!("link add {device} type {kind} local {own} remote {far}"));
        }
    }
    lines.push(format!("link set dev {device} up"));
    let is_ethernet = matches!(overlay, Overlay::Vxlan | Overlay::Geneve);
    for &family in families.all() {
        let to = other.pod_cidr(family);
        if is_ethernet {
            // Nobody is asked who has an address: a CNI knows, and says so.
            let hop = hop(other, family);
            if overlay == Overlay::Vxlan {
                lines.push(own_address(node, &device, family));
            }
            let far_mac = self::mac(other, node);
            lines.push(format!("neighbour replace {hop} lladdr {far_mac} dev {device} nud permanent"));
            lines.push(format!("route add {to} via {hop} dev {device} onlink"));
        } else {
            let six = if overlay == Overlay::Ipip && !is_v6 && family == Family::V6 { "-six" } else { "" };
            lines.push(format!("route add {to} dev {device}{six}"));
        }
    }
    lines
}

/// Of `node`'s device for `other`.
fn mac(node: Node, other: Node) -> String {
    format!("02:00:00:01:{:02x}:{:02x}", node.0, other.0)
}

/// Stands for the far end of the device for `other`.
fn hop(other: Node, family: Family) -> String {
    match family {
        Family::V4 => format!("169.254.77.{}", other.0),
        Family::V6 => format!("fe80::77:{}", other.0),
    }
}

/// As flannel gives its device one: the first of the node's pods' addresses.
fn own_address(node: Node, device: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("address add 10.244.{}.0/32 dev {device}", node.0),
        Family::V6 => format!("address add fd00:244:{}::/128 dev {device} nodad", node.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_agree() {
        let lines = |node, other| lines(Overlay::Vxlan, Node(node), Node(other), Families::Dual).join("\n");
        let (here, there) = (lines(1, 3), lines(3, 1));
        for (text, own, far, own_mac, far_mac) in [
            (&here, "192.0.2.1", "192.0.2.3", "02:00:00:01:01:03", "02:00:00:01:03:01"),
            (&there, "192.0.2.3", "192.0.2.1", "02:00:00:01:03:01", "02:00:00:01:01:03"),
        ] {
            assert!(text.contains(&format!("address {own_mac} type vxlan id 259 local {own} remote {far}")));
            assert!(text.contains(&format!("lladdr {far_mac}")));
        }
        assert_ne!(mac(Node(1), Node(2)), mac(Node(1), Node(3)));
    }

    #[test]
    fn every_family_has_a_route() {
        for overlay in [Overlay::None].into_iter().chain(Overlay::ENVELOPES) {
            for families in [Families::Dual, Families::Ipv4, Families::Ipv6] {
                let lines = lines(overlay, Node(1), Node(2), families);
                for &family in families.all() {
                    let wanted = format!("route add {} ", Node(2).pod_cidr(family));
                    assert_eq!(lines.iter().filter(|line| line.starts_with(&wanted)).count(), 1, "{lines:?}");
                }
            }
        }
    }
}
