//! Key generations: which of them a node has, which one carries its packets to a peer, and when an old one may go.
//!
//! Each generation is a WireGuard device with a key of its own, so two of them stand side by side while the cluster goes from
//! one to the next. Nobody coordinates that. A node
//! 1. makes the key that the mesh wants, sets its device up, and announces it ([`Rotation::keys`], [`Rotation::says`]);
//! 2. moves its own packets to a peer onto the newest generation that the peer is proven on ([`choose`]): a handshake there says
//!    that the peer can decrypt;
//! 3. says to whom it has not done so yet; what it does not say, it must not do ([`Rotation::may_use`]);
//! 4. gives an old generation up when no peer says that it may still be sent to by it, nothing is sent by it, and nothing came or went
//!    by it for a while ([`holdups`]): who is sent to needs the sender's key as long as something is on its way.
//!
//! Nothing of it depends on clocks being equal; time only makes it go slower. What a node remembers of it are its key files, its
//! devices and what it said, so it goes on after a crash at any point.

pub mod history;
pub mod progress;
pub mod schedule;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_keys::Generation;

use crate::tunnels::Health;

/// Nothing came or went by an old generation for so long: longer than packets are on their way.
pub const STILL: Duration = Duration::from_secs(5);
/// A node's list of peers that it has not moved yet is told anew no more often than this, but for its end; and, where it is shorter, in
/// the node's place in the row.
pub const TELL_EVERY: Duration = Duration::from_secs(10);
/// A device that goes within this takes its peers with it: they are not removed one by one, as they give up what they had there. Longer
/// than the silence and the row of 5,000 nodes.
const GOES_WITHIN: Duration = Duration::from_secs(60);
/// The nodes of a cluster take each step of a rotation one after another, about this far apart: each of them has to take in
/// what all others say.
const PACE: Duration = Duration::from_millis(10);

/// What a node said last, as far as rotation goes by it.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// Its generations, ascending; at least one.
    pub generations: &'a [GenerationEntry],
    /// To whom it does not send by its newest.
    pub not_flipped: &'a NotFlipped,
}

impl<'a> From<&'a Announcement> for Said<'a> {
    fn from(announcement: &'a Announcement) -> Self {
        Self { generations: announcement.generations(), not_flipped: announcement.not_flipped() }
    }
}

impl Said<'_> {
    fn newest(&self) -> Generation {
        self.generations.last().map_or(Generation::FIRST, |entry| entry.generation)
    }

    fn has(&self, generation: Generation) -> bool {
        self.generations.iter().any(|entry| entry.generation == generation)
    }

    /// Does the one who said this know that it sends to `node` by `generation`, though it has a newer one? That there are too many says nothing of
    /// any of them.
    pub fn sends(&self, node: &str, generation: Generation) -> bool {
        let lists = matches!(self.not_flipped, NotFlipped::Nodes(names) if names.contains(node));
        self.has(generation) && self.newest() != generation && lists
    }

    /// May the one who said this send to `node` by `generation`?
    pub fn may_send(&self, node: &str, generation: Generation) -> bool {
        self.has(generation) && (self.newest() == generation || self.not_flipped.names(node))
    }
}

/// What a node goes by.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Its name.
    pub node: &'a str,
    /// The generation that the mesh wants; `None` as long as no mesh is known.
    pub wanted: Option<Generation>,
    /// No key is made and none is given up.
    pub paused: bool,
    /// Generations before this one go, whoever still sends by them.
    pub retire_before: Generation,
    /// Generations that it has keys of.
    pub held: BTreeSet<Generation>,
    /// Those whose key is revoked.
    pub revoked: BTreeSet<Generation>,
    /// Those whose device stands, with that key.
    pub standing: BTreeSet<Generation>,
    /// What it said last, as its source has it.
    pub own: Option<Said<'a>>,
    /// That is more than what was kept on disk.
    pub is_told: bool,
    /// What the others said last.
    pub others: BTreeMap<&'a str, Said<'a>>,
    /// There is nobody but `others`, and those who say nothing.
    pub complete: bool,
    /// The same, and this is what each of them says now.
    pub whole: bool,
    /// By which generation it sends to whom, as it was last carried out; `None`: nobody knows.
    pub ways: Option<BTreeMap<&'a str, Generation>>,
    /// How long nothing has come or gone by each generation.
    pub quiet: BTreeMap<Generation, Duration>,
    /// Monotonic.
    pub now: Duration,
}

