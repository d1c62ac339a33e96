//! Schedules that are laid down by hand, since chance does not come to them.

use std::time::Duration;

use crate::{
    Failure,
    rules::Rules,
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

#[test]
fn what_is_on_disk_removes_nobody() {
    assert_eq!(starts_with_what_is_older(Rules::Ours), None);
    let failure = starts_with_what_is_older(Rules::RemovesBeforeSync);
    assert_eq!(failure.map(|failure| failure.invariant), Some("no packet is lost"));
}
