//! The nodes, the API server between them, and what happens next.

use std::{collections::BTreeMap, fmt, rc::Rc, time::Duration};

use kubeveil_core::adoption::Gate;
use kubeveil_keys::{Generation, PublicKey};

use crate::{
    Failure, Figures,
    api::{Api, Saying, Stream},
    chaos::Deed,
    daemon::{Daemon, Keys, Known},
    kernel::{Kernel, Moment, Way},
    ledger::Ledger,
    plain::Held,
    rules::Rules,
    wire::{Faults, Hello, Overdue, Packet},
};

/// Nodes that there can be in one schedule, those that join included.
pub(crate) const PLACES: usize = 12;
pub(crate) const NAMES: [&str; PLACES] = [
    "node-a", "node-b", "node-c", "node-d", "node-e", "node-f", "node-g", "node-h", "node-i", "node-j",
    "node-k", "node-l",
];
/// Wall time at the start of each schedule.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// The place of a node by its name.
pub(crate) fn place(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).unwrap_or_default()
}

/// One node: what outlives its daemon, and the daemon if it runs.
pub(crate) struct Machine {
    pub(crate) uid: u32,
    pub(crate) is_powered: bool,
    /// It left, and does not come back.
    pub(crate) is_gone: bool,
    pub(crate) disk: Keys,
    pub(crate) kept: Option<Known>,
    /// The record of adoption, which is on disk before the maps hear of it.
    pub(crate) gate: Gate,
    pub(crate) held: Held,
    pub(crate) kernel: Kernel,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) lives: u32,
    pub(crate) wall: Duration,
    /// That clock was set meanwhile.
    pub(crate) has_jumped: bool,
    /// It was set back.
    pub(crate) is_set_back: bool,
    /// Nothing can be written until then.
    pub(crate) full_until: Duration,
    /// The daemon is killed after so many steps.
    pub(crate) fuse: Option<u32>,
    /// Neither requests nor watches pass until then.
    pub(crate) cut_until: Duration,
    /// Watches tell nothing until then.
    pub(crate) deaf_until: Duration,
    /// Who starts is told of Nodes as of that version, until that time.
    pub(crate) past: Option<(usize, Duration)>,
    /// When somebody last deleted a device.
    pub(crate) hurt: Duration,
}

impl Machine {
    /// Does its disk take nothing?
    pub(crate) fn is_full(&self, now: Duration) -> bool {
        now < self.full_until
    }

    pub(crate) fn new(uid: u32) -> Self {
        Self {
            uid,
            is_powered: true,
            is_gone: false,
            disk: Keys::new(),
            kept: None,
            gate: Gate::default(),
            held: Held::default(),
            kernel: Kernel::new(),
            daemon: None,
            lives: 0,
            wall: EPOCH,
            has_jumped: false,
            is_set_back: false,
            full_until: Duration::ZERO,
            fuse: None,
            cut_until: Duration::ZERO,
            deaf_until: Duration::ZERO,
            past: None,
            hurt: Duration::ZERO,
        }
    }
}

/// What is to happen; a node is named by its place, a daemon by its life too.
pub(crate) enum Event {
    /// The daemon starts.
    Start(usize),
    /// Something is to be done, if this is the wake-up that counts.
    Wake(usize, u32, u32),
    /// The next step of the way round.
    Step(usize, u32),
    /// A watch tells of all up to a version.
    Watch(usize, u32, Stream, usize),
    /// A list is answered.
    List(usize, u32, Stream),
    /// There may be something to publish.
    Publish(usize, u32),
    /// A request to publish arrives.
    Arrives(usize, u32, u32, Rc<Saying>),
    /// It is answered with the version.
    Answered(usize, u32, Rc<Saying>, Option<usize>),
    /// A keepalive is due, of those that go to a peer of a device since that time.
    Keepalive(usize, usize, u32, PublicKey, Duration),
    /// The first message of a handshake arrives.
    Hello(Hello),
    /// The second.
    Reply(Hello),
    Packet(Packet),
    /// WireGuard answers what came from one to another.
    Answer(usize, usize, Way),
    /// Nothing has come back.
    Overdue(Overdue),
    /// Somebody sends something.
    Traffic,
    /// A node is switched on again.
    PowerOn(usize),
    /// Something is done to the cluster.
    Deed(Deed),
}

/// Everything.
pub(crate) struct World {
    pub(crate) now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    queued: u64,
    pub(crate) random: fastrand::Rng,
    pub(crate) rules: Rules,
    pub(crate) machines: Vec<Machine>,
    pub(crate) api: Api,
    /// No request is answered until then.
    pub(crate) away_until: Duration,
    /// Until when packets between two nodes don't pass, by parity.
    pub(crate) blocked: BTreeMap<(usize, usize), [Duration; 2]>,
    /// What becomes of single messages.
    pub(crate) faults: Faults,
    /// Some pairs of nodes have nothing to tell each other, ever.
    pub(crate) has_silent: bool,
    pub(crate) ledger: Ledger,
    pub(crate) figures: Figures,
    pub(crate) failure: Option<Failure>,
    pub(crate) trace: Option<Vec<String>>,
    /// Nothing is done to the cluster any more.
    pub(crate) is_over: bool,
    /// Longest time that a packet takes; less than `STILL`.
    pub(crate) longest: Duration,
}

