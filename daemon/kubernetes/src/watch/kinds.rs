//! What is followed, and where in the store it is kept.

use kubeveil_api::{mesh::InForce, names};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{
    object::{
        MeshObject, Named, NamespaceObject, NodeObject, PeerSliceObject, PodObject, PolicyObject, Read,
        SliceObject,
    },
    store::{By, Disbelief, Known, OutOfOrder, Scope, Store},
};

/// A kind of object that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Nodes,
    Peers,
    Mesh,
    Pods,
    Namespaces,
    Slices,
    Policies(Scope),
}

/// A list that comes in pages.
pub(crate) trait Listing: Send {
    fn add(&mut self, page: &[Box<RawValue>]) -> serde_json::Result<()>;
    fn is_empty(&self) -> bool;
    /// All of it, into the store. Whether it is news.
    fn end(self: Box<Self>, store: &mut Store, version: u64) -> Result<bool, Disbelief>;
}

/// What an event does to the store. Whether it is news.
pub(crate) type Change = Box<dyn FnOnce(&mut Store) -> Result<bool, OutOfOrder> + Send>;

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Nodes,
        Self::Peers,
        Self::Mesh,
        Self::Pods,
        Self::Namespaces,
        Self::Slices,
        Self::Policies(Scope::Namespace),
        Self::Policies(Scope::Cluster),
    ];

    /// Of its collection.
    pub(crate) const fn path(self) -> &'static str {
        self.called().0
    }

    /// As RBAC has it.
    pub(crate) const fn resource(self) -> &'static str {
        self.called().1
    }

    const fn called(self) -> (&'static str, &'static str) {
        match self {
            Self::Nodes => ("/api/v1/nodes", "nodes"),
            Self::Pods => ("/api/v1/pods", "pods"),
            Self::Namespaces => ("/api/v1/namespaces", "namespaces"),
            Self::Mesh => ("/apis/kubeveil.io/v1alpha1/encryptionmeshes", "encryptionmeshes.kubeveil.io"),
            Self::Peers => ("/apis/kubeveil.io/v1alpha1/veilpeerslices", "veilpeerslices.kubeveil.io"),
            Self::Slices => ("/apis/kubeveil.io/v1alpha1/veilpodslices", "veilpodslices.kubeveil.io"),
            Self::Policies(Scope::Namespace) => {
                ("/apis/kubeveil.io/v1alpha1/encryptionpolicies", "encryptionpolicies.kubeveil.io")
            }
            Self::Policies(Scope::Cluster) => (
                "/apis/kubeveil.io/v1alpha1/clusterencryptionpolicies",
                "clusterencryptionpolicies.kubeveil.io",
            ),
        }
    }

    /// Which of them are wanted; `None`: all.
    pub(crate) fn fields(self, store: &Store) -> Option<String> {
        match self {
            Self::Nodes => (store.asked() == By::Slices).then(|| format!("metadata.name={}", store.own())),
            Self::Mesh => Some(format!("metadata.name={}", names::MESH)),
            Self::Pods => Some(format!("spec.nodeName={}", store.own())),
            Self::Peers | Self::Namespaces | Self::Slices | Self::Policies(_) => None,
        }
    }

    /// Others of them are wanted than were asked for.
    pub(crate) fn turns(self, store: &Store) -> bool {
        self == Self::Nodes && store.turns()
    }

    /// Those that are wanted are asked for from now on.
    pub(crate) fn ask(self, store: &mut Store) {
        if self == Self::Nodes {
            store.ask();
        }
    }

    /// Its place in the store.
    pub(crate) fn known(self, store: &mut Store) -> &mut dyn Known {
        match self {
            Self::Nodes => &mut store.nodes,
            Self::Peers => &mut store.peers,
            Self::Mesh => &mut store.mesh,
            Self::Pods => &mut store.pods,
            Self::Namespaces => &mut store.namespaces,
            Self::Slices => &mut store.slices,
            Self::Policies(scope) => &mut store.policies[scope as usize],
        }
    }

    pub(crate) fn listing(self) -> Box<dyn Listing> {
        match self {
            Self::Nodes => listing(|store, all: Vec<NodeObject>, version| {
                let all = all.into_iter().map(|node| node.read(store.own())).collect();
                store.list_nodes(all, version)
            }),
            Self::Peers => listing(|store, all: Vec<PeerSliceObject>, version| {
                store.list_peers(all.into_iter().map(PeerSliceObject::read).collect(), version)
            }),
            Self::Mesh => listing(|store, all: Vec<MeshObject>, version| {
                store.list_mesh(all.into_iter().map(|mesh| read_mesh(store, mesh)).collect(), version)
            }),
            Self::Pods => listing(|store, all: Vec<PodObject>, version| {
                store.list_pods(all.into_iter().map(PodObject::read).collect(), version)
            }),
            Self::Namespaces => listing(|store, all: Vec<NamespaceObject>, version| {
                store.list_namespaces(all.into_iter().map(NamespaceObject::read).collect(), version)
            }),
            Self::Slices => listing(|store, all: Vec<SliceObject>, version| {
                store.list_slices(all.into_iter().map(SliceObject::read).collect(), version)
            }),
            Self::Policies(scope) => listing(move |store, all: Vec<PolicyObject>, version| {
                let all = all.into_iter().map(|policy| read_policy(store, scope, policy)).collect();
                store.list_policies(scope, all, version)
            }),
        }
    }

    pub(crate) fn event(self, object: &RawValue, is_deleted: bool) -> serde_json::Result<Change> {
        match self {
            Self::Nodes => change(object, move |store, node: NodeObject| {
                let read = node.read(store.own());
                store.node(read, is_deleted)
            }),
            Self::Peers => change(object, move |store, slice: PeerSliceObject| {
                store.peer_slice(slice.read(), is_deleted)
            }),
            Self::Mesh => change(object, move |store, mesh: MeshObject| {
                let read = read_mesh(store, mesh);
                store.mesh(read, is_deleted)
            }),
            Self::Pods => change(object, move |store, pod: PodObject| store.pod(pod.read(), is_deleted)),
            Self::Namespaces => change(object, move |store, namespace: NamespaceObject| {
                store.namespace(namespace.read(), is_deleted)
            }),
            Self::Slices => {
                change(object, move |store, slice: SliceObject| store.slice(slice.read(), is_deleted))
            }
            Self::Policies(scope) => change(object, move |store, policy: PolicyObject| {
                let read = read_policy(store, scope, policy);
                store.policy(scope, read, is_deleted)
            }),
        }
    }
}

