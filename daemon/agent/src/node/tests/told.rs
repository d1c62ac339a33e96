//! What is told of a node is what is so.

use std::time::Duration;

use kubeveil_abi::{Direction, FlowMode, Reason};
use kubeveil_api::{
    mesh::Mode,
    status::{Status, Verdict, Way},
};
use kubeveil_linux::{Count, fake::FakeKernel};

use super::bench::{Bench, Shared};
use crate::{
    node::{Node, Now, Outcome, changes::changes},
    status::view,
};

fn status(node: &mut Node<Shared>) -> Status {
    let at = Duration::from_secs(30);
    view(node, Now { monotonic: at, epoch: at }).status
}

fn started(mode: Mode, prepare: impl FnOnce(&mut Bench, &mut Node<Shared>)) -> (Bench, Status) {
    let mut bench = Bench::new(3);
    bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").mode = mode);
    let mut node = bench.start();
    prepare(&mut bench, &mut node);
    bench.settle(&mut node);
    let status = status(&mut node);
    (bench, status)
}

fn told(status: &Status) -> Vec<(Way, bool, Option<&str>)> {
    status.peers.iter().map(|p| (p.way, p.tunnelled, p.reason.as_deref())).collect()
}

/// A node that guards no device lets everything pass.
#[test]
fn without_a_guarded_device_nobody_is_ready() {
    for mode in [Mode::Require, Mode::Prefer] {
        let (_bench, status) = started(mode, |bench, _| bench.kernel.with(|k| k.delete_link("eth0")));
        assert!(!status.ready, "{mode}");
        assert_eq!(status.waiting_for, ["an underlay device to guard"], "{mode}");
    }
}

#[test]
fn a_named_device_that_is_not_there_is_waited_for() {
    let (_bench, status) = started(Mode::Require, |_, node| node.underlay = vec!["eht0".to_owned()]);
    assert!(!status.ready);
    assert_eq!(status.waiting_for, ["device eht0 (--underlay)"]);
    let problem = status.problems.iter().find(|p| p.field == "--underlay").expect("a problem");
    assert!(problem.message.contains("there are: eth0"), "{problem}");
    // What has the node's own address is guarded all the same.
    assert!(status.programs.iter().any(|p| p.device == "eth0" && p.program == "steer" && p.attached));
}

#[test]
fn who_only_observes_encrypts_nothing_and_says_so() {
    let (bench, status) = started(Mode::Observe, |_, _| {});
    assert_eq!(bench.tunnelled(), 2, "as the map has it");
    assert_eq!(told(&status), [(Way::Plain, false, Some("the mode is observe")); 2]);
    assert!(status.peers.iter().all(|p| p.proven));
}

#[test]
fn a_peer_without_a_tunnel_says_what_becomes_of_packets_and_why() {
    for (mode, way) in [(Mode::Require, Way::Dropped), (Mode::Prefer, Way::Plain)] {
        let (_bench, status) = started(mode, |bench, _| {
            bench.kernel.with(FakeKernel::nobody_answers);
            bench.world.change(|said| {
                said.snapshot.node_mut("node-3").expect("node").announcement = None;
            });
        });
        let [silent, unannounced] = &status.peers[..] else { panic!("{:?}", status.peers) };
        assert_eq!((silent.way, unannounced.way), (way, way));
        assert_eq!(unannounced.reason.as_deref(), Some("no announcement"));
        let why = silent.reason.as_deref().unwrap_or_default();
        assert!(why.starts_with("no handshake yet, in ") && why.ends_with(" s"), "{why}");
    }
    let (_bench, status) = started(Mode::Require, |_, _| {});
    assert_eq!(told(&status), [(Way::Tunnel, true, None); 2]);
}

/// What a mode lets pass in plain is seen, by reason.
#[test]
fn what_passes_in_plain_is_told() {
    use FlowMode::{Insist, Observe, Prefer, Require};
    let count = |reason, mode| Count { direction: Direction::Egress, mode, reason, packets: 7, bytes: 70 };
    let counts = [
        count(Reason::Adopting, Prefer),
        count(Reason::Adopting, Require),
        count(Reason::Preferred, Prefer),
        count(Reason::NoTunnel, Observe),
        count(Reason::Tunnelled, Observe),
        count(Reason::Other, Observe),
        count(Reason::Tunnelled, Require),
        count(Reason::NoTunnel, Insist),
    ];
    let told: Vec<_> =
        crate::status::plain(&counts).into_iter().map(|p| (p.reason, p.verdict, p.packets)).collect();
    let expected = [
        ("plain_preferred".to_owned(), Verdict::Pass, 7),
        ("plain_adopting".to_owned(), Verdict::Pass, 14),
        ("tunnelled".to_owned(), Verdict::WouldTunnel, 7),
        ("no_tunnel".to_owned(), Verdict::WouldDrop, 7),
    ];
    assert_eq!(told, expected);
}

/// The folder is emptied between two lives: what is kept stands, and why it is not in sync is told.
#[test]
fn a_source_without_this_node_is_told() {
    let (mut bench, node) = Bench::settled(2);
    let mut again = bench.restart(node);
    bench.world.change(|said| said.snapshot.nodes.clear());
    bench.settle(&mut again);
    let told: Vec<_> = again.last.problems.iter().filter(|p| p.object == "Node node-1").collect();
    assert!(!again.last.synced);
    assert_eq!(told.len(), 1, "{:?}", again.last.problems);
    assert!(told[0].message.contains("does not have this very node"), "{}", told[0]);
    assert_eq!(bench.tunnelled(), 1, "what was known stands");
}

/// A log at info tells what came about, once.
#[test]
fn changes_are_told_once() {
    let (mut bench, mut node) = Bench::settled(3);
    let told = |before: &Outcome, now: &Outcome| changes(before, now).join("\n");
    let all = "attached to eth0: steer, guard\nattached to kubeveil0: deliver\ntunnel to node-2 up\ntunnel to node-3 up";
    assert_eq!(told(&Outcome::default(), &node.last), all);
    assert_eq!(told(&node.last, &node.last), "");
    let before = std::mem::take(&mut node.last);
    bench.world.change(|said| drop(said.snapshot.nodes.remove("node-3")));
    bench.settle(&mut node);
    assert_eq!(told(&before, &node.last), "tunnel to node-3 lost");
}
