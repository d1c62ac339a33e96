//! The cluster as the controller sees it: of each object only what is decided by.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kube::{ResourceExt as _, core::Object};
use kubeveil_api::{mesh::EncryptionMesh, names, node::NodeAddress, veil_node::VeilNodeStatus};
pub(crate) use kubeveil_core::snapshot::NodeFacts as Node;
use serde::{Deserialize, Serialize};

/// All of it at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// `EncryptionMesh/default`.
    pub(crate) mesh: Option<Mesh>,
    /// Nodes by name, but for …
    pub(crate) nodes: BTreeMap<String, Node>,
    /// … those that can have no agent, for which nobody waits (`spec.excludedNodes`).
    pub(crate) excluded: BTreeMap<String, Node>,
    /// What agents say, by the name of their node; `None` where a VeilNode is there and nothing is said in it.
    pub(crate) veil_nodes: BTreeMap<String, Option<VeilNodeStatus>>,
    /// Nodes on which there is an agent's pod, and whether one of them is ready.
    pub(crate) agents: BTreeMap<String, bool>,
    /// What the cluster says of its own ranges.
    pub(crate) said: Said,
}

/// The mesh, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mesh {
    pub(crate) object: EncryptionMesh,
    /// `metadata.generation`.
    pub(crate) generation: i64,
    /// `metadata.resourceVersion`.
    pub(crate) version: String,
}

/// What is configured of the cluster's ranges where it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// Of pods, by kubeadm or kube-proxy.
    pub(crate) pods: Vec<IpNet>,
    /// Of Services.
    pub(crate) services: Vec<IpNet>,
    /// API servers' own; empty where it can't be read.
    pub(crate) servers: Vec<IpNet>,
}

/// `spec` of a Node. Texts: one Node that can't be read must not stop the others.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct NodeSpec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct NodeStatus {
    #[serde(default)]
    addresses: Option<Vec<NodeAddress>>,
}

/// What counts of a Node.
pub(crate) fn read_node(node: &Object<NodeSpec, NodeStatus>) -> Node {
    let announcement = node.annotations().get(names::ANNOUNCEMENT).cloned();
    let cidrs = node.spec.pod_cidrs.iter().flatten().filter_map(|text| text.parse::<IpNet>().ok());
    let addresses = node.status.iter().filter_map(|status| status.addresses.as_ref()).flatten();
    let internal = addresses.filter(|address| address.kind == "InternalIP");
    let mut labels = node.labels().clone();
    if announcement.is_some() {
        // Of who announces something nobody asks for others.
        labels.retain(|label, _| label == names::CONTROL_PLANE);
    }
    Node {
        uid: node.uid().unwrap_or_default(),
        labels,
        announcement,
        pod_cidrs: cidrs.map(|cidr| cidr.trunc()).collect(),
        internal_ips: internal.filter_map(|address| address.address.parse().ok()).collect(),
    }
}
