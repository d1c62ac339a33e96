//! The way round over the fake kernel: what is done, what is not done, and what stands when calls fail.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use kubeveil_abi::{PeerState, PrefixKind};
use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    mesh::{MeshSpec, Mode},
};
use kubeveil_core::{
    observed::{Link, Program},
    snapshot::{Knowledge, NodeFacts},
    source::SourceState,
};
use kubeveil_keys::{Generation, PrivateKey};
use kubeveil_linux::{Count, Secrets, fake::FakeKernel};

use super::*;

const DEVICE: &str = "kubeveil0";
/// The moment of the first way round.
const FIRST: Now = Now { monotonic: Duration::from_secs(1), epoch: Duration::from_secs(1) };

/// What the source says; shared with the test that changes it.
#[derive(Clone, Default)]
struct World(Arc<Mutex<Said>>);

#[derive(Clone, Default)]
struct Said {
    snapshot: Snapshot,
    whole: bool,
}

impl World {
    fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.0.lock().expect("lock"));
    }
}

impl Source for World {
    fn name(&self) -> String {
        "test".to_owned()
    }

    fn read(&mut self, _: Duration) -> SourceState {
        let said = self.0.lock().expect("lock").clone();
        let knowledge = if said.whole {
            Knowledge::Whole(said.snapshot.attest_whole())
        } else {
            Knowledge::Partial(said.snapshot)
        };
        SourceState { knowledge, problems: vec![], look_again: None }
    }

    fn announce(&mut self, node: &str, _: &str, json: &str) -> Result<(), Problem> {
        self.change(|said| {
            if let Some(facts) = said.snapshot.nodes.get_mut(node) {
                facts.announcement = Some(json.to_owned());
            }
        });
        Ok(())
    }
}

/// A kernel that outlives the daemon that uses it.
#[derive(Clone)]
struct Shared(Arc<Mutex<FakeKernel>>);

impl Shared {
    fn with<R>(&self, f: impl FnOnce(&mut FakeKernel) -> R) -> R {
        f(&mut self.0.lock().expect("lock"))
    }
}

impl Kernel for Shared {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        self.with(|k| k.observe())
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        self.with(|k| k.execute(action, secrets))
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        self.with(|k| k.counters())
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        self.with(|k| k.sweep_flows())
    }
}

struct Bench {
    dir: tempfile::TempDir,
    world: World,
    kernel: Shared,
    keys: Vec<PrivateKey>,
    seconds: u64,
}

fn facts(n: u8) -> NodeFacts {
    NodeFacts {
        uid: format!("uid-{n}"),
        pod_cidrs: vec![
            format!("10.244.{n}.0/24").parse().expect("net"),
            format!("fd00:244:{n}::/64").parse().expect("net"),
        ],
        internal_ips: vec![format!("192.0.2.{n}").parse().expect("ip")],
        announcement: None,
    }
}

fn announce(n: u8, key: &PrivateKey, port: u16) -> String {
    let entry = GenerationEntry {
        generation: Generation::FIRST,
        public_key: key.public(),
        port: port.try_into().expect("port"),
        state: GenerationState::Active,
    };
    Announcement::sign(&format!("node-{n}"), &format!("uid-{n}"), vec![entry], NotFlipped::of([]), &[key])
        .expect("signed")
        .to_json()
}

impl Bench {
    /// `nodes` nodes; this one is node-1, the others have announced their keys and answer.
    fn new(nodes: u8) -> Self {
        let kernel =
            Shared(Arc::new(Mutex::new(FakeKernel::new("build", &["192.0.2.1/24".parse().expect("net")]))));
        let dir = tempfile::tempdir().expect("temp dir");
        let mut bench = Self { dir, world: World::default(), kernel, keys: vec![], seconds: 0 };
        let mesh = MeshSpec {
            mode: Mode::Require,
            pod_cidrs: vec!["10.244.0.0/16".parse().expect("net"), "fd00:244::/32".parse().expect("net")],
            node_cidrs: vec!["192.0.2.0/24".parse().expect("net")],
            key_generation: 0,
            revoked_keys: vec![],
        };
        bench.world.change(|said| {
            said.whole = true;
            said.snapshot.mesh = Some(mesh);
            said.snapshot.nodes.insert("node-1".to_owned(), facts(1));
        });
        for n in 2..=nodes {
            bench.join(n);
        }
        bench
    }

