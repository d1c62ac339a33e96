//! Two whole nodes over two kernels of memory, and what goes from one to the other.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kubeveil_api::{announcement::Announcement, bypass::Bypass};
use kubeveil_core::{observed::Program, problem::Problem};
use kubeveil_linux::fake::FakeKernel;

use super::{
    between::{self, Way},
    stepped::{Says, Stepped},
};
use crate::{
    kept::tests::ask_before_write,
    node::{
        Node, Now,
        tests::bench::{Bench, Shared, dir_in_memory, facts},
    },
};

/// Ways round within which both come to the end of a rotation, a second apart, whatever happens to them once.
const WAYS: u64 = 150;
/// How long a node that was killed is away, and how long something refuses, seconds.
const AWAY: u64 = 3;
const REFUSES: u64 = 12;
/// Ways round before the rotation in which both come to rest.
const SETTLES: u64 = 10;

/// A mesh that is being adopted: until when its two nodes are bypassed, once they are closed to each other, and when all is over.
const BYPASSED: [u64; 2] = [30, 50];
const PLAIN_UNTIL: u32 = 50;
const ADOPTED: u64 = 75;

/// What happens, at the step of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Nothing,
    /// Who is about to take it is killed; or both. Where they are blind then, their source tells them nothing for a while when they start
    /// again, so that they go by what they kept.
    Killed {
        both: bool,
        blind: bool,
    },
    /// The disks of these take nothing more for a while: keys can be neither made nor given up, and what was kept before stays.
    Disk([bool; 2]),
    /// What these say is refused for a while.
    Source([bool; 2]),
}

/// The daemon was ended in the midst of a call.
struct Ended;

/// Of both, what was done so far.
#[derive(Default)]
struct Steps {
    /// Each step by its words.
    taken: Vec<String>,
    fault: Option<(usize, Fault)>,
    /// Since when it refuses.
    since: Option<u64>,
    seconds: u64,
    /// Until when the sources tell nothing.
    blind: [u64; 2],
    /// Packets go, and each has to arrive.
    watches: bool,
    /// While the mesh is being adopted they may go in plain, until one went by a tunnel; whose did.
    closed: Option<[bool; 2]>,
    /// What was lost, or open.
    wrong: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Side {
    name: &'static str,
    state: PathBuf,
    pub(super) keys: PathBuf,
    pub(super) kernel: Shared,
}

/// What both share with those who watch them.
#[derive(Clone)]
pub(super) struct Shows {
    pub(super) sides: [Side; 2],
    steps: Arc<Mutex<Steps>>,
}

fn lock(steps: &Mutex<Steps>) -> MutexGuard<'_, Steps> {
    steps.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Key files, and what is left of some, by name.
pub(super) fn files(keys: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(keys) else { return BTreeMap::new() };
    let entries = entries.map(|entry| entry.expect("listed"));
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("read"))
        })
        .collect()
}

/// What keeps the store from changing anything: it can't take this away, which it tries first.
const OBSTACLE: &str = ".generation-9.key.new";

impl Shows {
    /// A step of `side` is about to be taken.
    pub(super) fn step(&self, side: usize, what: &str) {
        let mut steps = lock(&self.steps);
        if !steps.watches {
            return;
        }
        let now = steps.taken.len();
        steps.taken.push(format!("{}: {what}", self.sides[side].name));
        let Some((_, fault)) = steps.fault.filter(|(at, _)| *at == now) else { return };
        match fault {
            Fault::Killed { .. } => {
                drop(steps);
                // Without a word: nobody panicked.
                resume_unwind(Box::new(Ended));
            }
            Fault::Disk(whose) => {
                steps.since = Some(steps.seconds);
                self.obstruct(whose, true);
            }
            Fault::Source(_) => steps.since = Some(steps.seconds),
            Fault::Nothing => {}
        }
    }

    fn obstruct(&self, whose: [bool; 2], is_there: bool) {
        for (side, _) in self.sides.iter().zip(whose).filter(|(_, is_it)| *is_it) {
            let path = side.keys.join(OBSTACLE);
            if is_there { fs::create_dir_all(path) } else { fs::remove_dir(path) }.expect("done");
        }
    }

