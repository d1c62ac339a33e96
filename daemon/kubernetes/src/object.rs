//! What the API server sends, as far as it is read: the rest of a Node, most of its bytes, is let go at once.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use kubeveil_api::{
    mesh::{InForce, MeshSpec},
    names,
    node::NodeAddress,
    object::{self, TypeMeta},
    peer_slice::{self, SlicedPeer},
    pod::{PodCondition, has_its_own, network_since},
    pod_slice::SlicedPod,
    policy::{ClusterEncryptionPolicy, EncryptionPolicy, PolicyMode},
    problem::{Problem, ProblemKind, readable},
    selector::Labels,
};
use kubeveil_core::{
    ownership::Owner,
    policy::{
        Policy, PolicyId,
        census::{PodId, Resident},
        pods::{Exceptions, Pod, exceptions},
    },
    snapshot::NodeFacts,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::Peers;

/// `metadata` of an object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) uid: String,
    #[serde(default)]
    pub(crate) resource_version: String,
    #[serde(default)]
    pub(crate) labels: Option<Labels>,
    /// Present while it is being deleted.
    #[serde(default)]
    deletion_timestamp: Option<String>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

impl Metadata {
    /// Under a name that no other of its kind has: names are unique within a namespace only.
    pub(crate) fn within_namespace(self) -> Self {
        match self.namespace.as_str() {
            "" => self,
            namespace => Self { name: format!("{namespace}/{}", self.name), ..self },
        }
    }

    /// What the node announces.
    pub(crate) fn announcement(&self) -> Option<String> {
        self.annotations.as_ref()?.announcement.clone()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Annotations {
    /// [`names::ANNOUNCEMENT`].
    #[serde(rename = "kubeveil.io/announcement")]
    announcement: Option<String>,
}

/// A `v1` Node. Texts, where an API server may let through what is none of the kind.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NodeObject {
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Option<Vec<NodeAddress>>,
}

/// A `v1` Pod.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PodObject {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

/// `spec` of a Pod, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    host_network: bool,
}

/// `status` of a Pod, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PodStatus {
    #[serde(default)]
    phase: String,
    #[serde(default, rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    #[serde(default)]
    conditions: Option<Vec<PodCondition>>,
}

impl PodSpec {
    /// Where it runs, once that is decided.
    pub fn node(&self) -> Option<&str> {
        Some(self.node_name.as_str()).filter(|name| !name.is_empty())
    }
}

impl PodStatus {
    /// Whether its kubelet says that it is ready.
    pub fn is_ready(&self) -> bool {
        let mut conditions = self.conditions.iter().flatten();
        conditions.any(|condition| condition.r#type == "Ready" && condition.status == "True")
    }
}

/// A text: one pod whose address nobody can read must not stop the others.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct PodIp {
    #[serde(default)]
    ip: String,
}

/// A pod of a namespace with these labels: with addresses that it has for itself, and with what a person has to know of it.
pub fn resident(namespace: String, labels: Labels, spec: PodSpec, status: PodStatus) -> Resident {
    let is_alone = has_its_own(spec.host_network, &status.phase);
    let ips = status.pod_ips.filter(|_| is_alone);
    let pod = Pod {
        node: spec.node_name,
        namespace,
        labels,
        addresses: ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
        network_since: network_since(&status.conditions.unwrap_or_default()),
    };
    Resident { pod, host_network: spec.host_network, has_ended: !has_its_own(false, &status.phase) }
}

/// An `EncryptionMesh`. Its `spec` is read after that the rest is known, so that what is wrong can be told with the field.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MeshObject {
    metadata: Metadata,
    #[serde(default)]
    spec: serde_json::Value,
    #[serde(default)]
    status: Option<serde_json::Value>,
}

/// A `v1` Namespace.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamespaceObject {
    metadata: Metadata,
}

/// What is kept of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) labels: Labels,
    /// It is being deleted, and what is in it, in any order.
    pub(crate) ends: bool,
}

