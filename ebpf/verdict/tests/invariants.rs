//! What must hold of every packet in every state of the world.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use etherparse::TcpOptionElement;
use kubeveil_abi::{BASE_PORT, Config, FWMARK, Mode, PeerState, PeerValue, PrefixKind, Reason, Verdict};
use kubeveil_verdict::{
    Decision, deliver, guard, steer,
    testing::{Place, Scene, Situation, Slice, Transport, World, address, envelope, scene, situation},
};
use proptest::prelude::*;

/// Runs a program's decision on the situation.
fn decide(program: usize, situation: &Situation, world: &World) -> Decision {
    let bytes = situation.build.network();
    run(program, situation, &bytes, world)
}

fn run(program: usize, situation: &Situation, bytes: &[u8], world: &World) -> Decision {
    let (meta, slice) = (situation.meta(), Slice::new(bytes));
    match program {
        0 => steer(&meta, &slice, world, &world.config),
        1 => guard(&meta, &slice, world, &world.config),
        _ => deliver(&meta, &slice, world, &world.config),
    }
}

fn has_live_bypass(scene: &Scene, place: Place) -> bool {
    match place {
        Place::RemotePod(p) | Place::RemoteNode(p) => {
            let peer = scene.peers[usize::from(p)];
            peer.is_bypassed(scene.now)
                || peer.state() == PeerState::Adopting && scene.now < peer.bypass_until()
        }
        _ => false,
    }
}