    /// A file of what has to be known after a restart is about to take the place of the older one.
    fn keeps(&self, path: &Path) -> io::Result<()> {
        let Some(side) = self.sides.iter().position(|side| path.starts_with(&side.state)) else {
            return Ok(());
        };
        self.step(side, &format!("keep {}", path.file_name().unwrap_or_default().display()));
        let steps = lock(&self.steps);
        match (steps.since, steps.fault) {
            (Some(_), Some((_, Fault::Disk(whose)))) if whose[side] => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    /// Does the source of this side tell nothing?
    pub(super) fn is_blind(&self, side: usize) -> bool {
        let steps = lock(&self.steps);
        steps.seconds < steps.blind[side]
    }

    /// Is what this side says refused?
    pub(super) fn refuses(&self, side: usize) -> bool {
        let steps = lock(&self.steps);
        matches!((steps.since, steps.fault), (Some(_), Some((_, Fault::Source(whose)))) if whose[side])
    }

    /// A packet goes each way; `what` has just been done.
    pub(super) fn look(&self, what: &str) {
        let mut steps = lock(&self.steps);
        if !steps.watches {
            return;
        }
        let truths = [0, 1].map(|side: usize| self.sides[side].kernel.with(|k| (k.truth(), k.enforced())));
        for (from, to) in [(0, 1), (1, 0)] {
            let (truth, enforced) = &truths[from];
            let is_attached = |program: Program| {
                truth
                    .links
                    .iter()
                    .any(|(index, link)| link.name == "eth0" && enforced.contains(&(program, *index)))
            };
            let name = self.sides[from].name;
            let arrives = between::arrives(truth, &truths[to].0, (from, to));
            if let Some(closed) = &mut steps.closed {
                closed[from] |= arrives.is_ok();
            }
            if truth
                .datapath
                .iter()
                .flat_map(|datapath| datapath.peers.values())
                .any(|value| value.bypass_until() > PLAIN_UNTIL && value.is_bypassed(0))
            {
                steps.wrong.push(format!("{name} speaks in plain for longer than it may after: {what}"));
            }
            if steps.closed.is_some_and(|closed| !closed[from]) {
                continue;
            }
            if !(is_attached(Program::Steer) && is_attached(Program::Guard)) {
                steps.wrong.push(format!("{name} is open after: {what}"));
            }
            if let Err(why) = arrives {
                steps.wrong.push(format!("a packet of {name} is lost, {why}, after: {what}"));
            }
        }
    }

    /// Whoever can speaks with the other, and what was sent is counted.
    fn passes(&self) {
        let seconds = lock(&self.steps).seconds;
        let truths = [0, 1].map(|side: usize| self.sides[side].kernel.with(|k| k.truth()));
        for ends in between::handshakes(&truths[0], &truths[1], Duration::from_secs(seconds)) {
            for (side, (device, peer)) in ends.iter().enumerate() {
                self.sides[side].kernel.with(|k| {
                    k.tamper(device, |tunnel| {
                        tunnel.change(peer, |peer| peer.last_handshake = Some(Duration::from_secs(seconds)));
                    });
                });
            }
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let Ok(Way { device, own, peer, far }) = between::arrives(&truths[from], &truths[to], (from, to))
            else {
                continue;
            };
            self.sides[from]
                .kernel
                .with(|k| k.tamper(&device, |tunnel| tunnel.change(&peer, |peer| peer.sent += 100)));
            self.sides[to]
                .kernel
                .with(|k| k.tamper(&far, |tunnel| tunnel.change(&own, |peer| peer.received += 100)));
        }
    }
}

/// Both nodes.
pub(super) struct Pair {
    bench: Bench,
    /// The second one's.
    other: tempfile::TempDir,
    shows: Shows,
    nodes: [Option<Node<Stepped>>; 2],
    /// When one that was killed starts again.
    back: [u64; 2],
    /// What was told meanwhile.
    told: Vec<Problem>,
}

impl Pair {
    /// Two nodes at rest, with keys of the first generation.
    fn settled() -> Self {
        let mut pair = Self::new();
        (0..SETTLES).for_each(|_| pair.tick());
        lock(&pair.shows.steps).watches = true;
        pair.shows.look("nothing");
        pair.told.clear();
        assert_eq!(pair.wrong(), [""; 0], "before it begins");
        pair
    }

    /// Two nodes that have not begun.
    fn new() -> Self {
        let bench = Bench::new(1);
        bench.world.change(|said| drop(said.snapshot.nodes.insert("node-2".to_owned(), facts(2).into())));
        let addresses = ["192.0.2.2/24", "2001:db8::2/64"].map(|net| net.parse().expect("net"));
        let kernel = Shared::new(FakeKernel::new("build", &addresses));
        let other = dir_in_memory();
        let side = |name, dir: &Path, kernel: &Shared| Side {
            name,
            state: dir.to_owned(),
            keys: dir.join("keys"),
            kernel: kernel.clone(),
        };
        let sides = [side("node-1", bench.dir.path(), &bench.kernel), side("node-2", other.path(), &kernel)];
        let shows = Shows { sides, steps: Arc::default() };
        let watch = shows.clone();
        ask_before_write(move |path| watch.keeps(path));
        Self { bench, other, shows, nodes: [None, None], back: [0; 2], told: Vec::new() }
    }

    /// Goes from nothing through the adoption of a mesh, and a bypass that ends by itself, while this happens at the step of this number.
    /// `None` if there are not as many.
    pub(super) fn adopted(at: usize, fault: Fault) -> Option<Self> {
        let runs = std::iter::repeat_with(|| {
            let mut pair = Self::new();
            pair.bench.adopts_until(1_000_000);
            {
                let mut steps = lock(&pair.shows.steps);
                (steps.watches, steps.closed, steps.fault) = (true, Some([false; 2]), Some((at, fault)));
            }
            for second in 1..=ADOPTED {
                if second == BYPASSED[0] {
                    pair.bypasses();
                }
                pair.tick();
            }
            pair.is_first_lower("kubeveil0").then_some(pair)
        });
        let pair = runs.take(100).flatten().next().expect("a key is lower in one of two runs");
        (pair.taken().len() > at).then_some(pair)
    }

    fn bypasses(&self) {
        let [at, until] = BYPASSED
            .map(|second| jiff::Timestamp::from_second(second.try_into().expect("small")).expect("a time"));
        let bypass = Bypass {
            nodes: ["node-1".to_owned(), "node-2".to_owned()],
            at,
            until,
            by: "alice".to_owned(),
            reason: "INC-1".to_owned(),
        };
        self.bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").bypasses.push(bypass));
    }

    /// What is open at the end of an adoption.
    pub(super) fn open(&self) -> Vec<String> {
        let mut out = Vec::new();
        let closed = lock(&self.shows.steps).closed.unwrap_or_default();
        for ((side, node), is_closed) in self.shows.sides.iter().zip(&self.nodes).zip(closed) {
            let name = side.name;
            let Some(node) = node else {
                out.push(format!("{name} is not there"));
                continue;
            };
            if !is_closed || !node.adoption().is_some_and(|adoption| adoption.over) {
                out.push(format!("{name} is at {:?}", node.adoption()));
            }
            out.extend(node.last.problems.iter().map(|problem| format!("{name}: {problem}")));
        }
        out
    }

    /// Goes through a rotation in which this happens at the step of this number. `None` if there are not as many.
    pub(super) fn rotated(at: usize, fault: Fault) -> Option<Self> {
        // The lower key speaks first: always the same one's, so that a step has the same number in each run.
        let runs = std::iter::repeat_with(|| {
            let mut pair =
                std::iter::repeat_with(Self::settled).find(|pair| pair.is_first_lower("kubeveil0"))?;
            pair.goes_round(at, fault);
            pair.is_first_lower("kubeveil1").then_some(pair)
        });
        let pair = runs.take(100).flatten().next().expect("a key is lower in one of two runs");
        (fault == Fault::Nothing || pair.taken().len() > at).then_some(pair)
    }

    fn is_first_lower(&self, device: &str) -> bool {
        let key = |side: &Side| {
            side.kernel.with(|k| k.truth()).tunnels.get(device).and_then(|tunnel| tunnel.public_key)
        };
        let [one, other] = [0, 1].map(|side: usize| key(&self.shows.sides[side]));
        // Where one of them came to no key, whatever it is of: that is to be seen.
        one.is_none() || other.is_none() || one < other
    }

    fn goes_round(&mut self, at: usize, fault: Fault) {
        lock(&self.shows.steps).fault = Some((at, fault));
        self.bench.wants(1);
        let mut left = WAYS;
        while !(self.is_done() && self.is_over()) && left > 0 {
            self.tick();
            left -= 1;
        }
        (0..3).for_each(|_| self.tick());
    }

    fn tick(&mut self) {
        let seconds = {
            let mut steps = lock(&self.shows.steps);
            steps.seconds += 1;
            steps.seconds
        };
        self.heal(seconds);
        let at = Duration::from_secs(seconds);
        let now = Now { monotonic: at, epoch: at };
        for side in 0..2 {
            if seconds < self.back[side] {
                continue;
            }
            let mut node = self.nodes[side].take().unwrap_or_else(|| self.start(side));
            let lived = catch_unwind(AssertUnwindSafe(|| {
                node.hear(now);
                node.pass(now);
            }));
            match lived {
                Ok(()) => {
                    self.told.extend(node.last.problems.iter().cloned());
                    self.nodes[side] = Some(node);
                }
                Err(payload) if payload.is::<Ended>() => {
                    drop(node);
                    self.ends(side, seconds);
                }
                Err(other) => resume_unwind(other),
            }
        }
        self.shows.passes();
        self.shows.look("a second");
    }
}

impl Pair {
    fn start(&self, side: usize) -> Node<Stepped> {
        let source = Says { shows: self.shows.clone(), side, world: self.bench.world.clone() };
        let dir = [self.bench.dir.path(), self.other.path()][side];
        let kernel = Stepped::new(&self.shows, side);
        Node::new(self.shows.sides[side].name, &[], "build", kernel, Box::new(source), dir)
    }

    /// The daemon of `side` is no more, nor is the other's where both are killed.
    fn ends(&mut self, side: usize, seconds: u64) {
        let fault = lock(&self.shows.steps).fault;
        let both = matches!(fault, Some((_, Fault::Killed { both: true, .. })));
        let blind = matches!(fault, Some((_, Fault::Killed { blind: true, .. })));
        for one in [0, 1].into_iter().filter(|one| *one == side || both) {
            self.nodes[one] = None;
            self.shows.sides[one].kernel.with(FakeKernel::daemon_ends);
            self.back[one] = seconds + AWAY;
            lock(&self.shows.steps).blind[one] = if blind { seconds + AWAY + REFUSES } else { 0 };
        }
    }

    /// What refused does so no more, when its time is over.
    fn heal(&self, seconds: u64) {
        let mut steps = lock(&self.shows.steps);
        if steps.since.is_some_and(|since| seconds >= since + REFUSES) {
            steps.since = None;
            if let Some((_, Fault::Disk(whose))) = steps.fault {
                self.shows.obstruct(whose, false);
            }
            steps.fault = None;
        }
    }

    /// Is nothing to happen any more?
    fn is_over(&self) -> bool {
        let lives = self.nodes.iter().all(Option::is_some);
        lives && lock(&self.shows.steps).since.is_none() && !(0..2).any(|side| self.shows.is_blind(side))
    }

    fn is_done(&self) -> bool {
        self.unfinished().is_empty()
    }

    /// What is not as it has to be at the end.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (n, (side, node)) in (1..).zip(self.shows.sides.iter().zip(&self.nodes)) {
            let name = side.name;
            let said = self.bench.world.said().snapshot.nodes[name].announcement.clone().unwrap_or_default();
            let said = Announcement::parse_and_verify(&said, name, &format!("uid-{n}"));
            let generations =
                said.map(|said| said.generations().iter().map(|one| one.generation.number()).collect());
            let generations: Vec<u32> = generations.unwrap_or_default();
            let devices: Vec<_> = side.kernel.with(|k| k.truth()).tunnels.into_keys().collect();
            let files: Vec<_> = files(&side.keys).into_keys().collect();
            if generations != [1] || devices != ["kubeveil1"] || files != ["generation-1.key"] {
                out.push(format!("{name} says {generations:?} and has {devices:?} and {files:?}"));
            }
            let problems = node.as_ref().map(|node| &node.last.problems[..]).unwrap_or_default();
            out.extend(problems.iter().map(|problem| format!("{name}: {problem}")));
        }
        out
    }

