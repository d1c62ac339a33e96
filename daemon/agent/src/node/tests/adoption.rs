//! A pair is open until its tunnel is proven once.

use std::{fs, time::Duration};

use kubeveil_abi::{Mode, PeerState, PeerValue, PrefixKind};
use kubeveil_api::policy::PolicyMode;
use kubeveil_core::{action::Action, policy::Policies, problem::ProblemKind};
use kubeveil_keys::PrivateKey;
use kubeveil_linux::fake::FakeKernel;

use super::bench::{Bench, Shared};
use crate::{
    node::{Node, Now},
    status,
};

const DEADLINE: i64 = 1_000;

/// Three nodes, of which the third does not answer.
fn halfway() -> (Bench, Node<Shared>) {
    let mut bench = Bench::new(3);
    bench.adopts_until(DEADLINE);
    bench.kernel.with(FakeKernel::nobody_answers);
    let key = bench.keys[0].public();
    bench.kernel.with(|k| k.answer(key));
    let mut node = bench.start();
    bench.settle(&mut node);
    (bench, node)
}

/// The value for the packets of node `n`.
fn value(bench: &Bench, n: u8) -> PeerValue {
    let datapath = bench.truth().datapath.expect("loaded");
    let prefix = datapath.prefixes[&format!("10.244.{n}.0/24").parse().expect("net")];
    assert_eq!(prefix.kind, PrefixKind::RemotePods);
    datapath.peers.get(&prefix.peer).copied().unwrap_or(PeerValue::NO_TUNNEL)
}

fn state(bench: &Bench, n: u8) -> PeerState {
    value(bench, n).state()
}

/// Once round at this time on the wall.
fn pass_at(bench: &mut Bench, node: &mut Node<Shared>, epoch: u64) {
    bench.seconds += 1;
    let monotonic = Duration::from_secs(bench.seconds);
    node.pass(Now { monotonic, epoch: Duration::from_secs(epoch) });
}

#[test]
fn what_is_not_proven_passes_in_plain_until_it_is() {
    let (mut bench, mut node) = halfway();
    assert_eq!((state(&bench, 2), state(&bench, 3)), (PeerState::Tunnel, PeerState::Adopting));
    assert_eq!(value(&bench, 3).bypass_until(), 1_000, "the programs know the deadline");
    let told = node.adoption().expect("told");
    assert_eq!((told.over, told.open), (false, vec!["node-3".to_owned()]));
    let at = Duration::from_secs(bench.seconds);
    let status = status::view(&mut node, Now { monotonic: at, epoch: at }).status;
    let peer = status.peers.iter().find(|peer| peer.node == "node-3").expect("a peer");
    assert_eq!(peer.way, kubeveil_api::status::Way::Plain);
    assert!(
        peer.reason.as_ref().is_some_and(|why| why.starts_with("adopting; no handshake yet")),
        "{peer:?}"
    );
    // It costs a quiet node nothing.
    assert_eq!(bench.settle(&mut node), 0);

    let key = bench.keys[1].public();
    bench.kernel.with(|k| k.answer(key));
    bench.settle(&mut node);
    assert_eq!(state(&bench, 3), PeerState::Tunnel);
    assert!(node.adoption().expect("told").over, "at once when the last one is proven");
}

/// One store from plain into the tunnel, and the other's packets are heard in plain a moment longer: it learns later.
#[test]
fn the_switch_itself_loses_nothing() {
    let (mut bench, mut node) = halfway();
    bench.tried();
    let key = bench.keys[1].public();
    bench.kernel.with(|k| k.answer(key));
    let mut values = Vec::new();
    for _ in 0..20 {
        let second = bench.seconds + 1;
        pass_at(&mut bench, &mut node, second);
        values.push((second, value(&bench, 3)));
    }
    let stores: Vec<_> =
        bench.tried().into_iter().filter(|action| matches!(action, Action::SetPeer(..))).collect();
    assert_eq!(stores.len(), 2, "{stores:?}");
    let (second, first) =
        values.iter().find(|(_, value)| value.state() == PeerState::Tunnel).expect("proven");
    assert!(u64::from(first.bypass_until()) >= second + 5, "{first:?} at {second}");
    assert_eq!(values.last().expect("some").1.bypass_until(), 0);
}

/// What may pass is in the maps before the first program looks at a packet, and on disk before it is in the maps.
#[test]
fn switching_on_cuts_nobody_off() {
    let (bench, _node) = halfway();
    let tried = bench.tried();
    let opened = tried.iter().position(
        |action| matches!(action, Action::SetPeer(_, value) if value.state() == PeerState::Adopting),
    );
    let attached = tried.iter().position(|action| matches!(action, Action::Attach(_)));
    assert!(opened.expect("opened") < attached.expect("attached"), "{tried:#?}");
}

