use kubeveil_abi::{Config, PeerState, PrefixKind, Reason};

use crate::{
    Decision, envelope,
    flow::is_tunnel_port,
    packet::{Bytes, Meta, Packet, Parsed},
    tables::{Tables, owner},
    transport::Transport,
};

/// Ingress of an underlay device: nothing from the wire may pass for a pod's traffic.
#[inline(always)]
pub fn guard(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    match Decision::or_ip(meta, bytes, config) {
        Ok(packet) => Decision::new(config, judge(&packet, bytes, tables, config), packet.length),
        Err(decided) => decided,
    }
}

#[inline(always)]
fn judge(packet: &Packet, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Reason {
    let reason = by_addresses(packet, tables);
    if !matches!(reason, Reason::Other | Reason::Host) {
        return reason;
    }
    // A header beyond the budget, or chained over several fragments, could hide an envelope. Nobody sends such
    // packets (RFC 8504, section 5.3, lets a host refuse more than eight headers; RFC 7112 a split chain).
    let Some(transport) = packet.transport(bytes) else {
        return Reason::Unparsable;
    };
    match envelope::open(&transport, bytes, config) {
        None => outer(packet, &transport, bytes, tables, config, reason),
        Some(Parsed::NonIp) => reason,
        Some(Parsed::Unparsable) => Reason::Unparsable,
        Some(Parsed::Ip(inner)) if envelope::is_nested(&inner, bytes, config) => Reason::Unparsable,
        Some(Parsed::Ip(inner)) => match by_addresses(&inner, tables) {
            Reason::Other | Reason::Host => unless_for_pod(packet, &inner, tables, reason),
            inside => inside,
        },
    }
}

/// By whose addresses a packet bears, or one inside of an envelope.
#[inline(always)]
fn by_addresses(packet: &Packet, tables: &impl Tables) -> Reason {
    let Some((kind, peer)) = owner(tables, &packet.source) else {
        return Reason::Other;
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
                (_, Some((PrefixKind::LocalNode | PrefixKind::RemoteNode, _))) => Reason::Host,
                _ => Reason::Other,
            }
        }
    }
}

/// An envelope from a peer node with a packet for one of our pods, wherever that one comes from.
#[inline(always)]
fn unless_for_pod(outer: &Packet, inner: &Packet, tables: &impl Tables, reason: Reason) -> Reason {
    match (owner(tables, &outer.source), owner(tables, &inner.destination)) {
        (Some((PrefixKind::RemoteNode, peer)), Some((PrefixKind::LocalPods, _))) => {
            unless_bypassed(tables, peer, Reason::PlainToPod)
        }
        _ => reason,
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
fn outer(
    packet: &Packet,
    transport: &Transport,
    bytes: &impl Bytes,
    tables: &impl Tables,
    config: &Config,
    reason: Reason,
) -> Reason {
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
