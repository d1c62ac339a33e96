//! The cases.

use std::net::IpAddr;

use kubeveil_abi::{
    Asked, BASE_PORT, Direction, FWMARK, FlowKey, FlowValue, Mode, PeerValue, PrefixKind, Reason,
};
use kubeveil_verdict::testing::{
    Build, Envelope, Extension, Place, Scene, Situation, Transport, VXLAN_PORT, World, address,
};

use super::{Case, Change};

use Direction::{Egress, Ingress, Tunnel};
use Place::{LocalNode, LocalPod, Outside, RemoteNode, RemotePod, Unowned};

const POD: u32 = Scene::POD_DEVICE;
const WIRE: u32 = Scene::UNDERLAY;
const TUNNEL: u32 = Scene::TUNNELS[0];

fn no_change(_: &mut Scene, _: &mut World, _: &mut Situation) {}

fn no_tunnel(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    no_tunnels(scene);
}

fn no_tunnels(scene: &mut Scene) {
    scene.peers = [PeerValue::NO_TUNNEL; Scene::PEERS as usize];
}

fn bypass(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::bypass(scene.now + 600);
}

fn bypassed_tunnel(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::tunnel(0, 3).bypassed(scene.now + 600);
}

fn bypassed_tunnel_is_over(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::tunnel(0, 3).bypassed(scene.now);
}

/// Beyond the grace, too.
fn long_bypassed(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::tunnel(0, 3).bypassed(scene.now - 60);
}

/// The far end has begun already.
fn bypass_begins(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::tunnel(0, 3).bypass_heard(scene.now + 600);
}

/// Policies ask for it of pods of this node, and the peer is bypassed.
fn require_while_bypassed(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    require_here(scene, world, situation);
    scene.peers[0] = PeerValue::bypass(scene.now + 600);
}

fn require_over_bypassed_tunnel(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    require_here(scene, world, situation);
    scene.peers[0] = PeerValue::tunnel(0, 3).bypassed(scene.now + 600);
}

fn expired_bypass(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::bypass(scene.now);
}

fn adopting(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::adopting(scene.now + 600);
}

fn adopted_too_late(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::adopting(scene.now);
}

/// Its tunnel was proven a moment ago, or some time ago.
fn just_adopted(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::tunnel(0, 3).heard_in_plain(scene.now + 600);
}

fn long_adopted(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.peers[0] = PeerValue::tunnel(0, 3).heard_in_plain(scene.now);
}

/// Policies ask for it of pods of this node.
fn require_here(scene: &mut Scene, world: &mut World, _: &mut Situation) {
    no_tunnels(scene);
    world.config.unknown = Asked::Require as u32;
    world.ask(PrefixKind::LocalPods, 0, Asked::Require, 0);
}

/// The same, while the mesh is adopted.
fn require_while_adopting(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    require_here(scene, world, situation);
    adopting(scene, world, situation);
}

/// They ask for it of the far end's.
fn require_there(scene: &mut Scene, world: &mut World, _: &mut Situation) {
    no_tunnels(scene);
    world.ask(PrefixKind::RemotePods, 0, Asked::Require, 0);
}

/// Of some pod of this node, whose address is not in sight.
fn require_of_somebody(scene: &mut Scene, world: &mut World, _: &mut Situation) {
    no_tunnels(scene);
    world.config.unknown = Asked::Require as u32;
}

/// Both ends are exempt, for another ten minutes.
fn exempt(scene: &mut Scene, world: &mut World, _: &mut Situation) {
    no_tunnels(scene);
    world.bind_pod();
    for kind in [PrefixKind::LocalPods, PrefixKind::RemotePods] {
        world.ask(kind, 0, Asked::Exempt, scene.now + 600);
    }
}

/// This node's was, and its device is gone; or somebody else sends by it.
fn exempt_and_gone(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    exempt(scene, world, situation);
    world.alive.clear();
}

fn exempt_and_another(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    exempt(scene, world, situation);
    situation.ingress_ifindex = POD + 1;
}

