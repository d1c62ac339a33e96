//! What must hold, and what of it somebody's deed excuses.
//!
//! A pair of nodes is **connected**, each way by itself, from the first packet that arrives by a generation that the receiver, going by
//! what it has heard of the sender, must expect. From there on every packet arrives. Three deeds **wound** a pair, so that it is not
//! connected until another packet has arrived in the same way: a device of either node is gone (somebody deleted it, or the node was
//! rebooted, switched off, or made anew), a key of either is revoked, or an operator's `retireBefore` ended a generation by which either
//! still sent to the other. Only a packet that was sent before such a deed and arrives after it, and one under a revoked or so ended key, is
//! excused. Until a daemon whose
//! device was deleted has looked again, nothing connects. Nor does
//! anything connect while a sender's source has not told it of its own newest announcement: it may still go by the one before, a gap
//! that needs a lost device, and an API server that tells late, at once. A packet under a session with a device that was deleted is
//! excused too. A node that goes by a revoked key and hears that it is has no way any more, until it has told the others of another: from there to
//! its next packet it is not connected. Crashes of the daemon, an API server that is away, cut networks, full disks and clocks excuse nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kubeveil_core::rotation::TELL_EVERY;
use kubeveil_keys::{Generation, PublicKey};

use crate::world::PLACES;

/// What was born, what ended, and who is connected.
#[derive(Default)]
pub(crate) struct Ledger {
    keys: BTreeMap<PublicKey, (usize, Generation)>,
    retired: BTreeSet<PublicKey>,
    /// Ended by somebody's deed, whoever still sent by them: on the device of each parity.
    destroyed: BTreeSet<(PublicKey, usize)>,
    connected: [[bool; PLACES]; PLACES],
    wounds: [[u32; PLACES]; PLACES],
    budgets: [Budget; PLACES],
}

/// How often a node may write: three times for each key that it makes, once every ten seconds while it has two, and three times more
/// for each deed that changes who there is to list.
#[derive(Default)]
struct Budget {
    written: u64,
    made: u64,
    disturbed: u64,
    rotated: Duration,
    rotates_since: Option<Duration>,
}

impl Ledger {
    pub(crate) fn born(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn bear(&mut self, key: PublicKey, place: usize, generation: Generation) {
        self.keys.insert(key, (place, generation));
    }

    pub(crate) fn generation(&self, key: &PublicKey) -> Generation {
        self.keys.get(key).map_or(Generation::FIRST, |(_, generation)| *generation)
    }

    pub(crate) fn owner(&self, key: &PublicKey) -> Option<usize> {
        self.keys.get(key).map(|(place, _)| *place)
    }

    /// A key that `place` gave up and that was of the same device as `generation`.
    pub(crate) fn old_key(&self, place: usize, generation: Generation) -> Option<PublicKey> {
        let mut old = self.retired.iter().filter(|key| {
            self.keys.get(key).is_some_and(|(of, old)| *of == place && old.parity() == generation.parity())
        });
        old.next().copied()
    }

    /// A node gives up a generation, and its key, unless that serves another too.
    pub(crate) fn retire(&mut self, place: usize, key: Option<PublicKey>, now: Duration) {
        self.retired.extend(key);
        let budget = &mut self.budgets[place];
        budget.rotated += budget.rotates_since.take().map_or(Duration::ZERO, |since| now - since);
    }

    /// A node has made a key, beside another or not.
    pub(crate) fn makes(&mut self, place: usize, is_second: bool, now: Duration) {
        let budget = &mut self.budgets[place];
        budget.made += 1;
        if is_second {
            budget.rotates_since = Some(now);
        }
    }

    /// The daemon of a node was killed: it begins with a list that it does not know of yet.
    pub(crate) fn disturbed(&mut self, place: usize) {
        self.budgets[place].disturbed += 1;
    }

    /// Peers have come, gone, or lost what they had: every node's list may change.
    pub(crate) fn disturbed_all(&mut self) {
        self.budgets.iter_mut().for_each(|budget| budget.disturbed += 1);
    }

    /// A node has written once more: what it might have, if it has more.
    pub(crate) fn writes(&mut self, place: usize, now: Duration) -> Option<u64> {
        let budget = &mut self.budgets[place];
        budget.written += 1;
        let rotated = budget.rotated + budget.rotates_since.map_or(Duration::ZERO, |since| now - since);
        let most = 3 * budget.made + rotated.as_secs() / TELL_EVERY.as_secs() + 3 * budget.disturbed;
        (budget.written > most).then_some(most)
    }

    pub(crate) fn is_retired(&self, key: &PublicKey) -> bool {
        self.retired.contains(key)
    }

    pub(crate) fn destroy(&mut self, key: PublicKey, parity: usize) {
        self.destroyed.insert((key, parity));
    }

    /// A key serves another generation too.
    pub(crate) fn reuse(&mut self, key: PublicKey, parity: usize) {
        self.destroyed.remove(&(key, parity));
    }

    /// Is either of the keys one that connects nobody any more by the device of `parity`?
    pub(crate) fn is_void(&self, keys: &(PublicKey, PublicKey), parity: usize) -> bool {
        [keys.0, keys.1].iter().any(|key| self.destroyed.contains(&(*key, parity)))
    }

    /// Is the first connected to the second, and how often was the pair wounded?
    pub(crate) fn pair(&self, from: usize, to: usize) -> (bool, u32) {
        (self.connected[from][to], self.wounds[from.min(to)][from.max(to)])
    }

    pub(crate) fn connect(&mut self, from: usize, to: usize) {
        self.connected[from][to] = true;
    }

    /// The first has no way to the second that this must expect; what it sent before is excused by nothing.
    pub(crate) fn part(&mut self, from: usize, to: usize) {
        self.connected[from][to] = false;
    }

    pub(crate) fn wound(&mut self, one: usize, other: usize) {
        self.connected[one][other] = false;
        self.connected[other][one] = false;
        self.wounds[one.min(other)][one.max(other)] += 1;
    }

    pub(crate) fn wound_all(&mut self, place: usize) {
        (0..PLACES).filter(|other| *other != place).for_each(|other| self.wound(place, other));
    }
}
