//! Keys are rotated: what this node does when the mesh wants others, and what it waits for.

mod put_back;
mod restarts;
mod revocations;

use std::{collections::BTreeSet, time::Duration};

use kubeveil_api::{
    announcement::{Announcement, NotFlipped},
    policy::PolicyMode,
    selector::LabelSelector,
};
use kubeveil_core::{
    action::Action,
    policy::{Namespaces, Policies, Policy, PolicyId},
    tunnels::PROVING_KEEPALIVE,
};
use kubeveil_keys::PrivateKey;

use super::bench::{Bench, Shared, announce_keys};
use crate::node::{Node, Now};

const DEVICES: [&str; 2] = ["kubeveil0", "kubeveil1"];

fn key() -> PrivateKey {
    PrivateKey::generate().expect("randomness")
}

/// What this node says of itself.
fn said(bench: &Bench) -> Announcement {
    let said = bench.world.said();
    let json = said.snapshot.nodes["node-1"].announcement.clone().expect("announced");
    Announcement::parse_and_verify(&json, "node-1", "uid-1").expect("its own")
}

fn generations(bench: &Bench) -> Vec<u32> {
    said(bench).generations().iter().map(|entry| entry.generation.number()).collect()
}

fn devices(bench: &Bench) -> Vec<String> {
    bench.truth().tunnels.into_keys().collect()
}

/// The slots by which packets go to others.
fn slots(bench: &Bench) -> BTreeSet<u8> {
    bench.truth().datapath.expect("loaded").peers.values().map(|value| value.slot()).collect()
}

fn files(bench: &Bench) -> Vec<String> {
    let names = std::fs::read_dir(bench.dir.path().join("keys")).expect("listed");
    let mut names: Vec<_> =
        names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with(".key"));
    names.sort();
    names
}

/// Three nodes, of which the others have keys of the first two generations and answer by both.
struct Rotation {
    bench: Bench,
    node: Node<Shared>,
    fresh: Vec<PrivateKey>,
}

impl Rotation {
    fn begun() -> Self {
        let (bench, node) = Bench::settled(3);
        Self::begun_from(bench, node)
    }

    fn begun_from(mut bench: Bench, mut node: Node<Shared>) -> Self {
        let fresh = vec![key(), key()];
        bench.wants(1);
        bench.settle(&mut node);
        assert_eq!(generations(&bench), [0, 1], "its own is there before the others' are");
        for key in &fresh {
            bench.kernel.with(|k| k.answer(key.public()));
        }
        Self { bench, node, fresh }
    }

    /// Node `n` has both, and does not send to `not_flipped` by the newer.
    fn has_both(&self, n: u8, not_flipped: NotFlipped) {
        let at = usize::from(n) - 2;
        let keys = [(0, &self.bench.keys[at]), (1, &self.fresh[at])];
        self.bench.says(n, Some(announce_keys(n, &keys, not_flipped)));
    }

    fn has_newest(&self, n: u8) {
        self.bench
            .says(n, Some(announce_keys(n, &[(1, &self.fresh[usize::from(n) - 2])], NotFlipped::nobody())));
    }

    fn settle(&mut self) {
        self.bench.settle(&mut self.node);
    }
}

fn names(all: &[&str]) -> NotFlipped {
    NotFlipped::of(all.iter().map(|name| (*name).to_owned()))
}

