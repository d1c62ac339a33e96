//! One rotation of a large cluster in which nothing goes wrong: what it costs the API server and those that watch it.
//!
//! What a node does about its keys and what it says are the production functions' (`core::rotation`). They are asked where the answer can be
//! another than before: not while a node's list is too long to be written out, and not while somebody is known to hold an old key up.
//! When that is so is written down here once more, and so is that packets move with a handshake. Left out are devices, plans and packets.
//! Nodes share one log of what was said, and each knows how much of it it has read.
//!
//! What a way round lasts is given ([`Look`]), by what is measured. Who is slower finds more when he looks again, and is slower for that: whether he
//! keeps up is counted, by how much he finds.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    fmt,
    num::NonZeroU16,
    time::Duration,
};

use kubeveil_api::announcement::{GenerationEntry, GenerationState, NotFlipped};
use kubeveil_core::rotation::{Rotation, Said, Step, View};
use kubeveil_keys::{Generation, PublicKey};

const OLD: Generation = Generation::FIRST;
const NEW: Generation = Generation::new(1);
/// As in `daemon/agent/src/run.rs`, milliseconds.
const BURST: u64 = 20;
/// As in `core::tunnels`, milliseconds: `LOOK_OFTEN`, `SECOND_WORD_AT_LEISURE`; and WireGuard's `REKEY_TIMEOUT`.
const LOOK: u64 = 250;
const SECOND_WORD: u64 = 7000;
const AGAIN: u64 = 5000;
/// `core::rotation::STILL`, milliseconds.
const STILL: u64 = 5000;
/// Nothing takes longer.
const END: u64 = 3_600_000;

/// What a way round lasts while two generations stand, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// For each peer.
    pub each_peer: u64,
    /// For each announcement that it takes in.
    pub each_told: u64,
}

impl Look {
    /// The longest look of `cargo xtask bench rotation`, 1.6 s among 5,000, with the hundred announcements that it takes in.
    pub const MEASURED: Self = Self { each_peer: 320, each_told: 0 };

    /// Milliseconds, among so many nodes, of which so many have said something.
    fn lasts(self, nodes: usize, told: usize) -> u64 {
        (nodes as u64 * self.each_peer + told as u64 * self.each_told).div_ceil(1000)
    }
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Nodes.
    pub nodes: usize,
    /// Announcements written.
    pub writes: usize,
    /// By the node that wrote most.
    pub most_of_one: usize,
    /// Announcements told to those that watch.
    pub deliveries: u64,
    /// The most that one node was told within a second.
    pub most_a_second: usize,
    /// The most that one node found at the beginning of a way round.
    pub most_at_once: usize,
    /// The longest way round, milliseconds.
    pub longest: u64,
    /// Ways round of all nodes, while they had two keys.
    pub rounds: u64,
    /// From the mesh's word until the last node says that it has the new key only.
    pub took: Duration,
    /// Until the last node said its new key.
    pub begun: Duration,
    /// Until the last said that it had moved.
    pub flipped: Duration,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} nodes: {} announcements written, at most {} by a node; {} told, at most {} to a node within a second and {} at once; {} ways round, the longest of {:.2} s; all have begun after {:.1} s, moved after {:.1} s, done after {:.1} s",
            self.nodes,
            self.writes,
            self.most_of_one,
            self.deliveries,
            self.most_a_second,
            self.most_at_once,
            self.rounds,
            millis(self.longest).as_secs_f64(),
            self.begun.as_secs_f64(),
            self.flipped.as_secs_f64(),
            self.took.as_secs_f64()
        )
    }
}

/// What a node said: its generations by bit.
struct Saying {
    version: usize,
    generations: usize,
    list: NotFlipped,
}

