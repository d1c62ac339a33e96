//! Which devices carry frames between nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubeveil_abi::{DEVICE_NAMES, ENVELOPE_PORTS, GENEVE};

use crate::{
    observed::Link,
    problem::{Problem, ProblemKind},
};

/// What is known of the cluster's addresses.
#[derive(Clone, Debug, Default)]
pub struct Addresses<'a> {
    /// This node's.
    pub own: &'a [IpAddr],
    /// The other nodes'.
    pub nodes: Vec<IpAddr>,
    /// Ranges of pods.
    pub pods: &'a [IpNet],
}

/// The devices of which packets leave the node, by ifindex.
///
/// Always: whatever carries one of the node's own addresses, and whatever a default route leaves by, so that a name
/// mistyped or forgotten opens nothing. Besides, with `named` given, those; without: hardware, and whatever a route to
/// another node leaves by. Pods' own devices, the bridges they hang on, overlays' devices, and our tunnels are none of these.
pub fn underlay(links: &BTreeMap<u32, Link>, addresses: &Addresses<'_>, named: &[String]) -> BTreeSet<u32> {
    let leads_to_node = |route: &IpNet| {
        // Routes to other nodes' pods are many, and those of a CNI's own devices are among them.
        let is_pods = addresses.pods.iter().any(|range| range.contains(route));
        !is_pods && addresses.nodes.iter().any(|node| route.contains(node))
    };
    let chosen = |link: &Link| {
        let carries_own = link.addresses.iter().any(|net| addresses.own.contains(&net.addr()));
        let leads = |to: &dyn Fn(&IpNet) -> bool| !is_overlay(link) && link.routes.iter().any(to);
        let always = carries_own || leads(&|route| route.prefix_len() == 0);
        let found = || link.kind.is_none() || leads(&leads_to_node);
        always || if named.is_empty() { found() } else { named.contains(&link.name) }
    };
    links
        .iter()
        .filter(|(_, link)| !link.loopback && !DEVICE_NAMES.contains(&link.name.as_str()) && chosen(link))
        .map(|(index, _)| *index)
        .collect()
}

/// Names given by the operator that no device has: a device that was meant is not guarded.
pub fn absent(links: &BTreeMap<u32, Link>, named: &[String]) -> Vec<Problem> {
    let of =
        |wanted: fn(&Link) -> bool| links.values().filter(move |link| wanted(link)).map(|link| &link.name);
    let all: Vec<_> = of(|link| !link.loopback && !is_pods(link))
        .map(String::as_str)
        .filter(|name| !DEVICE_NAMES.contains(name))
        .collect();
    let missing = named.iter().filter(|name| !of(|_| true).any(|exists| exists == *name));
    let tell = |name: &String| Problem {
        kind: ProblemKind::Missing,
        object: format!("device {name}"),
        field: "--underlay".to_owned(),
        message: format!("it does not exist, so nobody guards it; there are: {}", all.join(", ")),
        advice: "Correct the name, or leave --underlay out where the devices are found by itself".to_owned(),
    };
    missing.map(tell).collect()
}

/// Pods' devices come and go, are many, and have an address of their link at most.
fn is_pods(link: &Link) -> bool {
    let of_link = |net: &IpNet| match net.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    link.kind.as_deref() == Some("veth") && link.addresses.iter().all(of_link)
}

