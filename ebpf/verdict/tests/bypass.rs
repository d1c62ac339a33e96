//! A timed bypass: what travels in plain by it, until when, and what never does.

use etherparse::TcpOptionElement;
use kubeveil_abi::{Asked, BYPASS_GRACE, Mode, PeerValue, PrefixKind, Reason, Verdict};
use kubeveil_verdict::{
    Decision, clamp_of_bypassed, deliver, guard, steer,
    testing::{Place, Scene, Situation, Slice, Transport, World, scene, situation},
};
use proptest::prelude::*;

const NOW: u32 = 10_000;
const UNTIL: u32 = NOW + 600;

fn decide(program: usize, situation: &Situation, world: &World) -> Decision {
    let bytes = situation.build.network();
    let (meta, slice) = (situation.meta(), Slice::new(&bytes));
    match program {
        0 => steer(&meta, &slice, world, &world.config),
        1 => guard(&meta, &slice, world, &world.config),
        _ => deliver(&meta, &slice, world, &world.config),
    }
}

fn out(is_v6: bool) -> Situation {
    let ping = Transport::Udp(40_000, 53);
    Situation::new(Place::LocalPod, Place::RemotePod(0), is_v6, ping).by(Scene::POD_DEVICE)
}

fn into(is_v6: bool) -> Situation {
    let ping = Transport::Udp(40_000, 53);
    Situation::new(Place::RemotePod(0), Place::LocalPod, is_v6, ping).by(Scene::UNDERLAY)
}

/// A mesh that requires, at `now`, and goes to peer 0 like this.
fn world(value: PeerValue, now: u32) -> World {
    let calm = Scene::calm(Mode::Require);
    let peers = [value, calm.peers[1], calm.peers[2], calm.peers[3]];
    Scene { peers, now, ..calm }.world()
}

fn requires(mut world: World) -> World {
    world.config.unknown = Asked::Require as u32;
    world.ask(PrefixKind::LocalPods, 0, Asked::Require, 0);
    world
}

const TUNNEL: PeerValue = PeerValue::tunnel(0, 3);

/// Both ways, and nobody has to be there to end it: only the clock is other.
#[test]
fn it_ends_by_the_clock_and_the_tunnel_beneath_carries_on() {
    for is_v6 in [false, true] {
        let steered = |value: PeerValue, now| decide(0, &out(is_v6), &world(value, now)).reason;
        let over_tunnel = TUNNEL.bypassed(UNTIL);
        assert_eq!(steered(over_tunnel, NOW), Reason::Bypassed);
        assert_eq!(steered(over_tunnel, UNTIL - 1), Reason::Bypassed);
        let after = decide(0, &out(is_v6), &world(over_tunnel, UNTIL));
        assert_eq!((after.reason, after.ifindex), (Reason::Tunnelled, Scene::TUNNELS[0]));
        let over_none = PeerValue::NO_TUNNEL.bypassed(UNTIL);
        assert_eq!(steered(over_none, UNTIL - 1), Reason::Bypassed);
        assert_eq!(steered(over_none, UNTIL), Reason::NoTunnel);
        // The far end's clock may be a little slower.
        for value in [over_tunnel, over_none] {
            let heard = |now| decide(1, &into(is_v6), &world(value, now)).reason;
            assert_eq!(heard(NOW), Reason::Bypassed);
            assert_eq!(heard(UNTIL + BYPASS_GRACE - 1), Reason::Bypassed);
            assert_eq!(heard(UNTIL + BYPASS_GRACE), Reason::PlainFromPod);
        }
    }
}

/// The far end may begin a moment sooner: it is heard, and ours are encrypted still.
#[test]
fn who_begins_later_hears_the_other_already() {
    for is_v6 in [false, true] {
        let value = TUNNEL.bypass_heard(UNTIL);
        assert_eq!(decide(0, &out(is_v6), &world(value, NOW)).reason, Reason::Tunnelled);
        assert_eq!(decide(1, &into(is_v6), &world(value, UNTIL - 1)).reason, Reason::Bypassed);
        assert_eq!(decide(1, &into(is_v6), &world(value, UNTIL)).reason, Reason::PlainFromPod);
    }
}

