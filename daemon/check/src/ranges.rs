//! The mesh's ranges, and what lies outside of them. Pure.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kubeveil_api::mesh::{EncryptionMesh, Ranges};

use crate::facts::Node;

/// Ranges of a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// What agents go by.
    pub ranges: Ranges,
    /// People gave none of pods, so those are as the controller found them.
    pub pods_found: bool,
    /// The same of nodes.
    pub nodes_found: bool,
}

/// Something that agents refuse, since it lies outside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stranger {
    /// The Node.
    pub node: String,
    /// Its prefix or address.
    pub prefix: IpNet,
    /// A prefix of pods; else the node's own address.
    pub is_pods: bool,
}

/// What is in force; empty where there is nothing yet.
pub fn in_force(mesh: &EncryptionMesh) -> InForce {
    let found = mesh.status.as_ref().and_then(|status| status.ranges.clone()).unwrap_or_default();
    let (pods_found, nodes_found) = (mesh.spec.pod_cidrs.is_empty(), mesh.spec.node_cidrs.is_empty());
    let ranges = Ranges {
        pod_cidrs: if pods_found { found.pod_cidrs } else { mesh.spec.pod_cidrs.clone() },
        node_cidrs: if nodes_found { found.node_cidrs } else { mesh.spec.node_cidrs.clone() },
        api_servers: found.api_servers,
    };
    InForce { ranges, pods_found, nodes_found }
}

/// What lies outside of it, of all nodes.
pub fn strangers(ranges: &Ranges, nodes: &BTreeMap<String, Node>) -> Vec<Stranger> {
    let holds = |ranges: &[IpNet], prefix: &IpNet| ranges.iter().any(|range| range.contains(prefix));
    let mut strangers = Vec::new();
    for (name, node) in nodes {
        let own = node.internal_ips.iter().copied().map(IpNet::from).map(|prefix| (prefix, false));
        for (prefix, is_pods) in node.pod_cidrs.iter().map(|prefix| (*prefix, true)).chain(own) {
            let of = if is_pods { &ranges.pod_cidrs } else { &ranges.node_cidrs };
            if !holds(of, &prefix) {
                strangers.push(Stranger { node: name.clone(), prefix, is_pods });
            }
        }
    }
    strangers
}

/// Ranges with one more, of pods or of nodes: what was in force stays in force. Why not, if not: `others` are prefixes that are
/// something else, with what they are.
pub fn approved(
    ranges: &Ranges,
    range: IpNet,
    is_pods: bool,
    others: &[(IpNet, String)],
) -> Result<Ranges, String> {
    let range = range.trunc();
    if range.prefix_len() == 0 {
        return Err(format!("{range} is the whole address space; name the range that is meant"));
    }
    let mut ranges = ranges.clone();
    let (own, other, whose) = if is_pods {
        (&mut ranges.pod_cidrs, &ranges.node_cidrs, "nodes")
    } else {
        (&mut ranges.node_cidrs, &ranges.pod_cidrs, "pods")
    };
    if let Some(other) = other.iter().find(|other| overlap(other, &range)) {
        return Err(format!("{range} overlaps {other}, which is a range of {whose}"));
    }
    if let Some((other, whose)) = others.iter().find(|(other, _)| overlap(other, &range)) {
        return Err(format!("{range} overlaps {other}, which is {whose}"));
    }
    if let Some(holds) = own.iter().find(|own| own.contains(&range)) {
        return Err(format!("{range} is in force already, within {holds}"));
    }
    own.push(range);
    Ok(ranges)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("net")
    }

    fn ranges() -> Ranges {
        Ranges {
            pod_cidrs: vec![net("10.244.0.0/16")],
            node_cidrs: vec![net("192.0.2.0/24")],
            ..Ranges::default()
        }
    }

    fn mesh(spec: &serde_json::Value) -> EncryptionMesh {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionMesh", "metadata": {"name": "default"},
            "spec": spec, "status": {"ranges": {"podCIDRs": ["10.7.0.0/16"], "nodeCIDRs": ["10.9.0.0/16"]}},
        }))
        .expect("a mesh")
    }

    #[test]
    fn what_people_give_counts_before_what_was_found() {
        let found = in_force(&mesh(&serde_json::json!({"mode": "require"})));
        assert_eq!(found.ranges.pod_cidrs, [net("10.7.0.0/16")]);
        assert!(found.pods_found && found.nodes_found);
        let given = in_force(&mesh(&serde_json::json!({"mode": "require", "podCIDRs": ["10.8.0.0/16"]})));
        assert_eq!(
            (given.ranges.pod_cidrs, given.ranges.node_cidrs),
            (vec![net("10.8.0.0/16")], vec![net("10.9.0.0/16")])
        );
        assert!(!given.pods_found && given.nodes_found);
    }

    #[test]
    fn who_lies_outside_is_a_stranger() {
        let node = |pods: &str, ip: &str| Node {
            pod_cidrs: vec![net(pods)],
            internal_ips: vec![ip.parse().expect("ip")],
            ..Node::default()
        };
        let nodes = [
            ("a".to_owned(), node("10.244.1.0/24", "192.0.2.1")),
            ("b".to_owned(), node("10.245.1.0/24", "198.51.100.1")),
        ];
        let found = strangers(&ranges(), &nodes.into());
        let stranger = |prefix, is_pods| Stranger { node: "b".to_owned(), prefix: net(prefix), is_pods };
        assert_eq!(found, [stranger("10.245.1.0/24", true), stranger("198.51.100.1/32", false)]);
    }

    #[test]
    fn nothing_is_approved_that_is_something_else() {
        let api = [(net("10.99.0.1/32"), "the address of Node a".to_owned())];
        let approve = |range: &str, is_pods| approved(&ranges(), net(range), is_pods, &api);
        let now = approve("10.245.3.0/16", true).expect("approved");
        assert_eq!(now.pod_cidrs, [net("10.244.0.0/16"), net("10.245.0.0/16")]);
        assert_eq!(now.node_cidrs, ranges().node_cidrs);
        assert_eq!(approve("198.51.100.0/24", false).expect("approved").node_cidrs.len(), 2);
        for (range, is_pods, why) in [
            ("0.0.0.0/0", true, "whole address space"),
            ("192.0.0.0/16", true, "a range of nodes"),
            ("10.244.7.0/24", false, "a range of pods"),
            ("10.99.0.0/16", true, "the address of Node a"),
            ("10.244.7.0/24", true, "in force already"),
        ] {
            let refused = approve(range, is_pods).expect_err(range);
            assert!(refused.contains(why), "{refused}");
        }
    }
}
