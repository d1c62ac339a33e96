//! Two nodes speak in plain for a while, and not a second longer.

use std::{fs, time::Duration};

use jiff::Timestamp;
use kubeveil_abi::{BYPASS_GRACE, PeerState, PeerValue, PrefixKind};
use kubeveil_api::{bypass::Bypass, mesh::Mode, status::Way};
use kubeveil_core::{action::Action, bypass::LEAD, problem::ProblemKind};
use kubeveil_linux::fake::FakeKernel;

use super::bench::{Bench, Shared, announce_keys};
use crate::{
    node::{Node, Now},
    status,
};

/// Between this node and another, from now on for so long.
fn bypasses(bench: &Bench, n: u8, seconds: u64) {
    let time = |second: u64| Timestamp::from_second(i64::try_from(second).expect("small")).expect("time");
    let bypass = Bypass {
        nodes: [format!("node-{n}"), "node-1".to_owned()],
        at: time(bench.seconds),
        until: time(bench.seconds + seconds),
        by: "alice".to_owned(),
        reason: "INC-1".to_owned(),
    };
    bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").bypasses.push(bypass));
}

/// The value for the packets of node `n`.
fn value(bench: &Bench, n: u8) -> PeerValue {
    let datapath = bench.truth().datapath.expect("loaded");
    let prefix = datapath.prefixes[&format!("10.244.{n}.0/24").parse().expect("net")];
    assert_eq!(prefix.kind, PrefixKind::RemotePods);
    datapath.peers.get(&prefix.peer).copied().unwrap_or(PeerValue::NO_TUNNEL)
}

/// As the loop would, second by second.
fn until(bench: &mut Bench, node: &mut Node<Shared>, second: u64) {
    while bench.seconds < second {
        bench.seconds += 1;
        let now = bench.now();
        node.tick(now);
    }
}

fn told(bench: &Bench, node: &mut Node<Shared>) -> kubeveil_api::status::Status {
    status::view(node, bench.now()).status
}

#[test]
fn it_begins_a_moment_after_the_other_is_heard_and_ends_by_the_second() {
    let (mut bench, mut node) = Bench::settled(3);
    let tunnel = value(&bench, 2);
    assert_eq!(tunnel.state(), PeerState::Tunnel);
    bench.tried();
    let began = bench.seconds;
    bypasses(&bench, 2, 60);
    bench.seconds += 1;
    let now = bench.now();
    node.hear(now);
    let end = u32::try_from(began).expect("small") + 60;
    assert_eq!(value(&bench, 2), tunnel.bypass_heard(end + BYPASS_GRACE));
    let peer = told(&bench, &mut node).peers.remove(0);
    assert_eq!((peer.way, peer.tunnelled), (Way::Tunnel, true));
    until(&mut bench, &mut node, began + 1 + u64::from(LEAD));
    assert_eq!(value(&bench, 2), tunnel.bypassed(end));
    let status = told(&bench, &mut node);
    assert_eq!((status.peers[0].way, status.peers[0].proven), (Way::Plain, true));
    assert_eq!(
        status.peers[0].reason.as_deref(),
        Some(&*format!("bypassed until {} by alice: INC-1", status.bypasses[0].until))
    );
    assert_eq!((status.bypasses.len(), status.bypasses[0].ends_in), (1, 60 - 1 - u64::from(LEAD)));
    // What people are told does not change from second to second.
    let reported = bench.world.said().reported.expect("told");
    assert_eq!((reported.encrypted, reported.not_encrypted[0].node.as_str()), (1, "node-2"));
    until(&mut bench, &mut node, began + 50);
    let not_encrypted = bench.world.said().reported.map(|reported| reported.not_encrypted);
    assert_eq!(not_encrypted, Some(reported.not_encrypted));
    // Nobody else is concerned.
    assert_eq!(value(&bench, 3).state(), PeerState::Tunnel);
    until(&mut bench, &mut node, began + 60);
    assert_eq!(told(&bench, &mut node).peers[0].way, Way::Tunnel, "the program has ended it");
    assert!(told(&bench, &mut node).bypasses.is_empty());
    until(&mut bench, &mut node, began + 60 + u64::from(BYPASS_GRACE));
    assert_eq!(value(&bench, 2), tunnel);
    let stores: Vec<_> = bench.tried();
    let is_store = |action: &Action| matches!(action, Action::SetPeer(..));
    assert!(stores.len() == 3 && stores.iter().all(is_store), "{stores:?}");
    assert_eq!(bench.settle(&mut node), 0);
}

