//! Nodes around a daemon, on a kernel that outlives it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kubeveil_abi::PeerState;
use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    mesh::{MeshSpec, Mode},
    veil_node::VeilNodeStatus,
};
use kubeveil_core::{
    action::Action,
    observed::{Neighbours, Observed},
    policy::pods::OfPods,
    problem::Problem,
    snapshot::{Knowledge, NodeFacts, Snapshot},
    source::{Changes, Source, SourceState},
};
use kubeveil_keys::{Generation, PrivateKey};
use kubeveil_linux::{Count, Flow, Kernel, KernelError, Removed, Secrets, Sightings, fake::FakeKernel};

use crate::node::{Node, Now};

pub(super) const DEVICE: &str = "kubeveil0";
/// The moment of the first way round.
pub(super) const FIRST: Now = Now { monotonic: Duration::from_secs(1), epoch: Duration::from_secs(1) };

/// What the source says; shared with the test that changes it.
#[derive(Clone, Default)]
pub(super) struct World {
    said: Arc<Mutex<Said>>,
    /// As it was last asked, by whom this was given to.
    told: Option<Said>,
}

#[derive(Clone, Default, PartialEq)]
pub(super) struct Said {
    pub(super) snapshot: Snapshot,
    pub(super) whole: bool,
    /// How often it was read as a whole.
    pub(super) reads: usize,
    /// What the daemon says of itself.
    pub(super) reported: Option<VeilNodeStatus>,
}

impl World {
    pub(super) fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock().expect("lock"));
    }

    pub(super) fn said(&self) -> Said {
        self.said.lock().expect("lock").clone()
    }
}

impl Said {
    /// What other announcements this has than `before`, if that is all.
    fn announcements_since(&self, before: &Self) -> Option<BTreeMap<String, Option<String>>> {
        let mut expected = Self { reported: self.reported.clone(), ..before.clone() };
        let mut changes = BTreeMap::new();
        for (name, facts) in &self.snapshot.nodes {
            let was = expected.snapshot.node_mut(name)?;
            if was.announcement != facts.announcement {
                was.announcement.clone_from(&facts.announcement);
                changes.insert(name.clone(), facts.announcement.clone());
            }
        }
        (expected == *self).then_some(changes)
    }

    /// What is said otherwise of pods than `before`, if that is all.
    fn pods_since(&self, before: &Self) -> Option<OfPods> {
        let mut expected = Self { reported: self.reported.clone(), ..before.clone() };
        let now = &self.snapshot.workloads;
        let was = Arc::make_mut(&mut expected.snapshot.workloads);
        let nodes = now.elsewhere.keys().chain(was.elsewhere.keys());
        let nodes = nodes.filter(|node| now.elsewhere.get(*node) != was.elsewhere.get(*node));
        let labels = now.pods.iter().filter_map(|(uid, pod)| {
            let labels = pod.labelled_otherwise(was.pods.get(uid)?).filter(|_| was.pods[uid] != *pod)?;
            Some((uid.clone(), labels.clone()))
        });
        let namespaces = now
            .namespaces
            .iter()
            .filter(|(name, labels)| was.namespaces.get(*name).is_some_and(|was| was != *labels));
        let said = OfPods {
            labels: labels.collect(),
            namespaces: namespaces.map(|(name, labels)| (name.clone(), labels.clone())).collect(),
            elsewhere: nodes.map(|node| (node.clone(), now.elsewhere.get(node).cloned())).collect(),
        };
        was.hear(said.clone())?;
        (expected == *self && !said.is_empty()).then_some(said)
    }
}

impl Source for World {
    fn name(&self) -> String {
        "test".to_owned()
    }

    fn read(&mut self, _: Duration) -> SourceState {
        self.change(|said| said.reads += 1);
        let said = self.said();
        self.told = Some(said.clone());
        let knowledge = if said.whole {
            Knowledge::Whole(said.snapshot.attest_whole())
        } else {
            Knowledge::Partial(said.snapshot)
        };
        SourceState { knowledge, problems: vec![], look_again: None }
    }