#[test]
fn where_the_record_should_be_is_something_else() {
    let mut bench = Bench::new(3);
    bench.adopts_until(DEADLINE);
    bench.kernel.with(FakeKernel::nobody_answers);
    // A folder where the file should be.
    fs::create_dir(bench.dir.path().join("adoption.json")).expect("made");
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(state(&bench, 3), PeerState::NoTunnel);
    assert!(node.last.problems.iter().any(|p| p.kind == ProblemKind::State), "{:?}", node.last.problems);
}

#[test]
fn closed_is_closed_whatever_becomes_of_the_tunnel() {
    let (mut bench, mut node) = halfway();
    // The second node comes back with another key, and does not answer any more.
    let key = PrivateKey::generate().expect("randomness");
    let json = super::bench::announce(2, &key, 51871);
    bench.says(2, Some(json));
    bench.settle(&mut node);
    assert_eq!((state(&bench, 2), state(&bench, 3)), (PeerState::NoTunnel, PeerState::Adopting));
    // … nor after a restart, nor where either record is lost.
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    assert_eq!((state(&bench, 2), state(&bench, 3)), (PeerState::NoTunnel, PeerState::Adopting));
    fs::remove_file(bench.dir.path().join("adoption.json")).expect("removed");
    let mut again = bench.restart(again);
    bench.settle(&mut again);
    assert_eq!((state(&bench, 2), state(&bench, 3)), (PeerState::NoTunnel, PeerState::Adopting));
    // A record that can't be read closes all.
    fs::write(bench.dir.path().join("adoption.json"), "{").expect("written");
    let mut again = bench.restart(again);
    bench.settle(&mut again);
    assert_eq!((state(&bench, 2), state(&bench, 3)), (PeerState::NoTunnel, PeerState::NoTunnel));
}

#[test]
fn the_deadline_closes_what_is_left_and_a_clock_set_back_opens_nothing() {
    let (mut bench, mut node) = halfway();
    pass_at(&mut bench, &mut node, 999);
    assert_eq!(state(&bench, 3), PeerState::Adopting);
    pass_at(&mut bench, &mut node, 1_000);
    assert_eq!(state(&bench, 3), PeerState::NoTunnel);
    let mut again = bench.restart(node);
    pass_at(&mut bench, &mut again, 5);
    pass_at(&mut bench, &mut again, 6);
    assert_eq!(state(&bench, 3), PeerState::NoTunnel);
    assert!(again.adoption().expect("told").over);
}

/// The look after the deadline is not left to chance.
#[test]
fn it_looks_again_at_the_deadline() {
    let (mut bench, mut node) = halfway();
    // Long enough for the tunnels to be given up.
    bench.seconds = 500;
    pass_at(&mut bench, &mut node, 500);
    bench.seconds += 1;
    let wait =
        node.pass(Now { monotonic: Duration::from_secs(bench.seconds), epoch: Duration::from_secs(995) });
    assert!(wait <= Duration::from_secs(6), "{wait:?}");
}

#[test]
fn who_joins_later_starts_closed() {
    let (mut bench, mut node) = halfway();
    let key = PrivateKey::generate().expect("randomness");
    bench.join(4, key);
    bench.kernel.with(FakeKernel::nobody_answers);
    bench.settle(&mut node);
    assert_eq!((state(&bench, 3), state(&bench, 4)), (PeerState::Adopting, PeerState::NoTunnel));
}

#[test]
fn without_adoption_it_is_closed_from_the_first_attach() {
    let mut bench = Bench::new(3);
    bench.kernel.with(FakeKernel::nobody_answers);
    let mut node = bench.start();
    bench.settle(&mut node);
    bench.adopts_until(DEADLINE);
    bench.settle(&mut node);
    let opens =
        |action: &Action| matches!(action, Action::SetPeer(_, value) if value.state() == PeerState::Adopting);
    assert!(!bench.tried().iter().any(opens));
    assert_eq!((state(&bench, 2), state(&bench, 3)), (PeerState::NoTunnel, PeerState::NoTunnel));
}

/// Where nothing is known of the mesh any more, what was open stays so until the programs themselves close it.
#[test]
fn not_knowing_closes_nobody() {
    let (mut bench, node) = halfway();
    fs::remove_file(bench.dir.path().join("known.json")).expect("removed");
    bench.world.change(|said| {
        said.whole = false;
        said.snapshot = Default::default();
    });
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    let peers = bench.truth().datapath.expect("loaded").peers;
    assert!(peers.values().any(|value| value.state() == PeerState::Adopting), "{peers:?}");
}

