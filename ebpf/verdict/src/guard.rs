use kubeveil_abi::{Config, PeerState, PrefixKind, Reason};

use crate::{
    Decision,
    flow::is_tunnel_port,
    packet::{Bytes, Meta, Packet},
    tables::{Tables, owner},
};

/// Ingress of an underlay device: nothing from the wire may pass for a pod's traffic.
#[inline(always)]
pub fn guard(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    Decision::on_ip(meta, bytes, config, |packet| {
        Decision::new(config, judge(packet, bytes, tables, config), packet.length)
    })
}

#[inline(always)]
fn judge(packet: &Packet, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Reason {
    let Some((kind, peer)) = owner(tables, &packet.source) else {
        return pass(packet, bytes, tables, config, Reason::Other);
    };
    match kind {
        PrefixKind::RemotePods => unless_bypassed(tables, peer, Reason::PlainFromPod),
        PrefixKind::UnownedPods => Reason::PlainFromPod,
        PrefixKind::LocalPods => Reason::SpoofedLocal,
        PrefixKind::RemoteNode | PrefixKind::LocalNode => {
            match (kind, owner(tables, &packet.destination)) {
                (PrefixKind::RemoteNode, Some((PrefixKind::LocalPods, _))) => {
                    unless_bypassed(tables, peer, Reason::PlainToPod)
                }
                // IPv6 has no rp_filter, and pods let their own node in.
                (_, Some((PrefixKind::LocalPods, _))) => Reason::SpoofedLocal,
                (_, Some((PrefixKind::LocalNode | PrefixKind::RemoteNode, _))) => {
                    pass(packet, bytes, tables, config, Reason::Host)
                }
                _ => Reason::Other,
            }
        }
    }
}

#[inline(always)]
fn unless_bypassed(tables: &impl Tables, peer: u32, reason: Reason) -> Reason {
    let peer = tables.peer(peer);
    match peer.state() {
        PeerState::Bypass if tables.now() < peer.bypass_until() => Reason::Bypassed,
        _ => reason,
    }
}

/// `reason`, or [`Reason::Outer`] for a packet to one of our WireGuard ports. Both pass: this only
/// counts, for whether such a packet is genuine only WireGuard can tell.
#[inline(always)]
fn pass(
    packet: &Packet,
    bytes: &impl Bytes,
    tables: &impl Tables,
    config: &Config,
    reason: Reason,
) -> Reason {
    let Some(transport) = packet.transport(bytes) else {
        return reason;
    };
    match transport.ports(bytes) {
        Some(ports) if is_tunnel_port(config, transport.protocol, ports & 0xffff) => {
            match owner(tables, &packet.destination) {
                Some((PrefixKind::LocalNode, _)) => Reason::Outer,
                _ => reason,
            }
        }
        _ => reason,
    }
}