impl View<'_> {
    /// Whoever said this was cut off, and nobody waits for it until it has a newer key.
    fn is_cut_off(&self, said: &Said<'_>) -> bool {
        said.newest() < self.retire_before
    }
}

/// What is to be done about keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the key of this generation.
    Make(Generation),
    /// Remove the key of this generation, for ever.
    Retire(Generation),
}

/// Why an old generation can't be given up yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holdup {
    /// This node has no newer key.
    NotBegun(String),
    /// It has one, and does not send to us by it.
    NotFlipped(String),
    /// We do not send to it by ours.
    NotFlippedByUs(String),
    /// Something still comes or goes by it.
    NotSilent,
    /// Not all nodes are known, or not what they say now.
    NotWhole,
    /// Somebody wants it to wait.
    Paused,
}

impl fmt::Display for Holdup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBegun(node) => write!(f, "{node} has no newer key"),
            Self::NotFlipped(node) => write!(f, "{node} still sends to this node by it"),
            Self::NotFlippedByUs(node) => write!(f, "this node still sends to {node} by it"),
            Self::NotSilent => f.write_str("packets still come or go by it"),
            Self::NotWhole => f.write_str("the source has not told of all nodes"),
            Self::Paused => f.write_str("rotation is paused"),
        }
    }
}

/// What a node remembers of it beside its files: when it last did something, so that all do not do it at once; and what it said last,
/// which binds it before its source tells of it ([`Rotation::may_use`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Since when this is wanted.
    wanted: Option<(Generation, Duration)>,
    /// Since when nothing holds the oldest generation up but what is on its way.
    free: Option<(Generation, Duration)>,
    /// When another list was last said.
    told: Option<Duration>,
    /// Since when there is a shorter one to say.
    shorter: Option<Duration>,
    /// That list, and of which newest generation. A source tells of it later.
    list: Option<(Generation, NotFlipped)>,
    /// What an earlier daemon said, which is said as long as not all nodes are known.
    stands: Option<(Generation, NotFlipped)>,
    /// A key goes since nobody goes with it, and the next one is that which is wanted.
    leaps: bool,
}

impl Rotation {
    /// The same with other times, for a model that knows of "before" and "after" only.
    #[must_use]
    pub fn with_times(self, time: impl Fn(Duration) -> Duration) -> Self {
        let of = |(generation, at)| (generation, time(at));
        Self {
            wanted: self.wanted.map(of),
            free: self.free.map(of),
            told: self.told.map(&time),
            shorter: self.shorter.map(&time),
            ..self
        }
    }

