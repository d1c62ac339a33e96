//! A node whose kernel fails, is watched, and may end it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kubeveil_api::{announcement::NotFlipped, mesh::Mode};
use kubeveil_core::{
    action::Action,
    observed::{Neighbours, Observed},
    problem::Problem,
    snapshot::NodeFacts,
};
use kubeveil_keys::{Generation, PrivateKey, PublicKey};
use kubeveil_linux::{
    Count, Flow, Kernel, KernelError, Removed, Secrets, Sightings,
    fake::{Call, Failure, FakeKernel},
};

use super::{
    packets::{self, Datapath, Probe},
    scenarios::{ANOTHER, Before, POD, Scenario},
    state::{LOOKS, Names, State, kind},
};
use crate::{
    keeper::Keeper,
    kept,
    node::{
        Node, Now,
        tests::bench::{Bench, Shared, World, announce_keys},
        undone::OBJECT,
    },
    status,
};

/// Ways round within which a node comes to rest, a second apart.
const WAYS: usize = 40;
/// A node that makes no step in so many of them is at rest, though it wait for somebody who never answers: an old key goes after ten
/// seconds in which nothing happens.
const QUIET: usize = 14;
/// A node that waits as long as this has nothing to do, and expects nothing.
const REST: Duration = Duration::from_secs(10);

/// That somebody undid something outlasts it.
fn is_told_for_a_while(problem: &Problem) -> bool {
    problem.object == OBJECT
}

/// Keys for all runs, so that they differ by their faults only: two of this node and its next, and others' on both sides of them.
pub(super) struct Keys {
    own: [tempfile::TempDir; 2],
    next: tempfile::TempDir,
    others: Vec<[u8; 32]>,
}

impl Keys {
    pub(super) fn new() -> Self {
        // A key of this node may happen to be among the lowest of all.
        (0..100).find_map(|_| Self::try_new()).expect("keys on both sides")
    }

    fn try_new() -> Option<Self> {
        let (mut own, publics): (Vec<_>, Vec<_>) = [0, 0, 1].map(Self::of_this_node).into_iter().unzip();
        let next = own.pop()?;
        let public = |bytes: &[u8; 32]| PrivateKey::copied_from(bytes).public();
        let candidates = || (1..=255).map(|byte| [byte; 32]);
        let (low, high) = (publics.iter().min(), publics.iter().max());
        let lower: Vec<_> = candidates().filter(|key| Some(&public(key)) < low).take(2).collect();
        let higher: Vec<_> = candidates().filter(|key| Some(&public(key)) > high).take(2).collect();
        let others = [*lower.first()?, *higher.first()?, *lower.get(1)?, *higher.get(1)?];
        Some(Self { own: own.try_into().ok()?, next, others: others.to_vec() })
    }

    fn of_this_node(generation: u32) -> (tempfile::TempDir, PublicKey) {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut keeper = Keeper::new(dir.path(), "node-1");
        keeper.unlock("uid-1", 1);
        assert!(keeper.make(Generation::new(generation), false, 1));
        let public = keeper.info().expect("a key").public;
        (dir, public)
    }
}

/// What was seen of a run.
#[derive(Default)]
pub(super) struct Watch {
    held: BTreeSet<(u32, Probe)>,
    /// Some may pass in plain until they are proven: only what was encrypted has to stay so.
    adopts: bool,
    /// A call was made to fail: what has to come first may be missing, and nothing can be said of what was never closed.
    is_faulty: bool,
    /// What was looked at last.
    last: Option<Observed>,
    /// What was open that had been closed, and what was cut off.
    pub(super) wrong: Vec<String>,
    /// Calls by their place in `KINDS`, in order, since the change.
    pub(super) calls: Vec<usize>,
    /// Actions after which the daemon is no more.
    dies_after: Option<usize>,
}

/// The kernel as the daemon has it.
pub(super) struct Watched {
    kernel: Shared,
    world: World,
    watch: Arc<Mutex<Watch>>,
}

/// The daemon was ended in the midst of a call.
struct Ended;

