//! Adoption: which pairs of nodes may still speak in plain in mode require.
//!
//! Whoever switches encryption on in a running cluster can't prove all its tunnels at one moment. With
//! `spec.adoption` a pair is open until its tunnel is proven once, and then closed for good; what is left closes at the
//! deadline. Without it, every pair is closed from the first moment on.
//!
//! [`Gate`] is what is on record, on disk; [`Gate::step`] only ever closes. The record of a gate that has not begun
//! holds nothing to open: who lost it goes by what the kernel's maps let pass ([`Seen::barred`]), and so does who found one that another
//! daemon left, since a disk may have refused what the maps took.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;
use kubeveil_abi::{Mode, PeerState, PrefixKind};
use kubeveil_api::mesh::{Adoption, MeshSpec};
use serde::{Deserialize, Serialize};

use crate::{
    observed::Datapath,
    ownership::{Assignment, Class},
    snapshot::Knowledge,
};

/// How long the packets of a node may come in plain after its tunnel was found proven: it looks every 250 ms while it
/// waits for that ([`crate::tunnels`]), and has its maps to write.
pub const GRACE: Duration = Duration::from_secs(10);

/// Until when, since boot, that is let pass at `now` whose end nobody has named: a time that comes nearer, and is told anew as seldom as once
/// an hour, since it has to end though the daemon be dead.
pub fn unhurried(now: Duration) -> Duration {
    const HOUR: u64 = 3600;
    Duration::from_secs((now.as_secs() / HOUR).saturating_add(2).saturating_mul(HOUR))
}

/// Names of nodes with the UID of their Node.
pub type Nodes = BTreeMap<String, String>;

/// The record of this node's pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Gate {
    /// Every pair is closed, for ever.
    over: bool,
    /// Pairs that were open when adoption began, and still are; `None`: it has not begun, since not all nodes were
    /// known yet.
    open: Option<Nodes>,
    /// The deadline that was last told to the datapath, seconds since 1970: past it all is closed, though no daemon was
    /// there to see, and somebody has set another meanwhile.
    deadline: Option<u64>,
    /// Pairs that were closed before it began: name and UID.
    closed: BTreeSet<(String, String)>,
    /// Since when the deadline does not run, seconds since 1970 …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused: Option<u64>,
    /// … and for how many seconds it did not, before that.
    #[serde(default)]
    later: u64,
    /// A pair has been closed. Of a record that does not say so nobody knows.
    #[serde(default = "unknown")]
    any_closed: bool,
}

const fn unknown() -> bool {
    true
}

/// What a step goes by.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `spec.adoption`, where the mesh's mode is require.
    pub adoption: Option<Adoption>,
    /// The mesh's mode is require. In any other mode nothing begins and nothing ends.
    pub requires: bool,
    /// The other nodes.
    pub others: Nodes,
    /// Those are all.
    pub whole: bool,
    /// Those whose tunnel is proven.
    pub proven: BTreeSet<String>,
    /// Those that the kernel's maps keep closed, which is how another daemon left them.
    pub barred: BTreeSet<String>,
    /// The record is this daemon's own. One that another daemon left may be older than the maps: what closes does not wait for the disk.
    pub is_own: bool,
    /// Pods of this node have addresses that its Node does not have: nothing begins, nothing ends, and the deadline does not run.
    pub is_misled: bool,
    /// Wall clock, since 1970.
    pub epoch: Duration,
}

impl Seen {
    /// What `knowledge` says, and `datapath`.
    pub fn of(
        node: &str,
        knowledge: &Knowledge,
        assignment: &Assignment,
        datapath: &Datapath,
        proven: BTreeSet<String>,
        epoch: Duration,
    ) -> Self {
        let snapshot = knowledge.snapshot();
        let requires = |mesh: &&MeshSpec| mesh.mode == kubeveil_api::mesh::Mode::Require;
        let mesh = snapshot.mesh.as_ref().filter(requires);
        // Nobody waits for those that can have no tunnel, once it is known who they are.
        let is_awaited = |name: &String| knowledge.synced().is_none() || snapshot.excludes(name).is_none();
        let others = snapshot.nodes.iter().filter(|(name, _)| *name != node && is_awaited(name));
        Self {
            adoption: mesh.and_then(|mesh| mesh.adoption),
            requires: mesh.is_some(),
            others: others.map(|(name, facts)| (name.clone(), facts.uid.clone())).collect(),
            whole: knowledge.synced().is_some(),
            proven,
            barred: barred(assignment, datapath),
            is_own: false,
            is_misled: !snapshot.strangers.is_empty(),
            epoch,
        }
    }
}

/// Nodes whose pods are in the map of a datapath that requires, and whose packets it does not let pass.
fn barred(assignment: &Assignment, datapath: &Datapath) -> BTreeSet<String> {
    // Settings are written when all that may pass is in the maps: before that they keep nobody closed.
    if datapath.written().is_none_or(|config| Mode::from_raw(config.mode) != Mode::Require) {
        return BTreeSet::new();
    }
    let is_closed = |(net, class): &(IpNet, Class)| {
        let Some(prefix) = datapath.prefixes.get(net).filter(|_| *class == Class::Pods) else { return false };
        let value = datapath.peers.get(&prefix.peer);
        prefix.kind == PrefixKind::RemotePods
            && value.is_none_or(|value| value.state() != PeerState::Adopting)
    };
    let closed = assignment.nodes().filter(|(_, owned)| owned.iter().any(is_closed));
    closed.map(|(name, _)| name.to_owned()).collect()
}

