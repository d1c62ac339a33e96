//! Who pods are, and what policies ask for of them: kept by watches that are begun with the first policy, so a cluster without any costs
//! nothing. And what the other nodes were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    pin::pin,
    sync::Arc,
};

use futures_util::StreamExt as _;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{ApiResource, DynamicObject, Object, params::ListParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use kubeveil_api::{peer_slice, pod_slice::SlicedPod, policy::PolicyStatus, selector::Labels};
use kubeveil_core::policy::{
    Policy, PolicyId,
    census::{PodId, Resident},
};
use kubeveil_kubernetes::{PodSpec, PodStatus, ours, read_policy, resident, theirs};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    kept::Kept,
    peers::{Slices, Stands},
};

/// Parts that are read later, each for itself: one object that can't be read must not stop the others.
type Loose = Object<Option<Value>, Value>;
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

/// Watches, as long as it lives.
pub(crate) struct Watches {
    client: Client,
    stirred: Arc<Notify>,
    tasks: JoinSet<()>,
    policies: [Kept<SeenPolicy>; 2],
    slices: Kept<SeenSlice>,
    /// Slices of nodes.
    peers: Kept<Stands>,
    /// Begun with the first policy, or where a controller before this one told of pods.
    workloads: Option<(Kept<Arc<SeenPod>>, Kept<Space>)>,
}

impl Watches {
    pub(crate) fn begin(client: &Client, stirred: Arc<Notify>) -> Self {
        let mut watches = Self {
            client: client.clone(),
            stirred,
            tasks: JoinSet::new(),
            policies: Default::default(),
            slices: Kept::default(),
            peers: Kept::default(),
            workloads: None,
        };
        for (at, [kind, plural]) in KINDS.into_iter().enumerate() {
            let resource = ours(kind, plural);
            let kept = watches.policies[at].clone();
            watches
                .start(&resource, kept, full_name::<Loose>, |object, before| Some(policy(&object, before)));
        }
        let resource = ours("VeilPodSlice", "veilpodslices");
        let kept = watches.slices.clone();
        watches.start(&resource, kept, DynamicObject::name_any, |slice, _| Some(seen_slice(slice)));
        let resource = ours("VeilPeerSlice", "veilpeerslices");
        let kept = watches.peers.clone();
        watches.start(&resource, kept, DynamicObject::name_any, |slice, _| {
            let version = slice.resource_version().unwrap_or_default();
            let tells_all = slice.data["tellsAll"] == true;
            let uid = slice.uid().unwrap_or_default();
            Some(Stands { uid, version, tells_all, peers: list(slice, "peers") })
        });
        watches
    }

    /// They go on for ever, so one that does not is broken.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.tasks.try_join_next().is_some()
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
        let (pods, namespaces) = self.workloads();
        let is_blind = namespaces.is_blind();
        let (pods, spaces) = (pods.all()?, namespaces.all()?);
        let ending = spaces.iter().filter(|(_, (_, ends))| *ends).map(|(name, _)| name.clone()).collect();
        let namespaces = spaces.into_iter().map(|(name, (labels, _))| (name, labels)).collect();
        Some(Census { policies, slices, pods, namespaces, ending, is_blind })
    }

    fn workloads(&mut self) -> (Kept<Arc<SeenPod>>, Kept<Space>) {
        if let Some(begun) = &self.workloads {
            return begun.clone();
        }
        let begun = (Kept::default(), Kept::default());
        self.start(&theirs("", "Pod", "pods"), begun.0.clone(), full_name::<PodObject>, |pod, _| {
            seen_pod(pod).map(Arc::new)
        });
        self.start(&theirs("", "Namespace", "namespaces"), begun.1.clone(), Loose::name_any, |space, _| {
            Some((space.labels().clone(), space.metadata.deletion_timestamp.is_some()))
        });
        self.workloads.insert(begun).clone()
    }

    fn start<K, T>(
        &mut self,
        kind: &ApiResource,
        kept: Kept<T>,
        name: impl Fn(&K) -> String + Send + 'static,
        read: impl Fn(K, Option<&T>) -> Option<T> + Send + 'static,
    ) where
        K: Resource<DynamicType = ApiResource> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        T: Clone + Send + 'static,
    {
        let api: Api<K> = Api::all_with(self.client.clone(), kind);
        let (stirred, client) = (self.stirred.clone(), self.client.clone());
        let what = kind.plural.clone();
        let events = watcher(api, watcher::Config::default()).default_backoff();
        self.tasks.spawn(async move {
            let mut events = pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::InitDone) if kept.would_be_emptied() && !knows_a_node(&client).await => {
                        tracing::warn!("a list of {what} is empty, and no node is known to who gave it: all is asked anew");
                        return;
                    }
                    Ok(event) => {
                        kept.take(event, &name, &read);
                        stirred.notify_one();
                    }
                    // It tells of nothing; what is blind is asked when something else does.
                    Err(e) => {
                        tracing::warn!("watch {what}: {e}");
                        kept.fail();
                    }
                }
            }
        });
    }
}

/// Of whom no Node is known nothing is believed to be gone: an API server whose store was lost, or the wrong one.
async fn knows_a_node(client: &Client) -> bool {
    let nodes: Api<DynamicObject> = Api::all_with(client.clone(), &theirs("", "Node", "nodes"));
    nodes.list_metadata(&ListParams::default().limit(1)).await.is_ok_and(|nodes| !nodes.items.is_empty())
}

/// Under which no other of its kind is kept.
fn full_name<K: Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
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
