//! Nodes that can have no agent.

use std::sync::Arc;

use kubeveil_api::mesh::{ExcludedNodes, ExcludedTraffic, Mode};

use super::*;
use crate::adoption;

/// `b` is a node of Windows, `c` one like this.
fn world(traffic: ExcludedTraffic, mode: Mode) -> World {
    let windows = NodeFacts { labels: [("os".to_owned(), "windows".to_owned())].into(), ..node(2) };
    let mut known = snapshot(&[("b", windows), ("c", node(3)), ("me", node(1))]);
    let selector = "os=windows".parse().expect("a selector");
    known.mesh = Some(MeshSpec { excluded_nodes: Some(ExcludedNodes { selector, traffic }), mode, ..mesh() });
    World::of(known, &mesh(), &Owners::new())
}

/// How packets to `b`, and to `c`, travel.
fn ways(world: &World) -> [Option<PeerValue>; 2] {
    let desired = desired(&world.inputs());
    ["10.244.2.0/24", "10.244.3.0/24"]
        .map(|pods| desired.values.get(&desired.prefixes[&net(pods)].peer).copied())
}

const PLAIN: Option<PeerValue> = Some(PeerValue::bypass(2 * 3600));

#[test]
fn their_packets_pass_only_where_the_mesh_says_so() {
    assert_eq!(ways(&world(ExcludedTraffic::Plain, Mode::Require)), [PLAIN, None]);
    assert_eq!(ways(&world(ExcludedTraffic::Plain, Mode::Prefer)), [PLAIN, None]);
    assert_eq!(ways(&world(ExcludedTraffic::Drop, Mode::Require)), [None, None]);
    // Nothing is steered.
    assert_eq!(ways(&world(ExcludedTraffic::Plain, Mode::Observe)), [None, None]);
}

#[test]
fn who_announces_something_has_an_agent() {
    let mut world = world(ExcludedTraffic::Plain, Mode::Require);
    let mut known = world.knowledge.snapshot().clone();
    Arc::make_mut(known.nodes.get_mut("b").expect("b")).announcement = Some("anything".to_owned());
    world.knowledge = Knowledge::Whole(known.attest_whole());
    assert_eq!(ways(&world), [None, None]);
}

#[test]
fn hearsay_lets_nobody_pass_who_was_held() {
    let mut world = world(ExcludedTraffic::Plain, Mode::Require);
    world.told = Told::default();
    assert_eq!(ways(&world), [None, None]);
    // What stands stays.
    let index = desired(&world.inputs()).prefixes[&net("10.244.2.0/24")].peer;
    let peers = PLAIN.map(|value| (index, value)).into_iter().collect();
    let prefixes = desired(&world.inputs()).prefixes;
    world.observed.datapath = Some(Datapath { peers, prefixes, ..Datapath::default() });
    assert_eq!(ways(&world), [PLAIN, None]);
}

#[test]
fn adoption_does_not_wait_for_them() {
    let world = world(ExcludedTraffic::Drop, Mode::Require);
    let (knowledge, assignment) = (&world.knowledge, &world.assignment);
    let datapath = Datapath::default();
    let seen = adoption::Seen::of("me", knowledge, assignment, &datapath, BTreeSet::new(), Duration::ZERO);
    assert_eq!(seen.others.keys().collect::<Vec<_>>(), ["c"]);
}