/// Kinds of devices that put packets into envelopes (`ip link help`), and Open vSwitch's, behind which such a one is.
const ENVELOPING: [&str; 11] = [
    VXLAN,
    GENEVE_KIND,
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
const VXLAN: &str = "vxlan";
const GENEVE_KIND: &str = "geneve";

/// UDP ports that are looked for though no device has them yet: VXLAN (RFC 7348; Linux and flannel), Geneve (RFC 8926).
const USUAL_PORTS: [u32; 3] = [4_789, 8_472, 6_081 | GENEVE];

fn is_overlay(link: &Link) -> bool {
    link.kind.as_deref().is_some_and(|kind| ENVELOPING.contains(&kind))
}

/// Devices of overlay networks, by ifindex.
pub fn overlays(links: &BTreeMap<u32, Link>) -> impl Iterator<Item = u32> {
    links.iter().filter(|(_, link)| is_overlay(link)).map(|(index, _)| *index)
}

/// Overlay devices whose envelopes the tunnel may replace, by ifindex: nothing in them but plain pods' packets, so
/// that the far end misses nothing. Those of flannel are such: routes lead to the device, and it has an address among
/// this node's pods. One that takes its orders from elsewhere (`external`), or is a port of a switch, is not.
pub fn replaceable(links: &BTreeMap<u32, Link>, own_pods: &[IpNet]) -> BTreeSet<u32> {
    let has_pods_address = |link: &Link| {
        link.addresses.iter().any(|net| own_pods.iter().any(|range| range.contains(&net.addr())))
    };
    links
        .iter()
        .filter(|(_, link)| matches!(link.kind.as_deref(), Some(VXLAN | GENEVE_KIND)))
        .filter(|(_, link)| !link.external && link.controller.is_none() && has_pods_address(link))
        .map(|(index, _)| *index)
        .collect()
}

/// UDP ports of envelopes as the programs know them, and those that there was no room for.
pub fn envelope_ports(links: &BTreeMap<u32, Link>) -> ([u32; ENVELOPE_PORTS], Vec<u16>) {
    let of = |link: &Link| match link.kind.as_deref() {
        Some(VXLAN) => link.port.map(u32::from),
        Some(GENEVE_KIND) => link.port.map(|port| u32::from(port) | GENEVE),
        _ => None,
    };
    let used: BTreeSet<u32> = links.values().filter_map(of).filter(|port| port & !GENEVE != 0).collect();
    let others = USUAL_PORTS.into_iter().filter(|port| !used.contains(port));
    let mut ports = [0; ENVELOPE_PORTS];
    let mut all = used.iter().copied().chain(others);
    ports.iter_mut().zip(&mut all).for_each(|(place, port)| *place = port);
    let left = all.filter(|port| used.contains(port)).filter_map(|port| u16::try_from(port & !GENEVE).ok());
    (ports, left.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link { name: name.to_owned(), kind: kind.map(str::to_owned), up: true, mtu: 1500, ..Link::default() }
    }

    fn by_index(links: impl IntoIterator<Item = Link>) -> BTreeMap<u32, Link> {
        (1..).zip(links).collect()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("net")).collect()
    }

    #[test]
    fn what_leaves_the_node() {
        let mut lo = link("lo", None);
        lo.loopback = true;
        let mut eth0 = link("eth0", Some("veth"));
        eth0.addresses.insert("192.0.2.1/24".parse().expect("net"));
        let mut bond = link("bond0", Some("bond"));
        bond.routes = nets(&["::/0"]);
        let mut vlan = link("eth0.7", Some("vlan"));
        vlan.routes = nets(&["192.0.2.2/32"]);
        let mut cni0 = link("cni0", Some("bridge"));
        cni0.routes = nets(&["10.244.1.0/24"]);
        let mut docker0 = link("docker0", Some("bridge"));
        docker0.routes = nets(&["172.17.0.0/16"]);
        let mut flannel = link("flannel.1", Some(VXLAN));
        flannel.routes = nets(&["10.244.2.0/24", "192.0.2.2/32"]);
        let links = by_index([
            lo,
            eth0,
            link("ens3", None),
            bond,
            vlan,
            cni0,
            docker0,
            flannel,
            Link { addresses: nets(&["fe80::1/64"]).into_iter().collect(), ..link("veth1234", Some("veth")) },
            link("kubeveil0", Some("wireguard")),
        ]);
        let own = ["192.0.2.1".parse().expect("ip")];
        let pods = nets(&["10.244.0.0/16"]);
        let nodes = vec!["192.0.2.2".parse().expect("ip")];
        let addresses = Addresses { own: &own, nodes, pods: &pods };
        assert_eq!(underlay(&links, &addresses, &[]), [2, 3, 4, 5].into());
        // What is named comes besides what has the node's address or a default route: a name forgotten opens nothing.
        assert_eq!(underlay(&links, &addresses, &["cni0".to_owned()]), [2, 4, 6].into());
        assert_eq!(underlay(&links, &addresses, &["eht0".to_owned()]), [2, 4].into());
        let told = absent(&links, &["cni0".to_owned(), "eht0".to_owned()]);
        assert_eq!(told.len(), 1);
        assert_eq!((&*told[0].object, &*told[0].field), ("device eht0", "--underlay"));
        assert!(
            told[0].message.ends_with("there are: eth0, ens3, bond0, eth0.7, cni0, docker0, flannel.1"),
            "{}",
            told[0]
        );
    }

    #[test]
    fn what_may_be_replaced() {
        let flannel = |name: &str| Link {
            addresses: nets(&["10.244.1.0/32"]).into_iter().collect(),
            ..link(name, Some(VXLAN))
        };
        let links = by_index([
            flannel("flannel.1"),
            Link { external: true, ..flannel("cilium_vxlan") },
            Link { controller: Some(9), ..flannel("in-a-bridge") },
            Link { kind: Some("ipip".to_owned()), ..flannel("tunl0") },
            Link { addresses: nets(&["172.16.0.1/24"]).into_iter().collect(), ..flannel("somebody's") },
        ]);
        assert_eq!(replaceable(&links, &nets(&["10.244.1.0/24"])), [1].into());
        assert_eq!(overlays(&links).count(), 5);
    }

    #[test]
    fn ports_of_envelopes() {
        let device = |kind, port| Link { port: Some(port), ..link("a", Some(kind)) };
        let usual = by_index([]);
        assert_eq!(envelope_ports(&usual), ([4_789, 8_472, 6_081 | GENEVE, 0, 0, 0, 0], Vec::new()));
        // A port may be both: then both are looked for, and what the last one says counts.
        let some = by_index([device(VXLAN, 8_472), device(VXLAN, 9_999), device(GENEVE_KIND, 7_000)]);
        let (ports, left) = envelope_ports(&some);
        assert_eq!(ports, [8_472, 9_999, 7_000 | GENEVE, 4_789, 6_081 | GENEVE, 0, 0]);
        assert!(left.is_empty());
        // Those in use go first, and of them none is left out silently.
        let many = by_index((1..=8).map(|port| device(VXLAN, port)));
        assert_eq!(envelope_ports(&many), ([1, 2, 3, 4, 5, 6, 7], vec![8]));
    }
}