impl Gate {
    /// Every pair is closed.
    pub fn closed() -> Self {
        Self { over: true, ..Self::default() }
    }

    /// Has it begun, or is it over?
    pub const fn is_begun(&self) -> bool {
        self.over || self.open.is_some()
    }

    /// Is every pair closed for ever?
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// The record from now on. Nothing that is closed in this one is open in it.
    pub fn step(&self, seen: &Seen) -> Self {
        if self.over || !seen.requires {
            return self.clone();
        }
        let Some(adoption) = seen.adoption else { return Self::closed() };
        let mut before = self.clone();
        if !seen.is_own {
            before.bar(seen);
        }
        if self.is_misled(seen) {
            // What the programs are told ends by itself, later than the deadline.
            let paused = self.paused.or(Some(seen.epoch.as_secs()));
            return Self { paused, deadline: None, ..before };
        }
        let paused = self.paused.map_or(0, |since| seen.epoch.as_secs().saturating_sub(since));
        let mut next = Self { paused: None, later: self.later.saturating_add(paused), ..before };
        let deadline = next.deadline(&adoption);
        let told = self.deadline.map(Duration::from_secs);
        if told.into_iter().chain([deadline]).any(|deadline| seen.epoch >= deadline) {
            return Self::closed();
        }
        next.deadline = Some(deadline.as_secs());
        match &mut next.open {
            Some(open) => open.retain(|name, uid| {
                let is_there = seen.others.get(name).map_or(!seen.whole, |now| now == uid);
                let closes = seen.proven.contains(name);
                next.any_closed |= is_there && closes;
                is_there && !closes
            }),
            None => {
                let closes = |name: &String| seen.proven.contains(name) || seen.barred.contains(name);
                let closed = seen.others.iter().filter(|(name, _)| closes(name));
                next.closed.extend(closed.map(|(name, uid)| (name.clone(), uid.clone())));
                next.any_closed |= !next.closed.is_empty();
                if seen.whole {
                    let mut open = seen.others.clone();
                    open.retain(|name, uid| !next.closed.contains(&(name.clone(), uid.clone())));
                    next = Self { open: Some(open), closed: BTreeSet::new(), ..next };
                }
            }
        }
        if next.open.as_ref().is_some_and(BTreeMap::is_empty) { Self::closed() } else { next }
    }

    /// Are this node's prefixes known to be wrong? Who begins anew goes by the record until all pods are told of.
    pub const fn is_misled(&self, seen: &Seen) -> bool {
        seen.is_misled || self.paused.is_some() && !seen.whole
    }

    /// Has a pair been closed?
    pub const fn has_closed(&self) -> bool {
        self.over || self.any_closed
    }

    /// What the maps keep closed is closed.
    fn bar(&mut self, seen: &Seen) {
        match &mut self.open {
            Some(open) => open.retain(|name, _| {
                let closes = seen.barred.contains(name);
                self.any_closed |= closes;
                !closes
            }),
            None => {
                let closed = seen.others.iter().filter(|(name, _)| seen.barred.contains(*name));
                self.closed.extend(closed.map(|(name, uid)| (name.clone(), uid.clone())));
                self.any_closed |= !self.closed.is_empty();
            }
        }
    }

    /// Those whose pairs the record has open, whatever the mode.
    pub fn left(&self) -> impl Iterator<Item = &String> {
        self.open.iter().filter(|_| !self.over).flat_map(BTreeMap::keys)
    }

    /// The deadline, later by as long as it did not run; since 1970.
    pub fn deadline(&self, adoption: &Adoption) -> Duration {
        adoption.deadline() + Duration::from_secs(self.later)
    }

    /// Those of the nodes seen whose pairs are open. To be asked of what a step over them gave.
    pub fn open(&self, seen: &Seen) -> BTreeSet<String> {
        let is_open = |name: &String, uid: &String| match &self.open {
            _ if self.over || seen.adoption.is_none() => false,
            Some(open) => open.get(name) == Some(uid),
            None => !self.closed.contains(&(name.clone(), uid.clone())),
        };
        seen.others.iter().filter(|(name, uid)| is_open(name, uid)).map(|(name, _)| name.clone()).collect()
    }
}

/// What the datapath is told of adoption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopting {
    /// Nodes whose pairs are open.
    pub open: BTreeSet<String>,
    /// Until when, seconds since boot: the programs go by it though the daemon be dead.
    pub until: u32,
    /// Nodes whose pairs the record has open, where the mode is none in which any is: should that be hearsay, what stands of them stays.
    pub left: BTreeSet<String>,
    /// Nodes that may be heard in plain though ours to them are encrypted, until when.
    pub heard: BTreeMap<String, u32>,
    /// This node's prefixes are known to be wrong, and none of its pairs has closed yet: whose packet it is nobody can say.
    pub misled: bool,
}

#[cfg(test)]
mod tests;