struct Node {
    name: String,
    key: u64,
    /// How long it takes until it is told, milliseconds.
    delay: u64,
    rotation: Rotation,
    generations: usize,
    /// How much of the log it has read.
    seen: usize,
    /// Handshakes that take place, by when.
    handshakes: BinaryHeap<Reverse<(u32, u32)>>,
    /// Whom it sends to by its new key.
    flipped: Vec<bool>,
    unflipped: usize,
    /// How many they were when it was last thought of what to say.
    listed: usize,
    sayings: Vec<Saying>,
    told: Option<Duration>,
    /// The first node that may hold its old key up: none before it does.
    witness: usize,
    /// When a packet last came or went by the old key, at the latest, milliseconds.
    passed: u64,
    /// When it is to be thought of again.
    says_at: u64,
    /// How long after the others it takes each step, milliseconds.
    place: u64,
    /// When it has something to do about keys though nothing is told.
    due: u64,
}

struct Cluster {
    look: Look,
    nodes: Vec<Node>,
    /// Of each node, when it took each other one in as a peer of its new device; 0: not yet. Milliseconds.
    added: Vec<u32>,
    /// When what was said, by whom, arrived at the API server, in order.
    log: Vec<(u64, usize)>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    queued: u64,
    entries: [Vec<GenerationEntry>; 4],
    random: fastrand::Rng,
    cost: Cost,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Round(usize),
    /// A request arrives: what was said for the n-th time.
    Arrives(usize, usize),
}

impl Cost {
    /// Does each node take in what it is told as fast as that comes? Who does not finds more each time, in the end all that all others say: so
    /// more than a tenth of them.
    pub fn keeps_up(&self) -> bool {
        self.most_at_once * 10 <= self.nodes
    }
}

/// Rotates `count` nodes once, of which each takes so long for a way round.
pub fn rotate(count: usize, seed: u64, look: Look) -> Cost {
    let mut cluster = Cluster::new(count, seed, look);
    for place in 0..count {
        let at = cluster.nodes[place].delay + BURST;
        cluster.at(at, Event::Round(place));
    }
    while let Some(Reverse((now, _, event))) = cluster.queue.pop() {
        if now > END {
            break;
        }
        match event {
            Event::Round(place) => cluster.round(place, now),
            Event::Arrives(place, saying) => cluster.arrives(place, saying, now),
        }
    }
    cluster.conclude()
}

impl Cluster {
    fn new(count: usize, seed: u64, look: Look) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let entry = |generation: Generation| GenerationEntry {
            generation,
            public_key: PublicKey::from_bytes([0; 32]),
            port: NonZeroU16::MIN,
            state: GenerationState::Active,
        };
        let node = |place: usize| Node {
            name: format!("node-{place:05}"),
            key: random.u64(..),
            delay: random.u64(1..=100),
            rotation: Rotation::default(),
            generations: 1,
            seen: 0,
            handshakes: BinaryHeap::new(),
            flipped: vec![false; count],
            unflipped: count - 1,
            listed: 0,
            says_at: 0,
            place: 0,
            sayings: vec![Saying { version: 0, generations: 1, list: NotFlipped::nobody() }],
            told: None,
            witness: 0,
            passed: 0,
            due: 0,
        };
        Self {
            look,
            nodes: (0..count).map(node).collect(),
            added: vec![0; count * count],
            log: Vec::new(),
            queue: BinaryHeap::new(),
            queued: 0,
            entries: [vec![], vec![entry(OLD)], vec![entry(NEW)], vec![entry(OLD), entry(NEW)]],
            random,
            cost: Cost { nodes: count, ..Cost::default() },
        }
    }

    fn at(&mut self, when: u64, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse((when, self.queued, event)));
    }

    /// What `node` says to who has read so much of the log.
    fn saying(node: &Node, seen: usize) -> &Saying {
        let last = node.sayings.iter().rev().find(|saying| saying.version <= seen);
        last.unwrap_or(&node.sayings[0])
    }

    fn said<'a>(&'a self, saying: &'a Saying) -> Said<'a> {
        Said { generations: &self.entries[saying.generations], not_flipped: &saying.list }
    }

    fn view(&self, place: usize, now: u64) -> View<'_> {
        let me = &self.nodes[place];
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != place);
        let held: BTreeSet<Generation> =
            self.entries[me.generations].iter().map(|entry| entry.generation).collect();
        let by = |other: usize| if me.flipped[other] { NEW } else { OLD };
        let ways: BTreeMap<&str, Generation> =
            others.clone().map(|(other, node)| (node.name.as_str(), by(other))).collect();
        View {
            node: &me.name,
            wanted: Some(NEW),
            paused: false,
            retire_before: OLD,
            revoked: BTreeSet::new(),
            standing: held.clone(),
            own: Some(self.said(Self::saying(me, me.seen))),
            others: others
                .map(|(_, node)| (node.name.as_str(), self.said(Self::saying(node, me.seen))))
                .collect(),
            is_told: true,
            complete: true,
            whole: true,
            ways: Some(ways),
            quiet: held.iter().map(|of| (*of, millis(now.saturating_sub(me.passed)))).collect(),
            held,
            now: millis(now),
        }
    }
}

