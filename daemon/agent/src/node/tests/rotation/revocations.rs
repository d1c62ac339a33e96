//! Keys that are refused for ever.

use kubeveil_api::announcement::NotFlipped;
use kubeveil_linux::fake::FakeKernel;

use super::{
    super::bench::{Bench, Shared, announce_keys},
    key, names, said,
};
use crate::node::Node;

/// A key of another node that was revoked once is not spoken to again: not when the list is emptied, not by another daemon, not when its
/// node announces it anew.
#[test]
fn a_peers_revoked_key_is_refused_for_ever() {
    let (mut bench, mut node) = Bench::settled(3);
    let stolen = bench.keys[0].public();
    let revoked = |bench: &Bench, keys: &[kubeveil_keys::PublicKey]| {
        let keys = keys.to_vec();
        bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").revoked_keys = keys);
    };
    let ends = |bench: &mut Bench, node: &mut Node<Shared>| {
        bench.settle(node);
        assert!(bench.truth().tunnels.values().all(|device| !device.peers.contains_key(&stolen)));
        assert_eq!(bench.tunnelled(), 1);
    };
    revoked(&bench, &[stolen]);
    ends(&mut bench, &mut node);
    revoked(&bench, &[]);
    ends(&mut bench, &mut node);
    let mut node = bench.restart(node);
    ends(&mut bench, &mut node);
    bench.says(2, Some(announce_keys(2, &[(0, &bench.keys[0])], names(&["node-3"]))));
    ends(&mut bench, &mut node);
    let told = node.problems();
    assert!(
        told.iter().any(|problem| problem.object == "Node node-2" && problem.message.contains("revoked")),
        "{told:?}"
    );
    let fresh = key();
    bench.kernel.with(|k| k.answer(fresh.public()));
    bench.says(2, Some(announce_keys(2, &[(0, &fresh)], NotFlipped::nobody())));
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 2);
}

/// Its own key is revoked: it has another at once, of the same generation.
#[test]
fn a_revoked_key_is_replaced() {
    let (mut bench, mut node) = Bench::settled(3);
    let before = said(&bench).generations()[0].public_key;
    bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").revoked_keys.push(before));
    bench.settle(&mut node);
    let after = said(&bench);
    assert_eq!(after.generations().len(), 1);
    assert_ne!(after.generations()[0].public_key, before);
    assert_eq!(bench.truth().tunnels["kubeveil0"].public_key, Some(after.generations()[0].public_key));
    bench.kernel.with(FakeKernel::nobody_answers);
}