    fn join(&mut self, n: u8) -> PublicKey {
        let key = PrivateKey::generate().expect("randomness");
        let public = key.public();
        self.kernel.with(|k| k.answer(public));
        let mut facts = facts(n);
        facts.announcement = Some(announce(n, &key, 51871));
        self.world.change(|said| drop(said.snapshot.nodes.insert(format!("node-{n}"), facts)));
        self.keys.push(key);
        public
    }

    fn start(&self) -> Node<Shared> {
        let source = Box::new(self.world.clone());
        Node::new("node-1", &[], "build", self.kernel.clone(), source, self.dir.path())
    }

    /// A bench with a daemon that has nothing left to do.
    fn settled(nodes: u8) -> (Self, Node<Shared>) {
        let mut bench = Self::new(nodes);
        let mut node = bench.start();
        bench.settle(&mut node);
        (bench, node)
    }

    /// The daemon ends, and another one starts.
    fn restart(&self, node: Node<Shared>) -> Node<Shared> {
        drop(node);
        self.kernel.with(FakeKernel::daemon_ends);
        self.start()
    }

    /// Goes round until nothing is left to do, as the loop would; says how many actions that took.
    fn settle(&mut self, node: &mut Node<Shared>) -> u64 {
        let before = node.writes;
        for _ in 0..20 {
            self.seconds += 1;
            let at = Duration::from_secs(self.seconds);
            node.pass(Now { monotonic: at, epoch: at });
        }
        assert!(node.last.settled, "{:?}", node.last.problems);
        node.writes - before
    }

    fn truth(&self) -> Observed {
        self.kernel.with(|k| k.truth())
    }

    fn tried(&self) -> Vec<Action> {
        self.kernel.with(|k| std::mem::take(&mut k.tried))
    }

    fn tunnelled(&self) -> usize {
        self.truth()
            .datapath
            .map_or(0, |d| d.peers.values().filter(|v| v.state() == PeerState::Tunnel).count())
    }
}

#[test]
fn from_nothing_to_encrypted() {
    let (bench, node) = Bench::settled(3);
    let truth = bench.truth();
    let tunnel = &truth.tunnels[DEVICE];
    assert_eq!(tunnel.public_key, node.keeper.info().map(|i| i.public));
    assert_eq!(tunnel.peers.len(), 2);
    assert!(tunnel.peers.values().all(|p| p.keepalive == 0 && p.allowed_ips.len() == 3), "{tunnel:?}");
    let datapath = truth.datapath.expect("loaded");
    assert_eq!(datapath.slots[0], tunnel.ifindex);
    assert_eq!(datapath.attached.len(), 3);
    assert_eq!(bench.tunnelled(), 2);
    assert_eq!(node.last.problems, []);
}

/// The maps know what must not pass before the first program looks at a packet.
#[test]
fn closed_before_it_is_attached() {
    let (bench, _node) = Bench::settled(2);
    let tried = bench.tried();
    let first_attach = tried.iter().position(|a| matches!(a, Action::Attach(_))).expect("attached");
    let last_prefix = tried.iter().rposition(|a| matches!(a, Action::PutPrefix(..))).expect("prefixes");
    let config = tried.iter().position(|a| matches!(a, Action::SetConfig(_))).expect("configured");
    assert!(last_prefix < config && config < first_attach, "{tried:#?}");
}

#[test]
fn a_quiet_node_makes_no_writes_and_neither_does_a_restart() {
    let (mut bench, mut node) = Bench::settled(4);
    assert_eq!(bench.settle(&mut node), 0);
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    // Opening what is pinned is the one step of a restart.
    assert_eq!(bench.tried(), [Action::LoadPrograms]);
    assert_eq!(bench.tunnelled(), 3);
}

