//! The whole cluster at one moment, by the names that people use: for questions, not for the datapath.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use ipnet::IpNet;
use kubeveil_api::{mesh::MeshSpec, pod, problem::few, selector::Labels};
use serde::{Serialize, Serializer};

use super::{Policies, place::Place, pods::Pod, ruling::Law};
use crate::{
    ownership::{Assignment, Class, Owners, assign},
    snapshot::{Knowledge, NodeFacts, Snapshot},
};

/// A pod's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its own.
    pub name: String,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for PodId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for PodId {
    type Err = String;

    /// `NAMESPACE/NAME`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            // A namespace's name has no dot (RFC 1123, a label), so a prefix of addresses is no pod.
            Some((namespace, name))
                if !namespace.is_empty()
                    && !namespace.contains('.')
                    && !name.is_empty()
                    && !name.contains('/') =>
            {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is no NAMESPACE/NAME of a pod")),
        }
    }
}

/// A pod, and what of it policies don't look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Where it runs, its labels, and the addresses that it has for itself.
    pub pod: Pod,
    /// It shares its node's addresses, so that no policy holds it.
    pub host_network: bool,
    /// It has ended, so that its addresses are others'.
    pub has_ended: bool,
}

impl Resident {
    /// By its name, as it is written.
    pub fn read(given: &pod::Pod) -> (PodId, Self) {
        let pod = Pod::from(given);
        let id = PodId { namespace: pod.namespace.clone(), name: given.metadata.name.clone() };
        let host_network = given.spec.host_network;
        let has_ended = !pod::has_its_own(false, &given.status.phase);
        (id, Self { pod, host_network, has_ended })
    }
}

/// Everything that decides on flows between pods.
#[derive(Clone, Debug)]
pub struct Census {
    /// The mesh's settings.
    pub mesh: MeshSpec,
    /// All policies.
    pub policies: Policies,
    /// Labels by namespace.
    pub namespaces: BTreeMap<String, Labels>,
    /// Namespaces that are being deleted.
    pub ending: BTreeSet<String>,
    /// Pods by name.
    pub pods: BTreeMap<PodId, Resident>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<NodeFacts>>,
    /// Addresses of other nodes' pods of which a daemon is told that more is asked of them; `None`: it knows all pods.
    pub told: Option<BTreeSet<IpAddr>>,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Of pods, several where it was given on before the first was gone.
    Pods(BTreeSet<PodId>),
    /// Of this node itself.
    Node(String),
    /// Of the pods' range of this node, and no pod that is known has it.
    OfNode(String),
    /// Of the mesh's ranges of pods, and of no node's.
    Unowned,
    /// Of the mesh's ranges of nodes, and no node that is known has it.
    NoNode,
    /// Of none of the mesh's ranges.
    Outside,
}

/// Most names that are told of what exists.
const MOST: usize = 5;

impl Census {
    /// What decides on everybody.
    pub fn law(&self) -> Law {
        Law { mesh: self.mesh.mode, policies: self.policies.clone() }
    }

    /// Addresses by which packets are who that is.
    pub fn addresses(&self, place: &Place) -> BTreeSet<IpAddr> {
        match place {
            Place::Pod { addresses, .. } => addresses.clone(),
            Place::HostPod { node: Some(node), .. } | Place::Node { node } => self
                .nodes
                .get(node)
                .into_iter()
                .flat_map(|facts| facts.internal_ips.iter().copied())
                .collect(),
            Place::HostPod { node: None, .. } => BTreeSet::new(),
            Place::UnknownPod { address, .. }
            | Place::UnownedPod { address }
            | Place::NoNode { address }
            | Place::Outside { address } => [*address].into(),
        }
    }

    /// Pods that exist, where somebody looks for one that does not: of its name elsewhere, else of its namespace, else namespaces.
    pub fn near(&self, wanted: &PodId) -> String {
        let of_name = self.pods.keys().filter(|id| id.name == wanted.name);
        let alike = of_name.chain(self.pods.keys().filter(|id| {
            id.namespace == wanted.namespace && id.name != wanted.name && is_alike(&id.name, &wanted.name)
        }));
        let alike: Vec<&PodId> = alike.collect();
        if !alike.is_empty() {
            return format!("there is {}", few(alike.into_iter(), MOST));
        }
        let same: Vec<&PodId> = self.pods.keys().filter(|id| id.namespace == wanted.namespace).collect();
        if !same.is_empty() {
            return format!("in that namespace there is {}", few(same.into_iter(), MOST));
        }
        let namespaces: BTreeSet<&str> = self.pods.keys().map(|id| id.namespace.as_str()).collect();
        match namespaces.len() {
            0 => "no pod is known at all".to_owned(),
            _ => format!("pods are known in {}", few(namespaces.into_iter(), MOST)),
        }
    }

    /// Nodes that exist, likewise.
    pub fn near_node(&self) -> String {
        match self.nodes.len() {
            0 => "no node is known at all".to_owned(),
            _ => format!("there is {}", few(self.nodes.keys(), MOST)),
        }
    }

    /// Whose which prefix is.
    pub(super) fn assignment(&self) -> Assignment {
        let snapshot =
            Snapshot { mesh: Some(self.mesh.clone()), nodes: self.nodes.clone(), ..Snapshot::default() };
        assign(&Knowledge::Partial(snapshot), &self.mesh, &Owners::new())
    }

    /// Whose an address is, and the node whose range of pods it is of.
    pub(super) fn holder(&self, assignment: &Assignment, address: &IpAddr) -> (Holder, Option<String>) {
        let around = assignment.prefixes.iter().filter(|(net, _)| net.contains(address));
        let node = match around.max_by_key(|(net, _)| net.prefix_len()).map(|(_, owner)| owner) {
            Some((node, Class::Node)) => return (Holder::Node(node.clone()), None),
            Some((node, Class::Pods)) => Some(node),
            None => None,
        };
        // Nobody but the node on which a pod runs says what has an address of that node's.
        let has = |resident: &Resident| {
            resident.pod.addresses.contains(address) && node.is_none_or(|node| resident.pod.node == *node)
        };
        let pods: BTreeSet<PodId> =
            self.pods.iter().filter(|(_, resident)| has(resident)).map(|(id, _)| id.clone()).collect();
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(address));
        let holder = match node {
            _ if !pods.is_empty() => Holder::Pods(pods),
            Some(node) => Holder::OfNode(node.clone()),
            None if within(&self.mesh.pod_cidrs) => Holder::Unowned,
            None if within(&self.mesh.node_cidrs) => Holder::NoNode,
            None => Holder::Outside,
        };
        (holder, node.cloned())
    }
}

/// One is written at the beginning of the other, or both begin alike up to the last word: `ledger-7d4` and `ledger-9xk`.
fn is_alike(one: &str, other: &str) -> bool {
    let stem =
        |name: &str| name.rsplit_once('-').map_or_else(|| name.to_owned(), |(stem, _)| stem.to_owned());
    one.starts_with(other) || other.starts_with(one) || stem(one) == stem(other)
}