    /// What is to be done about keys now, one after another: to be asked again after each.
    pub fn keys(&mut self, view: &View<'_>) -> Option<Step> {
        let wanted = view.wanted?;
        if let Some(revoked) = view.revoked.first() {
            // The next key of this generation is nobody's way yet, which is told at once.
            self.told = None;
            return Some(Step::Retire(*revoked));
        }
        let Some(newest) = view.held.last().copied() else {
            let leaps = std::mem::take(&mut self.leaps);
            return Some(Step::Make(if leaps { wanted } else { joins(wanted, view) }));
        };
        // What no device is left for: of two generations that share one, the older is none any more.
        let stranded = |old: &&Generation| **old < newest && old.parity() == newest.parity();
        if let Some(old) = view.held.iter().find(stranded) {
            return Some(Step::Retire(*old));
        }
        let oldest = *view.held.first()?;
        if oldest < newest {
            return self.may_retire(oldest, view).then_some(Step::Retire(oldest));
        }
        self.free = None;
        if wanted <= newest || view.paused {
            self.wanted = None;
            return None;
        }
        // A node that has only just heard of it has the others' time as well.
        let (_, since) = *self.wanted.filter(|(of, _)| *of == wanted).get_or_insert((wanted, view.now));
        self.wanted = Some((wanted, since));
        if view.now < since + pace(view) {
            return None;
        }
        // One after another: of two nodes that went different ways neither could give up what it shares with the other. Where nobody has
        // ours any more there is nobody to go with.
        let next = newest.next()?;
        let has_it = |said: &Said<'_>| !view.is_cut_off(said) && said.has(newest);
        let is_alone = view.whole && !view.others.values().any(has_it);
        let is_forced = newest < view.retire_before && newest.parity() == wanted.parity();
        self.leaps = next != wanted && (is_alone || is_forced);
        Some(if self.leaps { Step::Retire(newest) } else { Step::Make(next) })
    }

    fn may_retire(&mut self, generation: Generation, view: &View<'_>) -> bool {
        if generation < view.retire_before {
            return true;
        }
        let held = holdups(generation, view);
        if held.iter().any(|holdup| *holdup != Holdup::NotSilent) {
            self.free = None;
            return false;
        }
        // What the last of them sent before it said that it moved may be on its way as long as that, however silent it was before.
        let (_, since) = *self.free.filter(|(of, _)| *of == generation).get_or_insert((generation, view.now));
        self.free = Some((generation, since));
        held.is_empty() && view.now >= since + STILL + pace(view)
    }

    /// Is there a key that only what may be on its way holds up any more?
    pub const fn waits_for_silence(&self) -> bool {
        self.free.is_some()
    }

    /// Is `generation` about to be given up, since nothing has held it up for a while but what is on its way?
    pub fn goes_soon(&self, generation: Generation, now: Duration) -> bool {
        self.free.is_some_and(|(of, since)| of == generation && now < since + GOES_WITHIN)
    }

    /// What this node says from now on: its generations, and to whom it does not send by the newest. `None` as long as no device
    /// stands, or what was said before is not known.
    pub fn says(&mut self, view: &View<'_>) -> Option<(Vec<(Generation, GenerationState)>, NotFlipped)> {
        // What was said stands as long as there is a key, though somebody took the device away for a moment.
        let is_said = |generation: &&Generation| {
            view.standing.contains(generation) || view.own.is_some_and(|own| own.has(**generation))
        };
        let said: Vec<Generation> = view.held.iter().filter(is_said).copied().collect();
        let newest = *said.last()?;
        let state =
            |of: &Generation| if *of == newest { GenerationState::Active } else { GenerationState::Retiring };
        let generations = said.iter().map(|of| (*of, state(of))).collect();
        // A daemon that began anew and has not heard of all nodes may have been speaking to one of the others: what was said stands.
        let is_first = self.list.as_ref().is_none_or(|(of, _)| *of != newest);
        let list = if said.len() > 1 && is_first && !view.complete {
            let told = view.own.filter(|own| own.newest() == newest).map(|own| own.not_flipped);
            let stands = self.stands.take().filter(|(of, _)| *of == newest).map(|(_, list)| list);
            // What was kept may be older than what the source tells of it, and that than what is on its way: whom either names.
            let stands = match (stands, told) {
                (Some(stands), Some(told)) => either(&stands, told),
                (Some(stands), None) => stands,
                (None, told) => told.cloned().unwrap_or(NotFlipped::Many),
            };
            let stands = self.stands.insert((newest, stands)).1.clone();
            // Nor is what was kept said anew before it is known what was said since.
            if !view.is_told {
                return None;
            }
            stands
        } else {
            self.stands = None;
            self.at_times(newest, not_flipped(&said, view), view)
        };
        Some((generations, list))
    }

