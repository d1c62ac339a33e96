//! What is followed, and where in the store it is kept.

use std::marker::PhantomData;

use kubeveil_api::names;
use kubeveil_core::problem::Problem;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{
    object::{
        MeshObject, Named, NamespaceObject, NodeObject, PeerSliceObject, PodObject, PolicyObject, Read,
        SliceObject,
    },
    source::State,
    store::{By, Disbelief, OutOfOrder, Scope, Store},
};

/// A kind of object, and its place in the store.
pub(crate) trait Watched: Send + 'static {
    type Object: DeserializeOwned + Send;
    /// Of its collection.
    const PATH: &str;
    /// As RBAC has it.
    const RESOURCE: &str;
    /// Which of them.
    fn fields(store: &Store) -> Option<String>;

    fn newest(store: &Store) -> u64;
    /// None is known.
    fn is_empty(store: &Store) -> bool;
    /// Whether it is news.
    fn list(store: &mut Store, listed: Vec<Self::Object>, version: u64) -> Result<bool, Disbelief>;
    fn event(store: &mut Store, object: Self::Object, is_deleted: bool) -> Result<bool, OutOfOrder>;
    fn bookmark(store: &mut Store, version: u64);
    fn trouble(state: &mut State) -> &mut Option<Problem>;

    /// Whether it varies which of them are wanted.
    const TURNS: bool = false;

    /// Others of them are wanted than were asked for.
    fn turns(_: &Store) -> bool {
        false
    }

    /// Those that are wanted are asked for from now on.
    fn ask(_: &mut Store) {}
}

/// A kind for who follows it and need not know which it is, so that following, most of which is the client's, is compiled once.
pub(crate) trait Kind: Send + Sync {
    fn path(&self) -> &'static str;
    fn resource(&self) -> &'static str;
    fn varies(&self) -> bool;
    fn turns(&self, store: &Store) -> bool;
    fn ask(&self, store: &mut Store);
    fn fields(&self, store: &Store) -> Option<String>;
    fn newest(&self, store: &Store) -> u64;
    fn is_empty(&self, store: &Store) -> bool;
    fn listing(&self) -> Box<dyn Listing>;
    fn event(&self, object: &RawValue, is_deleted: bool) -> serde_json::Result<Change>;
    fn bookmark(&self, store: &mut Store, version: u64);
    fn trouble<'a>(&self, state: &'a mut State) -> &'a mut Option<Problem>;
}

/// A list that comes in pages.
pub(crate) trait Listing: Send {
    fn add(&mut self, page: &[Box<RawValue>]) -> serde_json::Result<()>;
    fn is_empty(&self) -> bool;
    /// All of it, into the store.
    fn end(self: Box<Self>, store: &mut Store, version: u64) -> Result<bool, Disbelief>;
}

/// What an event does to the store.
pub(crate) type Change = Box<dyn FnOnce(&mut Store) -> Result<bool, OutOfOrder> + Send>;

/// `K`, as a value.
pub(crate) struct Of<K>(PhantomData<fn() -> K>);

impl<K> Of<K> {
    pub(crate) const KIND: Self = Self(PhantomData);
}

impl<K: Watched> Kind for Of<K> {
    fn path(&self) -> &'static str {
        K::PATH
    }

    fn resource(&self) -> &'static str {
        K::RESOURCE
    }

    fn varies(&self) -> bool {
        K::TURNS
    }

    fn turns(&self, store: &Store) -> bool {
        K::turns(store)
    }

    fn ask(&self, store: &mut Store) {
        K::ask(store);
    }

    fn fields(&self, store: &Store) -> Option<String> {
        K::fields(store)
    }

    fn newest(&self, store: &Store) -> u64 {
        K::newest(store)
    }

    fn is_empty(&self, store: &Store) -> bool {
        K::is_empty(store)
    }

    fn listing(&self) -> Box<dyn Listing> {
        Box::new(Listed::<K>(Vec::new()))
    }

    fn event(&self, object: &RawValue, is_deleted: bool) -> serde_json::Result<Change> {
        let object: K::Object = serde_json::from_str(object.get())?;
        Ok(Box::new(move |store| K::event(store, object, is_deleted)))
    }

    fn bookmark(&self, store: &mut Store, version: u64) {
        K::bookmark(store, version);
    }

    fn trouble<'a>(&self, state: &'a mut State) -> &'a mut Option<Problem> {
        K::trouble(state)
    }
}

struct Listed<K: Watched>(Vec<K::Object>);

impl<K: Watched> Listing for Listed<K> {
    fn add(&mut self, page: &[Box<RawValue>]) -> serde_json::Result<()> {
        page.iter()
            .try_for_each(|object| serde_json::from_str(object.get()).map(|object| self.0.push(object)))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(self: Box<Self>, store: &mut Store, version: u64) -> Result<bool, Disbelief> {
        K::list(store, self.0, version)
    }
}

pub(crate) enum Nodes {}

impl Watched for Nodes {
    type Object = NodeObject;
    const PATH: &str = "/api/v1/nodes";
    const RESOURCE: &str = "nodes";
    const TURNS: bool = true;

