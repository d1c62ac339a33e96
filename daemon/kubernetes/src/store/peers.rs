//! By what other nodes are known: their Nodes, or, in a large cluster, what the controller tells of them in slices.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use kubeveil_api::peer_slice::{self, MANY_NODES, PeerSlices};
use kubeveil_core::{ownership::Owner, snapshot::NodeFacts};

use super::{Disbelief, Noted, OutOfOrder, Store};
use crate::object::Read;

/// What other nodes are known by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum By {
    /// Each its own Node.
    #[default]
    Nodes,
    /// The controller's slices; but for this very node.
    Slices,
}

/// The nodes of a slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Peers {
    pub(crate) by_name: BTreeMap<String, Arc<NodeFacts>>,
    /// Prefixes that they claim, and that are not theirs.
    pub(crate) refused: BTreeSet<(IpNet, Owner)>,
    /// It tells all of each of them.
    pub(crate) is_whole: bool,
}

impl Store {
    /// Slices as of a full list.
    pub(crate) fn list_peers(
        &mut self,
        listed: Vec<Read<Arc<Peers>>>,
        version: u64,
    ) -> Result<bool, Disbelief> {
        let Self { own, peers, changes, by, .. } = self;
        let mut noted = Noted::new(changes, !peers.listed && *by == By::Slices);
        peers.replace(listed, version, None, |_, was, is| noted.peers(own, *by, was, is))?;
        Ok(noted.is_news)
    }

    /// One of them.
    pub(crate) fn peer_slice(
        &mut self,
        read: Read<Arc<Peers>>,
        is_deleted: bool,
    ) -> Result<bool, OutOfOrder> {
        let is_told_twice = self.by == By::Slices
            && self.peers.by_name.iter().filter(|(name, _)| **name != read.name).any(|(_, other)| {
                other.value.by_name.keys().any(|name| read.value.by_name.contains_key(name))
            });
        let Self { own, peers, changes, by, .. } = self;
        let mut noted = Noted::new(changes, false);
        peers.event(read, is_deleted, |_, was, is| {
            // Which of two slices counts only all of them together say.
            noted.any_if(is_told_twice);
            noted.peers(own, *by, was, is);
        })?;
        Ok(noted.is_news)
    }

    /// From now on Nodes are asked for as they should be.
    pub(crate) fn ask(&mut self) {
        self.asked = self.wanted();
    }

    /// What Nodes are asked for now is another matter.
    pub(crate) fn turns(&self) -> bool {
        self.asked != self.wanted()
    }

    /// What other nodes are known by.
    pub(crate) fn by(&self) -> By {
        self.by
    }

    /// What Nodes are asked for.
    pub(crate) fn asked(&self) -> By {
        self.asked
    }

    /// What other nodes should be known by. That the cluster is a large one the controller has no say in, as long as Nodes are counted here;
    /// that slices serve only it can say. A slice that is gone for a moment is no reason for thousands to list all Nodes.
    fn wanted(&self) -> By {
        let Some(mesh) = self.mesh_in_force() else { return self.asked };
        let is_missed = || self.asked == By::Slices && !self.has_all_peers();
        let may = match mesh.spec.peer_slices.unwrap_or(PeerSlices::Auto) {
            PeerSlices::Always => true,
            PeerSlices::Never => false,
            // The controller counts otherwise, for a while, when nodes come or go.
            PeerSlices::Auto => is_missed() || self.count() * 5 >= MANY_NODES * 4,
        };
        let serve = || self.asked == By::Slices || (self.has_all_peers() && self.tell_of_all_nodes());
        if self.peer_slices > 0 && may && serve() { By::Slices } else { By::Nodes }
    }

    /// What the controller says of slices; nothing, where the mesh is gone or was made anew.
    pub(super) fn hear_of_slices(&mut self) {
        if let Some(said) = self.mesh_in_force().and_then(|mesh| mesh.peer_slices) {
            self.peer_slices = said;
        }
    }

    /// Those that there are, of those that the controller speaks of: what it has not spoken of yet may go again unnoticed.
    fn told(&self) -> impl Iterator<Item = &Peers> {
        let is_told =
            |name: &String| peer_slice::number(name).is_some_and(|number| number < self.peer_slices);
        self.peers.by_name.iter().filter(move |(name, _)| is_told(name)).map(|(_, read)| &*read.value)
    }

    fn count(&self) -> usize {
        match self.by {
            By::Slices => self.told().map(|peers| peers.by_name.len()).sum(),
            By::Nodes => self.nodes.by_name.len(),
        }
    }

    /// Every slice is there that there should be.
    pub(super) fn has_all_peers(&self) -> bool {
        let whole = self.told().filter(|peers| peers.is_whole).count();
        self.peer_slices > 0 && self.peers.listed && usize::try_from(self.peer_slices) == Ok(whole)
    }

    /// Slices lack nobody who is known by a Node: what was written while no controller was there, or by one that is late, takes nobody away.
    fn tell_of_all_nodes(&self) -> bool {
        let told = || self.told().flat_map(|peers| &peers.by_name);
        if !self.nodes.listed || told().count() < self.nodes.by_name.len() {
            return false;
        }
        let uids: BTreeMap<&String, &String> = told().map(|(name, facts)| (name, &facts.uid)).collect();
        self.nodes.by_name.values().all(|read| uids.get(&read.name) == Some(&&read.value.uid))
    }

    /// All nodes.
    pub(super) fn known_nodes(&self) -> BTreeMap<String, Arc<NodeFacts>> {
        let nodes = self.nodes.by_name.iter().map(|(name, read)| (name.clone(), Arc::clone(&read.value)));
        if self.by == By::Nodes {
            return nodes.collect();
        }
        let told = self.told().flat_map(|peers| &peers.by_name);
        // Of this very node its Node knows more.
        told.map(|(name, facts)| (name.clone(), Arc::clone(facts))).chain(nodes).collect()
    }

    /// Prefixes that nodes claim, and that are not theirs by the controller's record.
    pub(super) fn refused(&self) -> BTreeSet<(IpNet, Owner)> {
        self.peers.by_name.values().flat_map(|read| &read.value.refused).cloned().collect()
    }
}

impl Noted<'_> {
    fn peers(&mut self, own: &str, by: By, was: Option<&Arc<Peers>>, is: Option<&Arc<Peers>>) {
        let none = Peers::default();
        let (before, now) = (was.map_or(&none, |was| &**was), is.map_or(&none, |is| &**is));
        self.any_if(before.refused != now.refused);
        if by == By::Nodes {
            return;
        }
        // Whether all are there may be another matter now.
        self.any_if(before.is_whole != now.is_whole);
        let names: BTreeSet<&String> = before.by_name.keys().chain(now.by_name.keys()).collect();
        for name in names.into_iter().filter(|name| *name != own) {
            let (was, is) = (before.by_name.get(name), now.by_name.get(name));
            if was != is {
                self.node(name, was, is);
            }
        }
    }
}