    /// May packets to `peer` go by `generation`, after what this node said? By a newer one than any that it spoke of, and by its
    /// newest, to anybody; by an older one to those only of whom it said so, since others take it for granted. `own` is what
    /// the source has of it. What was said since binds as well: others may have it before the source tells of it here. What an
    /// earlier daemon said last may be on its way still; it did not before packets went by the newer one, as they do (`goes_by`).
    /// Nor is what was kept on disk (not `is_told`) the last that it said: packets that go by this one go on.
    pub fn may_use(
        &self,
        own: Option<Said<'_>>,
        is_told: bool,
        peer: &str,
        generation: Generation,
        goes_by: Option<Generation>,
    ) -> bool {
        let is_bound = |newest: Generation, list: &NotFlipped| newest > generation && !list.names(peer);
        let own = own.filter(|_| is_told || goes_by != Some(generation));
        let is_by_source = own.is_some_and(|own| is_bound(own.newest(), own.not_flipped));
        let is_by_memory = match &self.list {
            Some((newest, list)) => is_bound(*newest, list),
            None => goes_by > Some(generation),
        };
        !is_by_source && !is_by_memory
    }

    /// `list`, or what was said last where it is too early to say something else. One list at a time is on its way: a peer that was
    /// moved and thrown back would else be named by what the source tells and by what was said last, and disclaimed by what is on
    /// its way between the two.
    fn at_times(&mut self, newest: Generation, list: NotFlipped, view: &View<'_>) -> NotFlipped {
        let told = view.own.map(|own| (own.newest(), own.not_flipped.clone()));
        let is_on_its_way =
            self.list.as_ref().is_some_and(|said| said.0 == newest && told.as_ref() != Some(said));
        let before = self.list.take().or(told).filter(|(of, _)| *of == newest).map(|(_, list)| list);
        let is_early = self.told.is_some_and(|at| view.now < at + TELL_EVERY) && list != NotFlipped::nobody();
        let says = match before {
            Some(before) if before == list => {
                self.shorter = None;
                before
            }
            Some(before) if is_on_its_way || is_early || !self.is_in_place(&before, &list, view) => before,
            _ => {
                (self.told, self.shorter) = (Some(view.now), None);
                list
            }
        };
        self.list = Some((newest, says.clone()));
        says
    }

    /// Thousands of nodes may have moved their last peers at one time, when the last node begins, so each says so in its place. Whom
    /// a list names anew waits for it.
    fn is_in_place(&mut self, before: &NotFlipped, list: &NotFlipped, view: &View<'_>) -> bool {
        let is_shorter = match (before, list) {
            (NotFlipped::Many, _) => true,
            (_, NotFlipped::Many) => false,
            (NotFlipped::Nodes(before), NotFlipped::Nodes(list)) => list.is_subset(before),
        };
        !is_shorter || view.now >= *self.shorter.get_or_insert(view.now) + pace(view)
    }

    /// How long until something can be done though nobody says anything; `None` if nothing is under way.
    pub fn next_look(&self, view: &View<'_>) -> Option<Duration> {
        // What was due has been done, or has failed and is tried again in the regular round.
        let until = |at: Duration| at.checked_sub(view.now).filter(|wait| !wait.is_zero());
        let begins = self.wanted.and_then(|(_, since)| until(since + pace(view)));
        let ends = self.free.and_then(|(_, since)| until(since + STILL + pace(view)));
        let old = view.held.first().copied().filter(|_| view.held.len() > 1);
        let under_way = old.is_some();
        let is_quiet = old.map(|old| {
            let quiet = view.quiet.get(&old).copied().unwrap_or_default();
            // What still comes is looked at again after as long as it would have to be silent.
            STILL.saturating_sub(quiet).max(Duration::from_secs(1))
        });
        let again = self.told.filter(|_| under_way).and_then(|at| until(at + TELL_EVERY));
        let shorter = self.shorter.and_then(|since| until(since + pace(view)));
        begins.into_iter().chain(ends).chain(is_quiet).chain(again).chain(shorter).min()
    }
}

