//! Who pods are, and what policies ask for of them: kept by watches that are begun with the first policy, so a cluster without any costs
//! nothing. And what the other nodes were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::{
    Client, ResourceExt as _,
    core::{DynamicObject, Object},
};
use kubeveil_api::{peer_slice, pod_slice::SlicedPod, policy::PolicyStatus, selector::Labels};
use kubeveil_core::policy::{
    Policy, PolicyId,
    census::{PodId, Resident},
};
use kubeveil_kubernetes::{PodSpec, PodStatus, ours, read_policy, resident, theirs};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Notify;

use crate::{
    follow::{Loose, Watches, full_name},
    kept::Kept,
    peers::{Slices, Stands},
};

pub(crate) type PodObject = Object<PodSpec, PodStatus>;

/// As `kubectl` has them.
pub(crate) const KINDS: [[&str; 2]; 2] =
    [["EncryptionPolicy", "encryptionpolicies"], ["ClusterEncryptionPolicy", "clusterencryptionpolicies"]];

/// Labels of a namespace, and whether it is being deleted.
type Space = (Labels, bool);

/// A pod that has not ended, by its name.
pub(crate) type SeenPod = (PodId, Resident);

/// A policy as it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeenPolicy {
    pub(crate) id: PolicyId,
    pub(crate) uid: String,
    /// `metadata.generation`.
    pub(crate) generation: i64,
    /// Or the field that is wrong, and why.
    pub(crate) policy: Result<Policy, String>,
    /// As it was when it could be read last, where it can't.
    pub(crate) last_good: Option<Policy>,
    pub(crate) status: PolicyStatus,
}

impl SeenPolicy {
    /// As the agents have it.
    pub(crate) fn good(&self) -> Option<&Policy> {
        self.policy.as_ref().ok().or(self.last_good.as_ref())
    }
}

/// A slice as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenSlice {
    /// `None` where it can't be read.
    pub(crate) pods: Option<Vec<SlicedPod>>,
    /// UID of the Node with which it goes.
    pub(crate) owner: Option<String>,
}

/// All of it at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census {
    pub(crate) policies: Vec<SeenPolicy>,
    /// Labels by name.
    pub(crate) namespaces: BTreeMap<String, Labels>,
    /// Those namespaces that are being deleted, and what is in them, in any order.
    pub(crate) ending: BTreeSet<String>,
    /// There may be more of those.
    pub(crate) is_blind: bool,
    pub(crate) pods: BTreeMap<String, Arc<SeenPod>>,
    /// By node.
    pub(crate) slices: BTreeMap<String, SeenSlice>,
}

/// All of it, as long as it lives.
pub(crate) struct Workloads {
    pub(crate) watches: Watches,
    policies: [Kept<SeenPolicy>; 2],
    slices: Kept<SeenSlice>,
    /// Slices of nodes.
    peers: Kept<Stands>,
    /// Begun with the first policy, or where a controller before this one told of pods.
    pods: Option<(Kept<Arc<SeenPod>>, Kept<Space>)>,
}

impl Workloads {
    pub(crate) fn begin(client: &Client, stirred: Arc<Notify>) -> Self {
        let mut watches = Watches::new(client, stirred);
        let policies = KINDS.map(|[kind, plural]| {
            let read = |object: Loose, before: Option<&_>| Some(policy(&object, before));
            watches.all(&ours(kind, plural), full_name, read)
        });
        let name = DynamicObject::name_any;
        let slices =
            watches.all(&ours("VeilPodSlice", "veilpodslices"), name, |slice, _| Some(seen_slice(slice)));
        let peers = watches.all(&ours("VeilPeerSlice", "veilpeerslices"), name, |slice: DynamicObject, _| {
            let version = slice.resource_version().unwrap_or_default();
            let tells_all = slice.data["tellsAll"] == true;
            let uid = slice.uid().unwrap_or_default();
            Some(Stands { uid, version, tells_all, peers: list(slice, "peers") })
        });
        Self { watches, policies, slices, peers, pods: None }
    }

