//! When a node that does not have the first word takes the second one.

use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_keys::PrivateKey;

use super::*;
use crate::{
    observed::{Peer, TunnelDevice},
    tunnels::PROVING_KEEPALIVE,
};

/// Of the newer generation.
const DEVICE: &str = "kubeveil1";

/// Those of which the second is the lower one, so that its node has the first word.
fn keys() -> [PrivateKey; 2] {
    let mut keys = [1, 2].map(|n| PrivateKey::copied_from(&[n; 32]));
    keys.sort_by_key(|key| std::cmp::Reverse(key.public()));
    keys
}

/// What `b` says, with these generations, of whom it does not send to by the newest.
fn said(generations: &[u32], not_flipped: NotFlipped) -> String {
    let key = &keys()[1];
    let old = PrivateKey::copied_from(&[9; 32]);
    let of = |generation: u32| if Some(&generation) == generations.last() { key } else { &old };
    let entry = |generation: &u32| GenerationEntry {
        generation: Generation::new(*generation),
        public_key: of(*generation).public(),
        port: Generation::new(*generation).port(BASE_PORT).expect("a port").try_into().expect("not 0"),
        state: GenerationState::Active,
    };
    let signers: Vec<&PrivateKey> = generations.iter().map(|generation| of(*generation)).collect();
    let entries = generations.iter().map(entry).collect();
    Announcement::sign("b", "uid-2", entries, not_flipped, &signers).expect("signed").to_json()
}

/// What this node's newer device wants of `b`, so long after it was added, and has answered or not.
fn keepalive(generations: &[u32], not_flipped: NotFlipped, has_answered: bool, after: u64) -> u16 {
    let b = NodeFacts { announcement: Some(said(generations, not_flipped)), ..node(2) };
    let [own, peer] = keys().map(|key| key.public());
    let old = PrivateKey::copied_from(&[8; 32]).public();
    let last_handshake = has_answered.then_some(Duration::from_secs(100));
    let peers = [(peer, Peer { last_handshake, ..Peer::default() })].into();
    let device = TunnelDevice { peers, ..TunnelDevice::default() };
    let mut world = World {
        keys: vec![(Generation::FIRST, old), (Generation::new(1), own)],
        observed: Observed { tunnels: [(DEVICE.to_owned(), device)].into(), ..Observed::default() },
        now: Duration::from_secs(100 + after),
        ..World::of(snapshot(&[("me", node(1)), ("b", b)]), &mesh(), &Owners::new())
    };
    world.announced.update(&world.knowledge.snapshot().nodes);
    world.tunnels.observe(&world.observed, Duration::from_secs(100), Duration::from_secs(100));
    desired(&world.inputs()).tunnels[DEVICE].peers[&peer].keepalive
}

/// Who says that it still sends to us by an older generation can wait for its first word to be repeated. Who has moved, as before a boot of
/// ours, or never had an older one, waits for us.
#[test]
fn there_is_time_only_where_the_peer_sends_by_an_older_one() {
    let names = |name: &str| NotFlipped::of([name.to_owned()]);
    for (generations, not_flipped, word) in [
        (&[0, 1][..], names("me"), 7),
        (&[0, 1], NotFlipped::Many, 7),
        (&[0, 1], names("c"), 3),
        (&[0, 1], NotFlipped::nobody(), 3),
        (&[1], NotFlipped::nobody(), 3),
    ] {
        let at = |after| keepalive(generations, not_flipped.clone(), false, after);
        assert_eq!((at(word - 1), at(word)), (0, PROVING_KEEPALIVE), "{generations:?} {not_flipped:?}");
    }
}

/// Who has answered, and still lists us by name, has not heard what was said then.
#[test]
fn who_is_awaited_speaks_again() {
    let names = |name: &str| NotFlipped::of([name.to_owned()]);
    for (generations, not_flipped, speaks) in [
        (&[0, 1][..], names("me"), true),
        (&[0, 1], NotFlipped::Many, false),
        (&[0, 1], names("c"), false),
        (&[0, 1], NotFlipped::nobody(), false),
        (&[1], names("me"), false),
    ] {
        let at = |after| keepalive(generations, not_flipped.clone(), true, after);
        let then = if speaks { PROVING_KEEPALIVE } else { 0 };
        assert_eq!((at(29), at(30)), (0, then), "{generations:?} {not_flipped:?}");
    }
}