/// Though nobody answers there is a way, and none when it is over.
#[test]
fn over_no_tunnel_it_opens_at_once_and_closes() {
    let mut bench = Bench::new(2);
    bench.kernel.with(FakeKernel::nobody_answers);
    let mut node = bench.start();
    bench.settle(&mut node);
    let began = bench.seconds;
    bypasses(&bench, 2, 60);
    bench.seconds += 1;
    let now = bench.now();
    node.hear(now);
    let end = u32::try_from(began).expect("small") + 60;
    assert_eq!(value(&bench, 2), PeerValue::bypass(end));
    assert_eq!(told(&bench, &mut node).peers[0].way, Way::Plain);
    // A tunnel that is proven meanwhile carries on afterwards, and what requires it from now on.
    let key = bench.keys[0].public();
    bench.kernel.with(|k| k.answer(key));
    until(&mut bench, &mut node, began + 30);
    assert_eq!(value(&bench, 2), PeerValue::tunnel(0, 0).bypassed(end));
    bench.kernel.with(FakeKernel::nobody_answers);
    until(&mut bench, &mut node, began + 80);
    assert_eq!(value(&bench, 2), PeerValue::tunnel(0, 0));
}

/// The clock is set back, and the daemon starts again, once with nothing of what it kept.
#[test]
fn no_restart_and_no_clock_makes_it_longer() {
    for forgets in [false, true] {
        let (mut bench, mut node) = Bench::settled(2);
        let began = bench.seconds;
        bypasses(&bench, 2, 60);
        until(&mut bench, &mut node, began + 20);
        node.pass(bench.now());
        until(&mut bench, &mut node, began + 30);
        let before = value(&bench, 2);
        assert_eq!(before.state(), PeerState::BypassedTunnel);
        if forgets {
            fs::remove_file(bench.dir.path().join("bypasses.json")).expect("kept");
        }
        let mut node = bench.restart(node);
        bench.tried();
        for second in 31..=60 {
            let epoch = Duration::from_secs(began);
            node.pass(Now { monotonic: Duration::from_secs(began + second), epoch });
            assert_eq!(value(&bench, 2), before, "{second}");
        }
        let touches = |action: &Action| matches!(action, Action::SetPeer(..));
        assert!(!bench.tried().iter().any(touches), "nothing is stored that stands");
        // Another daemon, after the end, with the clock as it was.
        for second in [65, 71, 72, 73, 80] {
            let epoch = Duration::from_secs(began);
            node.pass(Now { monotonic: Duration::from_secs(began + second), epoch });
        }
        let mut node = bench.restart(node);
        for second in 81..90 {
            let epoch = Duration::from_secs(began);
            node.pass(Now { monotonic: Duration::from_secs(began + second), epoch });
        }
        assert_eq!(value(&bench, 2).state(), PeerState::Tunnel);
    }
}

/// Keys are renewed beneath it: afterwards packets go by the new device.
#[test]
fn keys_are_renewed_beneath_it() {
    let (mut bench, mut node) = Bench::settled(2);
    let began = bench.seconds;
    bypasses(&bench, 2, 200);
    until(&mut bench, &mut node, began + 20);
    node.pass(bench.now());
    until(&mut bench, &mut node, began + 30);
    bench.wants(1);
    let new = kubeveil_keys::PrivateKey::generate().expect("randomness");
    bench.kernel.with(|k| k.answer(new.public()));
    let said =
        announce_keys(2, &[(0, &bench.keys[0]), (1, &new)], kubeveil_api::announcement::NotFlipped::nobody());
    bench.says(2, Some(said));
    bench.settle(&mut node);
    let end = u32::try_from(began).expect("small") + 200;
    assert_eq!(value(&bench, 2), PeerValue::tunnel(1, 1).bypassed(end));
}

#[test]
fn a_mesh_that_observes_has_nothing_to_bypass() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").mode = Mode::Observe);
    bypasses(&bench, 2, 600);
    bench.settle(&mut node);
    assert_eq!(value(&bench, 2).state(), PeerState::Tunnel);
    assert!(told(&bench, &mut node).bypasses.is_empty());
    bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").mode = Mode::Require);
    bench.settle(&mut node);
    assert_eq!(value(&bench, 2).state(), PeerState::BypassedTunnel);
}