#[test]
fn one_peer_changes_and_no_other_is_touched() {
    let (mut bench, mut node) = Bench::settled(5);
    bench.tried();
    let moved = bench.keys[2].public();
    let json = announce(4, &bench.keys[2], 51872);
    bench.world.change(|said| said.snapshot.nodes.get_mut("node-4").expect("node").announcement = Some(json));
    bench.settle(&mut node);
    let endpoint = "192.0.2.4:51872".parse().expect("endpoint");
    assert_eq!(bench.tried(), [Action::SetEndpoint(DEVICE.to_owned(), moved, endpoint)]);
}

/// A node moved while no daemon ran here, and its tunnel looks well: it is followed all the same.
#[test]
fn a_move_during_a_restart_is_followed() {
    let (mut bench, node) = Bench::settled(3);
    let mut again = bench.restart(node);
    bench.world.change(|said| {
        said.snapshot.nodes.get_mut("node-3").expect("node").internal_ips =
            vec!["192.0.2.33".parse().expect("ip")];
    });
    bench.settle(&mut again);
    let endpoints: Vec<_> = bench.truth().tunnels[DEVICE].peers.values().filter_map(|p| p.endpoint).collect();
    assert!(endpoints.contains(&"192.0.2.33:51871".parse().expect("endpoint")), "{endpoints:?}");
}

/// The mesh is deleted, then all that was kept is lost: what is in the kernel stays.
#[test]
fn without_a_mesh_nothing_is_taken_away() {
    let (mut bench, node) = Bench::settled(3);
    bench.world.change(|said| said.snapshot.mesh = None);
    std::fs::remove_file(bench.dir.path().join("known.json")).expect("removed");
    let prefixes = bench.truth().datapath.expect("loaded").prefixes;
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    assert_eq!(bench.truth().datapath.expect("loaded").prefixes, prefixes);
    assert_eq!(bench.tunnelled(), 2);
}

#[test]
fn a_peer_that_roamed_is_left_where_it_is() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.tried();
    let roamed = Some("198.51.100.7:4000".parse().expect("endpoint"));
    bench.kernel.with(|k| k.tamper(DEVICE, |t| t.peers.values_mut().for_each(|p| p.endpoint = roamed)));
    bench.settle(&mut node);
    assert_eq!(bench.tried(), []);
}

#[test]
fn nobody_is_removed_for_being_unknown() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.tried();
    // An API server that answers with an empty list after a failure.
    bench.world.change(|said| {
        said.whole = false;
        said.snapshot.nodes.clear();
        said.snapshot.mesh = None;
    });
    bench.settle(&mut node);
    assert_eq!(bench.tried(), []);
    // … and after a restart, from what was kept on disk.
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    assert_eq!(bench.tried(), [Action::LoadPrograms]);
    assert_eq!(bench.tunnelled(), 2);
}

/// A folder that was emptied, and a daemon that starts over it: whole, by the letter, and not believed.
#[test]
fn an_empty_cluster_opens_nothing() {
    let (mut bench, node) = Bench::settled(3);
    drop(node);
    bench.kernel.with(FakeKernel::daemon_ends);
    bench.world.change(|said| said.snapshot = Snapshot::default());
    for wiped in [false, true] {
        if wiped {
            std::fs::remove_file(bench.dir.path().join("known.json")).expect("removed");
        }
        let mut again = bench.start();
        bench.settle(&mut again);
        let tried = bench.tried();
        let harmless = |a: &Action| matches!(a, Action::LoadPrograms | Action::SetConfig(_));
        assert!(tried.iter().all(harmless), "{tried:?}");
        assert_eq!(bench.tunnelled(), 2);
        bench.kernel.with(FakeKernel::daemon_ends);
    }
}

#[test]
fn a_node_that_left_is_removed_and_its_pods_stay_closed() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.world.change(|said| drop(said.snapshot.nodes.remove("node-3")));
    bench.settle(&mut node);
    let truth = bench.truth();
    assert_eq!(truth.tunnels[DEVICE].peers.len(), 1);
    let datapath = truth.datapath.expect("loaded");
    assert_eq!(datapath.peers.len(), 1);
    assert!(!datapath.prefixes.contains_key(&"10.244.3.0/24".parse().expect("net")));
    let range = datapath.prefixes[&"10.244.0.0/16".parse().expect("net")];
    assert_eq!(range.kind, PrefixKind::UnownedPods);
}