    /// What was wrong at any time.
    pub(super) fn wrong(&self) -> Vec<String> {
        lock(&self.shows.steps).wrong.clone()
    }

    /// Each step, in words.
    pub(super) fn taken(&self) -> Vec<String> {
        lock(&self.shows.steps).taken.clone()
    }

    /// What both told meanwhile.
    pub(super) fn told(&self) -> &[Problem] {
        &self.told
    }
}

/// What two nodes go through.
pub(super) struct Course {
    /// Plays it, while something happens at the step of a number; `None` if there are not as many.
    pub(super) play: fn(usize, Fault) -> Option<Pair>,
    /// What is not as it has to be at the end.
    pub(super) left: fn(&Pair) -> Vec<String>,
    /// Steps that each side takes, among others.
    pub(super) deeds: &'static [&'static str],
}

impl Course {
    /// Plays `fault` at each step, and holds each run to the same; gives the steps.
    pub(super) fn at_each_step(&self, fault: Fault, mut each: impl FnMut(&Pair)) -> Vec<String> {
        let mut steps = Vec::new();
        while let Some(pair) = (self.play)(steps.len(), fault) {
            let at = steps.len();
            let step = pair.taken()[at].clone();
            let what = format!("{fault:?} at step {at}, {step}");
            assert_eq!(pair.wrong(), [""; 0], "{what}");
            assert_eq!((self.left)(&pair), [""; 0], "{what}");
            each(&pair);
            steps.push(step);
        }
        for side in ["node-1", "node-2"] {
            for deed in self.deeds {
                assert!(
                    steps.contains(&format!("{side}: {deed}")),
                    "{fault:?}: {side} does not {deed}: {steps:#?}"
                );
            }
        }
        steps
    }
}
