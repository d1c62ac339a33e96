//! What policies ask for of one end decides on the flow, in every state of the world.

use std::net::IpAddr;

use kubeveil_abi::{Asked, FlowMode, Mode, Origin, PeerValue, PrefixKind, Reason, Verdict, port_number};
use kubeveil_verdict::{
    Decision, Hop, Meta, backstop, deliver, guard, steer,
    testing::{Place, Scene, Situation, Slice, World, envelope, scene, situation},
};
use proptest::prelude::*;

const NOW: u32 = 10_000;
const PEERS: &[Place] =
    &[Place::RemotePod(0), Place::RemotePod(2), Place::RemoteNode(1), Place::RemoteNode(3)];

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2_000,
        max_global_rejects: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn decide(program: usize, situation: &Situation, world: &World) -> Decision {
    let bytes = situation.build.network();
    let (meta, slice) = (situation.meta(), Slice::new(&bytes));
    match program {
        0 => steer(&meta, &slice, world, &world.config),
        1 => guard(&meta, &slice, world, &world.config),
        _ => deliver(&meta, &slice, world, &world.config),
    }
}

/// What becomes of the packet, whatever it was held to.
fn done(decision: Decision) -> impl PartialEq + std::fmt::Debug {
    let Decision { reason, ifindex, tell_mtu, clamp, length, .. } = decision;
    (decision.verdict(), reason, ifindex, tell_mtu, clamp, length)
}

/// What is asked for of an address there, as the map has it.
fn ask(world: &mut World, place: Place, asked: Asked, until: u32) {
    match place {
        Place::LocalPod => world.ask(PrefixKind::LocalPods, 0, asked, until),
        Place::RemotePod(peer) => world.ask(PrefixKind::RemotePods, u32::from(peer), asked, until),
        _ => unreachable!("policies are about pods"),
    }
}

fn loose() -> impl Strategy<Value = Mode> {
    prop::sample::select(&[Mode::Prefer, Mode::Require][..])
}

