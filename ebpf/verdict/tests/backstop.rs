//! The backstop's decision: what must hold of every packet by every device.

use kubeveil_abi::{DeviceKind, Mode, PeerState, Reason, Verdict};
use kubeveil_verdict::{
    Decision, Hop, backstop,
    testing::{Place, Scene, Situation, Slice, Transport, World, scene, situation},
};
use proptest::prelude::*;

/// A device that nobody has heard of, and one at which `steer` stands.
const NEW: u32 = 40;
const GUARDED: u32 = Scene::UNDERLAY;
const NOW: u32 = 10_000;

fn decide(situation: &Situation, egress_ifindex: u32, world: &World) -> Option<Decision> {
    decide_at(situation, egress_ifindex, true, world)
}

fn decide_at(
    situation: &Situation,
    egress_ifindex: u32,
    has_programs: bool,
    world: &World,
) -> Option<Decision> {
    let mut build = situation.build.clone();
    build.tags = 0;
    let hop = Hop { ingress_ifindex: situation.ingress_ifindex, egress_ifindex, has_programs };
    backstop(hop, &Slice::new(&build.network()), world, &world.config)
}

fn is_bypassed(scene: &Scene, to: Place) -> bool {
    matches!(to, Place::RemotePod(p) if {
        let peer = scene.peers[usize::from(p)];
        let is_open = peer.state() == PeerState::Adopting && scene.now < peer.bypass_until();
        is_open || peer.is_bypassed(scene.now)
    })
}

/// What may leave by any device.
const FREE: &[Place] = &[
    Place::LocalPod,
    Place::LocalNode,
    Place::RemoteNode(0),
    Place::RemoteNode(3),
    Place::Outside,
    Place::Link,
    Place::Multicast,
];
const PODS: &[Place] = &[Place::RemotePod(0), Place::RemotePod(1), Place::RemotePod(3), Place::Unowned];

fn at(places: &'static [Place]) -> impl Strategy<Value = Place> {
    prop::sample::select(places)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn under_require_no_pods_packet_leaves_by_a_new_device(
        scene in scene(NOW), situation in situation(), to in at(PODS),
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let from = situation.from;
        let situation = situation.between(from, to);
        let decision = decide(&situation, NEW, &scene.world());
        let from_tunnel = Scene::TUNNELS.contains(&situation.ingress_ifindex);
        if from_tunnel {
            prop_assert_eq!(decision.map(|d| d.reason), Some(Reason::TunnelToPlain));
        }
        if from_tunnel || !is_bypassed(&scene, to) {
            prop_assert_eq!(decision.map(|d| d.verdict()), Some(Verdict::Drop));
        } else {
            let reason = decision.map(|d| d.reason);
            prop_assert!(matches!(reason, Some(Reason::Bypassed | Reason::Adopting)), "{:?}", reason);
        }
    }

    #[test]
    fn what_is_no_other_nodes_pods_passes_uncounted(scene in scene(NOW), situation in situation(), to in at(FREE)) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let from = situation.from;
        prop_assert_eq!(decide(&situation.between(from, to), NEW, &scene.world()), None);
    }

    #[test]
    fn guarded_devices_are_left_to_steer(
        scene in scene(NOW), situation in situation(),
        device in prop::sample::select(&[GUARDED, Scene::TUNNELS[0], 50][..]),
    ) {
        let mut world = scene.world();
        world.devices.insert(50, DeviceKind::Overlay);
        prop_assert_eq!(decide(&situation, device, &world), None);
    }

    /// Its programs are gone, or it is another device with the index of one that was guarded.
    #[test]
    fn an_underlay_device_without_programs_is_a_new_one(scene in scene(NOW), situation in situation()) {
        let world = scene.world();
        let [bare, new] = [GUARDED, NEW].map(|device| decide_at(&situation, device, false, &world));
        prop_assert_eq!(bare, new);
        prop_assert_eq!(decide_at(&situation, Scene::TUNNELS[0], false, &world), None);
    }

    #[test]
    fn the_mode_decides_what_is_carried_out(scene in scene(NOW), situation in situation(), mode in 0_usize..3) {
        let mode = [Mode::Require, Mode::Prefer, Mode::Observe][mode];
        let strict = decide(&situation, NEW, &Scene { mode: Mode::Require, ..scene.clone() }.world());
        let decision = decide(&situation, NEW, &Scene { mode, ..scene }.world());
        prop_assert_eq!(decision.is_some(), strict.is_some());
        let (Some(strict), Some(decision)) = (strict, decision) else { return Ok(()) };
        let (reason, observed) = match (mode, strict.reason) {
            (Mode::Observe, reason) => (reason, true),
            (Mode::Prefer, Reason::UnguardedDevice) => (Reason::Preferred, false),
            (_, reason) => (reason, false),
        };
        prop_assert_eq!((decision.reason, decision.observed()), (reason, observed));
        let drops = strict.verdict() == Verdict::Drop
            && (mode == Mode::Require || mode == Mode::Prefer && reason == Reason::TunnelToPlain);
        prop_assert_eq!(decision.verdict() == Verdict::Drop, drops);
    }

    #[test]
    fn both_families_are_decided_alike(scene in scene(NOW), mut situation in situation()) {
        prop_assume!(situation.build.transport != Transport::Neighbour);
        situation.build.extensions.clear();
        let twin = situation.clone().other_family();
        let [one, two] = [situation, twin].map(|s| decide(&s, NEW, &scene.world()));
        prop_assert_eq!(one.map(|d| (d.reason, d.mode)), two.map(|d| (d.reason, d.mode)));
    }

    /// A header that is cut off, or is none: nobody can say that the packet may pass.
    #[test]
    fn what_can_not_be_read_does_not_pass(scene in scene(NOW), situation in situation(), length in 0_usize..20) {
        let world = Scene { mode: Mode::Require, ..scene }.world();
        let bytes = situation.build.network();
        let ingress_ifindex = situation.ingress_ifindex;
        let hop = Hop { ingress_ifindex, egress_ifindex: NEW, has_programs: true };
        let mut strange = bytes.clone();
        strange[0] = 0x55;
        for bytes in [&bytes[..length], &strange[..]] {
            let decision = backstop(hop, &Slice::new(bytes), &world, &world.config);
            prop_assert_eq!(decision.map(|d| (d.reason, d.verdict())), Some((Reason::Unparsable, Verdict::Drop)));
        }
    }

    /// The same for maps that nobody has written to.
    #[test]
    fn a_kind_that_nobody_knows_is_a_pod_that_nobody_owns(situation in situation(), to in at(FREE)) {
        let mut world = World::default();
        let address = kubeveil_verdict::testing::address(to.ip(situation.build.source.is_ipv6()));
        world.add(address, 128, kubeveil_abi::PrefixKind::LocalPods, 0);
        world.prefixes[0].2.kind = 0;
        let from = situation.from;
        let decision = decide(&situation.between(from, to), NEW, &world);
        prop_assert_eq!(decision.map(|d| d.reason), Some(Reason::UnguardedDevice));
    }
}
