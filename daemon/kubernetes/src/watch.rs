//! One kind of object, listed and then watched, for ever.

use std::{fmt::Debug, marker::PhantomData, pin::pin, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use kube::core::{
    ObjectList, Request,
    params::{ListParams, WatchParams},
    watch::WatchEvent,
};
use kubeveil_api::names;
use kubeveil_core::problem::Problem;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    connect::{Connection, Line, Origin, unbuilt},
    object::{MeshObject, Named, NamespaceObject, NodeObject, PodObject, PolicyObject, Read, version},
    pace::{Pace, Waits},
    source::{Shared, State},
    store::{Disbelief, OutOfOrder, Scope, Store},
    trouble::{Deed, Failure},
};

/// Objects a page of a list: some MB of Nodes.
const PAGE: u32 = 500;

/// A kind of object, and its place in the store.
pub(crate) trait Watched: Send + 'static {
    type Object: DeserializeOwned + Clone + Debug + Send;
    /// Of its collection.
    const PATH: &str;
    /// As RBAC has it.
    const RESOURCE: &str;
    /// Which of them, for the daemon on `own`.
    fn fields(own: &str) -> Option<String>;

    fn newest(store: &Store) -> u64;
    /// Whether it is news.
    fn list(store: &mut Store, listed: Vec<Self::Object>, version: u64) -> Result<bool, Disbelief>;
    fn event(store: &mut Store, object: Self::Object, is_deleted: bool) -> Result<bool, OutOfOrder>;
    fn bookmark(store: &mut Store, version: u64);
    fn trouble(state: &mut State) -> &mut Option<Problem>;
}

pub(crate) enum Nodes {}

impl Watched for Nodes {
    type Object = NodeObject;
    const PATH: &str = "/api/v1/nodes";
    const RESOURCE: &str = "nodes";

    fn fields(_: &str) -> Option<String> {
        None
    }