/// They were.
fn no_longer_exempt(scene: &mut Scene, world: &mut World, _: &mut Situation) {
    no_tunnels(scene);
    world.bind_pod();
    for kind in [PrefixKind::LocalPods, PrefixKind::RemotePods] {
        world.ask(kind, 0, Asked::Exempt, scene.now);
    }
}

fn no_device(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.slots = [0; 2];
}

fn outer(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.transport = Transport::Udp(BASE_PORT, BASE_PORT);
    situation.mark = FWMARK;
}

fn pods_fake_outer(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    outer(scene, world, situation);
    no_tunnel(scene, world, situation);
}

fn to_tunnel_port(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.transport = Transport::Udp(BASE_PORT, BASE_PORT);
}

fn too_many_tags(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.tags = 3;
}

fn reply(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.flows = [false, true].map(|is_v6| (0, is_v6, Transport::Udp(53, 40_000), 5)).into();
}

fn old_reply(scene: &mut Scene, _: &mut World, _: &mut Situation) {
    scene.flows = [false, true].map(|is_v6| (0, is_v6, Transport::Udp(53, 40_000), 121)).into();
}

/// Of UDP nobody knows whether they are an envelope's.
fn later_fragment_of_reply(scene: &mut Scene, _: &mut World, situation: &mut Situation) {
    scene.flows = [false, true].map(|is_v6| (0, is_v6, Transport::Echo(7, false), 5)).into();
    situation.build.transport = Transport::Echo(7, true);
    situation.build.fragment = Some((20, false));
}

/// A port is closed: the error carries the pod's bytes.
fn error_about_flow(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    reply(scene, world, situation);
    let is_v6 = situation.build.source.is_ipv6();
    let sent = Situation::new(RemoteNode(0), LocalNode, is_v6, Transport::Udp(53, 40_000));
    situation.build.transport = Transport::Unreachable(Box::new(sent.build));
}

fn full_table(_: &mut Scene, world: &mut World, _: &mut Situation) {
    world.room = 8;
    let entry = |ports| {
        let key = FlowKey { remote: address(Outside.ip(false)), protocol: 17, ports, ..FlowKey::default() };
        (key, FlowValue::default())
    };
    world.flows = (0..8).map(entry).collect::<Vec<_>>().into();
}

/// An overlay's envelope with a packet between pods inside.
fn in_envelope(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    envelope_between(scene, world, situation, LocalPod, RemotePod(0));
}

fn envelope_from_remote(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    envelope_between(scene, world, situation, RemotePod(0), LocalPod);
}

fn envelope_from_another(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    envelope_between(scene, world, situation, RemotePod(1), LocalPod);
}

/// A Service's client, say, whose address the overlay has kept.
fn envelope_from_outside(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    envelope_between(scene, world, situation, Outside, LocalPod);
}

fn envelope_of_strangers(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    envelope_between(scene, world, situation, Outside, Outside);
}

fn envelope_between(_: &mut Scene, _: &mut World, situation: &mut Situation, from: Place, to: Place) {
    let is_v6 = situation.build.source.is_ipv6();
    let inner = Situation::new(from, to, is_v6, Transport::Udp(40_000, 53)).build;
    situation.build.transport = Transport::Envelope(Envelope::Vxlan, Box::new(inner));
}

/// An envelope whose inner header is in another fragment.
fn envelope_cut(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.transport = Transport::Udp(40_000, VXLAN_PORT);
    situation.build.fragment = Some((0, true));
}

/// Nobody knows which envelope it is a part of.
fn later_fragment(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.fragment = Some((20, false));
}

fn big(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.payload = 1_440;
}

/// For IPv6 there are no such packets.
fn big_and_divisible(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.payload = 1_440;
    situation.build.fragment = situation.build.source.is_ipv4().then_some((0, false));
}

/// More than a host need accept (RFC 8504, section 5.3). IPv4 has none: too many tags take their place.
fn too_many_headers(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    if situation.build.source.is_ipv4() {
        return too_many_tags(scene, world, situation);
    }
    situation.build.extensions = vec![Extension::Options(60, 0); 9];
}