#[test]
fn a_node_that_comes_back_with_a_new_key_is_closed_until_it_is_proven() {
    let (mut bench, mut node) = Bench::settled(3);
    let old = bench.keys[1].public();
    // New key, and nobody answers yet.
    let key = PrivateKey::generate().expect("randomness");
    let json = announce(3, &key, 51871);
    bench.world.change(|said| said.snapshot.nodes.get_mut("node-3").expect("node").announcement = Some(json));
    bench.settle(&mut node);
    assert!(!bench.truth().tunnels[DEVICE].peers.contains_key(&old));
    assert_eq!(bench.tunnelled(), 1);
    bench.kernel.with(|k| k.answer(key.public()));
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 2);
}

/// The state folder is lost and the device stands: old handshakes prove nothing under a new key.
#[test]
fn a_new_own_key_proves_itself_anew() {
    let (mut bench, node) = Bench::settled(3);
    drop(node);
    bench.kernel.with(FakeKernel::daemon_ends);
    bench.kernel.with(FakeKernel::nobody_answers);
    std::fs::remove_dir_all(bench.dir.path().join("keys")).expect("removed");
    let mut again = bench.start();
    bench.settle(&mut again);
    let tunnel = &bench.truth().tunnels[DEVICE];
    assert_eq!(tunnel.public_key, again.keeper.info().map(|i| i.public));
    assert_eq!(tunnel.peers.len(), 2);
    assert_eq!(bench.tunnelled(), 0);
}

/// The key can't be read: a reason to say so, not to take tunnels away.
#[test]
fn a_key_store_that_fails_takes_no_tunnel_away() {
    let (mut bench, node) = Bench::settled(3);
    drop(node);
    bench.kernel.with(FakeKernel::daemon_ends);
    let keys = bench.dir.path().join("keys");
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o770)).expect("chmod");
    let mut again = bench.start();
    bench.settle(&mut again);
    assert_eq!(bench.tried(), [Action::LoadPrograms]);
    assert_eq!(bench.tunnelled(), 2);
    assert!(again.last.problems.iter().any(|p| p.kind == ProblemKind::KeyStore), "{:?}", again.last.problems);
}

/// Half of a node's manifest was read: nothing of it is taken away.
#[test]
fn partial_knowledge_takes_no_address_away() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.tried();
    bench.world.change(|said| {
        said.whole = false;
        said.snapshot.nodes.get_mut("node-2").expect("node").internal_ips =
            vec!["192.0.2.9".parse().expect("ip")];
    });
    bench.settle(&mut node);
    let peer = bench.truth().tunnels[DEVICE].peers.values().next().expect("a peer").clone();
    assert!(peer.allowed_ips.contains(&"192.0.2.2/32".parse().expect("net")), "{peer:?}");
}

/// An announcement that vanishes, or is replaced by a forged one, cuts nobody off.
#[test]
fn a_lost_or_forged_announcement_changes_nothing() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.tried();
    let forged = announce(2, &bench.keys[1], 51871);
    for said in [None, Some("{}".to_owned()), Some(forged)] {
        bench.world.change(|world| world.snapshot.nodes.get_mut("node-3").expect("node").announcement = said);
        bench.settle(&mut node);
        assert_eq!(bench.tried(), []);
    }
    assert_eq!(node.last.problems.len(), 1, "{:?}", node.last.problems);
    assert_eq!(node.last.problems[0].object, "Node node-3");
    // The same after a restart, when only the device itself remembers the peer.
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    assert_eq!(bench.tried(), [Action::LoadPrograms]);
    assert_eq!(bench.tunnelled(), 2);
}

#[test]
fn a_device_deleted_by_hand_is_made_again() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.kernel.with(|k| k.delete_link(DEVICE));
    bench.tried();
    bench.settle(&mut node);
    // First its slot is dead, so that nothing is redirected to an index that may come to mean another.
    assert_eq!(bench.tried()[0], Action::SetSlot(0, 0));
    assert_eq!(bench.tunnelled(), 2);
}