    fn changes(&mut self) -> Changes {
        let said = self.said();
        let Some(before) = self.told.replace(said.clone()) else { return Changes::Any };
        let pods = said.pods_since(&before).map(Changes::Pods);
        let announcements = || said.announcements_since(&before).map(Changes::Announcements);
        pods.or_else(announcements).unwrap_or(Changes::Any)
    }

    fn announce(&mut self, node: &str, _: &str, json: Option<&str>) -> Result<(), Problem> {
        self.change(|said| {
            if let Some(facts) = said.snapshot.node_mut(node) {
                facts.announcement = json.map(str::to_owned);
            }
        });
        Ok(())
    }

    fn report(&mut self, _: &str, status: VeilNodeStatus) -> Result<(), Problem> {
        self.change(|said| said.reported = Some(status));
        Ok(())
    }
}

/// A kernel that outlives the daemon that uses it.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<FakeKernel>>);

impl Shared {
    pub(super) fn new(kernel: FakeKernel) -> Self {
        Self(Arc::new(Mutex::new(kernel)))
    }

    pub(super) fn with<R>(&self, f: impl FnOnce(&mut FakeKernel) -> R) -> R {
        // A test may end a daemon in the midst of a call.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kernel for Shared {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        self.with(|k| k.observe())
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.with(|k| k.neighbours())
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        self.with(|k| k.still_holds(last))
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        self.with(|k| k.execute(action, secrets))
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        self.with(|k| k.counters())
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        self.with(|k| k.watch(flows))
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        self.with(|k| k.seen())
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        self.with(|k| k.sweep_flows())
    }

    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        self.with(|k| k.remove_everything())
    }
}

pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) world: World,
    pub(super) kernel: Shared,
    pub(super) keys: Vec<PrivateKey>,
    pub(super) seconds: u64,
}

/// In memory where that can be: thousands of runs sync what they keep.
pub(super) fn dir_in_memory() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("temp dir")
}

pub(super) fn facts(n: u8) -> NodeFacts {
    NodeFacts {
        uid: format!("uid-{n}"),
        pod_cidrs: vec![
            format!("10.244.{n}.0/24").parse().expect("net"),
            format!("fd00:244:{n}::/64").parse().expect("net"),
        ],
        internal_ips: vec![
            format!("192.0.2.{n}").parse().expect("ip"),
            format!("2001:db8::{n}").parse().expect("ip"),
        ],
        ..NodeFacts::default()
    }
}

pub(super) fn announce(n: u8, key: &PrivateKey, port: u16) -> String {
    let entry = GenerationEntry {
        generation: Generation::FIRST,
        public_key: key.public(),
        port: port.try_into().expect("port"),
        state: GenerationState::Active,
    };
    sign(n, vec![entry], NotFlipped::nobody(), &[key])
}

/// Node `n` has these keys, by generation, and does not send to `not_flipped` by the newest.
pub(super) fn announce_keys(n: u8, keys: &[(u32, &PrivateKey)], not_flipped: NotFlipped) -> String {
    let newest = keys.iter().map(|(generation, _)| *generation).max();
    let entry = |(generation, key): &(u32, &PrivateKey)| GenerationEntry {
        generation: Generation::new(*generation),
        public_key: key.public(),
        port: Generation::new(*generation).port(51871).and_then(|port| port.try_into().ok()).expect("port"),
        state: if Some(*generation) == newest { GenerationState::Active } else { GenerationState::Retiring },
    };
    let privates: Vec<&PrivateKey> = keys.iter().map(|(_, key)| *key).collect();
    sign(n, keys.iter().map(entry).collect(), not_flipped, &privates)
}

fn sign(n: u8, entries: Vec<GenerationEntry>, not_flipped: NotFlipped, keys: &[&PrivateKey]) -> String {
    let announcement =
        Announcement::sign(&format!("node-{n}"), &format!("uid-{n}"), entries, not_flipped, keys);
    announcement.expect("signed").to_json()
}

impl Bench {
    /// `nodes` nodes; this one is node-1, the others have announced their keys and answer.
    pub(super) fn new(nodes: u8) -> Self {
        let key = |_| PrivateKey::generate().expect("randomness");
        Self::with((2..=nodes).map(key).collect())
    }