/// An `EncryptionPolicy` or a `ClusterEncryptionPolicy`. Its `spec` is read last, as a mesh's.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PolicyObject {
    metadata: Metadata,
    #[serde(default)]
    spec: serde_json::Value,
}

/// A `VeilPodSlice`. Its pods are read last, as a mesh's `spec` is.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SliceObject {
    metadata: Metadata,
    #[serde(default)]
    pods: Option<Vec<serde_json::Value>>,
}

/// A `VeilPeerSlice`, read likewise.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PeerSliceObject {
    metadata: Metadata,
    /// What nodes announce stands in it.
    #[serde(default, rename = "tellsAll")]
    tells_all: bool,
    #[serde(default)]
    peers: Option<Vec<serde_json::Value>>,
}

/// Kinds of policies.
const NAMESPACES: &str = "EncryptionPolicy";
const CLUSTERS: &str = "ClusterEncryptionPolicy";

/// A policy with its name.
pub type Named = (PolicyId, Policy);

/// An object as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Read<T> {
    pub(crate) name: String,
    pub(crate) uid: String,
    /// `metadata.resourceVersion`; 0 where that is no number, which no object has.
    pub(crate) version: u64,
    pub(crate) value: T,
    /// What of it could not be read.
    pub(crate) problems: Vec<Problem>,
}

impl<T> Read<T> {
    fn of(metadata: Metadata, value: T, problems: Vec<Problem>) -> Self {
        let Metadata { name, uid, resource_version, .. } = metadata;
        Self { name, uid, version: version(&resource_version), value, problems }
    }
}

/// A `resourceVersion`, which may be compared as a number from Kubernetes 1.35 on (KEP-5504) and was one before; 0 if it is none.
pub(crate) fn version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

impl NodeObject {
    /// What is known of the node by it, where this one is called `own`. What can't be read of it is left out and told, and the rest counts: a node that
    /// writes nonsense into its own object is no reason to take another for gone, nor this one.
    pub(crate) fn read(mut self, own: &str) -> Read<Arc<NodeFacts>> {
        let mut problems = Vec::new();
        let mut refuse = |field: String, text: &str, what: &str| {
            problems.push(Problem {
                kind: ProblemKind::Manifest,
                object: format!("Node {}", self.metadata.name),
                field,
                message: readable(&format!("{text:?} is no {what}")),
                advice: "It does not count; correct what writes it".to_owned(),
            });
        };
        let mut pod_cidrs: Vec<IpNet> = Vec::new();
        for (at, text) in self.spec.pod_cidrs.unwrap_or_default().iter().enumerate() {
            match text.parse::<IpNet>() {
                Ok(net) => pod_cidrs.push(net.trunc()),
                Err(_) => refuse(format!("spec.podCIDRs[{at}]"), text, "prefix"),
            }
        }
        let mut internal_ips: Vec<IpAddr> = Vec::new();
        let addresses = self.status.addresses.unwrap_or_default();
        for (at, entry) in addresses.iter().enumerate().filter(|(_, a)| a.kind == "InternalIP") {
            match entry.address.parse() {
                Ok(address) => internal_ips.push(address),
                Err(_) => refuse(format!("status.addresses[{at}]"), &entry.address, "IP address"),
            }
        }
        let announcement = self.metadata.announcement();
        // Thousands have some that nobody asks for.
        let is_read = self.metadata.name == own || announcement.is_none();
        let labels = self.metadata.labels.take().filter(|_| is_read).unwrap_or_default();
        let uid = self.metadata.uid.clone();
        let facts = NodeFacts { uid, pod_cidrs, internal_ips, announcement, labels };
        Read::of(self.metadata, Arc::new(facts), problems)
    }
}

impl PodObject {
    /// The pod, with addresses that it has for itself.
    pub(crate) fn read(self) -> Read<Pod> {
        let (metadata, resident) = self.apart();
        Read::of(metadata.within_namespace(), resident.pod, Vec::new())
    }