/// The generation of a node that has none: that which most others have, since it shares a device with them by no other, and the
/// newest of those; but none before what it said itself. One that says more than is so moves it no further than to what is wanted.
fn joins(wanted: Generation, view: &View<'_>) -> Generation {
    let mut having: BTreeMap<Generation, usize> = BTreeMap::new();
    for entry in view.others.values().flat_map(|said| said.generations) {
        *having.entry(entry.generation).or_default() += 1;
    }
    let most = having.into_iter().max_by_key(|(generation, nodes)| (*nodes, *generation));
    let said = view.own.map_or(Generation::FIRST, |own| own.newest());
    most.map_or(wanted, |(generation, _)| generation.max(said).min(wanted))
}

/// Whom either of two lists names.
fn either(one: &NotFlipped, other: &NotFlipped) -> NotFlipped {
    match (one, other) {
        (NotFlipped::Nodes(one), NotFlipped::Nodes(other)) => NotFlipped::of(one.union(other).cloned()),
        _ => NotFlipped::Many,
    }
}

/// How long after the others begin this node takes its step: each has its place in a row as long as there are nodes.
fn pace(view: &View<'_>) -> Duration {
    let mut hasher = DefaultHasher::new();
    view.node.hash(&mut hasher);
    let places = view.others.len() as u64 + 1;
    let place = u32::try_from(hasher.finish() % places).unwrap_or(u32::MAX);
    PACE.saturating_mul(place)
}

/// To whom this node, which says that it has `said`, sends by an older generation than its newest, or might.
fn not_flipped(said: &[Generation], view: &View<'_>) -> NotFlipped {
    let Some((newest, older)) = said.split_last().filter(|(_, older)| !older.is_empty()) else {
        return NotFlipped::nobody();
    };
    let Some(ways) = &view.ways else { return NotFlipped::Many };
    let has_older = |other: &Said<'_>| older.iter().any(|generation| other.has(*generation));
    let may = view.others.iter().filter(|(_, said)| has_older(said)).map(|(name, _)| *name);
    let does = ways.iter().filter(|(_, by)| older.contains(by)).map(|(name, _)| *name);
    let names: BTreeSet<&str> = may.chain(does).filter(|name| ways.get(name) != Some(newest)).collect();
    NotFlipped::of(names.into_iter().map(str::to_owned))
}

/// Why this node can't give `generation` up yet.
pub fn holdups(generation: Generation, view: &View<'_>) -> BTreeSet<Holdup> {
    let mut out = BTreeSet::new();
    if view.paused {
        out.insert(Holdup::Paused);
    }
    for (name, said) in view.others.iter().filter(|(_, said)| !view.is_cut_off(said)) {
        if said.newest() == generation {
            out.insert(Holdup::NotBegun((*name).to_owned()));
        } else if said.may_send(view.node, generation) {
            out.insert(Holdup::NotFlipped((*name).to_owned()));
        }
    }
    match &view.ways {
        Some(ways) => {
            let by_it = ways.iter().filter(|(_, by)| **by == generation);
            out.extend(by_it.map(|(name, _)| Holdup::NotFlippedByUs((*name).to_owned())));
        }
        None => drop(out.insert(Holdup::NotWhole)),
    }
    if !view.whole {
        out.insert(Holdup::NotWhole);
    }
    // A device that does not stand receives nothing.
    let is_quiet = || view.quiet.get(&generation).is_none_or(|quiet| *quiet >= STILL);
    if view.standing.contains(&generation) && !is_quiet() {
        out.insert(Holdup::NotSilent);
    }
    out
}

/// Which of a peer's tunnels carries packets to it: `ways` are those that may, the newest first, each with how it is. The first that
/// is proven, and an older one rather than one that has ceased to answer.
pub fn choose(ways: impl IntoIterator<Item = Health>) -> Option<usize> {
    let proven = ways.into_iter().enumerate().filter(|(_, health)| health.is_proven());
    proven.min_by_key(|(_, health)| matches!(health, Health::Stale(_))).map(|(index, _)| index)
}
