//! One node of the model: what it has on disk, in its kernel and in its memory, and its way round, by the production functions.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kubeveil_api::announcement::NotFlipped;
use kubeveil_core::{
    rotation::{self, Rotation, STILL, Step, View},
    tunnels::Health,
};
use kubeveil_keys::Generation;

use super::said::{self, Code, MOST, bits};
use crate::{rules::Rules, world::NAMES};

/// No generation.
pub(super) const NONE: u8 = u8::MAX;
/// The present for keys, always: what is remembered of that is of now, or of long ago.
const KEYS: Duration = Duration::from_secs(1000);
/// The present for what is said, and more than five seconds before: that it may be said again waits for ten.
const WORDS: Duration = Duration::from_secs(1001);
const WORDS_BEFORE: Duration = Duration::from_secs(994);
/// Longer than the row of three nodes.
const A_LITTLE: Duration = Duration::from_millis(500);
/// As in `daemon/agent/src/node/rotation.rs`.
const STEPS: usize = 4;

/// A node. Masks are of generations or of places of nodes; arrays are by parity or by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    /// Disk: keys, and those that there ever were.
    pub(super) held: u8,
    pub(super) made: u8,
    /// Kernel: the generation whose key each device has, its peers, who of them has shaken hands, who has not answered since; and by
    /// which generation packets go to whom.
    pub(super) device: [u8; 2],
    pub(super) peers: [u8; 2],
    pub(super) shaken: [u8; 2],
    pub(super) stale: [u8; 2],
    pub(super) ways: [u8; MOST],
    /// Memory, of which what was seen is kept on disk too: what everybody says, itself included, and what the mesh wants.
    pub(super) seen: [Code; MOST],
    pub(super) wanted: u8,
    /// All was listed since the start.
    pub(super) whole: bool,
    /// A way round has come to its end since the start.
    pub(super) settled: bool,
    pub(super) rotation: u16,
    /// What is to be published.
    pub(super) says: Code,
}

/// Where a way round ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Death {
    Before,
    AfterKeys,
    AfterDevices,
    AfterWays,
}

/// What rotation remembers, by number: there is little of it that differs.
#[derive(Default)]
pub(super) struct Memories(Vec<Rotation>);

impl Memories {
    fn number(&mut self, rotation: Rotation) -> u16 {
        let known = self.0.iter().position(|known| *known == rotation);
        let at = known.unwrap_or_else(|| {
            self.0.push(rotation);
            self.0.len() - 1
        });
        u16::try_from(at).expect("few")
    }

    fn of(&self, number: u16) -> Rotation {
        self.0.get(usize::from(number)).cloned().unwrap_or_default()
    }

    /// Number 0 remembers nothing.
    pub(super) fn new() -> Self {
        Self(vec![Rotation::default()])
    }

    /// More than five seconds pass.
    pub(super) fn age(&mut self, number: u16) -> u16 {
        let aged = |at| if at == WORDS { WORDS_BEFORE } else { Duration::ZERO };
        let rotation = self.of(number).with_times(aged);
        self.number(rotation)
    }
}

impl Node {
    /// Of `count` that all go by generation 0, and know it.
    pub(super) fn settled(place: usize, count: usize) -> Self {
        let others = ((1 << count) - 1) & !(1 << place);
        let says = said::code(1, &NotFlipped::nobody());
        let by = |is_one: bool, value: u8, other: u8| if is_one { value } else { other };
        Self {
            held: 1,
            made: 1,
            device: [0, NONE],
            peers: [others, 0],
            shaken: [others, 0],
            stale: [0; 2],
            ways: std::array::from_fn(|of| by(others & 1 << of != 0, 0, NONE)),
            seen: std::array::from_fn(|of| by(of < count, says, 0)),
            wanted: 0,
            whole: true,
            settled: true,
            rotation: 0,
            says,
        }
    }

    /// The daemon ends without a word.
    pub(super) fn dies(self) -> Self {
        Self { whole: false, settled: false, rotation: 0, says: 0, ..self }
    }

    pub(super) fn newest(&self) -> u8 {
        bits(self.held).next_back().unwrap_or(0)
    }

    /// A way round, or what of it comes before its `death`; the generation of a key that was made again, if one was.
    pub(super) fn pass(
        mut self,
        place: usize,
        rules: Rules,
        death: Option<Death>,
        memories: &mut Memories,
    ) -> (Self, Option<u8>) {
        if death == Some(Death::Before) {
            return (self.dies(), None);
        }
        let mut rotation = memories.of(self.rotation);
        let again = self.keys(place, rules, &mut rotation);
        if death == Some(Death::AfterKeys) {
            return (self.dies(), again);
        }
        self.devices(place);
        if death == Some(Death::AfterDevices) {
            return (self.dies(), again);
        }
        self.ways = std::array::from_fn(|to| self.way(place, to, rules, &rotation));
        if death == Some(Death::AfterWays) {
            return (self.dies(), again);
        }
        self.settled = true;
        // Twice, since its place in the row comes at once.
        rotation.says(&self.view(place, rules, WORDS - A_LITTLE));
        if let Some((generations, list)) = rotation.says(&self.view(place, rules, WORDS)) {
            let list = if rules == Rules::ListsNobody { NotFlipped::nobody() } else { list };
            let generations = generations.iter().fold(0, |all, (of, _)| all | 1 << of.number());
            self.says = said::code(generations, &list);
        }
        // With one key nothing is timed, until there is another.
        let is_rotating = self.held.count_ones() > 1;
        let times = |at| match at {
            _ if !is_rotating => Duration::ZERO,
            _ if at > KEYS => WORDS,
            _ => at,
        };
        self.rotation = memories.number(rotation.with_times(times));
        (self, again)
    }