pub(super) struct Stage {
    pub(super) bench: Bench,
    keys: Vec<PrivateKey>,
    other_own: std::path::PathBuf,
    next_own: std::path::PathBuf,
    build: &'static str,
    watch: Arc<Mutex<Watch>>,
    names: Names,
    seconds: u64,
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// At the change of `scenario`, before it.
    fn new(keys: &Keys, scenario: &Scenario) -> (Self, Option<Node<Watched>>) {
        let mut others: Vec<_> = keys.others.iter().map(PrivateKey::copied_from).collect();
        let names = (2..).zip(&others).map(|(n, key)| (key.public(), n));
        let mut names: BTreeMap<_, _> = names.collect();
        // The third is node 4's, or node 3's next one, or node 2's.
        let third = match scenario.name {
            name if name.starts_with("another key") => 3,
            _ if scenario.rotates() => 2,
            _ => 4,
        };
        names.insert(others[2].public(), third);
        names.insert(others[3].public(), 3);
        let spare = others.split_off(2);
        let bench = Bench::with(others);
        copy(&keys.own[0].path().join("keys"), &bench.dir.path().join("keys"));
        let mut stage = Self {
            bench,
            keys: spare,
            other_own: keys.own[1].path().join("keys"),
            next_own: keys.next.path().join("keys"),
            build: "build",
            watch: Arc::default(),
            names: Names { keys: names },
            seconds: 0,
        };
        if scenario.adopts {
            stage.bench.adopts_until(1_000_000);
            let key = stage.bench.keys[0].public();
            stage.bench.kernel.with(|k| {
                k.nobody_answers();
                k.answer(key);
            });
            lock(&stage.watch).adopts = true;
        }
        match scenario.before {
            Before::Nothing => return (stage, None),
            Before::Rest => {}
            Before::Prefer => stage.bench.world.change(|said| {
                said.snapshot.mesh.as_mut().expect("a mesh").mode = Mode::Prefer;
            }),
            Before::Table => stage.without_program(),
            Before::Exempt => stage.has_pods(&[("p", POD), ("q", ANOTHER)]),
        }
        let mut node = stage.start();
        assert!(stage.goes_round(&mut node), "{:?}", node.last.problems);
        (stage, Some(node))
    }

    /// Runs `scenario`, in which calls fail as `fault` says; ends with the node at rest, or tired.
    pub(super) fn run(
        keys: &Keys,
        scenario: &Scenario,
        fault: impl FnOnce(&Self) -> Option<Fault>,
    ) -> (Self, Node<Watched>, bool) {
        let (mut stage, mut node) = Self::new(keys, scenario);
        stage.changes(scenario, &mut node);
        if let Some(fault) = fault(&stage) {
            stage.bench.kernel.with(|k| k.fail_calls(fault));
            lock(&stage.watch).is_faulty = true;
        }
        let mut node = node.unwrap_or_else(|| stage.start());
        let rests = stage.goes_round(&mut node);
        (stage, node, rests)
    }

    /// Runs `scenario` with a daemon that is killed after so many actions; `None` if there were not as many. Another
    /// daemon follows.
    pub(super) fn run_killed(
        keys: &Keys,
        scenario: &Scenario,
        after: usize,
    ) -> Option<(Self, Node<Watched>)> {
        let (mut stage, mut node) = Self::new(keys, scenario);
        stage.changes(scenario, &mut node);
        lock(&stage.watch).dies_after = Some(after);
        let mut node = node.unwrap_or_else(|| stage.start());
        let lived = catch_unwind(AssertUnwindSafe(|| stage.goes_round(&mut node)));
        lock(&stage.watch).dies_after = None;
        match lived {
            Ok(_) => return None,
            Err(payload) if payload.is::<Ended>() => {}
            Err(other) => resume_unwind(other),
        }
        drop(node);
        stage.bench.kernel.with(FakeKernel::daemon_ends);
        let mut again = stage.start();
        assert!(stage.goes_round(&mut again), "{} after {after}: {:?}", scenario.name, again.last.problems);
        Some((stage, again))
    }

    fn changes(&mut self, scenario: &Scenario, node: &mut Option<Node<Watched>>) {
        if scenario.restarts {
            *node = None;
            self.bench.kernel.with(FakeKernel::daemon_ends);
        }
        (scenario.change)(self);
        lock(&self.watch).calls.clear();
    }

    fn start(&self) -> Node<Watched> {
        let kernel = Watched {
            kernel: self.bench.kernel.clone(),
            world: self.bench.world.clone(),
            watch: self.watch.clone(),
        };
        let source = Box::new(self.bench.world.clone());
        Node::new("node-1", &[], self.build, kernel, source, self.bench.dir.path())
    }

    /// Until there is nothing to do, as the loop would; false if there always is.
    pub(super) fn goes_round(&mut self, node: &mut Node<Watched>) -> bool {
        let mut quiet = 0;
        for _ in 0..WAYS {
            self.seconds += 1;
            let before = node.writes;
            let at = Duration::from_secs(self.seconds);
            let now = Now { monotonic: at, epoch: at };
            node.sweep_flows();
            status::view(node, now);
            let wait = node.pass(now);
            quiet = if node.writes == before && node.last.settled { quiet + 1 } else { 0 };
            if (wait >= REST || quiet >= QUIET) && node.last.problems.iter().all(is_told_for_a_while) {
                return true;
            }
        }
        false
    }

    pub(super) fn state(&self) -> State {
        self.names.state(&self.bench.kernel)
    }

    pub(super) fn datapath(&self) -> Datapath {
        self.bench.kernel.with(|k| Datapath::of(k))
    }