    fn newest(store: &Store) -> u64 {
        store.nodes.newest()
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

    fn fields(_: &str) -> Option<String> {
        Some(format!("metadata.name={}", names::MESH))
    }

    fn newest(store: &Store) -> u64 {
        store.mesh.newest()
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

    fn fields(own: &str) -> Option<String> {
        Some(format!("spec.nodeName={own}"))
    }

    fn newest(store: &Store) -> u64 {
        store.pods.newest()
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

    fn fields(_: &str) -> Option<String> {
        None
    }

    fn newest(store: &Store) -> u64 {
        store.namespaces.newest()
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

/// Policies of one scope.
pub(crate) struct Policies<K>(PhantomData<fn() -> K>);

/// What tells the two scopes apart.
pub(crate) trait PolicyKind: 'static {
    const SCOPE: Scope;
    const PATH: &str;
    const RESOURCE: &str;
    /// The policy, or `before` where it can't be read.
    fn read(policy: PolicyObject, before: Option<&Named>) -> Read<Option<Named>>;
}

pub(crate) enum OfNamespace {}

impl PolicyKind for OfNamespace {
    const SCOPE: Scope = Scope::Namespace;
    const PATH: &str = "/apis/kubeveil.io/v1alpha1/encryptionpolicies";
    const RESOURCE: &str = "encryptionpolicies.kubeveil.io";

    fn read(policy: PolicyObject, before: Option<&Named>) -> Read<Option<Named>> {
        policy.of_namespace(before)
    }
}

pub(crate) enum OfCluster {}

impl PolicyKind for OfCluster {
    const SCOPE: Scope = Scope::Cluster;
    const PATH: &str = "/apis/kubeveil.io/v1alpha1/clusterencryptionpolicies";
    const RESOURCE: &str = "clusterencryptionpolicies.kubeveil.io";

    fn read(policy: PolicyObject, before: Option<&Named>) -> Read<Option<Named>> {
        policy.of_cluster(before)
    }
}

impl<K: PolicyKind> Policies<K> {
    fn read(store: &Store, policy: PolicyObject) -> Read<Option<Named>> {
        let before = store.policies[K::SCOPE as usize].get(&policy.name());
        K::read(policy, before.and_then(|read| read.value.as_ref()))
    }
}

impl<K: PolicyKind> Watched for Policies<K> {
    type Object = PolicyObject;
    const PATH: &str = K::PATH;
    const RESOURCE: &str = K::RESOURCE;

    fn fields(_: &str) -> Option<String> {
        None
    }

    fn newest(store: &Store) -> u64 {
        store.policies[K::SCOPE as usize].newest()
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

/// Keeps `K` in the store as the API server has it.
pub(crate) struct Follower {
    shared: Arc<Shared>,
    line: Line,
    must_list: bool,
    waits: Waits,
    /// When the first of the failures in a row was, and how many there were.
    failing: Option<(Timestamp, u32)>,
    /// What was asked last.
    verb: &'static str,
}

impl Follower {
    pub(crate) fn new(shared: Arc<Shared>, origin: Origin, pace: Pace) -> Self {
        let waits = Waits::new(pace);
        Self { shared, line: Line::new(origin, pace), must_list: true, waits, failing: None, verb: "list" }
    }

    /// For ever.
    pub(crate) async fn run<K: Watched>(mut self) {
        loop {
            if let Err(failure) = self.round::<K>().await {
                let wait = self.failed::<K>(&failure);
                sleep(wait).await;
            }
        }
    }

    /// A list, if one is needed, and a watch until it ends.
    async fn round<K: Watched>(&mut self) -> Result<(), Failure> {
        self.verb = if self.must_list { "list" } else { "watch" };
        let connection = self.line.connection().await?;
        if self.must_list {
            self.list::<K>(&connection).await?;
            (self.must_list, self.verb) = (false, "watch");
        }
        self.watch::<K>(&connection).await
    }

    async fn list<K: Watched>(&self, connection: &Connection) -> Result<(), Failure> {
        let mut params =
            ListParams { field_selector: self.fields::<K>(), ..ListParams::default() }.limit(PAGE);
        let mut listed = Vec::new();
        let as_of = loop {
            let request = Request::new(K::PATH).list(&params).map_err(unbuilt)?;
            let text = self.line.within(connection.client.request_text(request)).await?;
            let page: ObjectList<K::Object> = serde_json::from_str(&text).map_err(Failure::Answer)?;
            listed.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break version(page.metadata.resource_version.as_deref().unwrap_or_default()),
            }
        };
        self.shared.change(|store| K::list(store, listed, as_of)).map_err(Failure::Disbelief)
    }

    /// Until it ends; well only if it lasted.
    async fn watch<K: Watched>(&mut self, connection: &Connection) -> Result<(), Failure> {
        let mut params =
            WatchParams::default().timeout(u32::try_from(self.line.pace.watch.as_secs()).unwrap_or(u32::MAX));
        params.field_selector = self.fields::<K>();
        let from = self.shared.with(|state| K::newest(&state.store)).to_string();
        let request = Request::new(K::PATH).watch(&params, &from).map_err(unbuilt)?;
        let events = self.line.within(connection.client.request_events::<K::Object>(request)).await?;
        let mut events = pin!(events);
        let start = Instant::now();
        let mut is_well = false;
        loop {
            let limit = if is_well { self.line.pace.silence } else { self.line.pace.steady };
            let event = match timeout(limit, events.try_next()).await {
                Ok(event) => event.map_err(Failure::Request)?,
                Err(_) if is_well => return Err(Failure::Broken("a watch fell silent")),
                Err(_) => {
                    is_well = true;
                    self.works::<K>();
                    continue;
                }
            };
            let Some(event) = event else {
                let lasted = start.elapsed() >= self.line.pace.steady;
                return if lasted { Ok(()) } else { Err(Failure::Broken("a watch ended at once")) };
            };
            let (object, is_deleted) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    let at = version(&bookmark.metadata.resource_version);
                    self.shared.with(|state| K::bookmark(&mut state.store, at));
                    continue;
                }
                WatchEvent::Error(status) => return Err(Failure::Request(kube::Error::Api(status))),
            };
            self.shared
                .change(|store| K::event(store, object, is_deleted))
                .map_err(|OutOfOrder| Failure::Expired)?;
            if !is_well {
                is_well = true;
                self.works::<K>();
            }
        }
    }

    fn fields<K: Watched>(&self) -> Option<String> {
        self.shared.with(|state| K::fields(state.store.own()))
    }

    fn works<K: Watched>(&mut self) {
        self.failing = None;
        self.waits.reset();
        self.shared.with(|state| *K::trouble(state) = None);
    }

    /// How long to wait before the next try.
    fn failed<K: Watched>(&mut self, failure: &Failure) -> Duration {
        let (since, count) = self.failing.get_or_insert_with(|| (Timestamp::now(), 0));
        *count += 1;
        if *count > 1 || !failure.is_common() {
            let deed = Deed { verb: self.verb, resource: K::RESOURCE };
            let problem = self.line.problem(failure, deed, *since);
            self.shared.with(|state| *K::trouble(state) = Some(problem));
        }
        self.must_list |= failure.needs_list();
        self.line.failed(failure);
        self.waits.next(failure.retry_after())
    }
}