#[test]
fn a_rotation_from_begin_to_end() {
    let mut it = Rotation::begun();
    // Nobody has another key yet: all goes on by the old one, and it says so.
    assert_eq!(slots(&it.bench), [0].into());
    assert_eq!(*said(&it.bench).not_flipped(), names(&["node-2", "node-3"]));
    assert_eq!(it.bench.settle(&mut it.node), 0, "what waits costs nothing");
    it.has_both(2, names(&["node-1", "node-3"]));
    it.settle();
    assert_eq!(slots(&it.bench), [0, 1].into(), "each pair by itself");
    assert_eq!(*said(&it.bench).not_flipped(), names(&["node-3"]));
    it.has_both(3, NotFlipped::nobody());
    it.settle();
    assert_eq!((slots(&it.bench), it.bench.tunnelled()), ([1].into(), 2));
    assert_eq!(*said(&it.bench).not_flipped(), NotFlipped::nobody());
    // The second still sends to it by the old one.
    assert_eq!(
        (generations(&it.bench), devices(&it.bench)),
        (vec![0, 1], DEVICES.map(str::to_owned).to_vec())
    );
    it.has_both(2, names(&["node-3"]));
    it.settle();
    assert_eq!((generations(&it.bench), devices(&it.bench)), (vec![1], vec![DEVICES[1].to_owned()]));
    assert_eq!(files(&it.bench), ["generation-1.key"]);
    assert_eq!(it.node.problems(), []);
    let rotations = &it.node.rotations;
    assert_eq!((rotations.done, rotations.forced), (1, 0));
    assert!(rotations.took > 1.0, "{rotations:?}");
    // The others give theirs up.
    it.has_newest(2);
    it.has_newest(3);
    assert_eq!(it.bench.settle(&mut it.node), 0);
    assert_eq!(it.bench.tunnelled(), 2);
    // Whoever lowers what is wanted brings no old key back.
    it.bench.wants(0);
    assert_eq!(it.bench.settle(&mut it.node), 0);
    assert_eq!((generations(&it.bench), it.bench.tunnelled()), (vec![1], 2));
}

/// One store for each peer, and nothing else for those that have moved already.
#[test]
fn moving_a_peer_is_one_store() {
    let mut it = Rotation::begun();
    it.has_both(2, names(&["node-1", "node-3"]));
    it.has_both(3, names(&["node-1", "node-2"]));
    it.bench.tried();
    it.settle();
    let stores = it.bench.tried().into_iter().filter(|action| matches!(action, Action::SetPeer(..)));
    assert_eq!(stores.count(), 2);
}

/// What still comes by the old generation keeps it, whatever the others say.
#[test]
fn what_is_still_received_by_is_not_given_up() {
    let mut it = Rotation::begun();
    it.has_both(2, NotFlipped::nobody());
    it.has_both(3, NotFlipped::nobody());
    let peer = it.bench.keys[0].public();
    for _ in 0..30 {
        it.bench.kernel.with(|k| {
            k.tamper(DEVICES[0], |device| device.change(&peer, |peer| peer.received += 100));
        });
        it.bench.seconds += 1;
        it.node.pass(it.bench.now());
    }
    assert_eq!(generations(&it.bench), [0, 1]);
    it.settle();
    assert_eq!(generations(&it.bench), [1]);
}

/// The writes of a whole rotation at so many nodes, of which the others give the old key up before this one does, or after: peers added,
/// ways changed, all else by name.
fn writes(nodes: u8, are_first: bool) -> (usize, usize, Vec<String>) {
    let (mut bench, mut node) = Bench::settled(nodes);
    let fresh: Vec<PrivateKey> = (2..=nodes).map(|_| key()).collect();
    let number = |at: usize| u8::try_from(at + 2).expect("a number");
    bench.tried();
    bench.wants(1);
    for (at, key) in fresh.iter().enumerate() {
        bench.kernel.with(|k| k.speak(key.public()));
        let keys = [(0, &bench.keys[at]), (1, key)];
        bench.says(number(at), Some(announce_keys(number(at), &keys, NotFlipped::nobody())));
    }
    for _ in 0..if are_first { 3 } else { 20 } {
        bench.seconds += 1;
        node.pass(bench.now());
    }
    assert_eq!(generations(&bench), if are_first { vec![0, 1] } else { vec![1] });
    for (at, key) in fresh.iter().enumerate() {
        bench.says(number(at), Some(announce_keys(number(at), &[(1, key)], NotFlipped::nobody())));
    }
    bench.settle(&mut node);
    assert_eq!((generations(&bench), bench.tunnelled()), (vec![1], usize::from(nodes) - 1));
    let (mut added, mut moved, mut rest) = (0, 0, Vec::new());
    for action in bench.tried() {
        match action {
            Action::AddPeer { .. } => added += 1,
            Action::SetPeer(..) => moved += 1,
            other => rest.push(format!("{other:?}").chars().take_while(char::is_ascii_alphabetic).collect()),
        }
    }
    (added, moved, rest)
}

