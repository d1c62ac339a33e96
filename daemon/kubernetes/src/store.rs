//! What is known, and what of lists and watches is believed.

mod peers;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use kubeveil_api::{
    mesh::{InForce, Mode},
    names,
    problem::Problem,
};
use kubeveil_core::{
    lingering::Lingering,
    policy::{
        Policies, Policy, PolicyId,
        pods::{Exceptions, OfPods, Pod, Workloads},
    },
    snapshot::{Knowledge, NodeFacts, Snapshot},
    source::Changes,
};

use crate::object::{Named, Read, Space};
pub(crate) use peers::{By, Peers};

/// Why a list does not count, and everything stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Disbelief {
    /// It is older than what was seen already: an API server that is behind, or a store that was put back.
    Older { seen: u64, listed: u64 },
    /// It lacks the Node that this daemon runs on.
    LacksOwn(String),
}

/// An event that can't follow those before it: the watch has to be begun anew, by a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfOrder;

/// Is told what became of an object: its name, what it was, what it is.
pub(crate) trait Note<T>: FnMut(&str, Option<&T>, Option<&T>) {}
impl<T, F: FnMut(&str, Option<&T>, Option<&T>)> Note<T> for F {}

/// All objects of one kind.
#[derive(Debug)]
pub(crate) struct Objects<T> {
    by_name: BTreeMap<String, Read<T>>,
    /// The newest `resourceVersion` that was seen.
    newest: u64,
    /// All have been seen since the start.
    listed: bool,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), newest: 0, listed: false }
    }
}

/// Objects of one kind, whichever it is.
pub(crate) trait Known {
    fn is_empty(&self) -> bool;
    /// From where a watch goes on.
    fn newest(&self) -> u64;
    /// Nothing has changed until `version`.
    fn bookmark(&mut self, version: u64);
}

impl<T> Known for Objects<T> {
    fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    fn newest(&self) -> u64 {
        self.newest
    }

    fn bookmark(&mut self, version: u64) {
        self.newest = self.newest.max(version);
    }
}

impl<T: PartialEq> Objects<T> {
    pub(crate) fn get(&self, name: &str) -> Option<&Read<T>> {
        self.by_name.get(name)
    }

    /// A full list, as of `version`: what is not in it is gone.
    pub(crate) fn replace(
        &mut self,
        listed: Vec<Read<T>>,
        version: u64,
        must_have: Option<&str>,
        mut note: impl Note<T>,
    ) -> Result<(), Disbelief> {
        // No list is of version 0, so what is no number is never believed.
        if version < self.newest.max(1) {
            return Err(Disbelief::Older { seen: self.newest, listed: version });
        }
        if let Some(own) = must_have.filter(|own| !listed.iter().any(|read| read.name == *own)) {
            return Err(Disbelief::LacksOwn(own.to_owned()));
        }
        let mut before = std::mem::take(&mut self.by_name);
        for read in listed {
            let was = before.remove(&read.name);
            self.keep(read, was, &mut note);
        }
        for (name, gone) in before {
            note(&name, Some(&gone.value), None);
        }
        (self.newest, self.listed) = (version, true);
        Ok(())
    }

    /// An object as it was at its version, after that it was added or modified, or before it was deleted.
    pub(crate) fn event(
        &mut self,
        read: Read<T>,
        is_deleted: bool,
        mut note: impl Note<T>,
    ) -> Result<(), OutOfOrder> {
        if read.version <= self.newest {
            // Told twice, or late, of what is known to be newer.
            let held = self.by_name.get(&read.name);
            let is_old = held.map_or(is_deleted, |held| held.version >= read.version);
            return if is_old { Ok(()) } else { Err(OutOfOrder) };
        }
        self.newest = read.version;
        let was = self.by_name.remove(&read.name);
        if is_deleted {
            if let Some(was) = was {
                note(&read.name, Some(&was.value), None);
            }
        } else {
            self.keep(read, was, &mut note);
        }
        Ok(())
    }

