//! The mesh says that kubeveil goes.

use kubeveil_api::condition::ConditionStatus;
use kubeveil_linux::Kernel;

use super::bench::{Bench, Said};
use crate::node::Node;

fn uninstall(bench: &Bench, wanted: bool) {
    bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").uninstall = wanted);
}

fn goes_round<K: Kernel>(bench: &mut Bench, node: &mut Node<K>) {
    for _ in 0..5 {
        bench.seconds += 1;
        node.hear(bench.now());
    }
}

fn announced(said: &Said) -> bool {
    said.snapshot.nodes["node-1"].announcement.is_some()
}

/// Nothing is left in the kernel, on the disk and with the others; and it is told.
#[test]
fn nothing_is_left() {
    let (mut bench, mut node) = Bench::settled(3);
    assert!(bench.dir.path().join("known.json").exists() && announced(&bench.world.said()));
    uninstall(&bench, true);
    goes_round(&mut bench, &mut node);
    let truth = bench.truth();
    assert!(truth.tunnels.is_empty() && truth.datapath.is_none(), "{truth:?}");
    assert!(truth.backstop.in_force().is_none(), "{truth:?}");
    let left: Vec<_> = std::fs::read_dir(bench.dir.path()).expect("listed").collect();
    assert!(left.is_empty(), "{left:?}");
    let said = bench.world.said();
    assert!(!announced(&said));
    let told = said.reported.expect("a report").conditions;
    let done = told.iter().find(|condition| condition.kind == "Uninstalled").expect("told");
    assert_eq!(done.status, ConditionStatus::True);
    assert!(node.has_left() && !node.is_wanted_again());

    // It does not come back by itself; only who starts anew does.
    uninstall(&bench, false);
    goes_round(&mut bench, &mut node);
    assert!(bench.truth().tunnels.is_empty() && node.is_wanted_again());
    let mut node = bench.restart(node);
    bench.settle(&mut node);
    assert!(!bench.truth().tunnels.is_empty() && announced(&bench.world.said()));
}

/// A daemon that starts on a node that has been left puts nothing there, though it does not know all yet.
#[test]
fn who_starts_meanwhile_begins_nothing() {
    let mut bench = Bench::new(3);
    uninstall(&bench, true);
    bench.world.change(|said| said.whole = false);
    let mut node = bench.start();
    goes_round(&mut bench, &mut node);
    let truth = bench.truth();
    assert!(truth.tunnels.is_empty() && truth.datapath.is_none() && bench.tried().is_empty(), "{truth:?}");
    bench.world.change(|said| said.whole = true);
    goes_round(&mut bench, &mut node);
    assert!(node.has_left() && bench.tried().is_empty());
}

/// What is told by a source that has not told all opens nothing.
#[test]
fn only_a_source_that_has_told_all_says_so() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.world.change(|said| said.whole = false);
    uninstall(&bench, true);
    goes_round(&mut bench, &mut node);
    assert!(!bench.truth().tunnels.is_empty() && announced(&bench.world.said()));
    bench.world.change(|said| said.whole = true);
    goes_round(&mut bench, &mut node);
    assert!(bench.truth().tunnels.is_empty());
}