    /// Whether its kubelet says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.status.is_ready()
    }

    /// The pod by its name, with what a person has to know of it.
    pub(crate) fn resident(self) -> (PodId, Resident) {
        let (metadata, resident) = self.apart();
        (PodId { namespace: metadata.namespace, name: metadata.name }, resident)
    }

    fn apart(mut self) -> (Metadata, Resident) {
        let labels = self.metadata.labels.take().unwrap_or_default();
        let resident = resident(self.metadata.namespace.clone(), labels, self.spec, self.status);
        (self.metadata, resident)
    }
}

impl NamespaceObject {
    pub(crate) fn read(mut self) -> Read<Space> {
        let labels = self.metadata.labels.take().unwrap_or_default();
        let space = Space { labels, ends: self.metadata.deletion_timestamp.is_some() };
        Read::of(self.metadata, space, Vec::new())
    }
}

/// A policy of an API server's, or the field that is wrong, and why; `namespace` is empty where it is the cluster's.
pub fn read_policy(namespace: &str, name: &str, spec: serde_json::Value) -> Result<Named, (String, String)> {
    let types = |kind: &str| TypeMeta { api_version: names::API_VERSION.to_owned(), kind: kind.to_owned() };
    let of = Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty());
    let metadata = object::Metadata { name: name.to_owned(), namespace: of, ..object::Metadata::default() };
    let read = match namespace {
        "" => Policy::of_cluster(ClusterEncryptionPolicy {
            types: types(CLUSTERS),
            metadata,
            spec: part("spec", spec)?,
        }),
        _ => Policy::of_namespace(EncryptionPolicy {
            types: types(NAMESPACES),
            metadata,
            spec: part("spec", spec)?,
        }),
    };
    read.map_err(|(field, why)| (field.to_owned(), why.to_owned()))
}

impl PolicyObject {
    /// The policy, or `before`, its last good state, where it can't be read.
    pub(crate) fn read(self, before: Option<&Named>) -> Read<Option<Named>> {
        let kind = if self.metadata.namespace.is_empty() { CLUSTERS } else { NAMESPACES };
        let read = read_policy(&self.metadata.namespace, &self.metadata.name, self.spec);
        let metadata = self.metadata.within_namespace();
        let (policy, problem) = match read {
            Ok(policy) => (Some(policy), None),
            Err((field, why)) => {
                (before.cloned(), Some(refused(&format!("{kind} {}", metadata.name), &field, &why)))
            }
        };
        Read::of(metadata, policy, problem.into_iter().collect())
    }

    /// As it is kept.
    pub(crate) fn name(&self) -> String {
        self.metadata.clone().within_namespace().name
    }
}

pub(crate) fn refused(object: &str, field: &str, why: &str) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: object.to_owned(),
        field: readable(field),
        message: readable(why),
        advice: "Correct it; its last good state stands until then".to_owned(),
    }
}

impl SliceObject {
    /// What is asked for of the node's pods. Of a pod of which it can't be read encryption is required, as far as its addresses can be.
    pub(crate) fn read(self) -> Read<Arc<Exceptions>> {
        let mut problems = Vec::new();
        let mut pods = Vec::new();
        for (at, given) in self.pods.into_iter().flatten().enumerate() {
            let addresses = given["addresses"].as_array().map_or(&[][..], Vec::as_slice);
            let addresses = addresses.iter().filter_map(|address| address.as_str()?.parse().ok()).collect();
            match part(&format!("pods[{at}]"), given) {
                Ok(pod) => pods.push(pod),
                Err((field, why)) => {
                    problems.push(Problem {
                        advice:
                            "Encryption is required of it; the controller that wrote it may be of another version"
                                .to_owned(),
                        ..refused(&format!("VeilPodSlice {}", self.metadata.name), &field, &why)
                    });
                    let (namespace, name) = (String::new(), String::new());
                    pods.push(SlicedPod {
                        namespace,
                        name,
                        addresses,
                        mode: PolicyMode::Require,
                        until: None,
                    });
                }
            }
        }
        Read::of(self.metadata, Arc::new(exceptions(&pods)), problems)
    }
}