    fn keep(&mut self, mut read: Read<T>, was: Option<Read<T>>, note: &mut impl Note<T>) {
        match was {
            // What is the same is kept once.
            Some(was) if was.value == read.value => read.value = was.value,
            was => note(&read.name, was.as_ref().map(|was| &was.value), Some(&read.value)),
        }
        self.by_name.insert(read.name.clone(), read);
    }
}

/// Whose a policy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Namespace,
    Cluster,
}

/// Nodes, the mesh, policies, this node's own pods, and what is asked for of others'.
#[derive(Debug)]
pub(crate) struct Store {
    /// The Node that this daemon runs on.
    own: String,
    pub(crate) nodes: Objects<Arc<NodeFacts>>,
    /// Nodes, as the controller tells of them, and whose prefixes are whose.
    pub(crate) peers: Objects<Arc<Peers>>,
    /// What other nodes are known by …
    by: By,
    /// … and what they are to be known by as soon as what was asked for is there.
    asked: By,
    /// Slices by which all nodes can be known, as the controller said last, whatever becomes of the mesh; 0: they can't.
    peer_slices: u32,
    pub(crate) mesh: Objects<Option<InForce>>,
    /// This node's pods.
    pub(crate) pods: Objects<Pod>,
    pub(crate) namespaces: Objects<Space>,
    /// Policies, by their [`Scope`].
    pub(crate) policies: [Objects<Option<Named>>; 2],
    /// Those of namespaces that are gone for a moment only: that their namespace is being deleted another watch tells.
    lingering: Lingering<PolicyId, Policy>,
    /// What is asked for of pods of other nodes, by the node.
    pub(crate) slices: Objects<Arc<Exceptions>>,
    /// Those of the pods that have an address that is none of their node's.
    strangers: BTreeSet<String>,
    /// Since somebody read it.
    changes: Changes,
}

impl Store {
    pub(crate) fn new(own: &str) -> Self {
        Self {
            own: own.to_owned(),
            nodes: Objects::default(),
            peers: Objects::default(),
            by: By::default(),
            asked: By::default(),
            peer_slices: 0,
            mesh: Objects::default(),
            pods: Objects::default(),
            namespaces: Objects::default(),
            policies: Default::default(),
            lingering: Lingering::default(),
            slices: Objects::default(),
            strangers: BTreeSet::new(),
            changes: no_changes(),
        }
    }

    pub(crate) fn own(&self) -> &str {
        &self.own
    }

    /// Everything. Whole if all kinds were listed since the start, and this very node is there. A policy of a namespace that was deleted
    /// less than `settle` before `now` still stands; true if there is one.
    pub(crate) fn knowledge(&mut self, settle: Duration, now: Duration) -> (Knowledge, bool) {
        let (policies, waits) = self.policies_in_force(settle, now);
        let mesh = self.mesh_to_go_by().cloned();
        let mut snapshot = Snapshot {
            nodes: self.known_nodes(),
            strangers: self.strangers.clone(),
            refused: self.refused().into(),
            policies,
            ending: self.ending().cloned().collect(),
            workloads: self.workloads().into(),
            ..Snapshot::default()
        };
        snapshot.set_mesh(mesh);
        let is_whole = self.is_listed() && self.nodes.get(&self.own).is_some();
        let knowledge =
            if is_whole { Knowledge::Whole(snapshot.attest_whole()) } else { Knowledge::Partial(snapshot) };
        (knowledge, waits)
    }

    fn mesh_in_force(&self) -> Option<&InForce> {
        self.mesh.get(names::MESH)?.value.as_ref()
    }

    /// One that observes says little without the policies: until they were listed, it is as if it were not known.
    fn mesh_to_go_by(&self) -> Option<&InForce> {
        let is_told = self.policies.iter().all(|policies| policies.listed);
        self.mesh_in_force().filter(|mesh| is_told || mesh.spec.mode != Mode::Observe)
    }