/// One device more and one less; and each peer is added once, and its packets change their way once. So two writes a peer, whoever of the
/// two speaks first, and whoever gives the old key up first.
#[test]
fn a_rotation_adds_each_peer_once_and_changes_its_way_once() {
    let device = [
        "CreateTunnel",
        "PutDevice",
        "Attach",
        "ConfigureTunnel",
        "AddAddress",
        "SetMtu",
        "SetSysctls",
        "SetUp",
        "SetSlot",
        "SetSlot",
        "DeleteTunnel",
        "Detach",
        "RemoveDevice",
    ];
    for (nodes, are_first) in [(3, false), (13, false), (13, true), (23, true)] {
        let (added, moved, mut rest) = writes(nodes, are_first);
        let peers = usize::from(nodes) - 1;
        assert_eq!((added, moved), (peers, peers), "{nodes} nodes, {rest:?}");
        let mut device = device.map(str::to_owned).to_vec();
        rest.sort();
        device.sort();
        assert_eq!(rest, device, "{nodes} nodes");
    }
}

/// A key that its node has given up is nobody's: a device takes the peer with it when it goes, and else the peer goes by itself.
#[test]
fn who_gave_an_old_key_up_does_not_outlive_it_here() {
    let mut it = Rotation::begun();
    let old = it.bench.keys[0].public();
    let is_there = |it: &Rotation| it.bench.truth().tunnels[DEVICES[0]].peers.contains_key(&old);
    it.has_both(2, NotFlipped::nobody());
    it.settle();
    it.has_newest(2);
    assert!(is_there(&it));
    it.settle();
    assert!(!is_there(&it), "the third has not begun, so nobody knows for how long the device stands");

    // Nothing holds the device up, and somebody who has the old key keeps it from being silent.
    let mut it = Rotation::begun();
    let old = it.bench.keys[0].public();
    let is_there = |it: &Rotation| it.bench.truth().tunnels[DEVICES[0]].peers.contains_key(&old);
    it.has_both(2, NotFlipped::nobody());
    it.has_both(3, NotFlipped::nobody());
    for second in 1..80 {
        if second == 12 {
            it.has_newest(2);
        }
        it.bench.kernel.with(|k| {
            k.tamper(DEVICES[0], |device| {
                device.peers.entry(old).and_modify(|peer| peer.received += 100);
            });
        });
        it.bench.seconds += 1;
        it.node.pass(it.bench.now());
        if second == 50 {
            assert!(is_there(&it));
        }
        if generations(&it.bench) == [1] {
            break;
        }
    }
    assert_eq!(generations(&it.bench), [1], "it was removed, and with it what came");
}

/// What came since the last look is no silence, however long ago that was.
#[test]
fn no_key_goes_by_a_silence_that_nobody_heard() {
    let mut it = Rotation::begun();
    let old = it.bench.keys[0].public();
    it.has_both(2, NotFlipped::nobody());
    it.has_both(3, NotFlipped::nobody());
    let mut passes = |comes: &dyn Fn(u32) -> bool| {
        for number in 0..12 {
            if comes(number) {
                it.bench.kernel.with(|k| {
                    k.tamper(DEVICES[0], |device| {
                        device.peers.entry(old).and_modify(|peer| peer.received += 100);
                    });
                });
            }
            it.bench.seconds += 6;
            it.node.pass(it.bench.now());
        }
        generations(&it.bench)
    };
    assert_eq!(passes(&|number| number % 2 == 0), [0, 1]);
    assert_eq!(passes(&|_| false), [1]);
}