impl PeerSliceObject {
    /// The nodes. One that can't be read is left out, and then this is not all of them. Nobody is known by one that is a record only, or that the
    /// controller has not made.
    pub(crate) fn read(self) -> Read<Arc<Peers>> {
        let mut problems = Vec::new();
        let mut peers = Peers { is_whole: self.tells_all, ..Peers::default() };
        if peer_slice::number(&self.metadata.name).is_none() {
            return Read::of(self.metadata, Arc::default(), problems);
        }
        for (at, given) in self.peers.into_iter().flatten().enumerate() {
            match part::<SlicedPeer>(&format!("peers[{at}]"), given) {
                Ok(peer) => {
                    let owner = || Owner { name: peer.name.clone(), uid: peer.uid.clone() };
                    peers.refused.extend(peer.refused.iter().map(|prefix| (*prefix, owner())));
                    if self.tells_all {
                        let (name, facts) = (peer.name.clone(), NodeFacts::from(peer));
                        peers.by_name.insert(name, facts.into());
                    }
                }
                Err((field, why)) => {
                    peers.is_whole = false;
                    problems.push(Problem {
                        advice: "Nobody is removed until it can be; the controller that wrote it may be of another version"
                            .to_owned(),
                        ..refused(&format!("VeilPeerSlice {}", self.metadata.name), &field, &why)
                    });
                }
            }
        }
        Read::of(self.metadata, Arc::new(peers), problems)
    }
}

impl MeshObject {
    /// The mesh, or `before`, its last good state, where it can't be read.
    pub(crate) fn read(self, before: Option<&InForce>) -> Read<Option<InForce>> {
        match in_force(self.spec, self.status) {
            Ok(mesh) => Read::of(self.metadata, Some(mesh), Vec::new()),
            Err((field, why)) => {
                let problem = refused(&format!("EncryptionMesh {}", names::MESH), &field, &why);
                Read::of(self.metadata, before.cloned(), vec![problem])
            }
        }
    }
}

fn in_force(spec: serde_json::Value, status: Option<serde_json::Value>) -> Result<InForce, (String, String)> {
    let spec: MeshSpec = part("spec", spec)?;
    let status = status.map(|status| part("status", status)).transpose()?;
    spec.in_force(status.as_ref())
}