/// Who joins while it is not known whose addresses are whose makes no difference, though a pair with it would be closed from the start: only one that was
/// closed does.
#[test]
fn who_joins_changes_nothing_for_a_node_of_unreadable_addresses() {
    let mut bench = Bench::new(3);
    let misled = |bench: &Bench, is_so: bool| {
        let strangers = is_so.then(|| "Pod a/b has the address 10.9.0.1".to_owned());
        bench.world.change(|said| said.snapshot.strangers = strangers.into_iter().collect());
    };
    let is_so = |bench: &Bench| {
        let truth = bench.truth();
        let peers = truth.tunnels.values().map(|tunnel| tunnel.peers.len()).sum::<usize>();
        (Mode::from_raw(truth.datapath.expect("a datapath").config.mode), peers)
    };
    bench.adopts_until(1_000_000);
    bench.kernel.with(FakeKernel::nobody_answers);
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(is_so(&bench), (Mode::Require, 2));
    misled(&bench, true);
    bench.settle(&mut node);
    bench.join(4, PrivateKey::generate().expect("randomness"));
    bench.settle(&mut node);
    assert_eq!(is_so(&bench), (Mode::Observe, 2));
    // One pair closes.
    misled(&bench, false);
    let key = bench.keys[0].public();
    bench.kernel.with(|k| k.answer(key));
    bench.settle(&mut node);
    misled(&bench, true);
    bench.settle(&mut node);
    assert_eq!(is_so(&bench).0, Mode::Require);
}

/// A node that has just joined waits for a minute to be told of all before it goes by less.
#[test]
fn what_is_never_told_in_full_is_gone_by_in_the_end() {
    let mut bench = Bench::new(3);
    bench.adopts_until(1_000_000);
    bench.world.change(|said| said.whole = false);
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 0);
    bench.seconds += 61;
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 2);
}

/// While a pod has an address that is not its node's, nothing is steered and no pair closes; once all have, they do. A pair that is
/// closed stays closed.
#[test]
fn by_wrong_prefixes_nothing_is_steered() {
    let mut bench = Bench::new(3);
    let misled = |bench: &Bench, is_so: bool| {
        let strangers = is_so.then(|| "Pod a/b has the address 10.9.0.1".to_owned());
        bench.world.change(|said| said.snapshot.strangers = strangers.into_iter().collect());
    };
    let mode = |bench: &Bench| {
        Mode::from_raw(bench.truth().datapath.and_then(|d| d.written()).expect("written").mode)
    };
    let peers = |bench: &Bench| bench.truth().tunnels.values().map(|t| t.peers.len()).sum::<usize>();
    bench.adopts_until(1_000_000);
    misled(&bench, true);
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!((bench.tunnelled(), node.pairs.adopting.open.len()), (0, 2));
    // Nobody can say whose a packet is, so none is dropped; and no far end takes its pair for proven.
    assert_eq!((mode(&bench), peers(&bench)), (Mode::Observe, 0));
    // Nor does a daemon that begins anew drop any, before it has been told of all pods.
    bench.world.change(|said| said.whole = false);
    misled(&bench, false);
    let mut node = bench.restart(node);
    bench.settle(&mut node);
    assert_eq!((mode(&bench), peers(&bench), node.pairs.adopting.open.len()), (Mode::Observe, 0, 2));
    bench.world.change(|said| said.whole = true);
    misled(&bench, true);
    bench.settle(&mut node);
    assert_eq!((mode(&bench), peers(&bench)), (Mode::Observe, 0));
    assert!(node.last.problems.iter().any(|p| p.to_string().contains("Pod a/b has the address 10.9.0.1")));
    assert!(status::waiting_for(&node).iter().any(|what| what.contains("PodAddressesUnknown")));
    // Whom a policy asks it of may not pass, so what is proven is used.
    let required = super::policies::policy("p", "payments", PolicyMode::Require, None);
    bench.world.change(|said| said.snapshot.policies = Policies::new([required].into()));
    bench.settle(&mut node);
    assert_eq!((bench.tunnelled(), node.pairs.adopting.open.len()), (2, 2));
    assert_eq!(mode(&bench), Mode::Require);
    bench.world.change(|said| said.snapshot.policies = Policies::default());
    bench.settle(&mut node);
    assert_eq!((bench.tunnelled(), mode(&bench)), (0, Mode::Observe));
    misled(&bench, false);
    bench.settle(&mut node);
    assert_eq!((bench.tunnelled(), node.pairs.adopting.open.len()), (2, 0));
    assert!(status::waiting_for(&node).is_empty());
    assert_eq!(mode(&bench), Mode::Require);
    misled(&bench, true);
    bench.settle(&mut node);
    assert_eq!((bench.tunnelled(), node.pairs.adopting.open.len()), (2, 0));
    assert_eq!(mode(&bench), Mode::Require, "what is closed stays closed");
}
