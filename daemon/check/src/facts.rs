//! What is known of a cluster. Each part is either there, or why it is not.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use kubeveil_api::{mesh::EncryptionMesh, probe::Probe, veil_node::VeilNodeStatus};

pub use crate::webhook::Webhook;

/// A part, or why it can't be read.
pub type Told<T> = Result<T, String>;

/// All of it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Before an installation.
    pub pre: bool,
    /// Where kubeveil is, or will be, installed.
    pub namespace: String,
    /// Labels of that namespace, with those that every namespace has.
    pub namespace_labels: BTreeMap<String, String>,
    /// Version of the API server, such as `v1.35.4`.
    pub version: Told<String>,
    /// It serves ValidatingAdmissionPolicies.
    pub serves_policies: Told<bool>,
    /// Nodes by name.
    pub nodes: Told<BTreeMap<String, Node>>,
    /// Pods that run.
    pub pods: Told<Vec<Pod>>,
    /// What may refuse what kubeveil needs.
    pub webhooks: Told<Vec<Webhook>>,
    /// What was found on the nodes.
    pub probes: Probes,
    /// What is installed; `None` before an installation.
    pub installed: Option<Installed>,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// An agent can run there.
    pub linux: bool,
    /// The mesh says that none does (`spec.excludedNodes`); then `linux` is not set.
    pub excluded: bool,
    /// Release of its kernel, as its kubelet says.
    pub kernel: String,
    /// Prefixes of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses.
    pub internal_ips: Vec<IpAddr>,
    /// Its UID, to which what it announces is bound.
    pub uid: String,
    /// What it announces, as it stands there.
    pub announcement: Option<String>,
}

/// A Pod that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// By which Services and we find it.
    pub labels: BTreeMap<String, String>,
    /// Where it is.
    pub node: String,
    /// It has its node's addresses.
    pub host_network: bool,
    /// It says that it is ready.
    pub ready: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What probes say.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// By the name of the node.
    pub by_node: BTreeMap<String, Probe>,
    /// Why there are none, or not all.
    pub missing: Option<String>,
    /// They did not come in time.
    pub timed_out: bool,
}

/// What is installed.
#[derive(Clone, Debug)]
pub struct Installed {
    /// CustomResourceDefinitions of ours that there are not.
    pub definitions_missing: Told<Vec<String>>,
    /// `EncryptionMesh/default`.
    pub mesh: Told<Option<EncryptionMesh>>,
    /// What agents say, by the name of the node; `None` where one has said nothing.
    pub veil_nodes: Told<BTreeMap<String, Option<VeilNodeStatus>>>,
}