    /// The slices of nodes; `None` until they have been seen once.
    pub(crate) fn peers(&self) -> Option<Slices> {
        let mut slices = Slices::default();
        for (name, stands) in self.peers.all()? {
            match peer_slice::number(&name) {
                Some(number) => drop(slices.standing.insert(number, stands)),
                None => slices.foreign.push(name),
            }
        }
        Some(slices)
    }

    /// As of now; `None` until everything has been seen once. Without a policy nobody is asked who pods are, unless other nodes were told of
    /// some: what held them may have gone since their namespace does.
    pub(crate) fn seen(&mut self) -> Option<Census> {
        let [of_namespaces, of_cluster] = [self.policies[0].all()?, self.policies[1].all()?];
        let policies: Vec<_> = of_namespaces.into_values().chain(of_cluster.into_values()).collect();
        let slices = self.slices.all()?;
        if policies.is_empty() && slices.is_empty() {
            return Some(Census { slices, ..Census::default() });
        }
        let (pods, namespaces) = self.pods();
        let is_blind = namespaces.is_blind();
        let (pods, spaces) = (pods.all()?, namespaces.all()?);
        let ending = spaces.iter().filter(|(_, (_, ends))| *ends).map(|(name, _)| name.clone()).collect();
        let namespaces = spaces.into_iter().map(|(name, (labels, _))| (name, labels)).collect();
        Some(Census { policies, slices, pods, namespaces, ending, is_blind })
    }

    fn pods(&mut self) -> (Kept<Arc<SeenPod>>, Kept<Space>) {
        if let Some(begun) = &self.pods {
            return begun.clone();
        }
        let pods = theirs("", "Pod", "pods");
        let pods = self.watches.all(&pods, full_name, |pod: PodObject, _| seen_pod(pod).map(Arc::new));
        let namespaces = theirs("", "Namespace", "namespaces");
        let namespaces = self.watches.all(&namespaces, Loose::name_any, |space, _| {
            Some((space.labels().clone(), space.metadata.deletion_timestamp.is_some()))
        });
        self.pods.insert((pods, namespaces)).clone()
    }
}

fn seen_slice(slice: DynamicObject) -> SeenSlice {
    let owner = slice.owner_references().first().map(|owner| owner.uid.clone());
    SeenSlice { pods: list(slice, "pods"), owner }
}

/// A field of a slice; `None` where it can't be read.
fn list<T: DeserializeOwned>(mut slice: DynamicObject, field: &str) -> Option<Vec<T>> {
    let list = slice.data.get_mut(field).map(Value::take);
    list.map_or_else(|| Some(Vec::new()), |list| serde_json::from_value(list).ok())
}

fn policy(object: &Loose, before: Option<&SeenPolicy>) -> SeenPolicy {
    let (namespace, name) = (object.namespace(), object.name_any());
    let spec = object.spec.clone().unwrap_or_default();
    let read = read_policy(namespace.as_deref().unwrap_or_default(), &name, spec);
    let status = object.status.clone().and_then(|status| serde_json::from_value(status).ok());
    SeenPolicy {
        id: PolicyId { namespace, name },
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        last_good: before.filter(|_| read.is_err()).and_then(|before| before.good().cloned()),
        policy: read.map(|(_, policy)| policy).map_err(|(field, why)| format!("{field} {why}")),
        status: status.unwrap_or_default(),
    }
}

/// What is kept of a pod; nothing of one that has ended, or runs nowhere yet.
fn seen_pod(object: PodObject) -> Option<SeenPod> {
    let id = PodId { namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
    let labels = object.labels().clone();
    let resident = resident(id.namespace.clone(), labels, object.spec, object.status.unwrap_or_default());
    (!resident.has_ended && !resident.pod.node.is_empty()).then_some((id, resident))
}