/// A part of an object, or the field that can't be read, and why.
fn part<T: DeserializeOwned>(name: &str, value: serde_json::Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let field = match path.as_str() {
            "." => name.to_owned(),
            path if path.starts_with('[') => format!("{name}{path}"),
            path => format!("{name}.{path}"),
        };
        (field, e.into_inner().to_string())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(spec: serde_json::Value, addresses: serde_json::Value) -> Read<Arc<NodeFacts>> {
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "a", "uid": "u", "resourceVersion": "17", "managedFields": [{"manager": "kubelet"}],
                "annotations": {names::ANNOUNCEMENT: "said", "other": "x"},
            },
            "spec": spec, "status": {"addresses": addresses, "images": [{"names": ["x"]}]},
        });
        serde_json::from_value::<NodeObject>(object).expect("a node").read("me")
    }

    #[test]
    fn what_counts_is_kept() {
        let read = node(
            json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}),
            json!([{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}]),
        );
        assert_eq!((read.name.as_str(), read.version, read.problems.len()), ("a", 17, 0));
        let facts = &read.value;
        assert_eq!((facts.uid.as_str(), facts.announcement.as_deref()), ("u", Some("said")));
        assert_eq!(facts.pod_cidrs.len(), 2);
        assert_eq!(facts.internal_ips, ["192.0.2.1".parse::<IpAddr>().expect("ip")]);
    }

    #[test]
    fn nonsense_is_told_and_the_rest_counts() {
        let read = node(
            json!({"podCIDRs": ["10.244.1.0/33", "fd00:1::/64"]}),
            json!([{"type": "InternalIP", "address": "nonsense\n"}, {"type": "InternalIP", "address": "192.0.2.1"}]),
        );
        let told: Vec<String> = read.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "Node a spec.podCIDRs[0]: \"10.244.1.0/33\" is no prefix. It does not count; correct what writes it.",
                "Node a status.addresses[0]: \"nonsense\\n\" is no IP address. It does not count; correct what writes it.",
            ]
        );
        assert_eq!((read.value.pod_cidrs.len(), read.value.internal_ips.len()), (1, 1));
    }

    #[test]
    fn a_pod_has_addresses_of_its_own_or_none() {
        let pod = |host: bool, phase: &str| {
            let object = json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "5"},
                "spec": {"hostNetwork": host, "containers": []},
                "status": {"phase": phase, "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}, {"ip": "x"}]},
            });
            serde_json::from_value::<PodObject>(object).expect("a pod").read()
        };
        let running = pod(false, "Running");
        assert_eq!((running.name.as_str(), running.version, running.value.addresses.len()), ("n/p", 5, 2));
        for none in [pod(true, "Running"), pod(false, "Failed"), pod(false, "Succeeded")] {
            assert!(none.value.addresses.is_empty());
        }
    }

    /// As long as its network stands; what can't be read is not told.
    #[test]
    fn since_when_a_pods_network_stands_is_read_where_it_is_told() {
        let since = |condition: serde_json::Value| {
            let conditions =
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": null}, condition]);
            let object = json!({"metadata": {"name": "p"}, "status": {"conditions": conditions}});
            let pod = serde_json::from_value::<PodObject>(object).expect("a pod").read().value;
            pod.network_since.map(|since| since.to_string())
        };
        let at = "2026-11-30T04:00:00Z";
        let told = |status: &str, at: &str| {
            since(json!({"type": "PodReadyToStartContainers", "status": status, "lastTransitionTime": at}))
        };
        assert_eq!(told("True", at).as_deref(), Some(at));
        assert_eq!([told("False", at), told("True", "yesterday"), since(json!({}))], [None, None, None]);
    }

    #[test]
    fn a_mesh_that_cannot_be_read_leaves_the_one_before() {
        let read = |spec: serde_json::Value, before: Option<&InForce>| {
            let object = json!({"metadata": {"name": "default", "resourceVersion": "3"}, "spec": spec});
            serde_json::from_value::<MeshObject>(object).expect("a mesh").read(before)
        };
        let good = json!({"mode": "require", "podCIDRs": ["10.0.0.0/8"], "nodeCIDRs": []});
        let first = read(good.clone(), None);
        assert!(first.problems.is_empty());
        let before = first.value.expect("a mesh");
        for (field, value, told) in [
            ("mode", json!("requires"), "spec.mode: unknown variant"),
            ("podCIDRs", json!(["10.0.0.0/8", "x"]), "spec.podCIDRs[1]: "),
            ("podCIDRs", json!(["0.0.0.0/0"]), "spec.podCIDRs[0]: is the whole address space"),
            ("mod", json!("x"), "unknown field `mod`"),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            let now = read(bad.clone(), Some(&before));
            assert_eq!(now.value.as_ref(), Some(&before), "{bad}");
            assert!(now.problems[0].to_string().contains(told), "{}", now.problems[0]);
            assert_eq!(read(bad, None).value, None);
        }
    }

    /// Who joins when all others have closed their pairs opens none.
    #[test]
    fn adoption_that_is_over_is_over_for_who_comes_later() {
        let adoption = json!({"deadline": "2100-01-01T00:00:00Z"});
        let spec =
            json!({"mode": "require", "podCIDRs": ["10.0.0.0/8"], "nodeCIDRs": [], "adoption": adoption});
        for (status, goes_on) in
            [(json!({}), true), (json!({"adoption": {"closedAt": "2026-01-01T00:00:00Z"}}), false)]
        {
            let object = json!({"metadata": {"name": "default"}, "spec": spec, "status": status});
            let read = serde_json::from_value::<MeshObject>(object).expect("a mesh").read(None);
            assert_eq!(read.value.expect("a mesh").spec.adoption.is_some(), goes_on);
        }
    }
}