#[test]
fn a_device_of_others_by_our_name_is_left_alone() {
    let mut bench = Bench::new(2);
    let foreign = Link { name: DEVICE.to_owned(), kind: Some("dummy".to_owned()), ..Link::default() };
    bench.kernel.with(|k| k.add_link(foreign));
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 0);
    assert!(bench.truth().tunnels.is_empty());
    assert!(node.last.problems.iter().any(|p| p.object == "device kubeveil0"), "{:?}", node.last.problems);
}

#[test]
fn a_new_underlay_device_is_guarded() {
    let (mut bench, mut node) = Bench::settled(2);
    let second = Link { name: "eth1".to_owned(), up: true, mtu: 1400, ..Link::default() };
    let index = bench.kernel.with(|k| k.add_link(second));
    bench.settle(&mut node);
    let attached = bench.truth().datapath.expect("loaded").attached;
    assert!(
        attached.contains_key(&(Program::Steer, index)) && attached.contains_key(&(Program::Guard, index))
    );
}

/// Each action, failing once and failing for a while: the others are carried out, the problem is told,
/// no peer is tunnelled that isn't proven, and afterwards everything stands.
#[test]
fn every_call_may_fail() {
    let sample = Bench::new(3);
    sample.start().pass(FIRST);
    let steps = sample.tried().len();
    for errno in [1, 4, 12, 16, 19, 105] {
        for step in 0..steps {
            let mut bench = Bench::new(3);
            let mut node = bench.start();
            // Which of two keys is lower is chance, and so is the number of steps.
            let (mut left, fired) = (Some(step), Arc::new(AtomicBool::new(false)));
            let fire = fired.clone();
            bench.kernel.with(|k| {
                k.fail(move |_| {
                    let now = left == Some(0);
                    left = left.and_then(|n| n.checked_sub(1));
                    fire.fetch_or(now, Ordering::Relaxed);
                    now.then_some(errno)
                });
            });
            node.pass(FIRST);
            let told = node.last.problems.iter().any(|p| p.kind == ProblemKind::Kernel);
            assert_eq!(told, fired.load(Ordering::Relaxed), "errno {errno} at step {step}");
            bench.kernel.with(FakeKernel::heal);
            bench.settle(&mut node);
            assert_eq!(bench.tunnelled(), 2, "errno {errno} at step {step}");
            assert_eq!(node.last.problems, [], "errno {errno} at step {step}");
        }
    }
}

/// Killed after each step, started again: converges, and a device that stands keeps its key.
#[test]
fn killed_after_every_step() {
    let sample = Bench::new(3);
    sample.start().pass(FIRST);
    for step in 0..sample.tried().len() {
        let mut bench = Bench::new(3);
        let mut node = bench.start();
        let mut left = step;
        bench.kernel.with(|k| {
            k.fail(move |_| {
                // Dead processes make no calls.
                let dead = left == 0;
                left = left.saturating_sub(1);
                dead.then_some(5)
            });
        });
        node.pass(FIRST);
        drop(node);
        let key = bench.truth().tunnels.get(DEVICE).and_then(|t| t.public_key);
        bench.kernel.with(|k| {
            k.heal();
            k.daemon_ends();
        });
        let mut again = bench.start();
        bench.settle(&mut again);
        assert_eq!(bench.tunnelled(), 2, "killed after step {step}");
        let now = bench.truth().tunnels[DEVICE].public_key;
        assert!(key.is_none() || key == now, "killed after step {step}");
    }
}

#[test]
fn what_is_kept_holds_no_key() {
    let (bench, node) = Bench::settled(3);
    let path: PathBuf = bench.dir.path().join("known.json");
    let text = std::fs::read_to_string(path).expect("kept");
    let private = node.keeper.private_key(Generation::FIRST).expect("key");
    let spellings = private.expose(kubeveil_keys::test_support::encodings);
    assert!(spellings.iter().all(|spelling| !text.contains(spelling)));
    assert!(text.contains("10.244.0.0/16"), "{text}");
}