/// One that can't be read stays as it was.
fn read_mesh(store: &Store, mesh: MeshObject) -> Read<Option<InForce>> {
    mesh.read(store.mesh.get(names::MESH).and_then(|read| read.value.as_ref()))
}

/// Likewise.
fn read_policy(store: &Store, scope: Scope, policy: PolicyObject) -> Read<Option<Named>> {
    let before = store.policies[scope as usize].get(&policy.name());
    policy.read(before.and_then(|read| read.value.as_ref()))
}

struct Listed<T, F>(Vec<T>, F);

fn listing<T, F>(end: F) -> Box<dyn Listing>
where
    T: DeserializeOwned + Send + 'static,
    F: FnOnce(&mut Store, Vec<T>, u64) -> Result<bool, Disbelief> + Send + 'static,
{
    Box::new(Listed(Vec::new(), end))
}

impl<T, F> Listing for Listed<T, F>
where
    T: DeserializeOwned + Send,
    F: FnOnce(&mut Store, Vec<T>, u64) -> Result<bool, Disbelief> + Send,
{
    fn add(&mut self, page: &[Box<RawValue>]) -> serde_json::Result<()> {
        page.iter()
            .try_for_each(|object| serde_json::from_str(object.get()).map(|object| self.0.push(object)))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(self: Box<Self>, store: &mut Store, version: u64) -> Result<bool, Disbelief> {
        (self.1)(store, self.0, version)
    }
}

fn change<T: DeserializeOwned + Send + 'static>(
    object: &RawValue,
    change: impl FnOnce(&mut Store, T) -> Result<bool, OutOfOrder> + Send + 'static,
) -> serde_json::Result<Change> {
    let object = serde_json::from_str(object.get())?;
    Ok(Box::new(move |store| change(store, object)))
}