/// But not who is still spoken to there, in vain: the device would not fall silent for our own words.
#[test]
fn who_is_spoken_to_in_vain_does_not_stay_at_a_device_that_goes() {
    for (keepalive, stays) in [(0, true), (PROVING_KEEPALIVE, false)] {
        let mut it = Rotation::begun();
        let old = it.bench.keys[0].public();
        it.has_both(2, NotFlipped::nobody());
        it.has_both(3, NotFlipped::nobody());
        let pass = |it: &mut Rotation, keepalive: u16| {
            it.bench.kernel.with(|k| {
                k.tamper(DEVICES[0], |device| {
                    device.peers.entry(old).and_modify(|peer| {
                        peer.received += 100;
                        peer.keepalive = keepalive;
                    });
                });
            });
            it.bench.seconds += 1;
            it.node.pass(it.bench.now());
        };
        for _ in 0..12 {
            pass(&mut it, 0);
        }
        it.has_newest(2);
        pass(&mut it, keepalive);
        let is_there = it.bench.truth().tunnels[DEVICES[0]].peers.contains_key(&old);
        assert_eq!(is_there, stays, "with a keepalive of {keepalive} s");
    }
}

/// A node that does not begin keeps the old one with all, and nobody goes further than the next.
#[test]
fn a_node_that_is_down_keeps_the_old_generation() {
    let mut it = Rotation::begun();
    it.has_both(2, NotFlipped::nobody());
    it.bench.wants(2);
    it.settle();
    assert_eq!((generations(&it.bench), slots(&it.bench)), (vec![0, 1], [0, 1].into()));
    // Until somebody cuts it off.
    let asked = kubeveil_api::rotation::RotationSpec { retire_before: 1, ..Default::default() };
    it.bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").rotation = Some(asked));
    it.settle();
    assert_eq!(generations(&it.bench), [1, 2]);
    assert_eq!(it.bench.tunnelled(), 1);
    assert_eq!((it.node.rotations.done, it.node.rotations.forced), (0, 1));
}

/// A wall clock that jumps by an hour, forth and back, ends nothing early and delays nothing: the old key goes when it does without.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    const HOUR: Duration = Duration::from_secs(3600);
    let lasts = |jump: fn(u64, Duration) -> Duration| {
        let mut it = Rotation::begun();
        it.has_both(2, NotFlipped::nobody());
        it.has_both(3, NotFlipped::nobody());
        (1..60).find(|second| {
            it.bench.seconds += 1;
            let now = Now {
                monotonic: it.bench.now().monotonic,
                epoch: jump(*second, it.bench.now().epoch + 2 * HOUR),
            };
            it.node.hear(now);
            it.node.pass(now);
            assert_eq!(it.bench.tunnelled(), 2, "second {second}");
            generations(&it.bench) == [1]
        })
    };
    // Whose key is lower speaks first, and the other seven seconds later; which that is, is chance.
    let jumps: [fn(u64, Duration) -> Duration; 4] = [
        |_, at| at,
        |second, at| if second % 4 < 2 { at + HOUR } else { at - HOUR },
        |second, at| if second > 3 { at - HOUR } else { at },
        |second, at| if second > 3 { at + HOUR } else { at },
    ];
    for (number, jump) in jumps.into_iter().enumerate() {
        let second = lasts(jump);
        assert!(matches!(second, Some(6..=13)), "{number}: {second:?}");
    }
}

/// Two generations at once are taken one after the other.
#[test]
fn no_generation_is_skipped_that_others_need() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.wants(2);
    bench.settle(&mut node);
    assert_eq!(generations(&bench), [0, 1]);
}

#[test]
fn paused_is_paused() {
    let mut it = Rotation::begun();
    let pause = |it: &Rotation, paused| {
        let asked = kubeveil_api::rotation::RotationSpec { paused, ..Default::default() };
        it.bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").rotation = Some(asked));
    };
    pause(&it, true);
    it.has_both(2, NotFlipped::nobody());
    it.has_both(3, NotFlipped::nobody());
    it.settle();
    assert_eq!(generations(&it.bench), [0, 1]);
    pause(&it, false);
    it.settle();
    assert_eq!(generations(&it.bench), [1]);
}