    fn fields(store: &Store) -> Option<String> {
        (store.asked() == By::Slices).then(|| format!("metadata.name={}", store.own()))
    }

    fn turns(store: &Store) -> bool {
        store.turns()
    }

    fn ask(store: &mut Store) {
        store.ask();
    }

    fn newest(store: &Store) -> u64 {
        store.nodes.newest()
    }

    fn is_empty(store: &Store) -> bool {
        store.nodes.is_empty()
    }

    fn list(store: &mut Store, listed: Vec<NodeObject>, version: u64) -> Result<bool, Disbelief> {
        let listed = listed.into_iter().map(|node| node.read(store.own())).collect();
        store.list_nodes(listed, version)
    }

    fn event(store: &mut Store, object: NodeObject, is_deleted: bool) -> Result<bool, OutOfOrder> {
        let read = object.read(store.own());
        store.node(read, is_deleted)
    }

    fn bookmark(store: &mut Store, version: u64) {
        store.nodes.bookmark(version);
    }

    fn trouble(state: &mut State) -> &mut Option<Problem> {
        &mut state.nodes
    }
}

pub(crate) enum Mesh {}

impl Watched for Mesh {
    type Object = MeshObject;
    const PATH: &str = "/apis/kubeveil.io/v1alpha1/encryptionmeshes";
    const RESOURCE: &str = "encryptionmeshes.kubeveil.io";

    fn fields(_: &Store) -> Option<String> {
        Some(format!("metadata.name={}", names::MESH))
    }

    fn newest(store: &Store) -> u64 {
        store.mesh.newest()
    }

    fn is_empty(store: &Store) -> bool {
        store.mesh.is_empty()
    }

    fn list(store: &mut Store, listed: Vec<MeshObject>, version: u64) -> Result<bool, Disbelief> {
        let before = store.mesh.get(names::MESH).and_then(|read| read.value.clone());
        store.list_mesh(listed.into_iter().map(|mesh| mesh.read(before.as_ref())).collect(), version)
    }

    fn event(store: &mut Store, object: MeshObject, is_deleted: bool) -> Result<bool, OutOfOrder> {
        let read = object.read(store.mesh.get(names::MESH).and_then(|read| read.value.as_ref()));
        store.mesh(read, is_deleted)
    }

    fn bookmark(store: &mut Store, version: u64) {
        store.mesh.bookmark(version);
    }

    fn trouble(state: &mut State) -> &mut Option<Problem> {
        &mut state.mesh
    }
}

pub(crate) enum Pods {}

impl Watched for Pods {
    type Object = PodObject;
    const PATH: &str = "/api/v1/pods";
    const RESOURCE: &str = "pods";

    fn fields(store: &Store) -> Option<String> {
        Some(format!("spec.nodeName={}", store.own()))
    }

    fn newest(store: &Store) -> u64 {
        store.pods.newest()
    }

    fn is_empty(store: &Store) -> bool {
        store.pods.is_empty()
    }

    fn list(store: &mut Store, listed: Vec<PodObject>, version: u64) -> Result<bool, Disbelief> {
        store.list_pods(listed.into_iter().map(PodObject::read).collect(), version)
    }

    fn event(store: &mut Store, object: PodObject, is_deleted: bool) -> Result<bool, OutOfOrder> {
        store.pod(object.read(), is_deleted)
    }

    fn bookmark(store: &mut Store, version: u64) {
        store.pods.bookmark(version);
    }

    fn trouble(state: &mut State) -> &mut Option<Problem> {
        &mut state.pods
    }
}

pub(crate) enum Namespaces {}

impl Watched for Namespaces {
    type Object = NamespaceObject;
    const PATH: &str = "/api/v1/namespaces";
    const RESOURCE: &str = "namespaces";

    fn fields(_: &Store) -> Option<String> {
        None
    }

    fn newest(store: &Store) -> u64 {
        store.namespaces.newest()
    }

    fn is_empty(store: &Store) -> bool {
        store.namespaces.is_empty()
    }

    fn list(store: &mut Store, listed: Vec<NamespaceObject>, version: u64) -> Result<bool, Disbelief> {
        store.list_namespaces(listed.into_iter().map(NamespaceObject::read).collect(), version)
    }

    fn event(store: &mut Store, object: NamespaceObject, is_deleted: bool) -> Result<bool, OutOfOrder> {
        store.namespace(object.read(), is_deleted)
    }

    fn bookmark(store: &mut Store, version: u64) {
        store.namespaces.bookmark(version);
    }