    fn policies_in_force(&mut self, settle: Duration, now: Duration) -> (Policies, bool) {
        let all = self.policies().filter_map(|read| read.value.clone());
        let (mut of_namespaces, of_cluster): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|(id, _)| id.namespace.is_some());
        let waits = self.lingering.keep_in(&mut of_namespaces, settle, now);
        of_namespaces.extend(of_cluster);
        (Policies::new(of_namespaces), waits)
    }

    /// Namespaces that are being deleted.
    fn ending(&self) -> impl Iterator<Item = &String> {
        self.namespaces.by_name.iter().filter(|(_, read)| read.value.ends).map(|(name, _)| name)
    }

    fn is_listed(&self) -> bool {
        let policies = self.policies.iter().all(|policies| policies.listed) && self.can_read_policies();
        let pods = self.pods.listed && self.namespaces.listed && self.slices.listed;
        let others = self.by == By::Nodes || self.has_all_peers();
        self.nodes.listed && others && self.mesh.listed && pods && policies
    }

    /// One that can't be read, and of which no good state was seen since the start, may be in force since before.
    fn can_read_policies(&self) -> bool {
        self.policies().all(|read| read.value.is_some())
    }

    /// Those of both scopes.
    fn policies(&self) -> impl Iterator<Item = &Read<Option<Named>>> {
        self.policies.iter().flat_map(|policies| policies.by_name.values())
    }

    /// Is something asked for of anybody, or may be still, by a policy that went before its namespace's pods?
    fn asks(&self) -> bool {
        let stands = self.policies().any(|read| read.value.is_some());
        stands || !self.lingering.is_empty() || self.ending().next().is_some()
    }

    /// Of nobody where nothing is asked for of anybody.
    fn workloads(&self) -> Workloads {
        if !self.asks() {
            return Workloads::default();
        }
        let namespaces = self.namespaces.by_name.iter();
        let pods = self.pods.by_name.values();
        // Of our own pods we know better.
        let slices = self.slices.by_name.iter().filter(|(node, _)| **node != self.own);
        Workloads {
            namespaces: namespaces.map(|(name, read)| (name.clone(), read.value.labels.clone())).collect(),
            pods: pods.map(|read| (read.uid.clone(), read.value.clone())).collect(),
            elsewhere: slices.map(|(node, read)| (node.clone(), Arc::clone(&read.value))).collect(),
            knows_elsewhere: self.slices.listed,
        }
    }

    /// What of it could not be read.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let nodes = self.nodes.by_name.values().flat_map(|read| &read.problems);
        let mesh = self.mesh.by_name.values().flat_map(|read| &read.problems);
        let slices = self.slices.by_name.values().flat_map(|read| &read.problems);
        let peers = self.peers.by_name.values().flat_map(|read| &read.problems);
        nodes.chain(peers).chain(mesh).chain(slices).chain(self.policies().flat_map(|read| &read.problems))
    }

    /// What has changed since this was last called.
    pub(crate) fn take_changes(&mut self) -> Changes {
        std::mem::replace(&mut self.changes, no_changes())
    }

    /// Nodes as of a full list of those that were asked for.
    pub(crate) fn list_nodes(
        &mut self,
        listed: Vec<Read<Arc<NodeFacts>>>,
        version: u64,
    ) -> Result<bool, Disbelief> {
        let Self { own, nodes, changes, by, asked, .. } = self;
        let mut noted = Noted::new(changes, !nodes.listed || by != asked);
        nodes.replace(listed, version, Some(own), |name, was, is| noted.node(name, was, is))?;
        *by = *asked;
        let is_news = noted.is_news;
        Ok(self.look_for_strangers() || is_news)
    }

    /// One Node.
    pub(crate) fn node(&mut self, read: Read<Arc<NodeFacts>>, is_deleted: bool) -> Result<bool, OutOfOrder> {
        let is_own = read.name == self.own;
        let mut noted = Noted::new(&mut self.changes, false);
        self.nodes.event(read, is_deleted, |name, was, is| noted.node(name, was, is))?;
        let is_news = noted.is_news;
        // Thousands of other Nodes beat, and say nothing of our pods.
        Ok((is_own && self.look_for_strangers()) || is_news)
    }

    /// This node's pods as of a full list.
    pub(crate) fn list_pods(&mut self, listed: Vec<Read<Pod>>, version: u64) -> Result<bool, Disbelief> {
        let asks = self.asks();
        let mut noted = Noted::new(&mut self.changes, !self.pods.listed);
        self.pods.replace(listed, version, None, |_, _, _| noted.any_if(asks))?;
        let is_news = noted.is_news;
        Ok(self.look_for_strangers() || is_news)
    }

    /// One of them. That they come and go is no news where nothing is asked for of anybody.
    pub(crate) fn pod(&mut self, read: Read<Pod>, is_deleted: bool) -> Result<bool, OutOfOrder> {
        let asks = self.asks();
        // Another pod may have its name by now.
        let uid = self.pods.get(&read.name).filter(|held| held.uid == read.uid).map(|held| held.uid.clone());
        let mut noted = Noted::new(&mut self.changes, false);
        self.pods.event(read, is_deleted, |_, was, is| {
            let labels = uid.as_ref().zip(was.zip(is).and_then(|(was, is)| is.labelled_otherwise(was)));
            match labels.filter(|_| asks) {
                Some((uid, labels)) => {
                    noted.pods(|said| drop(said.labels.insert(uid.clone(), labels.clone())))
                }
                None => noted.any_if(asks),
            }
        })?;
        let is_news = noted.is_news;
        Ok(self.look_for_strangers() || is_news)
    }

    /// Namespaces as of a full list.
    pub(crate) fn list_namespaces(
        &mut self,
        listed: Vec<Read<Space>>,
        version: u64,
    ) -> Result<bool, Disbelief> {
        let asks = self.asks();
        let mut noted = Noted::new(&mut self.changes, !self.namespaces.listed);
        self.namespaces.replace(listed, version, None, |_, _, _| noted.any_if(asks))?;
        Ok(noted.is_news)
    }

    /// One of them.
    pub(crate) fn namespace(&mut self, read: Read<Space>, is_deleted: bool) -> Result<bool, OutOfOrder> {
        let asks = self.asks();
        let mut noted = Noted::new(&mut self.changes, false);
        self.namespaces.event(read, is_deleted, |name, was, is| match was.zip(is) {
            Some((was, is)) if was.ends == is.ends && asks => {
                noted.pods(|said| drop(said.namespaces.insert(name.to_owned(), is.labels.clone())));
            }
            _ => noted.any_if(asks),
        })?;
        Ok(noted.is_news)
    }

    /// Policies as of a full list.
    pub(crate) fn list_policies(
        &mut self,
        scope: Scope,
        listed: Vec<Read<Option<Named>>>,
        version: u64,
    ) -> Result<bool, Disbelief> {
        let policies = &mut self.policies[scope as usize];
        let mut noted = Noted::new(&mut self.changes, !policies.listed);
        policies.replace(listed, version, None, |_, _, _| noted.any())?;
        Ok(noted.is_news)
    }

    /// One of them.
    pub(crate) fn policy(
        &mut self,
        scope: Scope,
        read: Read<Option<Named>>,
        is_deleted: bool,
    ) -> Result<bool, OutOfOrder> {
        let mut noted = Noted::new(&mut self.changes, false);
        self.policies[scope as usize].event(read, is_deleted, |_, _, _| noted.any())?;
        Ok(noted.is_news)
    }

    /// What is asked for of other nodes' pods, as of a full list.
    pub(crate) fn list_slices(
        &mut self,
        listed: Vec<Read<Arc<Exceptions>>>,
        version: u64,
    ) -> Result<bool, Disbelief> {
        let asks = self.asks();
        let mut noted = Noted::new(&mut self.changes, !self.slices.listed);
        self.slices.replace(listed, version, None, |_, _, _| noted.any_if(asks))?;
        Ok(noted.is_news)
    }

    /// Of those of one node.
    pub(crate) fn slice(
        &mut self,
        read: Read<Arc<Exceptions>>,
        is_deleted: bool,
    ) -> Result<bool, OutOfOrder> {
        let asks = self.asks() && read.name != self.own;
        // What can't be read is told, or not any more.
        let had = self.slices.get(&read.name).map_or(&[][..], |before| &before.problems);
        let tells = !read.problems.is_empty() || !had.is_empty();
        let mut noted = Noted::new(&mut self.changes, false);
        self.slices.event(read, is_deleted, |name, _, is| match (asks, tells) {
            (true, true) => noted.any(),
            (true, false) => noted.pods(|said| drop(said.elsewhere.insert(name.to_owned(), is.cloned()))),
            (false, _) => {}
        })?;
        Ok(noted.is_news)
    }

    /// Whose addresses are in none of the own Node's prefixes; whether that is news. Of a Node that has none of a family
    /// nothing can be said there.
    fn look_for_strangers(&mut self) -> bool {
        let own = self.nodes.get(&self.own).map(|read| &read.value);
        let is_strange = |address: &IpAddr| {
            let prefixes = own.iter().flat_map(|own| &own.pod_cidrs);
            own.is_some() && !prefixes.into_iter().any(|prefix| prefix.contains(address))
        };
        let pods = self.pods.by_name.iter();
        let told = pods.filter_map(|(name, read)| {
            let address = read.value.addresses.iter().find(|address| is_strange(address))?;
            Some(format!("Pod {name} has the address {address}"))
        });
        let strangers = told.collect();
        let is_news = self.strangers != strangers;
        self.strangers = strangers;
        if is_news {
            Noted::new(&mut self.changes, false).any();
        }
        is_news
    }

    /// The mesh as of a full list.
    pub(crate) fn list_mesh(
        &mut self,
        listed: Vec<Read<Option<InForce>>>,
        version: u64,
    ) -> Result<bool, Disbelief> {
        let mut noted = Noted::new(&mut self.changes, !self.mesh.listed);
        self.mesh.replace(listed, version, None, |_, _, _| noted.any())?;
        let is_news = noted.is_news;
        self.hear_of_slices();
        Ok(is_news)
    }

    /// The mesh.
    pub(crate) fn mesh(&mut self, read: Read<Option<InForce>>, is_deleted: bool) -> Result<bool, OutOfOrder> {
        let mut noted = Noted::new(&mut self.changes, false);
        self.mesh.event(read, is_deleted, |_, _, _| noted.any())?;
        let is_news = noted.is_news;
        self.hear_of_slices();
        Ok(is_news)
    }
}

