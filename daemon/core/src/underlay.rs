//! Which devices carry frames between nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use kubeveil_abi::DEVICE_NAMES;

use crate::observed::Link;

/// The devices of which packets leave the node, by ifindex.
///
/// With `only` given, those names and nothing else. Without: hardware, whatever carries one of the
/// node's own addresses, and whatever a default route leaves by. Pods' own devices, the bridges they
/// hang on, and our tunnels are none of these.
pub fn underlay(links: &BTreeMap<u32, Link>, own: &[IpAddr], only: &[String]) -> BTreeSet<u32> {
    let chosen = |link: &Link| {
        if !only.is_empty() {
            return only.contains(&link.name);
        }
        let carries_own = link.addresses.iter().any(|net| own.contains(&net.addr()));
        link.kind.is_none() || carries_own || link.default_route
    };
    links
        .iter()
        .filter(|(_, link)| !link.loopback && !DEVICE_NAMES.contains(&link.name.as_str()) && chosen(link))
        .map(|(index, _)| *index)
        .collect()
}

/// Kinds of devices that put packets into envelopes (`ip link help`), and Open vSwitch's, behind which such a one is.
const ENVELOPING: [&str; 11] = [
    "vxlan",
    "geneve",
    "ipip",
    "sit",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "erspan",
    "openvswitch",
];

/// Devices of overlay networks, by ifindex.
pub fn overlays(links: &BTreeMap<u32, Link>) -> impl Iterator<Item = u32> {
    let is_one = |link: &Link| link.kind.as_deref().is_some_and(|kind| ENVELOPING.contains(&kind));
    links.iter().filter(move |(_, link)| is_one(link)).map(|(index, _)| *index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link { name: name.to_owned(), kind: kind.map(str::to_owned), up: true, mtu: 1500, ..Link::default() }
    }

    #[test]
    fn what_leaves_the_node() {
        let mut lo = link("lo", None);
        lo.loopback = true;
        let mut eth0 = link("eth0", Some("veth"));
        eth0.addresses.insert("192.0.2.1/24".parse().expect("net"));
        let mut bond = link("bond0", Some("bond"));
        bond.default_route = true;
        let links: BTreeMap<u32, Link> = [
            lo,
            eth0,
            link("ens3", None),
            bond,
            link("cni0", Some("bridge")),
            link("veth1234", Some("veth")),
            link("kubeveil0", Some("wireguard")),
        ]
        .into_iter()
        .zip(1..)
        .map(|(link, index)| (index, link))
        .collect();
        let own = ["192.0.2.1".parse().expect("ip")];
        assert_eq!(underlay(&links, &own, &[]), [2, 3, 4].into());
        assert_eq!(underlay(&links, &own, &["cni0".to_owned()]), [5].into());
    }

    #[test]
    fn overlays_by_their_kind() {
        let kinds = [None, Some("veth"), Some("vxlan"), Some("bridge"), Some("ipip"), Some("wireguard")];
        let links = (1..).zip(kinds.map(|kind| link("any", kind))).collect();
        assert_eq!(overlays(&links).collect::<Vec<_>>(), [3, 5]);
    }
}