fn millis(of: u64) -> Duration {
    Duration::from_millis(of)
}

impl Cluster {
    /// A way round: what was read, what is done about keys, who is moved, what is said.
    fn round(&mut self, place: usize, now: u64) {
        let told = self.told(place, now);
        // Before it begins it has heard each by itself, by the short way.
        let heard = if self.nodes[place].generations == 1 { 0 } else { told };
        let took = self.look.lasts(self.nodes.len(), heard);
        let me = &mut self.nodes[place];
        let is_next = me.handshakes.peek().is_some_and(|Reverse((at, _))| u64::from(*at) + LOOK <= now);
        if me.generations == 3 && told == 0 && !is_next && now < me.due {
            // Nothing stirs.
            return self.at(now + BURST, Event::Round(place));
        }
        let before = me.seen;
        me.seen += told;
        let then = now + took;
        if me.generations == 1 {
            if !self.keys(place, now) {
                let due = self.nodes[place].due;
                return self.at(due.max(now + 1), Event::Round(place));
            }
            self.hears(place, 0, then);
            self.says(place, then);
            return self.at(then + BURST, Event::Round(place));
        }
        self.cost.rounds += 1;
        self.cost.most_at_once = self.cost.most_at_once.max(told);
        self.cost.longest = self.cost.longest.max(took);
        let is_free = self.nodes[place].unflipped == 0 && !self.is_held_up(place);
        if is_free && now >= self.nodes[place].due && self.keys(place, now) {
            return self.says(place, then);
        }
        self.hears(place, before, then);
        self.flips(place, now, then);
        self.at(then + BURST, Event::Round(place));
    }

    /// How much of the log has come to a node by now that it has not read.
    fn told(&self, place: usize, now: u64) -> usize {
        let me = &self.nodes[place];
        self.log[me.seen..].iter().take_while(|(at, _)| at + me.delay <= now).count()
    }