    fn trouble(state: &mut State) -> &mut Option<Problem> {
        &mut state.namespaces
    }
}

pub(crate) enum Slices {}

impl Watched for Slices {
    type Object = SliceObject;
    const PATH: &str = "/apis/kubeveil.io/v1alpha1/veilpodslices";
    const RESOURCE: &str = "veilpodslices.kubeveil.io";

    fn fields(_: &Store) -> Option<String> {
        None
    }

    fn newest(store: &Store) -> u64 {
        store.slices.newest()
    }

    fn is_empty(store: &Store) -> bool {
        store.slices.is_empty()
    }

    fn list(store: &mut Store, listed: Vec<SliceObject>, version: u64) -> Result<bool, Disbelief> {
        let listed = listed.into_iter().map(SliceObject::read).collect();
        store.list_slices(listed, version)
    }

    fn event(store: &mut Store, object: SliceObject, is_deleted: bool) -> Result<bool, OutOfOrder> {
        store.slice(object.read(), is_deleted)
    }

    fn bookmark(store: &mut Store, version: u64) {
        store.slices.bookmark(version);
    }

    fn trouble(state: &mut State) -> &mut Option<Problem> {
        &mut state.slices
    }
}

pub(crate) enum Peers {}

impl Watched for Peers {
    type Object = PeerSliceObject;
    const PATH: &str = "/apis/kubeveil.io/v1alpha1/veilpeerslices";
    const RESOURCE: &str = "veilpeerslices.kubeveil.io";

    fn fields(_: &Store) -> Option<String> {
        None
    }

    fn newest(store: &Store) -> u64 {
        store.peers.newest()
    }

    fn is_empty(store: &Store) -> bool {
        store.peers.is_empty()
    }

    fn list(store: &mut Store, listed: Vec<PeerSliceObject>, version: u64) -> Result<bool, Disbelief> {
        let listed = listed.into_iter().map(PeerSliceObject::read).collect();
        store.list_peers(listed, version)
    }

    fn event(store: &mut Store, object: PeerSliceObject, is_deleted: bool) -> Result<bool, OutOfOrder> {
        store.peer_slice(object.read(), is_deleted)
    }

    fn bookmark(store: &mut Store, version: u64) {
        store.peers.bookmark(version);
    }

    fn trouble(state: &mut State) -> &mut Option<Problem> {
        &mut state.peers
    }
}

/// Policies of one scope.
pub(crate) struct Policies<K>(PhantomData<fn() -> K>);

/// What tells the two scopes apart.
pub(crate) trait PolicyKind: 'static {
    const SCOPE: Scope;
    const PATH: &str;
    const RESOURCE: &str;
}

pub(crate) enum OfNamespace {}

impl PolicyKind for OfNamespace {
    const SCOPE: Scope = Scope::Namespace;
    const PATH: &str = "/apis/kubeveil.io/v1alpha1/encryptionpolicies";
    const RESOURCE: &str = "encryptionpolicies.kubeveil.io";
}

pub(crate) enum OfCluster {}

impl PolicyKind for OfCluster {
    const SCOPE: Scope = Scope::Cluster;
    const PATH: &str = "/apis/kubeveil.io/v1alpha1/clusterencryptionpolicies";
    const RESOURCE: &str = "clusterencryptionpolicies.kubeveil.io";
}

impl<K: PolicyKind> Policies<K> {
    fn read(store: &Store, policy: PolicyObject) -> Read<Option<Named>> {
        let before = store.policies[K::SCOPE as usize].get(&policy.name());
        policy.read(before.and_then(|read| read.value.as_ref()))
    }
}

impl<K: PolicyKind> Watched for Policies<K> {
    type Object = PolicyObject;
    const PATH: &str = K::PATH;
    const RESOURCE: &str = K::RESOURCE;

    fn fields(_: &Store) -> Option<String> {
        None
    }

    fn newest(store: &Store) -> u64 {
        store.policies[K::SCOPE as usize].newest()
    }

    fn is_empty(store: &Store) -> bool {
        store.policies[K::SCOPE as usize].is_empty()
    }

    fn list(store: &mut Store, listed: Vec<PolicyObject>, version: u64) -> Result<bool, Disbelief> {
        let listed = listed.into_iter().map(|policy| Self::read(store, policy)).collect();
        store.list_policies(K::SCOPE, listed, version)
    }

    fn event(store: &mut Store, object: PolicyObject, is_deleted: bool) -> Result<bool, OutOfOrder> {
        let read = Self::read(store, object);
        store.policy(K::SCOPE, read, is_deleted)
    }

    fn bookmark(store: &mut Store, version: u64) {
        store.policies[K::SCOPE as usize].bookmark(version);
    }

    fn trouble(state: &mut State) -> &mut Option<Problem> {
        &mut state.policies[K::SCOPE as usize]
    }
}