impl World {
    pub(crate) fn new(seed: u64, rules: Rules, is_traced: bool) -> Self {
        Self {
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            queued: 0,
            random: fastrand::Rng::with_seed(seed),
            rules,
            machines: Vec::new(),
            api: Api::default(),
            away_until: Duration::ZERO,
            blocked: BTreeMap::new(),
            faults: Faults::default(),
            has_silent: false,
            ledger: Ledger::default(),
            figures: Figures::default(),
            failure: None,
            trace: is_traced.then(Vec::new),
            is_over: false,
            longest: Duration::from_millis(4900),
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.4}  {}", self.now.as_secs_f64(), line()));
        }
    }

    pub(crate) fn fail(&mut self, invariant: &'static str, what: impl fmt::Display) {
        let what = what.to_string();
        self.note(|| format!("BROKEN: {invariant}: {what}"));
        self.failure.get_or_insert(Failure { invariant, what, at: self.now });
    }

    pub(crate) fn after(&mut self, wait: Duration, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + wait, self.queued), event);
    }

    /// Between `least` and `most` milliseconds.
    pub(crate) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.random.u64(least * 1000..=most * 1000))
    }

    /// True once in so many.
    pub(crate) fn once_in(&mut self, many: u32) -> bool {
        self.random.u32(0..many) == 0
    }

    /// Wall time at a node.
    pub(crate) fn wall(&self, place: usize) -> Duration {
        self.machines[place].wall + self.now
    }

    /// The time at a node.
    pub(crate) fn moment(&self, place: usize) -> Moment {
        Moment { now: self.now, wall: self.wall(place) }
    }

    /// A node made anew, and its daemon about to start.
    pub(crate) fn install(&mut self, place: usize) {
        let uid = self.machines.get(place).map_or(0, |machine| machine.uid) + 1;
        let machine = Machine::new(uid);
        match self.machines.get_mut(place) {
            Some(before) => *before = Machine { lives: before.lives, ..machine },
            None => self.machines.push(machine),
        }
        self.api.make(NAMES[place], uid);
        self.tell(Stream::Nodes);
        let wait = self.millis(0, 300);
        self.after(wait, Event::Start(place));
    }

    /// The newest change goes out to all that watch, to each when it will.
    pub(crate) fn tell(&mut self, stream: Stream) {
        let version = self.api.version();
        for place in 0..self.machines.len() {
            let Some(life) = self.machines[place].daemon.as_ref().map(|daemon| daemon.life) else { continue };
            let wait = if self.once_in(20) { self.millis(0, 5000) } else { self.millis(1, 100) };
            self.after(wait, Event::Watch(place, life, stream, version));
            if self.once_in(10) {
                // Told twice.
                let wait = self.millis(1, 500);
                self.after(wait, Event::Watch(place, life, stream, version));
            }
        }
    }

    pub(crate) fn is_answered(&self, place: usize) -> bool {
        self.now >= self.away_until && self.now >= self.machines[place].cut_until
    }

    /// A new key, never used before.
    pub(crate) fn new_key(&mut self, place: usize, generation: Generation) -> PublicKey {
        let mut bytes = [0; 32];
        self.random.fill(&mut bytes[..16]);
        bytes[16..24].copy_from_slice(&self.ledger.born().to_be_bytes());
        let key = PublicKey::from_bytes(bytes);
        self.ledger.bear(key, place, generation);
        key
    }

    /// Goes on until `end`, something fails, or `is_done` says so.
    pub(crate) fn run(&mut self, end: Duration, mut is_done: impl FnMut(&mut Self) -> bool) {
        while self.failure.is_none() && !is_done(self) {
            let Some(((at, _), event)) = self.queue.pop_first() else { return };
            if at > end {
                self.queued += 1;
                self.queue.insert((at, self.queued), event);
                self.now = end;
                return;
            }
            self.now = at;
            self.figures.events += 1;
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Start(place) => self.start(place),
            Event::Wake(place, life, alarm) => {
                let is_it = |daemon: &&mut Daemon| daemon.alarm == alarm && daemon.stage.is_none();
                if self.daemon(place, life).filter(is_it).is_some() {
                    self.begin(place);
                }
            }
            Event::Step(place, life) => {
                if self.daemon(place, life).is_some() {
                    self.step(place);
                }
            }
            Event::Watch(place, life, stream, version) => self.watch(place, life, stream, version),
            Event::List(place, life, stream) => self.list(place, life, stream),
            Event::Publish(place, life) => self.publish(place, life),
            Event::Arrives(place, life, uid, said) => self.arrives(place, life, uid, said),
            Event::Answered(place, life, said, version) => self.answered(place, life, &said, version),
            Event::Keepalive(place, parity, ifindex, key, since) => {
                self.keepalive(place, parity, ifindex, key, since);
            }
            Event::Hello(hello) => self.hello(hello),
            Event::Reply(hello) => self.reply(hello),
            Event::Packet(packet) => self.arrive(&packet),
            Event::Answer(from, to, way) => self.answer(from, to, &way),
            Event::Overdue(overdue) => self.overdue(overdue),
            Event::Traffic => self.traffic(),
            Event::PowerOn(place) => self.power_on(place),
            Event::Deed(deed) => self.deed(deed),
        }
    }

    /// The daemon of a node, if that life of it still goes on.
    pub(crate) fn daemon(&mut self, place: usize, life: u32) -> Option<&mut Daemon> {
        self.machines[place].daemon.as_mut().filter(|daemon| daemon.life == life)
    }
}
