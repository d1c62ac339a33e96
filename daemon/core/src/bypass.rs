//! Bypasses: which nodes are spoken to in plain for a while, since people say so (`spec.bypasses` of the mesh).
//!
//! One begins only while the wall clock shows a time at which it is on. From then on its end is a second since boot, and only ever
//! comes nearer. So neither a clock that is set back nor a daemon that starts again makes one longer: [`Record`] is what was heard
//! of, on disk. Where it is lost, what stands in the kernel's map is the most that may be.
//!
//! Two nodes hear of a bypass at two moments, and their clocks differ. Nothing is lost to that: each listens to the other in plain from
//! the moment at which it hears of it, speaks in plain itself some seconds later ([`LEAD`]), and listens a little longer than its
//! own end ([`BYPASS_GRACE`]).

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use kubeveil_abi::{BYPASS_GRACE, PeerState, PeerValue};
use kubeveil_api::bypass::{Bypass, LONGEST_BYPASS};
use serde::{Deserialize, Serialize};

use crate::{observed::Datapath, ownership::Assignment};

/// Seconds after which a node that has heard of a bypass speaks in plain where there is a tunnel: the other one has heard of it by then.
pub const LEAD: u32 = 5;
/// Seconds that the clock of who wrote a bypass may be ahead of this node's.
const AHEAD: i64 = 60;
/// Entries that were taken out of the mesh, of which a node remembers that they are over; the newest, and in any case those whose end may
/// still be heard. Three times as many as a mesh holds.
const MOST_GONE: usize = 64;
/// Seconds until a clock that shows a time before a bypass was written is looked at again.
const RECHECK: u32 = 10;

/// What this node has heard of. Seconds are those since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Record {
    /// The kernel's name for the boot that the seconds count from; empty: nothing is on record.
    boot: String,
    entries: Vec<Entry>,
}

/// A bypass that this node is an end of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Entry {
    /// The other node, when it was written, by whom and why: what never changes, and tells it from others.
    peer: String,
    at: Timestamp,
    by: String,
    reason: String,
    /// What the mesh last said, if that was never later before.
    until: Timestamp,
    /// When it was first heard of in this boot.
    since: u32,
    /// What the wall clock showed when it was first heard of, or began; seconds since 1970.
    epoch: u64,
    /// From when on this node speaks in plain, where there is a tunnel.
    from: u32,
    /// When it ends; 0: it has not begun here.
    end: u32,
    /// It has ended, or never begins here; in another boot neither.
    over: bool,
}

/// What became of the record that a daemon before this one kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    /// It is what this step is over.
    #[default]
    Whole,
    /// There is none.
    Absent,
    /// It can't be read.
    Unreadable,
}

/// What a step goes by.
#[derive(Clone, Debug, Default)]
pub struct Seen<'a> {
    /// This node.
    pub node: &'a str,
    /// What the mesh says.
    pub bypasses: &'a [Bypass],
    /// The mesh says no more than that.
    pub is_whole: bool,
    /// What stands in the map for the nodes that they are about ([`standing`]).
    pub standing: BTreeMap<String, PeerValue>,
    /// What became of the record.
    pub kept: Kept,
    /// The kernel's name for this boot.
    pub boot: &'a str,
    /// Since boot.
    pub now: Duration,
    /// Wall clock, since 1970.
    pub epoch: Duration,
}

/// What stands in the map for the nodes that `bypasses` of `node` are about.
pub fn standing(
    node: &str,
    bypasses: &[Bypass],
    assignment: &Assignment,
    datapath: &Datapath,
) -> BTreeMap<String, PeerValue> {
    let value = |peer: &str| {
        let mut prefixes = assignment.of(peer).iter().filter_map(|(net, _)| datapath.prefixes.get(net));
        datapath.peers.get(&prefixes.next()?.peer).copied()
    };
    let peers = bypasses.iter().filter_map(|bypass| bypass.peer_of(node));
    peers.filter_map(|peer| Some((peer.to_owned(), value(peer)?))).collect()
}

impl Seen<'_> {
    fn second(&self) -> u32 {
        second(self.now)
    }

    /// What the wall clock shows, seconds since 1970.
    fn clock(&self) -> i64 {
        i64::try_from(self.epoch.as_secs()).unwrap_or(i64::MAX)
    }

    /// The latest end that a bypass of `peer` may have that nobody has on record.
    fn latest(&self, peer: &str) -> u32 {
        let stands = self.standing.get(peer).map(|value| match value.state() {
            PeerState::Bypass | PeerState::BypassedTunnel => value.bypass_until(),
            PeerState::BypassHeard => value.bypass_until().saturating_sub(BYPASS_GRACE),
            PeerState::NoTunnel | PeerState::Tunnel | PeerState::Adopting => 0,
        });
        match (self.kept, stands) {
            (Kept::Whole, _) | (Kept::Absent, None | Some(0)) => u32::MAX,
            (Kept::Absent | Kept::Unreadable, stands) => stands.unwrap_or(0),
        }
    }
}