/// A pair that is open stays as it is, with its own end.
#[test]
fn adoption_goes_on_beneath_it() {
    let mut bench = Bench::new(2);
    bench.adopts_until(1_000);
    bench.kernel.with(FakeKernel::nobody_answers);
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(value(&bench, 2).state(), PeerState::Adopting);
    bypasses(&bench, 2, 600);
    bench.settle(&mut node);
    assert_eq!(value(&bench, 2).state(), PeerState::Adopting);
    let key = bench.keys[0].public();
    bench.kernel.with(|k| k.answer(key));
    bench.settle(&mut node);
    assert_eq!(value(&bench, 2).state(), PeerState::BypassedTunnel);
    assert!(node.adoption().expect("told").over, "its tunnel is proven");
}

/// It opens nothing while the clock is behind, says so, and begins when it is right.
#[test]
fn a_clock_that_is_behind_is_told_of() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.seconds += 200;
    let began = bench.seconds;
    bypasses(&bench, 2, 600);
    for second in 1..30 {
        node.pass(Now { monotonic: Duration::from_secs(began + second), epoch: Duration::from_secs(second) });
    }
    assert_eq!(value(&bench, 2).state(), PeerState::Tunnel);
    let is_told = |node: &Node<Shared>| node.problems().iter().any(|p| p.message.contains("earlier time"));
    assert!(is_told(&node), "{:?}", node.problems());
    bench.seconds += 30;
    let due = bench.seconds + 20;
    until(&mut bench, &mut node, due);
    let end = u32::try_from(began).expect("small") + 600;
    assert_eq!((value(&bench, 2).state(), value(&bench, 2).bypass_until()), (PeerState::BypassedTunnel, end));
    assert!(!is_told(&node));
}

/// Whoever may write the mesh does not move the cursor of who reads a status or a VeilNode.
#[test]
fn no_control_character_is_told() {
    let (mut bench, mut node) = Bench::settled(2);
    bypasses(&bench, 2, 600);
    bench.world.change(|said| {
        let bypass = &mut said.snapshot.mesh.as_mut().expect("mesh").bypasses[0];
        (bypass.by, bypass.reason) = ("\u{9b}eve\r".to_owned(), "a\u{1b}[2J\nb".to_owned());
    });
    bench.settle(&mut node);
    let status = told(&bench, &mut node);
    let reported = bench.world.said().reported.expect("told");
    for text in [
        format!("{} {}", status.bypasses[0].by, status.bypasses[0].reason),
        status.peers[0].reason.clone().expect("why"),
        reported.not_encrypted[0].reason.clone(),
    ] {
        assert!(text.contains("\u{fffd}eve\u{fffd}") && text.contains("a\u{fffd}[2J\u{fffd}b"), "{text:?}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

/// What opens is on disk first.
#[test]
fn what_can_not_be_kept_does_not_begin() {
    let (mut bench, mut node) = Bench::settled(2);
    let file = bench.dir.path().join("bypasses.json");
    fs::create_dir(&file).expect("in the way");
    bypasses(&bench, 2, 600);
    for _ in 0..10 {
        bench.seconds += 1;
        let now = bench.now();
        node.pass(now);
    }
    assert_eq!(value(&bench, 2).state(), PeerState::Tunnel);
    let is_told = |kind| node.problems().iter().any(|p| p.kind == kind && p.object.contains("bypasses.json"));
    assert!(is_told(ProblemKind::State), "{:?}", node.problems());
    fs::remove_dir(&file).expect("away");
    bench.settle(&mut node);
    assert_eq!(value(&bench, 2).state(), PeerState::BypassedTunnel);
}

/// A daemon that has no key of its own as yet leaves the tunnel where it is.
#[test]
fn without_a_key_the_tunnel_beneath_stays() {
    let (mut bench, mut node) = Bench::settled(2);
    bypasses(&bench, 2, 600);
    bench.settle(&mut node);
    let before = value(&bench, 2);
    assert_eq!(before.state(), PeerState::BypassedTunnel);
    bench.world.change(|said| {
        said.whole = false;
        said.snapshot.nodes.remove("node-1");
    });
    fs::remove_file(bench.dir.path().join("known.json")).expect("kept");
    let mut node = bench.restart(node);
    for _ in 0..5 {
        bench.seconds += 1;
        let now = bench.now();
        node.pass(now);
        assert_eq!(value(&bench, 2), before);
    }
}