/// A rotation of other nodes: it goes with them to the next device, by the key that it has. So does one of the others.
#[test]
fn a_node_that_is_left_out_keeps_its_key() {
    let (mut bench, mut node) = Bench::settled(3);
    let before = said(&bench).generations()[0].public_key;
    let fresh = key();
    // Its key is older than any rotation may take.
    bench.seconds += 100_000;
    let asked_at = i64::try_from(bench.now().epoch.as_secs()).expect("seconds");
    bench.world.change(|said| {
        let asked = serde_json::json!({
            "nodeSelector": {"matchLabels": {"pool": "b"}},
            "requestedAt": jiff::Timestamp::from_second(asked_at).expect("a time").to_string(),
        });
        said.snapshot.mesh.as_mut().expect("mesh").rotation =
            Some(serde_json::from_value(asked).expect("asked"));
        let own = said.snapshot.node_mut("node-1").expect("this node");
        own.labels = [("pool".to_owned(), "a".to_owned())].into();
    });
    bench.wants(1);
    bench.kernel.with(|k| k.answer(fresh.public()));
    bench.settle(&mut node);
    let late =
        |node: &Node<Shared>| node.problems().iter().any(|problem| problem.field == "spec.keyGeneration");
    assert!(!late(&node), "the rotation has only just begun");
    // One that did not see the key of this generation come goes by when it was asked for.
    let mut node = bench.restart(node);
    bench.settle(&mut node);
    assert!(!late(&node), "it has still only just begun");
    let keys = |bench: &Bench| -> Vec<_> {
        said(bench).generations().iter().map(|entry| (entry.generation.number(), entry.public_key)).collect()
    };
    assert_eq!(keys(&bench), [(0, before), (1, before)]);
    assert_eq!(devices(&bench), DEVICES);
    let both = |n: u8, newer: &PrivateKey, bench: &Bench| {
        let keys = [(0, &bench.keys[usize::from(n) - 2]), (1, newer)];
        bench.says(n, Some(announce_keys(n, &keys, NotFlipped::nobody())));
    };
    both(2, &fresh, &bench);
    both(3, &bench.keys[1], &bench);
    bench.settle(&mut node);
    assert_eq!((keys(&bench), devices(&bench)), (vec![(1, before)], vec![DEVICES[1].to_owned()]));
    assert_eq!((bench.tunnelled(), slots(&bench)), (2, [1].into()));
    assert_eq!(files(&bench), ["generation-1.key"]);
    // With the other label it takes a new one.
    bench.world.change(|said| {
        let own = said.snapshot.node_mut("node-1").expect("this node");
        own.labels = [("pool".to_owned(), "b".to_owned())].into();
    });
    bench.wants(2);
    bench.settle(&mut node);
    let now = keys(&bench);
    assert_eq!((now.len(), now[0]), (2, (1, before)));
    assert_ne!(now[1].1, before);
}

/// It is told, and goes on being used.
#[test]
fn a_key_that_grew_too_old_is_told() {
    let (mut bench, mut node) = Bench::settled(2);
    let asks = |bench: &Bench, most: &str| {
        let asked = serde_json::from_value(serde_json::json!({"maxKeyAge": most})).expect("asked");
        bench.world.change(|said| said.snapshot.mesh.as_mut().expect("mesh").rotation = Some(asked));
    };
    let mut told = |bench: &mut Bench| {
        bench.settle(&mut node);
        let told = node.last.problems.iter().find(|problem| problem.field.ends_with("axKeyAge"));
        told.map(|problem| format!("{} {}: {}", problem.object, problem.field, problem.message))
    };
    asks(&bench, "30d");
    assert_eq!(told(&mut bench), None);
    bench.seconds += 31 * 24 * 3600;
    let message = told(&mut bench).expect("it is told");
    assert!(message.contains("generation 0 is 31 days old, and 30d are the most"), "{message}");
    assert_eq!((generations(&bench), bench.tunnelled()), (vec![0], 1));
    asks(&bench, "90d");
    assert_eq!(told(&mut bench), None);
    // A policy may ask for less, and counts then.
    let policy = Policy {
        namespaces: Namespaces::One("payments".to_owned()),
        pods: LabelSelector::default(),
        mode: PolicyMode::Require,
        until: None,
        max_key_age: Some("7d".parse().expect("a period")),
    };
    let id = PolicyId { namespace: Some("payments".to_owned()), name: "pci".to_owned() };
    bench.world.change(|said| said.snapshot.policies = Policies::new([(id, policy)].into()));
    let message = told(&mut bench).expect("it is told");
    assert!(message.starts_with("EncryptionPolicy payments/pci spec.maxKeyAge: "), "{message}");
}
