//! A new key proves nothing by what an old one did.

use kubeveil_core::action::Action;
use kubeveil_keys::PrivateKey;
use kubeveil_linux::fake::FakeKernel;

use super::bench::{Bench, DEVICE, FIRST, announce};

#[test]
fn a_node_that_comes_back_with_a_new_key_is_closed_until_it_is_proven() {
    let (mut bench, mut node) = Bench::settled(3);
    let old = bench.keys[1].public();
    // New key, and nobody answers yet.
    let key = PrivateKey::generate().expect("randomness");
    let json = announce(3, &key, 51871);
    bench.says(3, Some(json));
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

/// … also where a peer can't be taken off the device first.
#[test]
fn an_old_peer_that_stays_proves_nothing_to_a_new_own_key() {
    let (mut bench, node) = Bench::settled(3);
    drop(node);
    bench.kernel.with(FakeKernel::daemon_ends);
    bench.kernel.with(FakeKernel::nobody_answers);
    std::fs::remove_dir_all(bench.dir.path().join("keys")).expect("removed");
    bench.kernel.with(|k| k.fail(|action| matches!(action, Action::RemovePeer(..)).then_some(16)));
    let mut again = bench.start();
    again.pass(FIRST);
    bench.kernel.with(FakeKernel::heal);
    bench.settle(&mut again);
    assert_eq!(bench.truth().tunnels[DEVICE].public_key, again.keeper.info().map(|i| i.public));
    assert_eq!(bench.tunnelled(), 0);
}