proptest! {
    #![proptest_config(config())]

    /// The heart of it: what a pod sends that requires encryption never leaves in plain, whatever the mesh asks of all others.
    #[test]
    fn a_pod_that_requires_it_sends_nothing_in_plain(
        scene in scene(NOW), situation in situation(), to in prop::sample::select(PEERS), mode in loose(),
    ) {
        let situation = situation.between(Place::LocalPod, to);
        let mut world = Scene { mode, ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        ask(&mut world, Place::LocalPod, Asked::Require, 0);
        let decision = decide(0, &situation, &world);
        prop_assert!(decision.verdict() != Verdict::Pass || decision.reason == Reason::NonIp, "{:?}", decision);
    }

    /// Nor where its node has put its own address in place of the pod's, or a plugin has put it into an envelope.
    #[test]
    fn nor_behind_its_node(
        scene in scene(NOW), inner in situation(), envelope in envelope(), to in 0..Scene::PEERS, mode in loose(),
        is_v6 in any::<bool>(), is_masqueraded in any::<bool>(), device in prop::sample::select(&[Scene::POD_DEVICE, Scene::UNDERLAY][..]),
    ) {
        let mut world = Scene { mode, flows: Vec::new(), ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        ask(&mut world, Place::LocalPod, Asked::Require, 0);
        let node = Place::RemoteNode(to);
        let situation = if is_masqueraded {
            inner.between(Place::LocalNode, node).by(device)
        } else {
            inner.between(Place::LocalPod, Place::RemotePod(to)).in_envelope(envelope, Place::LocalNode, node, is_v6)
        };
        let decision = decide(0, &situation, &world);
        let is_ours = matches!(decision.reason, Reason::Outer | Reason::NonIp);
        prop_assert!(decision.verdict() != Verdict::Pass || is_ours, "{:?}", decision);
    }

    /// The receiving side checks too, whichever side got it wrong.
    #[test]
    fn a_pod_that_requires_it_is_told_nothing_in_plain(
        scene in scene(NOW), situation in situation(), envelope in envelope(), is_v6 in any::<bool>(), is_in_envelope in any::<bool>(),
        from in prop::sample::select(&[Place::RemotePod(0), Place::RemotePod(2), Place::RemoteNode(1), Place::Unowned][..]),
    ) {
        let mut world = Scene { mode: Mode::Prefer, ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        ask(&mut world, Place::LocalPod, Asked::Require, 0);
        let situation = situation.between(from, Place::LocalPod);
        let situation = if is_in_envelope {
            situation.in_envelope(envelope, Place::RemoteNode(0), Place::LocalNode, is_v6)
        } else {
            situation
        };
        prop_assert_eq!(decide(1, &situation, &world).verdict(), Verdict::Drop);
    }

    /// A flow is as strict as the stricter of its two ends, whichever that is; so a mesh in which one end asks for something treats it as
    /// one would that asks for it of all.
    #[test]
    fn a_flow_is_as_strict_as_its_stricter_end(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, program in 0_usize..2,
        asked in prop::sample::select(&[[Asked::Require, Asked::Mesh], [Asked::Mesh, Asked::Require], [Asked::Require, Asked::Exempt], [Asked::Prefer, Asked::Require]][..]),
    ) {
        // Adoption lets others pass, but not who asks for it.
        let peers = scene.peers.map(|peer| if peer.bypass_until() == 0 { peer } else { PeerValue::NO_TUNNEL });
        let scene = Scene { peers, ..scene };
        let remote = Place::RemotePod(peer);
        let ends = if program == 0 { (Place::LocalPod, remote) } else { (remote, Place::LocalPod) };
        let mut situation = situation.between(ends.0, ends.1);
        situation.build.tags %= 3;
        let require = Scene { mode: Mode::Require, ..scene.clone() }.world();
        let mut policies = Scene { mode: Mode::Prefer, ..scene }.world();
        policies.config.unknown = Asked::Require as u32;
        ask(&mut policies, ends.0, asked[0], 0);
        ask(&mut policies, ends.1, asked[1], 0);
        prop_assert_eq!(done(decide(program, &situation, &policies)), done(decide(program, &situation, &require)));
    }

    /// Who asks for nothing is held to what the mesh asks for, though others ask for more.
    #[test]
    fn others_lose_nothing(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, program in 0_usize..2,
        asked in prop::sample::select(&[Asked::Mesh, Asked::Prefer][..]),
    ) {
        let remote = Place::RemotePod(peer);
        let ends = if program == 0 { (Place::LocalPod, remote) } else { (remote, Place::LocalPod) };
        let situation = situation.between(ends.0, ends.1).by(Scene::POD_DEVICE);
        prop_assume!(situation.build.tags < 3);
        let plain = Scene { mode: Mode::Prefer, ..scene }.world();
        let mut policies = plain.clone();
        policies.config.unknown = Asked::Require as u32;
        policies.bind_pod();
        ask(&mut policies, ends.0, asked, 0);
        let (with, without) = (decide(program, &situation, &policies), decide(program, &situation, &plain));
        prop_assert!(done(with) == done(without) || with.reason == Reason::Unparsable, "{:?}, {:?}", with, without);
    }

    /// An exemption lets pass what finds no tunnel; it ends by the clock, and where the other end asks for more it is none.
    #[test]
    fn an_exemption_ends(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, until in prop::sample::select(&[0, NOW, NOW + 1][..]),
        other in prop::sample::select(&[Asked::Mesh, Asked::Exempt, Asked::Require][..]),
    ) {
        let remote = Place::RemotePod(peer);
        let situation = situation.between(Place::LocalPod, remote).by(Scene::POD_DEVICE);
        let require = Scene { mode: Mode::Require, now: NOW, ..scene }.world();
        let mut policies = require.clone();
        policies.bind_pod();
        ask(&mut policies, Place::LocalPod, Asked::Exempt, until);
        ask(&mut policies, remote, other, 0);
        let strict = decide(0, &situation, &require);
        let decision = decide(0, &situation, &policies);
        let is_exempt = until != NOW && other == Asked::Exempt;
        match strict.reason {
            Reason::NoTunnel | Reason::DeviceGone if is_exempt => {
                prop_assert_eq!((decision.reason, decision.verdict()), (Reason::Exempted, Verdict::Pass));
            }
            Reason::Adopting if other == Asked::Require => prop_assert_eq!(decision.verdict(), Verdict::Drop),
            // By the tunnel, if there is one beneath.
            Reason::Bypassed if other == Asked::Require => prop_assert!(decision.verdict() != Verdict::Pass),
            _ if !is_exempt => prop_assert_eq!(done(decision), done(strict)),
            _ => prop_assert!(decision.observed() || decision.reason == strict.reason),
        }
    }

    /// Whoever has the address of a pod that is gone is held to as much as one of whom nothing is known, whatever the pod was; so is who
    /// sends by another device, or by none that the kernel remembers, and who was never found to have one, where less is asked of him than the
    /// mesh does.
    #[test]
    fn an_identity_ends_with_its_device(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, program in 0_usize..2, mode in loose(),
        asked in prop::sample::select(&[Asked::Mesh, Asked::Exempt, Asked::Prefer][..]),
        until in prop::sample::select(&[0, NOW, NOW + 1][..]),
        why in prop::sample::select(&["gone", "another's by now", "by another", "by none", "never found"][..]),
    ) {
        let is_gone = ["gone", "another's by now"].contains(&why);
        prop_assume!(asked != Asked::Mesh || is_gone);
        prop_assume!(program == 0 || !why.starts_with("by "));
        let remote = Place::RemotePod(peer);
        let ends = if program == 0 { (Place::LocalPod, remote) } else { (remote, Place::LocalPod) };
        let ingress = if why == "by none" { 0 } else { Scene::POD_DEVICE };
        let situation = situation.between(ends.0, ends.1).by(ingress);
        let mut unknown = Scene { mode, now: NOW, ..scene }.world();
        unknown.config.unknown = Asked::Require as u32;
        ask(&mut unknown, remote, Asked::Exempt, 0);
        let mut world = unknown.clone();
        ask(&mut unknown, Place::LocalPod, Asked::Require, 0);
        ask(&mut world, Place::LocalPod, asked, until);
        let origin = Origin { device: Scene::POD_DEVICE, via: Scene::POD_DEVICE, pod: [1, 2] };
        match why {
            "gone" => world.bind_pod_to(origin),
            "another's by now" => {
                world.bind_pod_to(origin);
                world.alive.insert(Origin { pod: [3, 4], ..origin }.key());
            }
            "by another" => {
                let another = Origin { device: 8, via: 8, ..origin };
                world.bind_pod_to(another);
                world.alive.insert(another.key());
            }
            "by none" => world.bind_pod(),
            _ => {}
        }
        prop_assert_eq!(done(decide(program, &situation, &world)), done(decide(program, &situation, &unknown)));
    }

    /// What comes from behind a bridge is a pod's only where its very port has said so.
    #[test]
    fn behind_a_bridge_an_identity_is_its_ports(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, device in prop::sample::select(&[5, 65_539, 0x7fff_fffe][..]),
        asked in prop::sample::select(&[Asked::Exempt, Asked::Prefer][..]), is_backstop in any::<bool>(), loose in loose(),
        by in prop::sample::select(&[Scene::POD_DEVICE, Scene::POD_DEVICE + 1][..]), other in any::<u16>(), is_its in any::<bool>(),
    ) {
        let situation = situation.between(Place::LocalPod, Place::RemotePod(peer)).by(by);
        let mut world = Scene { mode: loose, now: NOW, ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        ask(&mut world, Place::RemotePod(peer), Asked::Exempt, 0);
        let mut unknown = world.clone();
        ask(&mut unknown, Place::LocalPod, Asked::Require, 0);
        ask(&mut world, Place::LocalPod, asked, 0);
        let mut routed = world.clone();
        let origin = Origin { device, via: Scene::POD_DEVICE, pod: [1, 2] };
        for (world, origin) in [(&mut world, origin), (&mut routed, Origin { via: device, ..origin })] {
            world.bind_pod_to(origin);
            world.alive.insert(origin.key());
        }
        let port = if is_its { port_number(device) } else { other };
        let is_it = by == Scene::POD_DEVICE && port == port_number(device);
        let bytes = situation.build.network();
        let decide = |ingress_ifindex, port, world: &World| {
            let bytes = Slice { port, ..Slice::new(&bytes) };
            let decision = if is_backstop {
                let hop = Hop { ingress_ifindex, egress_ifindex: 99, has_programs: false };
                backstop(hop, &bytes, world, &world.config)
            } else {
                Some(steer(&Meta { ingress_ifindex, ..situation.meta() }, &bytes, world, &world.config))
            };
            decision.map(done)
        };
        let decided = decide(by, port, &world);
        prop_assert_eq!(decided, if is_it { decide(device, 0, &routed) } else { decide(by, 0, &unknown) });
    }

    /// Of whom no less is asked than of all it is enough that the pod's device is there: what it sends may come in by others (a VRF, a
    /// proxy), or by none that the kernel remembers, and who asks for nothing loses nothing.
    #[test]
    fn where_nothing_is_loosened_it_is_enough_that_the_pods_device_is_there(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, mode in loose(),
        ingress in prop::sample::select(&[0, Scene::POD_DEVICE, Scene::POD_DEVICE + 1][..]),
    ) {
        let situation = situation.between(Place::LocalPod, Place::RemotePod(peer)).by(ingress);
        let plain = Scene { mode, ..scene }.world();
        let mut world = plain.clone();
        world.config.unknown = Asked::Require as u32;
        world.bind_pod();
        let (with, without) = (decide(0, &situation, &world), decide(0, &situation, &plain));
        prop_assert!(done(with) == done(without) || matches!(with.reason, Reason::NonIp | Reason::Unparsable), "{:?} {:?}", with, without);
    }

    /// Where the mesh only observes nothing is carried out, whatever stands in the map.
    #[test]
    fn an_observing_mesh_carries_nothing_out(scene in scene(NOW), situation in situation(), program in 0_usize..3) {
        let mut world = Scene { mode: Mode::Observe, ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        ask(&mut world, Place::LocalPod, Asked::Require, 0);
        ask(&mut world, Place::RemotePod(0), Asked::Require, 0);
        let decision = decide(program, &situation, &world);
        prop_assert!(decision.observed() && decision.verdict() == Verdict::Pass);
        prop_assert_eq!(decision.mode, FlowMode::Observe);
    }

    /// It is counted by the mode that its flow was held to; where nobody can tell the ends, by that of those whom nobody knows.
    #[test]
    fn a_packet_is_counted_by_what_it_was_held_to(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, program in 0_usize..2, mode in loose(),
        asked in prop::sample::select(&[
            [Asked::Mesh, Asked::Mesh], [Asked::Mesh, Asked::Exempt], [Asked::Exempt, Asked::Exempt],
            [Asked::Exempt, Asked::Prefer], [Asked::Require, Asked::Exempt], [Asked::Mesh, Asked::Require],
        ][..]),
    ) {
        let remote = Place::RemotePod(peer);
        let ends = if program == 0 { (Place::LocalPod, remote) } else { (remote, Place::LocalPod) };
        let situation = situation.between(ends.0, ends.1).by(Scene::POD_DEVICE);
        let mut world = Scene { mode, ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        world.bind_pod();
        ask(&mut world, ends.0, asked[0], 0);
        ask(&mut world, ends.1, asked[1], 0);
        let [one, other] = asked.map(|asked| match asked {
            Asked::Mesh => mode.into(),
            Asked::Exempt => FlowMode::Exempt,
            Asked::Prefer => FlowMode::Prefer,
            Asked::Require => FlowMode::Insist,
        });
        let decision = decide(program, &situation, &world);
        let is_unknown = matches!(decision.reason, Reason::NonIp | Reason::Unparsable);
        prop_assert_eq!(decision.mode, if is_unknown { FlowMode::Insist } else { one.max(other) });
    }

    /// The maps hold an IPv4 address as the IPv6 one that it is mapped to. Who puts that into a header of IPv6 is nobody's pod by it, and
    /// exempt from nothing, inside of an envelope neither.
    #[test]
    fn a_mapped_address_is_nobodys(
        scene in scene(NOW), situation in situation(), envelope in envelope(), peer in 0..Scene::PEERS, program in 0_usize..3, mode in loose(),
        mapped in prop::sample::select(&[[true, false], [false, true], [true, true]][..]), is_in_envelope in any::<bool>(), is_v6 in any::<bool>(),
    ) {
        let remote = Place::RemotePod(peer);
        let ends = if program == 0 { (Place::LocalPod, remote) } else { (remote, Place::LocalPod) };
        let mut situation = situation.between(ends.0, ends.1).by(Scene::POD_DEVICE);
        let places = [ends.0, ends.1];
        let [source, destination] = [0, 1].map(|end| match places[end].ip(false) {
            IpAddr::V4(address) if mapped[end] => address.to_ipv6_mapped().into(),
            _ => places[end].ip(true),
        });
        (situation.build.source, situation.build.destination, situation.build.false_type) = (source, destination, None);
        if is_in_envelope {
            let nodes = (Place::LocalNode, Place::RemoteNode(peer));
            let nodes = if program == 0 { nodes } else { (nodes.1, nodes.0) };
            situation = situation.in_envelope(envelope, nodes.0, nodes.1, is_v6);
        }
        let peers = [PeerValue::NO_TUNNEL; Scene::PEERS as usize];
        let mut world = Scene { mode, peers, flows: Vec::new(), ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        world.bind_pod();
        ask(&mut world, Place::LocalPod, Asked::Exempt, 0);
        ask(&mut world, remote, Asked::Exempt, 0);
        let decision = decide(program, &situation, &world);
        let is_ours = matches!(decision.reason, Reason::Outer | Reason::NonIp);
        prop_assert!(decision.verdict() == Verdict::Drop || is_ours, "{:?}", decision);
        let hop = Hop { ingress_ifindex: Scene::POD_DEVICE, egress_ifindex: 99, has_programs: false };
        let bytes = situation.build.network();
        if !is_in_envelope && situation.build.tags == 0 {
            let decision = backstop(hop, &Slice::new(&bytes), &world, &world.config);
            prop_assert_eq!(decision.map(|decision| decision.verdict()), Some(Verdict::Drop));
        }
    }

    /// By a device that nobody guards neither end sends in plain, or is sent to, that requires encryption.
    #[test]
    fn an_unguarded_device_is_no_way_round(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, is_source in any::<bool>(),
        from in prop::sample::select(&[Place::LocalPod, Place::LocalNode][..]),
    ) {
        let remote = Place::RemotePod(peer);
        let mut situation = situation.between(from, remote).by(Scene::POD_DEVICE);
        situation.build.tags = 0;
        let mut world = Scene { mode: Mode::Prefer, ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        // Behind the node's own address may be a pod's, whoever's: that is `unknown`.
        let asks = if is_source { from } else { remote };
        if asks != Place::LocalNode {
            ask(&mut world, asks, Asked::Require, 0);
        }
        let bytes = situation.build.network();
        let hop = Hop { ingress_ifindex: Scene::POD_DEVICE, egress_ifindex: 99, has_programs: false };
        let decision = backstop(hop, &Slice::new(&bytes), &world, &world.config);
        let decision = decision.expect("it is for a remote pod");
        prop_assert_eq!(decision.verdict(), Verdict::Drop, "{:?}", decision);
        prop_assert_eq!(decision.mode, FlowMode::Insist);
    }

    /// Nor for who sends by another device than the pod's whose address it has.
    #[test]
    fn nor_for_who_is_somebody_else(
        scene in scene(NOW), situation in situation(), peer in 0..Scene::PEERS, is_alive in any::<bool>(),
        asked in prop::sample::select(&[Asked::Mesh, Asked::Exempt][..]),
    ) {
        let remote = Place::RemotePod(peer);
        let mut situation = situation.between(Place::LocalPod, remote);
        situation.build.tags = 0;
        let mut world = Scene { mode: Mode::Prefer, ..scene }.world();
        world.config.unknown = Asked::Require as u32;
        ask(&mut world, Place::LocalPod, asked, 0);
        ask(&mut world, remote, asked, 0);
        world.bind_pod();
        if !is_alive {
            world.alive.clear();
        }
        let bytes = situation.build.network();
        let decide = |ingress_ifindex| {
            let hop = Hop { ingress_ifindex, egress_ifindex: 99, has_programs: false };
            backstop(hop, &Slice::new(&bytes), &world, &world.config).expect("it is for a remote pod")
        };
        let is_held = |ingress| decide(ingress).mode == FlowMode::Insist;
        prop_assert_eq!(is_held(Scene::POD_DEVICE), !is_alive);
        prop_assert_eq!(is_held(Scene::POD_DEVICE + 1), !is_alive || asked == Asked::Exempt);
    }
}
