//! What is not known takes nothing away; what is known to be gone is closed.

use std::os::unix::fs::PermissionsExt as _;

use kubeveil_abi::PrefixKind;
use kubeveil_core::{action::Action, problem::ProblemKind, snapshot::Snapshot};
use kubeveil_linux::fake::FakeKernel;

use super::bench::{Bench, DEVICE, announce};

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

/// Half of a node's manifest was read: nothing of it is taken away.
#[test]
fn partial_knowledge_takes_no_address_away() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.tried();
    bench.world.change(|said| {
        said.whole = false;
        said.snapshot.node_mut("node-2").expect("node").internal_ips = vec!["192.0.2.9".parse().expect("ip")];
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
        bench.world.change(|world| world.snapshot.node_mut("node-3").expect("node").announcement = said);
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
