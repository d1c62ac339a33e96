//! Schedules that are laid down by hand, since chance does not come to them.

use std::time::Duration;

use crate::{
    Failure,
    chaos::Deed,
    rules::Rules,
    wire::{Faults, Kind},
    world::{Event, World},
};

/// A daemon that has listed the nodes but not the mesh adds a node that is new, ends, and starts again while nobody answers: what it has
/// on disk is from before, and the new node is not in it.
fn starts_with_what_is_older(rules: Rules) -> Option<Failure> {
    let mut world = World::new(1, rules, false);
    world.api.change_mesh(|_| {});
    world.install(0);
    world.install(1);
    world.after(Duration::ZERO, Event::Traffic);
    world.run(Duration::from_secs(20), |_| false);
    world.kill(0);
    world.install(2);
    world.run(Duration::from_secs(25), |_| false);
    let has = |world: &World| {
        let store = world.machines[0].daemon.as_ref().map(|daemon| &daemon.store);
        store.map(|store| (store.nodes.len() == 3, store.mesh.is_some()))
    };
    while has(&world) != Some((true, false)) {
        world.kill(0);
        world.start(0);
        let end = world.now + Duration::from_millis(500);
        world.run(end, |world| has(world).is_some_and(|(nodes, mesh)| nodes || mesh));
    }
    world.machines[0].cut_until = world.now + Duration::from_secs(60);
    let end = world.now + Duration::from_secs(30);
    world.run(end, |world| world.ledger.pair(0, 2).0 && world.ledger.pair(2, 0).0);
    assert!(world.failure.is_some() || world.now < end, "the new node is spoken to");
    world.kill(0);
    world.start(0);
    let end = world.now + Duration::from_secs(20);
    world.run(end, |_| false);
    world.failure
}

/// It holds by our rules, and a broken one breaks this of them.
fn finds_out(play: fn(Rules) -> Option<Failure>, broken: Rules, invariant: &'static str) {
    assert_eq!(play(Rules::Ours), None);
    assert_eq!(play(broken).map(|failure| failure.invariant), Some(invariant));
}

#[test]
fn what_is_on_disk_removes_nobody() {
    finds_out(starts_with_what_is_older, Rules::RemovesBeforeSync, "no packet is lost");
}

/// The disk takes nothing while the mesh comes to require encryption; the daemon ends, and starts again while nobody answers.
fn starts_with_what_is_looser(rules: Rules) -> Option<Failure> {
    let mut world = World::new(1, rules, false);
    world.api.change_mesh(|mesh| mesh.prefers = true);
    world.install(0);
    world.install(1);
    let long = Duration::from_secs(600);
    // It hears nothing, so it has no key to tell of.
    world.machines[1].cut_until = long;
    world.after(Duration::ZERO, Event::Traffic);
    world.run(Duration::from_secs(20), |_| false);
    world.machines[0].full_until = long;
    world.change_mesh(|mesh| mesh.prefers = false);
    world.run(Duration::from_secs(40), |_| false);
    assert!(world.failure.is_none(), "{:?}", world.failure);
    assert!(world.machines[0].held.is_held(), "encryption is required");
    world.kill(0);
    world.machines[0].cut_until = long;
    world.start(0);
    world.run(Duration::from_secs(120), |_| false);
    world.failure
}

#[test]
fn what_is_on_disk_loosens_nothing() {
    let invariant = "what policy wants encrypted is never plain";
    finds_out(starts_with_what_is_looser, Rules::LoosensByTheDisk, invariant);
}

/// Of a pair, one has its answer, and what it says then gets lost: one in `lost` of WireGuard's own first packets under new keys does. So the
/// other does not know, and its own first messages are refused since its clock was set back (WireGuard takes them for old ones). What is left undone
/// in the end, where the two have nothing to tell each other, or have.
fn rotates_with_a_clock_set_back(is_silent: bool, lost: u32) -> Option<String> {
    let mut world = World::new(1, Rules::Ours, false);
    world.has_silent = true;
    world.api.change_mesh(|_| {});
    (0..3).for_each(|place| world.install(place));
    world.after(Duration::ZERO, Event::Traffic);
    world.run(Duration::from_secs(20), |_| false);
    // Both speak, and neither is answered.
    world.faults.lost[Kind::Reply as usize] = 1;
    world.deed(Deed::Raise(1, 0));
    world.run(Duration::from_secs(35), |_| false);
    world.deed(Deed::Clock(1, false));
    world.faults.lost[Kind::Reply as usize] = 0;
    world.faults.lost[Kind::Confirm as usize] = lost;
    world.has_silent = true;
    world.run(Duration::from_secs(60), |_| false);
    world.faults = Faults::default();
    world.has_silent = is_silent;
    world.run(Duration::from_secs(180), |_| false);
    assert_eq!(world.failure, None);
    world.unfinished()
}

/// Who is proven speaks again for the sake of the other, whose list names him.
#[test]
fn a_lost_word_is_said_again() {
    assert_eq!(rotates_with_a_clock_set_back(false, 1), None);
    assert_eq!(rotates_with_a_clock_set_back(true, 0), None);
    assert_eq!(rotates_with_a_clock_set_back(true, 1), None);
}
