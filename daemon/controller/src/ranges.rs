//! Ranges of pods and nodes, where people give none: found once, and shown in `status.ranges`.
//!
//! What lies outside of them is refused by every agent until somebody names it in `spec`; so they are wide enough to
//! grow within, and hold nothing that is known to be something else.

use std::net::IpAddr;

use ipnet::IpNet;
use kubeveil_api::{
    mesh::{MeshSpec, Ranges},
    names,
};

use crate::seen::{Node, Said, Seen};

/// How far what is seen is rounded up: bits of the prefix.
const ROUND: [u8; 2] = [16, 48];
/// Ranges for private use (RFC 1918), from which nodes mostly have their addresses. Of IPv6's (RFC 4193) each site has a /48.
const PRIVATE: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];

/// The ranges from now on. Those that are recorded stand; `None` if there is nothing to record yet.
pub(crate) fn ranges(spec: &MeshSpec, recorded: Option<&Ranges>, seen: &Seen) -> Option<Ranges> {
    let mut ranges = recorded.cloned().unwrap_or_default();
    let Seen { nodes, excluded, said, .. } = seen;
    let nodes: Vec<&Node> = nodes.values().chain(excluded.values()).collect();
    let addresses = || nodes.iter().flat_map(|node| &node.internal_ips).copied().map(IpNet::from);
    if spec.pod_cidrs.is_empty() && ranges.pod_cidrs.is_empty() {
        let others = addresses().chain(said.services.iter().copied());
        let others: Vec<IpNet> = others.chain(said.servers.iter().copied()).collect();
        ranges.pod_cidrs = pods(&nodes, said, &others);
    }
    let pods = if spec.pod_cidrs.is_empty() { &ranges.pod_cidrs } else { &spec.pod_cidrs };
    // A node's range is narrowed by the pods' one, so not before that is known.
    if spec.node_cidrs.is_empty() && ranges.node_cidrs.is_empty() && !pods.is_empty() {
        let others: Vec<IpNet> = pods.iter().chain(&said.services).copied().collect();
        ranges.node_cidrs = cover(addresses(), &others, around_node);
    }
    if !said.servers.is_empty() {
        let recorded = std::mem::take(&mut ranges.api_servers);
        ranges.api_servers = said.servers.clone();
        ranges.api_servers.retain(|server| is_no_nodes(*server, &nodes, recorded.contains(server)));
    }
    (ranges != Ranges::default()).then_some(ranges)
}

/// Those of the API servers' addresses that are no node's when the controller begins, or are on record as such: a node that is gone for a while, and comes
/// back, is still one.
pub(crate) fn foreign(servers: &[IpNet], seen: &Seen) -> Vec<IpNet> {
    let status = seen.mesh.as_ref().and_then(|mesh| mesh.object.status.as_ref());
    let recorded = status.and_then(|status| status.ranges.as_ref()).map(|ranges| &ranges.api_servers);
    let is_recorded = |server: &IpNet| recorded.is_some_and(|recorded| recorded.contains(server));
    let nodes = seen.nodes.values().chain(seen.excluded.values()).flat_map(|node| &node.internal_ips);
    let is_nodes = |server: &IpNet| nodes.clone().any(|own| IpNet::from(*own) == *server);
    servers.iter().filter(|server| is_recorded(server) || !is_nodes(server)).copied().collect()
}

/// Is an API server's address no node's? Who claims one that is on record as such has to be of the control plane.
fn is_no_nodes(server: IpNet, nodes: &[&Node], is_recorded: bool) -> bool {
    let mut holders =
        nodes.iter().filter(|node| node.internal_ips.iter().any(|own| IpNet::from(*own) == server));
    holders.all(|holder| is_recorded && !holder.labels.contains_key(names::CONTROL_PLANE))
}

/// As configured, or what was seen, rounded up.
fn pods(nodes: &[&Node], said: &Said, others: &[IpNet]) -> Vec<IpNet> {
    if !said.pods.is_empty() {
        return said.pods.clone();
    }
    let seen = nodes.iter().flat_map(|node| &node.pod_cidrs).copied();
    cover(seen, others, |prefix| widened(prefix, ROUND[usize::from(prefix.addr().is_ipv6())]))
}