    /// This node, and others with these keys.
    pub(super) fn with(keys: Vec<PrivateKey>) -> Self {
        let addresses = ["192.0.2.1/24", "2001:db8::1/64"].map(|net| net.parse().expect("net"));
        let kernel = Shared::new(FakeKernel::new("build", &addresses));
        let mut bench =
            Self { dir: dir_in_memory(), world: World::default(), kernel, keys: vec![], seconds: 0 };
        let nets = |texts: [&str; 2]| texts.map(|net| net.parse().expect("net")).to_vec();
        let nodes = nets(["192.0.2.0/24", "2001:db8::/64"]);
        let mesh = MeshSpec::new(Mode::Require, nets(["10.244.0.0/16", "fd00:244::/32"]), nodes);
        bench.world.change(|said| {
            said.whole = true;
            said.snapshot.mesh = Some(mesh);
            said.snapshot.nodes.insert("node-1".to_owned(), facts(1).into());
        });
        for (n, key) in (2..).zip(keys) {
            bench.join(n, key);
        }
        bench
    }

    /// Node `n` comes, with `key`, and answers.
    pub(super) fn join(&mut self, n: u8, key: PrivateKey) {
        self.kernel.with(|k| k.answer(key.public()));
        let mut facts = facts(n);
        facts.announcement = Some(announce(n, &key, 51871));
        self.world.change(|said| drop(said.snapshot.nodes.insert(format!("node-{n}"), facts.into())));
        self.keys.push(key);
    }

    pub(super) fn start(&self) -> Node<Shared> {
        let source = Box::new(self.world.clone());
        Node::new("node-1", &[], "build", self.kernel.clone(), source, self.dir.path())
    }

    /// A bench with a daemon that has nothing left to do.
    pub(super) fn settled(nodes: u8) -> (Self, Node<Shared>) {
        let mut bench = Self::new(nodes);
        let mut node = bench.start();
        bench.settle(&mut node);
        (bench, node)
    }

    /// The daemon ends, and another one starts.
    pub(super) fn restart(&self, node: Node<Shared>) -> Node<Shared> {
        drop(node);
        self.kernel.with(FakeKernel::daemon_ends);
        self.start()
    }

    /// Pairs are open until this time, seconds since 1970.
    pub(super) fn adopts_until(&self, seconds: i64) {
        let json = format!(r#"{{"deadline":"{}"}}"#, jiff::Timestamp::from_second(seconds).expect("time"));
        let adoption = serde_json::from_str(&json).expect("adoption");
        self.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").adoption = Some(adoption));
    }

    /// Goes round until nothing is left to do, the short way first, as the loop would; says how many actions that took.
    pub(super) fn settle<K: Kernel>(&mut self, node: &mut Node<K>) -> u64 {
        let before = node.writes;
        for _ in 0..20 {
            self.seconds += 1;
            let now = self.now();
            node.hear(now);
            node.pass(now);
        }
        assert!(node.last.settled, "{:?}", node.last.problems);
        node.writes - before
    }

    pub(super) fn now(&self) -> Now {
        let at = Duration::from_secs(self.seconds);
        Now { monotonic: at, epoch: at }
    }

    /// The mesh wants keys of this generation.
    pub(super) fn wants(&self, generation: u32) {
        self.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").key_generation = generation);
    }

    /// Node `n` announces `json`.
    pub(super) fn says(&self, n: u8, json: Option<String>) {
        self.world
            .change(|said| said.snapshot.node_mut(&format!("node-{n}")).expect("node").announcement = json);
    }

    pub(super) fn truth(&self) -> Observed {
        self.kernel.with(|k| k.truth())
    }

    pub(super) fn tried(&self) -> Vec<Action> {
        self.kernel.with(|k| std::mem::take(&mut k.tried))
    }

    pub(super) fn tunnelled(&self) -> usize {
        self.truth()
            .datapath
            .map_or(0, |d| d.peers.values().filter(|v| v.state() == PeerState::Tunnel).count())
    }
}