/// The seconds since boot that the programs compare with.
fn second(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

impl Entry {
    /// Heard of for the first time.
    fn first(peer: &str, bypass: &Bypass, seen: &Seen<'_>) -> Self {
        Self {
            peer: peer.to_owned(),
            at: bypass.at,
            by: bypass.by.clone(),
            reason: bypass.reason.clone(),
            until: bypass.until,
            since: seen.second(),
            epoch: seen.epoch.as_secs(),
            from: 0,
            end: 0,
            over: false,
        }
    }

    fn is(&self, other: &Self) -> bool {
        (&self.peer, self.at, &self.by, &self.reason) == (&other.peer, other.at, &other.by, &other.reason)
    }

    /// Heard of in an earlier boot, whose seconds mean nothing now. Only a clock that has gone on since is believed.
    fn after_boot(self, seen: &Seen<'_>) -> Self {
        let is_set_back = self.end != 0 && seen.epoch.as_secs() < self.epoch;
        Self { since: seen.second(), end: 0, over: self.over || is_set_back, ..self }
    }

    /// Seconds that it has left by the wall clock.
    fn left(&self, seen: &Seen<'_>) -> u32 {
        u32::try_from(self.until.as_second().saturating_sub(seen.clock()).max(0)).unwrap_or(u32::MAX)
    }

    /// Its end whatever clocks say: it lasts no longer than it was asked for, from when it was first heard of.
    fn longest(&self) -> u32 {
        let length = self.until.as_second().saturating_sub(self.at.as_second()).max(0);
        self.since.saturating_add(u32::try_from(length).unwrap_or(u32::MAX))
    }

    /// Begins if it is on by the wall clock, never does if that shows a later time, and waits if an earlier one.
    fn begin(mut self, seen: &Seen<'_>) -> Self {
        let now = seen.second();
        let latest = seen.latest(&self.peer);
        let end = self.longest().min(latest).min(now.saturating_add(self.left(seen)));
        let is_early =
            seen.clock() < self.at.as_second().saturating_sub(AHEAD) || seen.epoch.as_secs() < self.epoch;
        if now >= end {
            self.over = true;
        } else if is_early {
            // What is known only from the map is not known later.
            self.over = latest != u32::MAX;
        } else {
            // What speaks in plain already goes on.
            let speaks = seen.standing.get(&self.peer).is_some_and(|value| value.is_bypassed(now));
            self.from = if speaks { now } else { now.saturating_add(LEAD) };
            (self.epoch, self.end) = (seen.epoch.as_secs(), end);
        }
        self
    }

    /// The mesh says so.
    fn said(mut self, bypass: &Bypass, seen: &Seen<'_>) -> Self {
        let is_sooner = bypass.until < self.until;
        self.until = self.until.min(bypass.until);
        match (self.over, self.end) {
            (true, _) => return self,
            (false, 0) => return self.begin(seen),
            (false, _) => {}
        }
        let now = seen.second();
        let left = self.left(seen);
        if is_sooner {
            // From when we hear of it on, the other end may be as late as we are; though the wall clock were set back meanwhile.
            self.end = self.end.min(now.saturating_add(left).min(self.longest()).max(now));
        }
        if left == 0 {
            self.end = self.end.min(now);
        }
        self.over = now >= self.end;
        self
    }

    /// The mesh does not say so any more.
    fn gone(mut self, seen: &Seen<'_>) -> Self {
        // Nobody has taken it out: it goes on as it was heard of, and begins nothing.
        let end = if seen.is_whole || self.left(seen) == 0 { seen.second() } else { self.end };
        self.end = self.end.min(end);
        self.over |= seen.is_whole || (self.end != 0 && seen.second() >= self.end);
        self
    }

    /// Whether a mesh that goes back to it would open it again, had nobody it on record: no end of it is later than a day after `at`.
    /// Nor is a clock believed that was set ahead.
    fn is_remembered(&self, seen: &Seen<'_>) -> bool {
        let since = i64::from(seen.second().saturating_sub(self.since));
        since < LONGEST_BYPASS || seen.clock() < self.at.as_second().saturating_add(LONGEST_BYPASS)
    }

    /// The peer's packets may come in plain.
    const fn is_heard(&self, now: u32) -> bool {
        self.end != 0 && now < self.end.saturating_add(BYPASS_GRACE)
    }
}

impl Record {
    /// Nothing is on record.
    pub const fn is_empty(&self) -> bool {
        self.boot.is_empty()
    }

    /// Whether it holds any bypass.
    pub const fn has_entries(&self) -> bool {
        !self.entries.is_empty()
    }

    /// The record from now on. Nothing that is on record ends later in it.
    pub fn step(&self, seen: &Seen<'_>) -> Self {
        // Should the kernel not tell its boots apart, its seconds do.
        let is_same_boot =
            self.boot == seen.boot && self.entries.iter().all(|entry| entry.since <= seen.second());
        let mut left = self.entries.clone();
        if !is_same_boot {
            left = left.into_iter().map(|entry| entry.after_boot(seen)).collect();
        }
        let mut entries = Vec::new();
        for bypass in seen.bypasses {
            let Some(peer) = bypass.peer_of(seen.node) else { continue };
            let first = Entry::first(peer, bypass, seen);
            // One that is said twice (either node first) is one, and its end the sooner.
            let twice =
                entries.iter().position(|entry: &Entry| entry.is(&first)).map(|at| entries.remove(at));
            let known =
                twice.or_else(|| left.iter().position(|entry| entry.is(&first)).map(|at| left.remove(at)));
            let entry = known.unwrap_or(first);
            entries.push(entry.said(bypass, seen));
        }
        entries.extend(Self::without(left, seen));
        Self { boot: seen.boot.to_owned(), entries }
    }

    /// What is on record of entries that the mesh does not have.
    fn without(left: Vec<Entry>, seen: &Seen<'_>) -> Vec<Entry> {
        let mut gone: Vec<Entry> = left.into_iter().map(|entry| entry.gone(seen)).collect();
        gone.sort_by_key(|entry| std::cmp::Reverse(entry.at));
        let mut remembered = 0;
        gone.retain(|entry| {
            let is_remembered = entry.is_remembered(seen);
            remembered += usize::from(is_remembered);
            entry.is_heard(seen.second()) || (is_remembered && remembered <= MOST_GONE)
        });
        gone
    }

    /// What `before` had not begun waits.
    #[must_use]
    pub fn without_news(mut self, before: &Self) -> Self {
        for entry in &mut self.entries {
            let is_it = |was: &&Entry| was.is(entry) && was.since == entry.since;
            let was = before.entries.iter().find(is_it).filter(|_| before.boot == self.boot);
            if was.is_none_or(|was| was.end == 0) {
                entry.end = 0;
            }
        }
        self
    }

    /// What the datapath is told of it.
    pub fn bypassing(&self, now: Duration) -> Bypassing {
        let now = second(now);
        let mut peers: BTreeMap<String, Bypassed> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.is_heard(now)) {
            let bypassed = Bypassed {
                from: entry.from,
                end: entry.end,
                until: entry.until,
                by: entry.by.clone(),
                reason: entry.reason.clone(),
            };
            // One that speaks already counts before one that is about to, and then the one that lasts longer.
            let weight = |one: &Bypassed| (one.from <= now, one.end);
            match peers.get_mut(&entry.peer) {
                Some(other) if weight(other) >= weight(&bypassed) => {}
                _ => drop(peers.insert(entry.peer.clone(), bypassed)),
            }
        }
        Bypassing { peers }
    }

    /// Those that have not begun, as this node's clock shows a time before they were written: with whom, and when that was.
    pub fn waiting(&self) -> impl Iterator<Item = (&str, Timestamp)> {
        self.entries
            .iter()
            .filter(|entry| entry.end == 0 && !entry.over)
            .map(|entry| (&*entry.peer, entry.at))
    }

    /// When something begins or ends by itself.
    pub fn next_look(&self, now: Duration) -> Option<Duration> {
        let heard = self.entries.iter().filter(|entry| entry.is_heard(second(now)));
        let moments = heard.flat_map(|entry| [entry.from, entry.end, entry.end.saturating_add(BYPASS_GRACE)]);
        let recheck = self.waiting().next().map(|_| second(now).saturating_add(RECHECK));
        let ahead = moments.chain(recheck).map(|at| Duration::from_secs(at.into())).filter(|at| *at > now);
        ahead.min().map(|at| at - now)
    }
}

/// What the datapath is told of bypasses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bypassing {
    /// Nodes that are spoken to, or heard, in plain.
    pub peers: BTreeMap<String, Bypassed>,
}

/// How a node is bypassed. Seconds since boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypassed {
    /// From when on we speak in plain, where there is a tunnel.
    pub from: u32,
    /// When that ends.
    pub end: u32,
    /// The same as the mesh says it, by the wall clock.
    pub until: Timestamp,
    /// Who wrote the entry that has this end.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Bypassed {
    /// The value of the map for a node to which packets travel like `beneath` otherwise.
    pub fn over(&self, beneath: PeerValue, now: Duration) -> PeerValue {
        // What is in plain without a tunnel, as it can have none, lasts longer than this.
        if beneath.state() == PeerState::Bypass {
            return beneath;
        }
        let is_begun = self.from <= second(now);
        if is_begun || !beneath.has_tunnel() {
            beneath.bypassed(self.end)
        } else {
            beneath.bypass_heard(self.end.saturating_add(BYPASS_GRACE))
        }
    }
}

#[cfg(test)]
mod tests;