/// Packets from there may come in plain, also for a moment after those to there are encrypted.
fn is_heard_in_plain(scene: &Scene, place: Place) -> bool {
    match place {
        Place::RemotePod(p) | Place::RemoteNode(p) => {
            let peer = scene.peers[usize::from(p)];
            has_live_bypass(scene, place)
                || matches!(peer.state(), PeerState::Tunnel | PeerState::BypassHeard)
                    && scene.now < peer.bypass_until()
        }
        _ => false,
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2_000,
        max_global_rejects: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// One of these places.
fn at(places: &'static [Place]) -> impl Strategy<Value = Place> {
    prop::sample::select(places)
}

const NOW: u32 = 10_000;

const PODS: &[Place] = &[Place::RemotePod(0), Place::RemotePod(1), Place::RemotePod(3), Place::Unowned];
const NODES: &[Place] =
    &[Place::RemoteNode(0), Place::RemoteNode(1), Place::RemoteNode(2), Place::RemoteNode(3)];
const PEERS: &[Place] =
    &[Place::RemotePod(0), Place::RemotePod(2), Place::RemoteNode(1), Place::RemoteNode(3)];
const ELSEWHERE: &[Place] = &[Place::Outside, Place::Link, Place::Multicast];
const HERE: &[Place] = &[Place::LocalPod, Place::LocalNode];
/// Sources and destinations of a pod's traffic, as it must not come in from the wire.
const INTO_PODS: &[(Place, Place)] = &[
    (Place::RemotePod(0), Place::LocalPod),
    (Place::RemotePod(1), Place::LocalNode),
    (Place::RemotePod(2), Place::RemotePod(1)),
    (Place::Unowned, Place::LocalPod),
    (Place::Unowned, Place::Outside),
    (Place::LocalPod, Place::LocalNode),
    (Place::LocalPod, Place::LocalPod),
    (Place::RemoteNode(0), Place::LocalPod),
    (Place::RemoteNode(3), Place::LocalPod),
    (Place::LocalNode, Place::LocalPod),
];

proptest! {
    #![proptest_config(config())]

    /// The heart of it: nothing for a pod of another node leaves in plain.
    #[test]
    fn under_require_nothing_for_a_remote_pod_passes(scene in scene(NOW), situation in situation(), to in at(PODS)) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let from = situation.from;
        let situation = situation.between(from, to);
        prop_assume!(!has_live_bypass(&scene, to));
        let decision = decide(0, &situation, &scene.world());
        // WireGuard's endpoints are never pods; its packets are named because they are never steered.
        if decision.reason == Reason::Outer {
            prop_assert!(situation.is_outer());
        } else {
            prop_assert!(decision.verdict() != Verdict::Pass, "{:?}", decision);
        }
    }

    /// A pod's packet to another node's own address is a pod's packet, masqueraded or not.
    #[test]
    fn under_require_nothing_forwarded_to_a_node_passes(scene in scene(NOW), situation in situation(), to in at(NODES)) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let from = situation.from;
        let situation = situation.between(from, to);
        prop_assume!(situation.ingress_ifindex != 0 || from == Place::LocalPod);
        prop_assume!(!has_live_bypass(&scene, to) && !situation.is_outer());
        let decision = decide(0, &situation, &scene.world());
        prop_assert!(decision.verdict() != Verdict::Pass, "{:?}", decision);
    }

    #[test]
    fn under_require_nothing_from_a_pod_comes_in_plain(
        scene in scene(NOW), situation in situation(), ends in prop::sample::select(INTO_PODS),
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let situation = situation.between(ends.0, ends.1);
        prop_assume!(!is_heard_in_plain(&scene, ends.0));
        prop_assert_eq!(decide(1, &situation, &scene.world()).verdict(), Verdict::Drop);
    }

    /// What is tunnelled goes to the device of the peer's own slot, from a source that is ours.
    #[test]
    fn tunnels_are_the_right_ones(scene in scene(NOW), situation in situation(), to in at(PEERS)) {
        let from = situation.from;
        let situation = situation.between(from, to);
        let decision = decide(0, &situation, &scene.world());
        let (Place::RemotePod(p) | Place::RemoteNode(p)) = to else { unreachable!() };
        let peer = scene.peers[usize::from(p)];
        if decision.reason.verdict() == Verdict::Drop {
            // Who sent a packet too big is answered by the device that it did not fit into.
            prop_assert_eq!(decision.ifindex != 0, decision.reason == Reason::TooBig);
            prop_assert!(decision.tell_mtu == 0 || decision.reason == Reason::TooBig);
        } else if matches!(
            decision.reason,
            Reason::Tunnelled | Reason::Wrapped | Reason::TunnelledInFragments
        ) {
            prop_assert!(peer.has_tunnel() && !peer.is_bypassed(scene.now));
            prop_assert_eq!(decision.ifindex, scene.slots[usize::from(peer.slot())]);
            prop_assert!(decision.ifindex != 0);
            prop_assert!(matches!(from, Place::LocalPod | Place::LocalNode));
        } else {
            prop_assert_eq!(decision.ifindex, 0);
        }
    }

    /// An overlay's envelope to another node is a pod's packet, whatever is in it.
    #[test]
    fn under_require_no_envelope_to_a_node_passes(
        scene in scene(NOW), inner in situation(), envelope in envelope(), to in at(NODES), is_v6 in any::<bool>(),
        fragment in prop_oneof![Just(None), Just(Some((0, true))), (1_u16..100).prop_map(|at| Some((at, false)))],
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        prop_assume!(!has_live_bypass(&scene, to));
        let mut situation = inner.in_envelope(envelope, Place::LocalNode, to, is_v6);
        situation.build.fragment = fragment;
        let decision = decide(0, &situation, &scene.world());
        prop_assert!(decision.verdict() != Verdict::Pass, "{:?}", decision);
    }

    /// Nor one with a pod's packet to anywhere else.
    #[test]
    fn under_require_no_envelope_for_a_remote_pod_passes(
        scene in scene(NOW), inner in situation(), envelope in envelope(), to in at(PODS), outer in at(ELSEWHERE), is_v6 in any::<bool>(),
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let from = inner.from;
        let mut inner = inner.between(from, to);
        inner.build.tags %= 3;
        let situation = inner.in_envelope(envelope, Place::LocalNode, outer, is_v6);
        let decision = decide(0, &situation, &scene.world());
        prop_assert_eq!(decision.reason, Reason::EnvelopeAstray);
    }

    /// The far end's half of it: what may not come in plain may not come in an envelope.
    #[test]
    fn under_require_nothing_from_a_pod_comes_in_an_envelope(
        scene in scene(NOW), inner in situation(), envelope in envelope(), ends in prop::sample::select(INTO_PODS),
        from in prop_oneof![at(NODES), at(ELSEWHERE)], to in prop_oneof![Just(Place::LocalNode), Just(Place::Outside)],
        is_v6 in any::<bool>(), extensions in 0_usize..12,
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        prop_assume!(!is_heard_in_plain(&scene, ends.0) && !is_heard_in_plain(&scene, from));
        let mut situation = inner.between(ends.0, ends.1).in_envelope(envelope, from, to, is_v6);
        situation.build.extensions = vec![kubeveil_verdict::testing::Extension::Options(60, 0); extensions];
        prop_assert_eq!(decide(1, &situation, &scene.world()).verdict(), Verdict::Drop);
    }

    /// A node's tunnel carries envelopes with its own pods' packets only, whoever on that node made them.
    #[test]
    fn no_envelope_out_of_a_tunnel_speaks_for_another_node(
        scene in scene(NOW), inner in situation(), envelope in envelope(), is_v6 in any::<bool>(),
        from in prop::sample::select(&[Place::RemoteNode(0), Place::RemotePod(0)][..]),
        claimed in prop::sample::select(&[Place::RemotePod(1), Place::RemotePod(3), Place::LocalPod][..]),
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let to = inner.to;
        let situation = inner.between(claimed, to).in_envelope(envelope, from, Place::LocalNode, is_v6);
        prop_assert_eq!(decide(2, &situation, &scene.world()).verdict(), Verdict::Drop);
    }

    /// What goes into the tunnel fits, or may be cut; what does not goes back with the tunnel's MTU.
    #[test]
    fn what_is_tunnelled_fits(
        situation in situation(), from in at(HERE), to in at(PEERS), payload in 1_300_usize..1_500, segment in prop_oneof![Just(0_u32), 1_000_u32..1_500],
    ) {
        let world = Scene::calm(Mode::Require).world();
        let mut situation = situation.between(from, to).by(Scene::POD_DEVICE);
        situation.build.payload = payload;
        situation.build.tags = 0;
        let bytes = situation.build.network();
        let slice = Slice { segment, ..Slice::new(&bytes) };
        let decision = steer(&situation.meta(), &slice, &world, &world.config);
        let whole = u32::try_from(bytes.len()).unwrap();
        let is_v4 = situation.build.source.is_ipv4();
        let network = if is_v4 { u32::from(bytes[0] & 15) * 4 } else { 40 };
        let largest = match (&situation.build.transport, segment) {
            (_, 0) => whole,
            _ if !situation.build.extensions.is_empty() && !is_v4 => return Ok(()),
            (Transport::Udp(..), _) => network + 8 + segment,
            (Transport::Tcp(_, _, syn), _) => {
                let options: usize = syn.iter().flatten().map(|o| match o {
                    TcpOptionElement::MaximumSegmentSize(_) => 4,
                    TcpOptionElement::WindowScale(_) => 3,
                    TcpOptionElement::SelectiveAcknowledgementPermitted => 2,
                    _ => 1,
                }).sum();
                network + 20 + u32::try_from(options.next_multiple_of(4)).unwrap() + segment
            }
            _ => return Ok(()),
        };
        prop_assume!(situation.build.fragment.is_none() && !matches!(decision.verdict(), Verdict::Pass));
        let fits = largest <= world.config.mtu;
        match decision.reason {
            Reason::Tunnelled => prop_assert!(fits),
            Reason::TunnelledInFragments => prop_assert!(!fits && is_v4),
            Reason::TooBig if situation.is_v6_fragment() => {}
            Reason::TooBig => {
                prop_assert!(!fits);
                let is_error = matches!(situation.build.transport, Transport::Unreachable(_));
                // Behind extension headers nobody looks.
                let is_unknown = is_error || !is_v4 && !situation.build.extensions.is_empty();
                prop_assert_eq!(decision.tell_mtu, if is_unknown { 0 } else { world.config.mtu });
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// The underlay's own business: neighbours, routers, DHCP, the internet, this node.
    #[test]
    fn what_is_not_the_clusters_is_left_alone(
        scene in scene(NOW), situation in situation(), elsewhere in at(ELSEWHERE), program in 0_usize..2,
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let (from, to) = (situation.from, situation.to);
        let mut situation = match program {
            0 => situation.between(from, elsewhere),
            _ => situation.between(elsewhere, to),
        };
        situation.build.tags %= 3;
        // More headers than a host need accept (RFC 8504, section 5.3) could hide an envelope from the guard.
        situation.build.extensions.truncate(7);
        prop_assume!(!situation.may_be_envelope());
        prop_assume!(situation.build.fragment.is_none() || situation.build.extensions.is_empty());
        // As above: a packet that ends before its ports.
        situation.build.payload += 4;
        prop_assert_eq!(decide(program, &situation, &scene.world()).verdict(), Verdict::Pass);
    }

    /// Encryption can't lock itself out: the host's own traffic to a node that has opened no flow.
    #[test]
    fn the_hosts_own_traffic_is_left_alone(scene in scene(NOW), situation in situation(), to in at(NODES)) {
        let scene = Scene { flows: Vec::new(), ..scene };
        let mut situation = situation.between(Place::LocalNode, to).by(0);
        situation.build.tags = 0;
        situation.build.extensions.truncate(7);
        // Enough for the ports of every protocol that has some.
        situation.build.payload += 4;
        // A later fragment behind an extension header has lost its protocol.
        if situation.build.fragment.is_some() {
            situation.build.extensions.clear();
        }
        // Whose an IPv6 fragment is nobody can say: see `an_ipv6_fragment_is_a_pods`.
        prop_assume!(!situation.is_v6_fragment() && !situation.may_be_envelope());
        let decision = decide(0, &situation, &scene.world());
        prop_assert!(matches!(decision.reason, Reason::Host | Reason::Outer), "{:?}", decision);
    }

    /// The kernel's slow path of IPv6 fragmentation forgets that a packet was forwarded: what looks like the
    /// host's own may be a masqueraded pod's.
    #[test]
    fn an_ipv6_fragment_is_a_pods(scene in scene(NOW), situation in situation(), to in at(NODES)) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let situation = situation.between(Place::LocalNode, to).by(0);
        prop_assume!(situation.is_v6_fragment() && situation.mark != FWMARK && !has_live_bypass(&scene, to));
        let decision = decide(0, &situation, &scene.world());
        prop_assert!(decision.verdict() != Verdict::Pass, "{:?}", decision);
    }

    /// An error of the host's about a pod's packet carries that packet's bytes.
    #[test]
    fn an_error_that_quotes_a_pods_packet_is_a_pods(
        scene in scene(NOW), to in at(NODES), is_v6 in any::<bool>(), is_source in any::<bool>(),
        pod in prop::sample::select(&[Place::LocalPod, Place::RemotePod(1), Place::Unowned][..]),
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        prop_assume!(!has_live_bypass(&scene, to));
        let ends = if is_source { (pod, Place::LocalNode) } else { (to, pod) };
        let quoted = Situation::new(ends.0, ends.1, is_v6, Transport::Udp(4000, 53)).build;
        let error = Situation::new(Place::LocalNode, to, is_v6, Transport::Unreachable(Box::new(quoted)));
        let decision = decide(0, &error, &scene.world());
        prop_assert!(decision.verdict() != Verdict::Pass, "{:?}", decision);
    }

    /// Neighbours find each other even while an echo from the same node is remembered as a flow.
    #[test]
    fn neighbour_discovery_is_left_alone(scene in scene(NOW), to in at(NODES)) {
        let Place::RemoteNode(peer) = to else { unreachable!() };
        let scene = Scene { flows: vec![(peer, true, Transport::Echo(1, false), 0)], ..scene };
        let situation = Situation::new(Place::LocalNode, to, true, Transport::Neighbour);
        prop_assert_eq!(decide(0, &situation, &scene.world()).reason, Reason::Host);
    }

    #[test]
    fn both_families_are_decided_alike(scene in scene(NOW), mut situation in situation(), program in 0_usize..3) {
        // What only one family has.
        situation.build.extensions.clear();
        // Headers differ in length: the one may fit where the other does not.
        situation.build.payload %= 1_000;
        prop_assume!(situation.build.transport != Transport::Neighbour);
        // IPv4 fragments remember where they came in, IPv6 ones don't.
        prop_assume!(situation.build.fragment.is_none() || situation.ingress_ifindex != 0);
        let both = scene.flows.iter().flat_map(|(peer, is_v6, transport, age)| {
            [*is_v6, !*is_v6].map(|is_v6| (*peer, is_v6, transport.clone(), *age))
        });
        let scene = Scene { flows: both.collect(), ..scene.clone() };
        let twin = situation.clone().other_family();
        let (one, two) = (decide(program, &situation, &scene.world()), decide(program, &twin, &scene.world()));
        prop_assert_eq!((one.reason, one.mode, one.ifindex), (two.reason, two.mode, two.ifindex));
    }

    #[test]
    fn a_packet_cut_short_never_passes(
        scene in scene(NOW), situation in situation(), program in 0_usize..3, cut in any::<prop::sample::Index>(),
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        let bytes = situation.build.network();
        let decision = run(program, &situation, &bytes[..cut.index(bytes.len())], &scene.world());
        prop_assert_eq!((decision.reason, decision.verdict()), (Reason::Unparsable, Verdict::Drop));
    }

    /// Noise with the EtherType of IP: whatever it decodes to, a pod's address in it does not get out.
    #[test]
    fn noise_for_a_remote_pod_never_passes(
        scene in scene(NOW), situation in situation(), to in at(PODS), noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let scene = Scene { mode: Mode::Require, ..scene };
        prop_assume!(!has_live_bypass(&scene, to));
        let from = situation.from;
        let mut situation = situation.between(from, to).marked(0);
        situation.build.tags = 0;
        let mut bytes = situation.build.network();
        let addresses = if situation.build.source.is_ipv6() { 24..40 } else { 16..20 };
        for (index, byte) in noise {
            let index = index.index(bytes.len());
            if !addresses.contains(&index) {
                bytes[index] = byte;
            }
        }
        let decision = run(0, &situation, &bytes, &scene.world());
        prop_assert!(decision.verdict() != Verdict::Pass, "{:?}", decision);
    }

    #[test]
    fn observe_carries_nothing_out(scene in scene(NOW), situation in situation(), program in 0_usize..3) {
        let observe = Scene { mode: Mode::Observe, ..scene.clone() };
        let require = Scene { mode: Mode::Require, ..scene };
        let observed = decide(program, &situation, &observe.world());
        prop_assert!(observed.observed());
        prop_assert_eq!(observed.verdict(), Verdict::Pass);
        prop_assert_eq!(observed.reason, decide(program, &situation, &require.world()).reason);
    }

    /// Of what would have travelled without us, `prefer` drops nothing; a proven tunnel it uses.
    #[test]
    fn prefer_drops_only_what_a_tunnel_has_carried(scene in scene(NOW), situation in situation(), program in 0_usize..3) {
        let prefer = Scene { mode: Mode::Prefer, ..scene.clone() };
        let require = Scene { mode: Mode::Require, ..scene };
        let decision = decide(program, &situation, &prefer.world());
        let strict = decide(program, &situation, &require.world());
        match decision.verdict() {
            Verdict::Drop => prop_assert!(matches!(decision.reason, Reason::TunnelToPlain | Reason::TooBig)),
            verdict => {
                let is_tunnel = |v: Verdict| matches!(v, Verdict::Tunnel | Verdict::Wrap);
                prop_assert_eq!(is_tunnel(verdict), is_tunnel(strict.verdict()));
            }
        }
        prop_assert_eq!(decision.observed(), decision.verdict() != decision.reason.verdict());
    }

    /// Memory that nobody has written to yet is the strictest there is.
    #[test]
    fn zeroed_maps_fail_closed(scene in scene(NOW), situation in situation(), program in 0_usize..3) {
        let mut world = scene.world();
        world.config = Config::default();
        world.peers.values_mut().for_each(|peer| *peer = PeerValue(0));
        world.prefixes.iter_mut().for_each(|(_, _, value)| {
            if value.kind != PrefixKind::LocalNode as u8 { value.kind = 0; }
        });
        let known = |place: Place| world.prefixes.iter().any(|(prefix, length, value)| {
            let is_v6 = situation.build.source.is_ipv6();
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            let bits = |a: [u32; 4]| a.iter().fold(0, |b, w| b << 32 | u128::from(u32::from_be(*w)));
            value.kind == 0 && (bits(*prefix) ^ bits(address(place.ip(is_v6)))) & mask == 0
        });
        let must_drop = match program {
            0 => known(situation.to),
            1 => known(situation.from),
            _ => false,
        };
        let decision = decide(program, &situation, &world);
        prop_assert!(decision.reason != Reason::Outer);
        prop_assert!(!must_drop || decision.verdict() == Verdict::Drop, "{:?}", decision);
    }

    /// A tunnelled packet's segment size fits, and is not touched where it does.
    #[test]
    fn segment_sizes_are_only_ever_lowered(situation in situation(), from in at(HERE), to in at(PEERS)) {
        let world = Scene::calm(Mode::Require).world();
        let situation = situation.between(from, to);
        let Decision { reason, clamp, .. } = decide(0, &situation, &world);
        let build = &situation.build;
        let is_v6 = build.source.is_ipv6();
        let limit = if is_v6 { world.config.mss_v6 } else { world.config.mss_v4 };
        let is_long = |option: &TcpOptionElement| match option {
            TcpOptionElement::MaximumSegmentSize(size) => Some(u32::from(*size) > limit),
            _ => None,
        };
        // A SYN, or the answer to one. Behind extension headers nobody looks.
        let is_in_sight = match build.fragment {
            Some((offset, _)) => offset == 0 && !is_v6,
            None => build.extensions.is_empty() || !is_v6,
        };
        let has_long = match &build.transport {
            Transport::Tcp(_, _, Some(options)) => options.iter().find_map(is_long) == Some(true),
            _ => false,
        };
        let is_sized = matches!(reason, Reason::Tunnelled | Reason::TunnelledInFragments | Reason::TooBig);
        prop_assert_eq!(clamp.is_needed(), is_sized && is_in_sight && has_long);
        if clamp.is_needed() {
            prop_assert_eq!(u32::from(clamp.new), limit);
            prop_assert!(clamp.old > clamp.new);
            let bytes = situation.build.network();
            let at = clamp.offset as usize + usize::from(situation.build.tags) * 4;
            prop_assert_eq!(u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap()), clamp.old);
        }
    }
}

/// Half a configuration lets nobody pass for WireGuard: neither port 0 nor mark 0 proves anything.
#[test]
fn zero_is_neither_a_port_nor_a_mark() {
    let port = u32::from(BASE_PORT);
    for (fwmark, ports, source) in [(FWMARK, [0; 2], 0), (0, [port; 2], BASE_PORT), (0, [0; 2], 0)] {
        for is_v6 in [false, true] {
            let mut world = Scene::calm(Mode::Require).world();
            world.peers.clear();
            (world.config.fwmark, world.config.ports) = (fwmark, ports);
            let transport = Transport::Udp(source, 9);
            let packet = Situation::new(Place::LocalNode, Place::RemotePod(0), is_v6, transport);
            assert_eq!(decide(0, &packet.marked(fwmark), &world).reason, Reason::NoTunnel);
        }
    }
}
