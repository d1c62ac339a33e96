//! What a build of another ABI version left pinned.

use std::collections::BTreeSet;

use kubeveil_core::{
    action::Action,
    observed::{Hook, Link, Predecessor, Program},
    snapshot::Snapshot,
};

use super::bench::Bench;

fn leaves(bench: &Bench, hooks: &[Hook], has_backstop: bool) {
    let left = Predecessor { hooks: hooks.iter().copied().collect(), has_backstop };
    bench.kernel.with(|k| k.tamper_maps(|maps| maps.predecessors = [("v9".to_owned(), left)].into()));
}

fn left(bench: &Bench) -> BTreeSet<String> {
    bench.truth().datapath.expect("loaded").predecessors.into_keys().collect()
}

#[test]
fn it_goes_when_ours_stands_in_its_place() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.tried();
    leaves(&bench, &[(Program::Steer, 1), (Program::Guard, 1)], true);
    bench.settle(&mut node);
    assert_eq!(bench.tried(), [Action::DropPredecessors]);
    assert_eq!(left(&bench), BTreeSet::new());
}

/// Also at a device that we would not have guarded by ourselves; one that is gone is nobody's.
#[test]
fn ours_comes_to_stand_wherever_it_stood() {
    let (mut bench, mut node) = Bench::settled(2);
    let bridge = Link { name: "br7".to_owned(), kind: Some("bridge".to_owned()), ..Link::default() };
    let index = bench.kernel.with(|k| k.add_link(bridge));
    bench.settle(&mut node);
    bench.tried();
    leaves(&bench, &[(Program::Steer, index), (Program::Guard, 4_711)], true);
    bench.settle(&mut node);
    assert_eq!(bench.tried(), [Action::Attach((Program::Steer, index)), Action::DropPredecessors]);
    assert_eq!(left(&bench), BTreeSet::new());
}

/// A daemon that does not know yet what is to be guarded takes nothing away.
#[test]
fn it_stays_while_nothing_is_known() {
    let mut bench = Bench::new(2);
    bench.world.change(|said| {
        said.snapshot = Snapshot::default();
        said.whole = false;
    });
    let mut node = bench.start();
    node.pass(super::bench::FIRST);
    leaves(&bench, &[(Program::Guard, 1)], false);
    bench.seconds = 5;
    for _ in 0..5 {
        bench.seconds += 1;
        let at = std::time::Duration::from_secs(bench.seconds);
        node.pass(crate::node::Now { monotonic: at, epoch: at });
    }
    assert_eq!(left(&bench).len(), 1, "{:?}", bench.tried());
}