    fn keys(&mut self, place: usize, rules: Rules, rotation: &mut Rotation) -> Option<u8> {
        let mut again = None;
        for _ in 0..STEPS {
            if rules == Rules::DoesNotWait {
                *rotation = std::mem::take(rotation).with_times(|_| Duration::ZERO);
            }
            let mut step = rotation.keys(&self.view(place, rules, KEYS));
            if rules == Rules::DoesNotWait && step.is_none() {
                *rotation = std::mem::take(rotation).with_times(|_| Duration::ZERO);
                step = rotation.keys(&self.view(place, rules, KEYS));
            }
            match step {
                None => break,
                Some(Step::Make(generation)) => {
                    let number = u8::try_from(generation.number()).expect("few");
                    again = again.or(Some(number).filter(|number| self.made & 1 << number != 0));
                    self.held |= 1 << number;
                    self.made |= 1 << number;
                    // When that was wanted is of no use any more.
                    let other = |at| if at == KEYS { Duration::ZERO } else { at };
                    *rotation = std::mem::take(rotation).with_times(other);
                }
                Some(Step::Retire(generation)) => self.held &= !(1 << generation.number()),
            }
        }
        again
    }

    /// What rotation goes by.
    fn view(&self, place: usize, rules: Rules, now: Duration) -> View<'static> {
        static NOBODY: NotFlipped = NotFlipped::nobody();
        let of = |mask: u8| -> BTreeSet<Generation> {
            bits(mask).map(|number| Generation::new(number.into())).collect()
        };
        let stands = |number: &u8| self.settled && self.device[usize::from(number & 1)] == *number;
        let held = of(self.held);
        let others = (0..MOST).filter(|other| *other != place);
        let mut others: BTreeMap<&str, _> =
            others.filter_map(|other| Some((NAMES[other], said::said(self.seen[other])?))).collect();
        let ways = (0..MOST).filter(|to| self.ways[*to] != NONE);
        let mut ways: BTreeMap<&str, _> =
            ways.map(|to| (NAMES[to], Generation::new(self.ways[to].into()))).collect();
        let newest = held.last().copied().unwrap_or_default();
        match rules {
            Rules::IgnoresTheList => others.values_mut().for_each(|said| said.not_flipped = &NOBODY),
            Rules::IgnoresWhoHasNotBegun => {
                others.retain(|_, said| said.generations.last().is_some_and(|e| e.generation >= newest));
            }
            Rules::IgnoresOwnWays => ways.values_mut().for_each(|by| *by = newest),
            _ => {}
        }
        View {
            node: NAMES[place],
            wanted: Some(Generation::new(self.wanted.into())),
            paused: false,
            retire_before: Generation::FIRST,
            revoked: BTreeSet::new(),
            standing: bits(self.held).filter(stands).map(|number| Generation::new(number.into())).collect(),
            own: said::said(self.seen[place]),
            others,
            is_told: true,
            complete: self.whole,
            whole: self.whole || rules == Rules::RemovesBeforeSync,
            ways: self.settled.then_some(ways),
            // Nobody has sent anything for long: that no more than `STILL` has to pass is what is checked.
            quiet: held.iter().map(|generation| (*generation, STILL)).collect(),
            held,
            now,
        }
    }

    /// Devices and their peers, as `core::desired::peers` wants them and `core::plan` lets them be.
    fn devices(&mut self, place: usize) {
        for parity in 0..2 {
            let of = bits(self.held).rev().find(|number| usize::from(number & 1) == parity).unwrap_or(NONE);
            if self.device[parity] != of {
                self.device[parity] = of;
                (self.peers[parity], self.shaken[parity], self.stale[parity]) = (0, 0, 0);
            }
            if of == NONE {
                continue;
            }
            let has = |other: &usize| *other != place && said::generations(self.seen[*other]) & 1 << of != 0;
            let peers = (0..MOST).filter(has).fold(0, |all, other| all | 1 << other);
            // What a daemon does not know to be gone stays.
            self.peers[parity] = if self.whole { peers } else { peers | self.peers[parity] };
            self.shaken[parity] &= self.peers[parity];
            self.stale[parity] &= self.peers[parity];
        }
    }

    /// By which generation packets go `to` another (`core::desired`'s `carrier_of`).
    fn way(&self, place: usize, to: usize, rules: Rules, rotation: &Rotation) -> u8 {
        let forgetful = Rotation::default();
        let rotation = if rules == Rules::GoesByTheSourceAlone { &forgetful } else { rotation };
        let own = said::said(self.seen[place]);
        let goes_by = bits(self.held).find(|number| *number == self.ways[to]);
        let goes_by = goes_by.filter(|_| rules != Rules::GoesByTheSourceAlone);
        let goes_by = goes_by.map(|number| Generation::new(number.into()));
        let may = |number: &u8| {
            let parity = usize::from(number & 1);
            self.device[parity] == *number
                && self.peers[parity] & 1 << to != 0
                && (self.shaken[parity] & 1 << to != 0 || rules == Rules::FlipsBeforeEvidence)
                && (rules == Rules::GoesBackUnsaid
                    || rotation.may_use(own, true, NAMES[to], Generation::new((*number).into()), goes_by))
        };
        let ways: Vec<u8> = bits(self.held).rev().filter(may).collect();
        let health = |number: &u8| match self.stale[usize::from(number & 1)] & 1 << to {
            0 => Health::Up(Duration::ZERO),
            _ => Health::Stale(Duration::ZERO),
        };
        rotation::choose(ways.iter().map(health)).map_or(NONE, |at| ways[at])
    }
}