    pub(super) fn names(&self) -> Names {
        self.names.clone()
    }

    /// What was wrong at any time.
    pub(super) fn wrong(&self) -> Vec<String> {
        lock(&self.watch).wrong.clone()
    }

    pub(super) fn calls(&self) -> Vec<usize> {
        lock(&self.watch).calls.clone()
    }

    /// A key that nobody has yet.
    pub(super) fn spare(&mut self) -> PrivateKey {
        self.keys.remove(0)
    }

    pub(super) fn facts(&self, n: u8, change: impl FnOnce(&mut NodeFacts)) {
        self.bench.world.change(|said| change(said.snapshot.node_mut(&format!("node-{n}")).expect("a node")));
    }

    pub(super) fn upgrade(&mut self) {
        self.build = "another build";
        self.bench.kernel.with(|k| k.upgrade(self.build));
    }

    /// All have keys of the next generation, and this node is about to make its own, which is always the same.
    pub(super) fn rotate(&mut self) {
        const NEXT: &str = "generation-1.key";
        fs::copy(self.next_own.join(NEXT), self.bench.dir.path().join("keys").join(NEXT)).expect("copied");
        for n in [2, 3] {
            let key = self.spare();
            self.bench.kernel.with(|k| k.answer(key.public()));
            let keys = [(0, &self.bench.keys[usize::from(n) - 2]), (1, &key)];
            self.bench.says(n, Some(announce_keys(n, &keys, NotFlipped::nobody())));
        }
        self.bench.wants(1);
    }

    /// The state folder is that of another life of this node, as far as keys go.
    pub(super) fn other_own_key(&self) {
        fs::remove_file(self.bench.dir.path().join(kept::GENERATIONS)).expect("removed");
        let keys = self.bench.dir.path().join("keys");
        fs::remove_dir_all(&keys).expect("removed");
        copy(&self.other_own, &keys);
    }
}

/// Says which calls fail.
pub(super) type Fault = Box<dyn FnMut(&Call<'_>) -> Option<Failure> + Send>;

fn copy(from: &Path, to: &Path) {
    let mode = fs::metadata(from).expect("there").permissions();
    fs::create_dir(to).expect("made");
    fs::set_permissions(to, mode).expect("closed");
    for entry in fs::read_dir(from).expect("listed") {
        let path = entry.expect("listed").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

impl Watched {
    /// Looks at what would become of packets now, after `what`.
    fn look(&self, what: &str) {
        let mut watch = lock(&self.watch);
        let truth = Some(self.kernel.with(|k| k.truth()));
        // Most calls that fail change nothing.
        if watch.last == truth {
            return;
        }
        watch.last = truth;
        let datapath = self.kernel.with(|k| Datapath::of(k));
        let mut nodes = Vec::new();
        self.world.change(|said| {
            let others = said.snapshot.nodes.iter().filter(|(name, _)| *name != "node-1");
            nodes.extend(others.flat_map(|(_, facts)| facts.internal_ips.clone()));
        });
        let devices = datapath.devices();
        watch.held.retain(|(index, _)| devices.iter().any(|(device, _)| device == index));
        for probe in packets::secret(&[2, 3, 4]).into_iter().chain(packets::masqueraded(&nodes)) {
            for (index, name) in &devices {
                let must = !watch.is_faulty && !watch.adopts;
                let must = must && datapath.is_guarded(*index) && datapath.knows(&probe);
                if datapath.holds(&probe, *index) {
                    if !watch.adopts || datapath.is_proven(&probe) {
                        watch.held.insert((*index, probe));
                    }
                } else if must || watch.held.contains(&(*index, probe)) {
                    let Probe { from, to, .. } = probe;
                    watch.wrong.push(format!("{from} to {to} is in plain by {name} after: {what}"));
                }
            }
        }
        watch.wrong.extend(datapath.cut_off(&nodes).iter().map(|wrong| format!("{wrong} after: {what}")));
    }
}

impl Kernel for Watched {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        lock(&self.watch).calls.push(LOOKS);
        self.kernel.observe()
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.kernel.neighbours()
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        self.kernel.still_holds(last)
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        {
            let mut watch = lock(&self.watch);
            watch.calls.push(kind(action));
            match &mut watch.dies_after {
                Some(0) => {
                    drop(watch);
                    // Without a word: nobody panicked.
                    resume_unwind(Box::new(Ended));
                }
                Some(left) => *left -= 1,
                None => {}
            }
        }
        let done = self.kernel.execute(action, secrets);
        self.look(&action.to_string());
        done
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        lock(&self.watch).calls.push(LOOKS + 1);
        self.kernel.counters()
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        self.kernel.watch(flows)
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        self.kernel.seen()
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        lock(&self.watch).calls.push(LOOKS + 2);
        self.kernel.sweep_flows()
    }

    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        self.kernel.remove_everything()
    }
}
