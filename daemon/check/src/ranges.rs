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

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("net")
    }

    fn ranges() -> Ranges {
        Ranges { pod_cidrs: vec![net("10.244.0.0/16")], node_cidrs: vec![net("192.0.2.0/24")] }
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
}