    /// Does a key come or go? When to ask again, if not: in a node's own place in the row, which it has told of when it began.
    fn keys(&mut self, place: usize, now: u64) -> bool {
        let mut rotation = std::mem::take(&mut self.nodes[place].rotation);
        let view = self.view(place, now);
        let step = rotation.keys(&view);
        let wait = rotation.next_look(&view);
        drop(view);
        let me = &mut self.nodes[place];
        me.rotation = rotation;
        match step {
            Some(Step::Make(_)) => (me.generations, me.due) = (3, 0),
            Some(Step::Retire(_)) => me.generations = 2,
            None if me.generations == 1 => {
                let wait = wait.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(END) + 1);
                (me.place, me.due) = (wait, now + wait);
            }
            None => me.due = now + STILL + me.place,
        }
        step.is_some()
    }

    /// Is there a node that holds the old key up, for all that this one has read?
    fn is_held_up(&mut self, place: usize) -> bool {
        let mut witness = self.nodes[place].witness;
        let (seen, name) = (self.nodes[place].seen, &self.nodes[place].name);
        while let Some(other) = self.nodes.get(witness) {
            let saying = Self::saying(other, seen);
            if witness != place
                && (saying.generations == 1 || saying.generations == 3 && saying.list.names(name))
            {
                break;
            }
            witness += 1;
        }
        self.nodes[place].witness = witness;
        witness < self.nodes.len()
    }

    /// New peers of its device, by what was read from `from` on.
    fn hears(&mut self, place: usize, from: usize, now: u64) {
        let count = self.nodes.len();
        let stamp = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        for at in from..self.nodes[place].seen {
            let other = self.log[at].1;
            if other == place || self.added[place * count + other] != 0 {
                continue;
            }
            self.added[place * count + other] = stamp(now);
            let theirs = u64::from(self.added[other * count + place]);
            if theirs == 0 {
                continue;
            }
            // Who has the lower key speaks when it adds the other, and every five seconds; the other after seven.
            let is_lower = self.nodes[place].key < self.nodes[other].key;
            let (lower, higher) = if is_lower { (now, theirs) } else { (theirs, now) };
            let again = lower + higher.saturating_sub(lower).div_ceil(AGAIN) * AGAIN;
            let shaken = again.min(higher + SECOND_WORD) + self.random.u64(1..=30);
            for (of, with) in [(place, other), (other, place)] {
                let entry = Reverse((stamp(shaken), u32::try_from(with).unwrap_or(u32::MAX)));
                self.nodes[of].handshakes.push(entry);
            }
        }
    }

    /// Packets move to the new key where there was a handshake by `now`; that is done by `then`.
    fn flips(&mut self, place: usize, now: u64, then: u64) {
        while let Some(Reverse((at, with))) = self.nodes[place].handshakes.peek().copied() {
            if u64::from(at) > now {
                break;
            }
            self.nodes[place].handshakes.pop();
            let with = with as usize;
            let me = &mut self.nodes[place];
            if !me.flipped[with] {
                me.flipped[with] = true;
                me.unflipped -= 1;
                me.passed = then;
                self.nodes[with].passed = self.nodes[with].passed.max(then);
            }
        }
        let me = &self.nodes[place];
        let is_early = me.told.is_some_and(|at| millis(then) < at + kubeveil_core::rotation::TELL_EVERY);
        let can_list = me.unflipped <= kubeveil_api::announcement::MAX_NOT_FLIPPED;
        let is_due = me.unflipped != me.listed && then >= me.says_at;
        if is_due && can_list && (me.unflipped == 0 || !is_early) {
            self.says(place, then);
        }
    }

    fn says(&mut self, place: usize, now: u64) {
        let mut rotation = std::mem::take(&mut self.nodes[place].rotation);
        let says = rotation.says(&self.view(place, now));
        let me = &mut self.nodes[place];
        me.rotation = rotation;
        let Some((generations, list)) = says else { return };
        let generations = generations.iter().fold(0, |all, (of, _)| all | 1 << of.number());
        let last = me.sayings.last();
        if last.is_some_and(|last| last.generations == generations && last.list == list) {
            // Its place has not come.
            me.says_at = now + me.place;
            return;
        }
        (me.listed, me.says_at) = (me.unflipped, 0);
        me.told = Some(millis(now));
        me.sayings.push(Saying { version: usize::MAX, generations, list });
        let nth = me.sayings.len() - 1;
        let wait = self.random.u64(2..=150);
        self.at(now + wait, Event::Arrives(place, nth));
    }

    fn arrives(&mut self, place: usize, saying: usize, now: u64) {
        self.log.push((now, place));
        let version = self.log.len();
        let saying = &mut self.nodes[place].sayings[saying];
        saying.version = version;
        match (saying.generations, &saying.list) {
            (3, list) if *list == NotFlipped::nobody() => self.cost.flipped = millis(now),
            (3, _) if saying.list == NotFlipped::Many => self.cost.begun = millis(now),
            _ => {}
        }
        self.cost.took = millis(now);
    }

    fn conclude(mut self) -> Cost {
        let is_done = |node: &Node| node.generations == 2;
        if !self.nodes.iter().all(is_done) {
            self.cost.took = Duration::MAX;
        }
        let mut since = 0;
        for (at, (now, _)) in self.log.iter().enumerate() {
            while self.log[since].0 + 1000 <= *now {
                since += 1;
            }
            self.cost.most_a_second = self.cost.most_a_second.max(at + 1 - since);
        }
        self.cost.writes = self.log.len();
        self.cost.deliveries = (self.log.len() * self.nodes.len()) as u64;
        self.cost.most_of_one =
            self.nodes.iter().map(|node| node.sayings.len() - 1).max().unwrap_or_default();
        self.cost
    }
}