/// An ARP packet, as far as anybody can see.
fn not_ip(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    situation.build.false_type = Some(0x0806);
}

/// The other family's EtherType: the version in the header is not what it has to be.
fn other_version(_: &mut Scene, _: &mut World, situation: &mut Situation) {
    let is_v6 = situation.build.source.is_ipv6();
    situation.build.false_type = Some(if is_v6 { 0x0800 } else { 0x86dd });
}

/// The pod's IPv4 address in a header of IPv6, as the maps hold it. Of IPv4 there is no such packet: the other version takes its place.
fn mapped_source(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    mapped(scene, world, situation, |build| &mut build.source);
}

fn mapped_destination(scene: &mut Scene, world: &mut World, situation: &mut Situation) {
    mapped(scene, world, situation, |build| &mut build.destination);
}

/// Both ends are exempt, so that whoever passed for them would go in plain.
fn mapped(
    scene: &mut Scene,
    world: &mut World,
    situation: &mut Situation,
    end: fn(&mut Build) -> &mut IpAddr,
) {
    exempt(scene, world, situation);
    if situation.build.source.is_ipv4() {
        return other_version(scene, world, situation);
    }
    let place = if *end(&mut situation.build) == LocalPod.ip(true) { LocalPod } else { RemotePod(0) };
    if let IpAddr::V4(address) = place.ip(false) {
        *end(&mut situation.build) = address.to_ipv6_mapped().into();
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |what, direction, mode, ends, ingress, change: Change, expected| {
        cases.push(Case { what, direction, mode, ends, ingress, change, expected });
    };
    let (require, prefer, observe) = (Mode::Require, Mode::Prefer, Mode::Observe);
    let pods = (LocalPod, RemotePod(0));
    let masqueraded = (LocalNode, RemoteNode(0));

    add("pod to pod", Egress, require, pods, POD, no_change, Reason::Tunnelled);
    add("pod to pod", Egress, prefer, pods, POD, no_change, Reason::Tunnelled);
    add("pod to pod", Egress, observe, pods, POD, no_change, Reason::Tunnelled);
    add("host to pod", Egress, require, (LocalNode, RemotePod(0)), 0, no_change, Reason::Tunnelled);
    add("masqueraded pod to node", Egress, require, masqueraded, POD, no_change, Reason::Tunnelled);
    add("macvlan pod to node", Egress, require, (LocalPod, RemoteNode(0)), 0, no_change, Reason::Tunnelled);
    add(
        "service between tunnels",
        Egress,
        require,
        (LocalNode, RemotePod(1)),
        TUNNEL,
        no_change,
        Reason::Tunnelled,
    );
    add("answer to a flow", Egress, require, masqueraded, 0, reply, Reason::Tunnelled);
    add("its later fragments", Egress, require, masqueraded, 0, later_fragment_of_reply, Reason::Tunnelled);
    add("an error about a flow", Egress, require, masqueraded, 0, error_about_flow, Reason::Tunnelled);
    add("answer to a flow that is over", Egress, require, masqueraded, 0, old_reply, Reason::Host);
    add("host to node", Egress, require, masqueraded, 0, no_tunnel, Reason::Host);
    add("to the internet", Egress, require, (LocalPod, Outside), POD, no_change, Reason::Other);
    add("not IP", Egress, require, pods, POD, not_ip, Reason::NonIp);
    add("too many tags", Egress, require, pods, POD, too_many_tags, Reason::Unparsable);
    add("too many tags", Egress, prefer, pods, POD, too_many_tags, Reason::Unparsable);
    add("wrong version", Egress, require, pods, POD, other_version, Reason::Unparsable);
    add("from a mapped address", Egress, require, pods, POD, mapped_source, Reason::Unparsable);
    add("to a mapped address", Egress, require, pods, POD, mapped_destination, Reason::Unparsable);
    add("to a node", Egress, require, masqueraded, 0, outer, Reason::Outer);
    add("a pod with its mark and port", Egress, require, pods, POD, pods_fake_outer, Reason::NoTunnel);
    add("no tunnel", Egress, require, pods, POD, no_tunnel, Reason::NoTunnel);
    add("no tunnel", Egress, observe, pods, POD, no_tunnel, Reason::NoTunnel);
    add("no tunnel", Egress, prefer, pods, POD, no_tunnel, Reason::Preferred);
    add("masqueraded pod", Egress, require, masqueraded, POD, no_tunnel, Reason::NoTunnel);
    add("bypass", Egress, require, pods, POD, bypass, Reason::Bypassed);
    add("bypass that is over", Egress, require, pods, POD, expired_bypass, Reason::NoTunnel);
    add("bypassed tunnel", Egress, require, pods, POD, bypassed_tunnel, Reason::Bypassed);
    add("bypassed tunnel, over", Egress, require, pods, POD, bypassed_tunnel_is_over, Reason::Tunnelled);
    add("a bypass begins", Egress, require, pods, POD, bypass_begins, Reason::Tunnelled);
    add("must be, though bypassed", Egress, require, pods, POD, require_while_bypassed, Reason::NoTunnel);
    add(
        "must be, by the tunnel",
        Egress,
        require,
        pods,
        POD,
        require_over_bypassed_tunnel,
        Reason::Tunnelled,
    );
    add("adopting", Egress, require, pods, POD, adopting, Reason::Adopting);
    add("adopting is over", Egress, require, pods, POD, adopted_too_late, Reason::NoTunnel);
    add("just adopted", Egress, require, pods, POD, just_adopted, Reason::Tunnelled);
    add("no device", Egress, require, pods, POD, no_device, Reason::DeviceGone);
    add("no device", Egress, prefer, pods, POD, no_device, Reason::Preferred);
    add("it must be encrypted", Egress, prefer, pods, POD, require_here, Reason::NoTunnel);
    add("it must be, while adopting", Egress, require, pods, POD, require_while_adopting, Reason::NoTunnel);
    add("the far end's must be", Egress, prefer, pods, POD, require_there, Reason::NoTunnel);
    add("masqueraded, whoever's", Egress, prefer, masqueraded, POD, require_of_somebody, Reason::NoTunnel);
    add(
        "the host's own to a pod",
        Egress,
        prefer,
        (LocalNode, RemotePod(0)),
        0,
        require_of_somebody,
        Reason::Preferred,
    );
    add("exempt", Egress, require, pods, POD, exempt, Reason::Exempted);
    add("no longer exempt", Egress, require, pods, POD, no_longer_exempt, Reason::NoTunnel);
    add("exempt, and its device gone", Egress, require, pods, POD, exempt_and_gone, Reason::NoTunnel);
    add("exempt, and by another's device", Egress, require, pods, POD, exempt_and_another, Reason::NoTunnel);
    add("no owner", Egress, require, (LocalPod, Unowned), POD, no_change, Reason::NoOwner);
    add("no owner", Egress, prefer, (LocalPod, Unowned), POD, no_change, Reason::NoOwner);
    add("a stranger's", Egress, require, (Outside, RemotePod(0)), POD, no_change, Reason::SourceNotOurs);
    add("a stranger's", Egress, prefer, (Outside, RemotePod(0)), POD, no_change, Reason::SourceNotOurs);
    add("routed on", Egress, require, (RemotePod(1), RemotePod(0)), TUNNEL, no_change, Reason::TunnelToPlain);
    add("routed on", Egress, prefer, (RemotePod(1), RemotePod(0)), TUNNEL, no_tunnel, Reason::TunnelToPlain);
    add("pod is gone", Egress, prefer, (RemotePod(1), LocalPod), TUNNEL, no_change, Reason::TunnelToPlain);
    add("pod is gone", Egress, require, (Outside, LocalPod), WIRE, no_change, Reason::LocalPodOutward);

    add("an envelope", Egress, require, masqueraded, 0, in_envelope, Reason::Wrapped);
    add("an envelope", Egress, prefer, masqueraded, 0, in_envelope, Reason::Wrapped);
    add("an envelope of strangers", Egress, require, masqueraded, 0, envelope_of_strangers, Reason::Wrapped);
    add("an envelope's later part", Egress, require, masqueraded, 0, later_fragment, Reason::Wrapped);
    add(
        "an envelope elsewhere",
        Egress,
        require,
        (LocalNode, Outside),
        0,
        in_envelope,
        Reason::EnvelopeAstray,
    );
    add(
        "strangers elsewhere",
        Egress,
        require,
        (LocalNode, Outside),
        0,
        envelope_of_strangers,
        Reason::Other,
    );
    add("pod to pod", Egress, require, pods, POD, no_change, Reason::Replaced);
    add("too big but divisible", Egress, require, pods, POD, big_and_divisible, Reason::TunnelledInFragments);
    add("too big", Egress, require, pods, POD, big, Reason::TooBig);
    add("too big", Egress, prefer, pods, POD, big, Reason::TooBig);
    add("too big", Egress, observe, pods, POD, big, Reason::TooBig);

    add(
        "an envelope",
        Ingress,
        require,
        (RemoteNode(0), LocalNode),
        WIRE,
        envelope_from_remote,
        Reason::PlainFromPod,
    );
    add(
        "a stranger's envelope",
        Ingress,
        require,
        (Outside, LocalNode),
        WIRE,
        envelope_from_remote,
        Reason::PlainFromPod,
    );
    add(
        "an envelope from outside",
        Ingress,
        require,
        (RemoteNode(0), LocalNode),
        WIRE,
        envelope_from_outside,
        Reason::PlainToPod,
    );
    add(
        "our own in an envelope",
        Ingress,
        require,
        (Outside, LocalNode),
        WIRE,
        in_envelope,
        Reason::SpoofedLocal,
    );
    add(
        "an envelope cut short",
        Ingress,
        require,
        (Outside, LocalNode),
        WIRE,
        envelope_cut,
        Reason::Unparsable,
    );
    add(
        "too many headers",
        Ingress,
        require,
        (Outside, LocalNode),
        WIRE,
        too_many_headers,
        Reason::Unparsable,
    );
    add("pod to pod", Ingress, require, (RemotePod(0), LocalPod), WIRE, no_change, Reason::PlainFromPod);
    add("pod to pod", Ingress, observe, (RemotePod(0), LocalPod), WIRE, no_change, Reason::PlainFromPod);
    add("pod to pod", Ingress, prefer, (RemotePod(0), LocalPod), WIRE, no_tunnel, Reason::Preferred);
    let (from_pod, wire) = ((RemotePod(0), LocalPod), WIRE);
    add("bypass", Ingress, require, from_pod, wire, bypass, Reason::Bypassed);
    add("bypassed tunnel", Ingress, require, from_pod, wire, bypassed_tunnel, Reason::Bypassed);
    add(
        "bypassed tunnel, just over",
        Ingress,
        require,
        from_pod,
        wire,
        bypassed_tunnel_is_over,
        Reason::Bypassed,
    );
    add("bypassed tunnel, over", Ingress, require, from_pod, wire, long_bypassed, Reason::PlainFromPod);
    add("a bypass begins", Ingress, require, from_pod, wire, bypass_begins, Reason::Bypassed);
    add(
        "must be, though bypassed",
        Ingress,
        require,
        from_pod,
        wire,
        require_while_bypassed,
        Reason::PlainFromPod,
    );
    add(
        "it must be encrypted",
        Ingress,
        prefer,
        (RemotePod(0), LocalPod),
        WIRE,
        require_here,
        Reason::PlainFromPod,
    );
    add(
        "node's, it must be",
        Ingress,
        prefer,
        (RemoteNode(0), LocalPod),
        WIRE,
        require_here,
        Reason::PlainToPod,
    );
    add("exempt", Ingress, require, (RemotePod(0), LocalPod), WIRE, exempt, Reason::Exempted);
    let theirs = (RemotePod(0), LocalPod);
    add("exempt, and its device gone", Ingress, require, theirs, WIRE, exempt_and_gone, Reason::PlainFromPod);
    add(
        "no longer exempt",
        Ingress,
        require,
        (RemotePod(0), LocalPod),
        WIRE,
        no_longer_exempt,
        Reason::PlainFromPod,
    );
    add("from a mapped address", Ingress, require, theirs, WIRE, mapped_source, Reason::Unparsable);
    add("to a mapped address", Ingress, require, theirs, WIRE, mapped_destination, Reason::Unparsable);
    add("adopting", Ingress, require, (RemotePod(0), LocalPod), WIRE, adopting, Reason::Adopting);
    add("just adopted", Ingress, require, (RemotePod(0), LocalPod), WIRE, just_adopted, Reason::Adopting);
    add("long adopted", Ingress, require, (RemotePod(0), LocalPod), WIRE, long_adopted, Reason::PlainFromPod);
    add("a stray pod's", Ingress, require, (Unowned, LocalPod), WIRE, no_change, Reason::PlainFromPod);
    add(
        "forged for WireGuard",
        Ingress,
        require,
        (RemotePod(0), LocalNode),
        WIRE,
        to_tunnel_port,
        Reason::PlainFromPod,
    );
    add("node to pod", Ingress, require, (RemoteNode(0), LocalPod), WIRE, no_change, Reason::PlainToPod);
    add("our own pod's", Ingress, require, (LocalPod, LocalNode), WIRE, no_change, Reason::SpoofedLocal);
    add("our own to a pod", Ingress, require, (LocalNode, LocalPod), WIRE, no_change, Reason::SpoofedLocal);
    add("node to node", Ingress, require, (RemoteNode(0), LocalNode), WIRE, no_change, Reason::Host);
    add("WireGuard's", Ingress, require, (RemoteNode(0), LocalNode), WIRE, to_tunnel_port, Reason::Outer);
    add("from the internet", Ingress, require, (Outside, LocalPod), WIRE, no_change, Reason::Other);
    add("not IP", Ingress, require, (Outside, LocalPod), WIRE, not_ip, Reason::NonIp);
    add("too many tags", Ingress, require, (Outside, LocalPod), WIRE, too_many_tags, Reason::Unparsable);

    add("pod to pod", Tunnel, require, (RemotePod(0), LocalPod), TUNNEL, no_change, Reason::Delivered);
    add("node to node", Tunnel, require, (RemoteNode(0), LocalNode), TUNNEL, no_change, Reason::Delivered);
    add(
        "wrong version",
        Tunnel,
        require,
        (RemotePod(0), LocalPod),
        TUNNEL,
        other_version,
        Reason::Unparsable,
    );
    add("from a mapped address", Tunnel, require, theirs, TUNNEL, mapped_source, Reason::Unparsable);
    add(
        "an envelope",
        Tunnel,
        require,
        (RemoteNode(0), LocalNode),
        TUNNEL,
        envelope_from_remote,
        Reason::Delivered,
    );
    add(
        "another's pod in it",
        Tunnel,
        require,
        (RemoteNode(0), LocalNode),
        TUNNEL,
        envelope_from_another,
        Reason::EnvelopeSpoofed,
    );
    add(
        "our own pod in it",
        Tunnel,
        require,
        (RemoteNode(0), LocalNode),
        TUNNEL,
        in_envelope,
        Reason::EnvelopeSpoofed,
    );
    add("not IP", Tunnel, require, (RemotePod(0), LocalPod), TUNNEL, not_ip, Reason::NonIp);
    add("no room", Tunnel, require, (RemoteNode(0), LocalNode), TUNNEL, full_table, Reason::FlowTableFull);
    add("no room", Tunnel, prefer, (RemoteNode(0), LocalNode), TUNNEL, full_table, Reason::FlowTableFull);
    cases
}