fn no_changes() -> Changes {
    Changes::Announcements(BTreeMap::new())
}

/// Collects what changes.
struct Noted<'a> {
    changes: &'a mut Changes,
    is_news: bool,
}

impl<'a> Noted<'a> {
    /// `is_first`: that everything is known now is news by itself.
    fn new(changes: &'a mut Changes, is_first: bool) -> Self {
        if is_first {
            *changes = Changes::Any;
        }
        Self { changes, is_news: is_first }
    }

    fn any(&mut self) {
        (*self.changes, self.is_news) = (Changes::Any, true);
    }

    fn any_if(&mut self, is_so: bool) {
        if is_so {
            self.any();
        }
    }

    fn node(&mut self, name: &str, was: Option<&Arc<NodeFacts>>, is: Option<&Arc<NodeFacts>>) {
        let (Some(was), Some(is)) = (was, is) else { return self.any() };
        let said_otherwise = NodeFacts { announcement: is.announcement.clone(), ..(**was).clone() };
        if said_otherwise != **is {
            return self.any();
        }
        self.is_news = true;
        match self.changes {
            Changes::Announcements(said) => drop(said.insert(name.to_owned(), is.announcement.clone())),
            // Both at once is rare.
            Changes::Pods(_) => *self.changes = Changes::Any,
            Changes::Any => {}
        }
    }

    fn pods(&mut self, say: impl FnOnce(&mut OfPods)) {
        self.is_news = true;
        if *self.changes == no_changes() {
            *self.changes = Changes::Pods(OfPods::default());
        }
        match self.changes {
            Changes::Pods(said) => say(said),
            Changes::Announcements(_) => *self.changes = Changes::Any,
            Changes::Any => {}
        }
    }
}