/// The private range that an address is in, or what is around it.
fn around_node(address: IpNet) -> IpNet {
    let private = PRIVATE.iter().filter_map(|range| range.parse::<IpNet>().ok());
    private
        .into_iter()
        .find(|range| range.contains(&address))
        .unwrap_or_else(|| widened(address, ROUND[usize::from(address.addr().is_ipv6())]))
}

fn widened(prefix: IpNet, bits: u8) -> IpNet {
    IpNet::new(prefix.addr(), bits.min(prefix.prefix_len())).map_or(prefix, |net| net.trunc())
}

/// What covers all of `prefixes`, each as wide as `wide` says, but for what would hold one of `others`.
fn cover(
    prefixes: impl Iterator<Item = IpNet>,
    others: &[IpNet],
    wide: impl Fn(IpNet) -> IpNet,
) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = Vec::new();
    for prefix in prefixes {
        if ranges.iter().any(|range| range.contains(&prefix)) {
            continue;
        }
        let mut bits = wide(prefix).prefix_len();
        let overlaps =
            |range: &IpNet| others.iter().any(|other| range.contains(other) || other.contains(range));
        while bits < prefix.prefix_len() && overlaps(&widened(prefix, bits)) {
            bits += 1;
        }
        ranges.push(widened(prefix, bits));
    }
    IpNet::aggregate(&ranges)
}

/// Ranges in a comma-separated list, as command lines and configurations have them.
pub(crate) fn listed(text: &str) -> Vec<IpNet> {
    text.split(',')
        .filter_map(|range| range.trim().parse::<IpNet>().ok())
        .map(|range| range.trunc())
        .collect()
}

/// The address of the API server's own Service, as every pod has it in its environment: of a range of Services at least this.
pub(crate) fn address(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().ok().map(IpNet::from)
}

