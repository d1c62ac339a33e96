//! A daemon that starts amid a rotation, or comes back after some.

use kubeveil_api::announcement::NotFlipped;
use kubeveil_core::action::Action;
use kubeveil_linux::fake::FakeKernel;

use super::{
    super::bench::{Bench, Shared, announce_keys},
    DEVICES, Rotation, devices, files, generations, key, names, slots,
};
use crate::node::Node;

/// A restart at any time, also where nobody tells it anything, changes nothing and goes on.
#[test]
fn it_goes_on_after_a_restart() {
    let mut it = Rotation::begun();
    it.has_both(2, names(&["node-1"]));
    it.settle();
    it.bench.world.change(|said| said.whole = false);
    it.node = it.bench.restart(it.node);
    assert_eq!(it.bench.settle(&mut it.node), 1, "it opens what is pinned");
    assert_eq!((generations(&it.bench), slots(&it.bench)), (vec![0, 1], [0, 1].into()));
    // Without all nodes nothing is given up.
    it.has_both(2, NotFlipped::nobody());
    it.has_both(3, NotFlipped::nobody());
    it.settle();
    assert_eq!(generations(&it.bench), [0, 1]);
    it.bench.world.change(|said| said.whole = true);
    it.settle();
    assert_eq!(generations(&it.bench), [1]);
}

/// A daemon that starts amid a rotation while its source tells of the time before it, twice, as a cache that lags behind or a restored
/// etcd does: packets go on by what is proven. Then the source catches up, and it goes on.
#[test]
fn a_source_of_the_past_takes_nobody_off_the_newer_device() {
    let mut it = Rotation::begun();
    let before: Vec<String> = (2..=3)
        .map(|n| announce_keys(n, &[(0, &it.bench.keys[usize::from(n) - 2])], NotFlipped::nobody()))
        .collect();
    it.has_both(2, names(&["node-1", "node-3"]));
    it.has_both(3, names(&["node-1", "node-2"]));
    it.settle();
    assert_eq!((slots(&it.bench), it.bench.tunnelled()), ([1].into(), 2));
    let own = it.bench.world.said().snapshot.nodes["node-1"].announcement.clone();
    it.bench.wants(0);
    for (n, said) in (2..).zip(&before) {
        it.bench.says(n, Some(said.clone()));
    }
    it.bench.tried();
    for restart in 1..=2 {
        it.node = it.bench.restart(it.node);
        it.settle();
        assert_eq!((slots(&it.bench), it.bench.tunnelled()), ([1].into(), 2), "restart {restart}");
        assert_eq!(it.bench.tried(), [Action::LoadPrograms], "restart {restart}");
        let past = it.node.problems();
        assert_eq!(
            past.iter().filter(|problem| problem.message.contains("of the past")).count(),
            2,
            "{past:?}"
        );
    }
    assert_eq!(it.bench.world.said().snapshot.nodes["node-1"].announcement, own);
    it.bench.wants(1);
    it.has_both(2, NotFlipped::nobody());
    it.has_both(3, NotFlipped::nobody());
    it.settle();
    assert_eq!((generations(&it.bench), it.bench.tunnelled()), (vec![1], 2));
    assert_eq!(it.node.problems(), []);
}

/// A node lost its newer key while this daemon was away, and can't make another: what it says is older than what was kept, and true. Once
/// its newer tunnel is known to be dead it is spoken to by the older one.
#[test]
fn a_node_that_lost_its_newer_key_is_not_held_to_it() {
    let mut it = Rotation::begun();
    it.has_both(2, names(&["node-1", "node-3"]));
    it.has_both(3, names(&["node-1", "node-2"]));
    it.settle();
    assert_eq!(slots(&it.bench), [1].into());
    let back = announce_keys(2, &[(0, &it.bench.keys[0])], NotFlipped::nobody());
    it.bench.says(2, Some(back));
    it.bench.kernel.with(FakeKernel::nobody_answers);
    for key in [&it.bench.keys[0], &it.bench.keys[1], &it.fresh[1]] {
        it.bench.kernel.with(|k| k.answer(key.public()));
    }
    it.node = it.bench.restart(it.node);
    let lost = it.fresh[0].public();
    for _ in 0..40 {
        // Packets go there, and nothing comes.
        it.bench.kernel.with(|k| {
            k.tamper(DEVICES[1], |device| {
                if device.peers.contains_key(&lost) {
                    device.change(&lost, |peer| peer.sent += 100);
                }
            });
        });
        it.bench.seconds += 10;
        it.node.pass(it.bench.now());
    }
    assert_eq!((slots(&it.bench), it.bench.tunnelled()), ([0, 1].into(), 2));
    assert_eq!(generations(&it.bench), [0, 1], "what it is spoken to by is not given up");
}

/// Nobody who was left behind by two generations holds anything up, nor uses an old key.
#[test]
fn who_comes_back_after_two_rotations_takes_the_newest() {
    let (mut bench, node) = Bench::settled(3);
    let fresh = [key(), key()];
    bench.wants(2);
    for (n, key) in (2..).zip(&fresh) {
        bench.says(n, Some(announce_keys(n, &[(2, key)], NotFlipped::nobody())));
        bench.kernel.with(|k| k.answer(key.public()));
    }
    let mut node = bench.restart(node);
    bench.settle(&mut node);
    assert_eq!((generations(&bench), devices(&bench)), (vec![2], vec![DEVICES[0].to_owned()]));
    assert_eq!((files(&bench), bench.tunnelled()), (vec!["generation-2.key".to_owned()], 2));
}

/// A node that keeps its key: the device of a generation that it gave up goes before the next of that name comes, though it can't be
/// deleted for a while, and the daemon ends. With the same key that would take over its sessions, which pass for proof.
#[test]
fn a_device_that_still_stands_is_not_taken_over() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.world.change(|said| {
        let asked = serde_json::json!({"nodeSelector": {"matchLabels": {"pool": "b"}}});
        said.snapshot.mesh.as_mut().expect("mesh").rotation =
            Some(serde_json::from_value(asked).expect("asked"));
    });
    bench.wants(1);
    bench.settle(&mut node);
    for n in [2, 3] {
        let key = &bench.keys[usize::from(n) - 2];
        bench.says(n, Some(announce_keys(n, &[(0, key), (1, key)], NotFlipped::nobody())));
    }
    bench.kernel.with(|k| k.fail(|action| matches!(action, Action::DeleteTunnel(..)).then_some(16)));
    let goes_on = |bench: &mut Bench, node: &mut Node<Shared>| {
        for _ in 0..20 {
            bench.seconds += 1;
            node.pass(bench.now());
        }
    };
    goes_on(&mut bench, &mut node);
    let index = |bench: &Bench| bench.truth().tunnels[DEVICES[0]].ifindex;
    let stands = index(&bench);
    assert_eq!(files(&bench), ["generation-1.key"]);
    bench.wants(2);
    goes_on(&mut bench, &mut node);
    let mut node = bench.restart(node);
    goes_on(&mut bench, &mut node);
    assert_eq!((files(&bench), index(&bench)), (vec!["generation-1.key".to_owned()], stands));
    bench.kernel.with(FakeKernel::heal);
    bench.settle(&mut node);
    assert_eq!(files(&bench), ["generation-1.key", "generation-2.key"]);
    assert_ne!(index(&bench), stands);
}
