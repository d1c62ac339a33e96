//! A disk of an earlier time: a key that was given up is not used again.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kubeveil_api::{announcement::NotFlipped, veil_node::VeilNodeStatus};
use kubeveil_core::{
    action::Action,
    problem::Problem,
    snapshot::Knowledge,
    source::{Changes, Source, SourceState},
};
use kubeveil_keys::PublicKey;
use kubeveil_linux::fake::FakeKernel;

use super::{
    super::bench::{Bench, Shared, World},
    DEVICES, Rotation, devices, files, generations, said,
};
use crate::node::Node;

/// All files of a folder, and of those in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    fs::set_permissions(to, fs::metadata(from).expect("there").permissions()).expect("its mode");
    for entry in fs::read_dir(from).expect("listed") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, to).map(drop).expect("copied") }
    }
}

/// A node that has gone from its first key to the next, with a copy of its disk of before, and that first key.
struct Rotated {
    bench: Bench,
    node: Node<Shared>,
    before: tempfile::TempDir,
    old: PublicKey,
}

impl Rotated {
    fn new() -> Self {
        let (bench, node) = Bench::settled(3);
        let before = tempfile::tempdir().expect("temp dir");
        copy(bench.dir.path(), before.path());
        let old = said(&bench).generations()[0].public_key;
        let mut it = Rotation::begun_from(bench, node);
        it.has_both(2, NotFlipped::nobody());
        it.has_both(3, NotFlipped::nobody());
        it.settle();
        it.has_newest(2);
        it.has_newest(3);
        it.settle();
        assert_eq!(
            (generations(&it.bench), files(&it.bench)),
            (vec![1], vec!["generation-1.key".to_owned()])
        );
        Self { bench: it.bench, node: it.node, before, old }
    }

    /// The disk is as it was before.
    fn restore(&self) {
        let state = self.bench.dir.path();
        for entry in fs::read_dir(state).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
        }
        copy(self.before.path(), state);
        assert_eq!(files(&self.bench), ["generation-0.key"]);
    }

    /// Its file of the first key is as it was before.
    fn restore_key(&self) {
        let name = "keys/generation-0.key";
        fs::copy(self.before.path().join(name), self.bench.dir.path().join(name)).expect("put back");
    }

    /// It begins anew, and its source tells nothing as long as it is blind.
    fn starts_blind(&mut self) -> Arc<AtomicBool> {
        let is_blind = Arc::new(AtomicBool::new(true));
        let bench = &self.bench;
        bench.kernel.with(FakeKernel::daemon_ends);
        let source = Blind { world: bench.world.clone(), is_blind: is_blind.clone() };
        self.node =
            Node::new("node-1", &[], "build", bench.kernel.clone(), Box::new(source), bench.dir.path());
        self.bench.settle(&mut self.node);
        is_blind
    }

    /// It goes by a key of the newest generation, and says what happened to the other.
    fn goes_on(&self, node: &Node<Shared>) {
        assert_eq!((generations(&self.bench), devices(&self.bench)), (vec![1], vec![DEVICES[1].to_owned()]));
        assert_eq!(files(&self.bench), ["generation-1.key"]);
        let said = said(&self.bench).generations()[0].public_key;
        assert_ne!(said, self.old);
        assert_eq!(self.bench.truth().tunnels[DEVICES[1]].public_key, Some(said));
        let problems = node.problems();
        let [told] = problems else { panic!("{problems:?}") };
        assert!(told.object.ends_with("generation-0.key") && told.message.contains("given up"), "{told}");
    }
}

/// Was a device set up with any key of the first generation?
fn was_set_up(bench: &Bench) -> bool {
    let is_of_it = |action: &Action| matches!(action, Action::CreateTunnel(name) | Action::ConfigureTunnel { device: name, .. } if name == DEVICES[0]);
    bench.tried().iter().any(is_of_it)
}

/// Its file comes back out of a backup.
#[test]
fn a_key_file_that_is_put_back_is_not_used() {
    let mut it = Rotated::new();
    it.restore_key();
    let now = said(&it.bench).generations()[0].public_key;
    it.bench.tried();
    let mut node = it.bench.restart(it.node);
    assert_eq!(it.bench.settle(&mut node), 1, "it opens what is pinned");
    it.node = node;
    it.goes_on(&it.node);
    assert_eq!((said(&it.bench).generations()[0].public_key, it.bench.tunnelled()), (now, 2));
}

/// Nor is it as long as nobody tells what the node announces: the record does.
#[test]
fn a_key_file_that_is_put_back_is_not_used_by_who_is_told_nothing() {
    let mut it = Rotated::new();
    it.restore_key();
    it.bench.tried();
    it.starts_blind();
    assert!(!was_set_up(&it.bench));
    assert_eq!(files(&it.bench), ["generation-1.key"]);
}

/// The whole disk comes back, as by a snapshot of the machine: no record tells, but what the node itself has announced.
#[test]
fn a_key_of_a_disk_that_is_put_back_is_not_used() {
    let mut it = Rotated::new();
    it.restore();
    it.bench.tried();
    let mut node = it.bench.restart(it.node);
    it.bench.settle(&mut node);
    assert!(!was_set_up(&it.bench));
    it.node = node;
    it.goes_on(&it.node);
}

/// A source that tells nothing for a while, and takes what it is told.
struct Blind {
    world: World,
    is_blind: Arc<AtomicBool>,
}

impl Source for Blind {
    fn name(&self) -> String {
        self.world.name()
    }

    fn read(&mut self, now: Duration) -> SourceState {
        if self.is_blind.load(Ordering::Relaxed) {
            return SourceState { knowledge: Knowledge::default(), problems: vec![], look_again: None };
        }
        self.world.read(now)
    }

    fn changes(&mut self) -> Changes {
        Changes::Any
    }

    fn announce(&mut self, node: &str, uid: &str, json: Option<&str>) -> Result<(), Problem> {
        self.world.announce(node, uid, json)
    }

    fn report(&mut self, node: &str, status: VeilNodeStatus) -> Result<(), Problem> {
        self.world.report(node, status)
    }
}

/// The same while the source is away: nobody can know then. But nothing is said either that would take the place of what was said, and when
/// that is known the old key goes.
#[test]
fn what_was_said_stands_until_it_is_known() {
    let mut it = Rotated::new();
    it.restore();
    let is_blind = it.starts_blind();
    assert_eq!(generations(&it.bench), [1], "it is not said again");
    is_blind.store(false, Ordering::Relaxed);
    it.bench.settle(&mut it.node);
    it.goes_on(&it.node);
}
