//! What is wanted comes about, and nothing else is touched.

use std::{collections::BTreeSet, path::PathBuf};

use kubeveil_core::{
    action::Action,
    observed::{Link, Peer, Program},
    tunnels::{PROVING_KEEPALIVE, at_rest, first_keepalive},
};
use kubeveil_keys::Generation;
use kubeveil_linux::{Secrets as _, fake::FakeKernel};

use super::bench::{Bench, DEVICE, announce};

#[test]
fn from_nothing_to_encrypted() {
    let (bench, node) = Bench::settled(3);
    let truth = bench.truth();
    let tunnel = &truth.tunnels[DEVICE];
    assert_eq!(tunnel.public_key, node.keeper.info().map(|i| i.public));
    assert_eq!(tunnel.peers.len(), 2);
    let is_at_rest = |keepalive| at_rest(keepalive) == keepalive;
    assert!(tunnel.peers.values().all(|p| is_at_rest(p.keepalive) && p.allowed_ips.len() == 4), "{tunnel:?}");
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
    bench.says(4, Some(json));
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
        said.snapshot.node_mut("node-3").expect("node").internal_ips =
            vec!["192.0.2.33".parse().expect("ip")];
    });
    bench.settle(&mut again);
    let endpoints: Vec<_> = bench.truth().tunnels[DEVICE].peers.values().filter_map(|p| p.endpoint).collect();
    assert!(endpoints.contains(&"192.0.2.33:51871".parse().expect("endpoint")), "{endpoints:?}");
}

#[test]
fn a_peer_that_roamed_is_left_where_it_is() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.tried();
    let roamed = Some("198.51.100.7:4000".parse().expect("endpoint"));
    for keepalive in [first_keepalive(&bench.keys[0].public()), 0] {
        let roams = |peer: &mut Peer| (peer.endpoint, peer.keepalive) = (roamed, keepalive);
        bench.kernel.with(|k| k.tamper(DEVICE, |t| t.peers.values_mut().for_each(roams)));
        bench.settle(&mut node);
        assert_eq!(bench.tried(), []);
    }
}

/// Who has the first word says it as it adds the other; where that came to nothing it goes out anew, and what is set for that is
/// taken back.
#[test]
fn who_does_not_answer_is_spoken_to_again() {
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        let mut bench = Bench::new(2);
        bench.kernel.with(FakeKernel::nobody_answers);
        let mut node = bench.start();
        for _ in 0..2 {
            bench.settle(&mut node);
        }
        let keepalives = |bench: &Bench| -> Vec<u16> {
            let of = |action| match action {
                Action::AddPeer { keepalive, .. } | Action::SetKeepalive(_, _, keepalive) => Some(keepalive),
                _ => None,
            };
            bench.tried().into_iter().filter_map(of).collect()
        };
        let peer = bench.keys[0].public();
        let is_first = node.keeper.info().expect("a key").public < peer;
        let first = [first_keepalive(&peer), 0, PROVING_KEEPALIVE];
        assert_eq!(keepalives(&bench), if is_first { &first[..] } else { &first[1..] });
        bench.kernel.with(|k| k.answer(peer));
        bench.settle(&mut node);
        assert_eq!((keepalives(&bench), bench.tunnelled()), (vec![0], 1));
        seen.insert(is_first);
    }
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