/// What policies require encryption of is not bypassed: by the tunnel, or not at all.
#[test]
fn who_requires_encryption_keeps_to_the_tunnel() {
    for is_v6 in [false, true] {
        let of = |value: PeerValue, program, situation: &Situation| {
            decide(program, situation, &requires(world(value, NOW))).reason
        };
        assert_eq!(of(TUNNEL.bypassed(UNTIL), 0, &out(is_v6)), Reason::Tunnelled);
        assert_eq!(of(PeerValue::bypass(UNTIL), 0, &out(is_v6)), Reason::NoTunnel);
        for value in [TUNNEL.bypassed(UNTIL), PeerValue::bypass(UNTIL), TUNNEL.bypass_heard(UNTIL)] {
            assert_eq!(of(value, 1, &into(is_v6)), Reason::PlainFromPod);
        }
    }
}

/// A connection that outlives the bypass goes on in the tunnel, so it has to fit from its first packet on.
#[test]
fn segments_fit_the_tunnel_all_along() {
    for is_v6 in [false, true] {
        let ways = [TUNNEL.bypassed(UNTIL), PeerValue::bypass(UNTIL)];
        for (value, answer) in ways.into_iter().flat_map(|value| [(value, false), (value, true)]) {
            let syn = Transport::Tcp(40_000, 443, Some(vec![TcpOptionElement::MaximumSegmentSize(1460)]));
            let mut syn =
                Situation::new(Place::LocalPod, Place::RemotePod(0), is_v6, syn).by(Scene::POD_DEVICE);
            syn.build.answer = answer;
            let world = world(value, NOW);
            let limit = if is_v6 { world.config.mss_v6 } else { world.config.mss_v4 };
            let decision = decide(0, &syn, &world);
            assert_eq!((decision.reason, decision.verdict()), (Reason::Bypassed, Verdict::Pass));
            let bytes = syn.build.network();
            let clamp = clamp_of_bypassed(&syn.meta(), &Slice::new(&bytes), &world.config);
            assert_eq!((clamp.old, u32::from(clamp.new)), (1460, limit));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// One that is over leaves nothing behind, in any state of the world.
    #[test]
    fn after_its_end_all_is_as_without_it(scene in scene(NOW), situation in situation(), program in 0_usize..3) {
        let without = scene.peers.map(|peer| if peer.has_tunnel() {
            PeerValue::tunnel(peer.slot(), 0)
        } else {
            PeerValue::NO_TUNNEL
        });
        let over = if program == 1 { NOW - BYPASS_GRACE } else { NOW };
        let with = without.map(|peer| peer.bypassed(over));
        let [with, without] = [with, without].map(|peers| Scene { peers, ..scene.clone() }.world());
        prop_assert_eq!(decide(program, &situation, &with), decide(program, &situation, &without));
    }

    /// What comes out of a tunnel is taken as ever.
    #[test]
    fn what_comes_by_the_tunnel_is_delivered_as_ever(scene in scene(NOW), situation in situation()) {
        let with = Scene { peers: scene.peers.map(|peer| peer.bypassed(UNTIL)), ..scene.clone() };
        prop_assert_eq!(decide(2, &situation, &with.world()), decide(2, &situation, &scene.world()));
    }

    /// It lets pass, and does nothing else: what a tunnel would have taken, or what there was none for. What is forged, comes out of
    /// a tunnel, or can't be read is as it was.
    #[test]
    fn it_opens_nothing_but_the_way_to_its_peer(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, program in 0_usize..2,
    ) {
        let mut peers = scene.peers;
        peers[usize::from(peer)] = peers[usize::from(peer)].bypassed(UNTIL);
        let with = decide(program, &situation, &Scene { peers, mode: Mode::Require, ..scene.clone() }.world());
        let without = decide(program, &situation, &Scene { mode: Mode::Require, ..scene }.world());
        let is_its = |place: Place| place == Place::RemotePod(peer) || place == Place::RemoteNode(peer);
        let concerns = is_its(situation.from) || is_its(situation.to) || situation.may_be_envelope();
        if with.reason == Reason::Bypassed {
            prop_assert!(concerns || without.reason == Reason::Bypassed);
            prop_assert!(!matches!(without.reason, Reason::TunnelToPlain | Reason::SpoofedLocal | Reason::Unparsable));
        } else if with.reason != without.reason {
            prop_assert!(without.reason == Reason::Adopting || without.reason == Reason::Bypassed, "{:?} {:?}", with, without);
        }
    }
}
