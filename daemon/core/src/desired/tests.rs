mod asked;
mod excluded;
mod hostile;
mod leisure;
mod world;

pub(in crate::desired) use world::World;

use super::*;
use crate::{
    ownership::{Owners, assign},
    snapshot::{NodeFacts, Snapshot},
    testing::{mesh, net, node, snapshot},
};

const NOBODYS: Prefix = Prefix::new(PrefixKind::RemoteNode, 0);

/// Of the node `me`, in a cluster of these nodes that is known whole.
fn whole(nodes: &[(&str, NodeFacts)], recorded: &Owners) -> (Desired, Owners) {
    of(snapshot(nodes), recorded)
}

/// The same, of all that is known.
fn of(snapshot: Snapshot, recorded: &Owners) -> (Desired, Owners) {
    over(snapshot, recorded, &Observed::default())
}

/// The same, over a kernel that holds something.
fn over(snapshot: Snapshot, recorded: &Owners, observed: &Observed) -> (Desired, Owners) {
    over_at(snapshot, recorded, observed, Duration::ZERO, Duration::ZERO)
}

/// The same, at a time since boot and of the wall clock.
fn over_at(
    snapshot: Snapshot,
    recorded: &Owners,
    observed: &Observed,
    now: Duration,
    epoch: Duration,
) -> (Desired, Owners) {
    let observed = observed.clone();
    let world = World { observed, now, epoch, ..World::of(snapshot, &mesh(), recorded) };
    let desired = desired(&world.inputs());
    (desired, world.assignment.owners)
}

/// A node with the pods of the ninth and the addresses of another.
fn twin_of(n: u8) -> NodeFacts {
    NodeFacts { internal_ips: node(n).internal_ips, ..node(9) }
}

/// In the map, so that pods' packets to it are dropped; not there, they would pass for packets to somewhere
/// outside of the cluster.
#[test]
fn an_address_that_two_nodes_claim_is_in_the_map_without_a_peer() {
    let (desired, _) = whole(&[("b", node(2)), ("me", node(1)), ("twin", twin_of(2))], &Owners::new());
    for address in ["192.0.2.2/32", "2001:db8::2/128"] {
        assert_eq!(desired.prefixes.get(&net(address)), Some(&NOBODYS), "{address}");
    }
    // What nobody contests is theirs all the same, and nobody is peer 0.
    let peers = ["10.244.2.0/24", "10.244.9.0/24"].map(|pods| desired.prefixes[&net(pods)].peer);
    assert!(peers[0] != peers[1] && !peers.contains(&0), "{peers:?}");
}

#[test]
fn an_address_on_record_stays_with_its_node_whoever_claims_it() {
    for (owner, address) in [("b", "192.0.2.2/32"), ("me", "192.0.2.1/32")] {
        let (before, recorded) = whole(&[("b", node(2)), ("me", node(1))], &Owners::new());
        let twin = twin_of(if owner == "b" { 2 } else { 1 });
        for name in ["a", "twin"] {
            let (after, _) = whole(&[(name, twin.clone()), ("b", node(2)), ("me", node(1))], &recorded);
            let kind = after.prefixes[&net(address)].kind;
            assert_eq!(kind, before.prefixes[&net(address)].kind, "{address}, claimed by {name} too");
            // Peers may have other numbers; the address has its own node's.
            let pods = if owner == "b" { after.prefixes[&net("10.244.2.0/24")].peer } else { 0 };
            assert_eq!(after.prefixes[&net(address)].peer, pods, "{address}, claimed by {name} too");
        }
    }
}

/// It does not speak for itself where another's claim is as good.
#[test]
fn this_nodes_own_address_is_nobodys_too_where_another_claims_it() {
    let (desired, _) = whole(&[("me", node(1)), ("twin", twin_of(1))], &Owners::new());
    assert_eq!(desired.prefixes.get(&net("192.0.2.1/32")), Some(&NOBODYS));
    assert_eq!(desired.prefixes[&net("10.244.1.0/24")].kind, PrefixKind::LocalPods);
}

/// The disk has an older mesh, of a mode in which no pair is open; the record, and the map, have one that is.
#[test]
fn a_mode_that_is_hearsay_closes_no_pair() {
    let value = PeerValue::adopting(500);
    let of_b = |left: &[&str], told: bool| {
        let mut known = snapshot(&[("b", node(2)), ("me", node(1))]);
        known.mesh = Some(MeshSpec { mode: kubeveil_api::mesh::Mode::Prefer, ..mesh() });
        let mut world = World::of(known, &mesh(), &Owners::new());
        world.told = Told { mesh: told, all: told, kept: true, is_early: false };
        let prefixes = desired(&world.inputs()).prefixes;
        let index = prefixes[&net("10.244.2.0/24")].peer;
        world.observed.datapath =
            Some(Datapath { prefixes, peers: [(index, value)].into(), ..Datapath::default() });
        world.adopting.left = left.iter().map(|name| (*name).to_owned()).collect();
        desired(&world.inputs()).values.get(&index).copied()
    };
    assert_eq!(of_b(&["b"], false), Some(value));
    assert_eq!(of_b(&[], false), None, "the record has it closed");
    assert_eq!(of_b(&["b"], true), None, "it is no hearsay");
}