#[cfg(test)]
mod tests {
    use kubeveil_api::selector::Labels;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("net")).collect()
    }

    fn spec(pods: &[&str], nodes: &[&str]) -> MeshSpec {
        serde_json::from_value(serde_json::json!({"mode": "require", "podCIDRs": pods, "nodeCIDRs": nodes}))
            .expect("a spec")
    }

    fn seen(nodes: &[(&[&str], &[&str])], said: Said) -> Seen {
        let node = |(pods, ips): &(&[&str], &[&str])| Node {
            announcement: None,
            labels: Labels::new(),
            uid: String::new(),
            pod_cidrs: nets(pods),
            internal_ips: ips.iter().map(|ip| ip.parse().expect("ip")).collect(),
        };
        let nodes = nodes.iter().enumerate().map(|(at, n)| (format!("n{at}"), node(n))).collect();
        Seen { nodes, said, ..Seen::default() }
    }

    fn found(seen: &Seen) -> [Vec<String>; 2] {
        let ranges = ranges(&spec(&[], &[]), None, seen).unwrap_or_default();
        [ranges.pod_cidrs, ranges.node_cidrs].map(|nets| nets.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_seen_is_rounded_up() {
        let seen = seen(
            &[
                (&["10.244.0.0/24", "fd00:10:244::/64"], &["192.168.7.1", "fd99::11"]),
                (&["10.244.1.0/24", "fd00:10:244:1::/64"], &["203.0.113.9"]),
            ],
            Said::default(),
        );
        assert_eq!(
            found(&seen),
            [
                vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()],
                vec!["192.168.0.0/16".to_owned(), "203.0.0.0/16".to_owned(), "fd99::/48".to_owned()],
            ]
        );
    }

    /// Nodes at 10.99, Services at 10.96, pods at 10.244: none is in the range of another.
    #[test]
    fn a_range_holds_nothing_that_is_something_else() {
        let said = Said { services: nets(&["10.96.0.0/16"]), ..Said::default() };
        let cluster = seen(&[(&["10.244.0.0/24"], &["10.99.0.11"])], said);
        assert_eq!(found(&cluster), [vec!["10.244.0.0/16".to_owned()], vec!["10.98.0.0/15".to_owned()]]);
        let near = Said { services: nets(&["10.244.128.0/20"]), ..Said::default() };
        let cluster = seen(&[(&["10.244.0.0/24"], &["10.244.64.1"])], near);
        let [pods, nodes] = found(&cluster);
        assert_eq!((pods, nodes), (vec!["10.244.0.0/18".to_owned()], vec!["10.244.64.0/18".to_owned()]));
        // A node amid the Services speaks for itself alone.
        let amid = Said { services: nets(&["10.96.0.0/16"]), ..Said::default() };
        let cluster = seen(&[(&["10.244.0.0/24"], &["10.96.5.5"])], amid);
        assert_eq!(found(&cluster)[1], ["10.96.5.5/32"]);
    }

    #[test]
    fn what_is_configured_counts_before_what_is_seen() {
        let said = Said { pods: nets(&["10.0.0.0/12"]), ..Said::default() };
        assert_eq!(found(&seen(&[(&["10.0.1.0/24"], &[])], said))[0], ["10.0.0.0/12"]);
    }

    /// A managed control plane's address is nobody's; that of a node that is one is its own; and who comes later has to be of it.
    #[test]
    fn an_api_server_is_no_nodes_but_for_those_that_are() {
        let servers = nets(&["10.244.3.3/32", "10.244.0.9/32"]);
        let mut seen = seen(
            &[(&["10.244.1.0/24"], &["10.244.0.9"]), (&["10.244.2.0/24"], &["10.244.0.7"])],
            Said { servers, ..Said::default() },
        );
        let first = ranges(&spec(&[], &[]), None, &seen).expect("ranges");
        assert_eq!(first.api_servers, nets(&["10.244.3.3/32"]));
        let holds = |range: &IpNet| range.contains(&first.api_servers[0]);
        assert!(!first.pod_cidrs.iter().any(holds), "{first:?}");
        // A thief.
        let thief = seen.nodes.get_mut("n1").expect("there");
        thief.internal_ips.push("10.244.3.3".parse().expect("an address"));
        let now = ranges(&spec(&[], &[]), Some(&first), &seen).expect("ranges");
        assert_eq!(now.api_servers, first.api_servers);
        // It can't have given itself that label, so somebody else did.
        let node = seen.nodes.get_mut("n1").expect("there");
        node.labels.insert(names::CONTROL_PLANE.to_owned(), String::new());
        assert_eq!(ranges(&spec(&[], &[]), Some(&now), &seen).expect("ranges").api_servers, nets(&[]));
        // What can't be read is as it was.
        seen.said.servers.clear();
        assert_eq!(
            ranges(&spec(&[], &[]), Some(&now), &seen).expect("ranges").api_servers,
            first.api_servers
        );
    }

    /// Also while its Node is gone.
    #[test]
    fn a_node_of_the_control_plane_that_comes_back_is_one() {
        let servers = nets(&["192.0.2.1/32", "192.0.2.100/32"]);
        let mut seen = seen(&[(&["10.244.1.0/24"], &["192.0.2.1"])], Said::default());
        seen.said.servers = foreign(&servers, &seen);
        let away = Seen { said: seen.said.clone(), ..Seen::default() };
        let mut recorded = None;
        for seen in [&seen, &away, &seen] {
            recorded = ranges(&spec(&["10.244.0.0/16"], &["192.0.2.0/24"]), recorded.as_ref(), seen);
            assert_eq!(recorded.as_ref().expect("ranges").api_servers, nets(&["192.0.2.100/32"]));
        }
    }

    #[test]
    fn what_is_recorded_or_given_stands() {
        let cluster = seen(
            &[(&["10.244.0.0/24"], &["192.0.2.1"]), (&["10.7.0.0/24"], &["198.51.100.1"])],
            Said::default(),
        );
        let recorded = Ranges {
            pod_cidrs: nets(&["10.244.0.0/16"]),
            node_cidrs: nets(&["192.0.2.0/24"]),
            ..Ranges::default()
        };
        assert_eq!(ranges(&spec(&[], &[]), Some(&recorded), &cluster).as_ref(), Some(&recorded));
        let given = ranges(&spec(&["10.0.0.0/8"], &["192.0.2.0/24"]), None, &cluster);
        assert_eq!(given, None);
        assert_eq!(ranges(&spec(&[], &[]), None, &Seen::default()), None);
    }
}
