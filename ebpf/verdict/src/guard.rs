use kubeveil_abi::{Config, PrefixKind, Reason};

use crate::{
    Decision,
    envelope::{Content, Ends},
    flow::is_tunnel_port,
    packet::{Bytes, Meta, Packet},
    tables::{Tables, heard_in_plain},
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
    let ends = Ends::of(packet, tables);
    let reason = by_ends(&ends, tables);
    if !matches!(reason, Reason::Other | Reason::Host) {
        return reason;
    }
    // A header beyond the budget, or chained over several fragments, could hide an envelope. Nobody sends such
    // packets (RFC 8504, section 5.3, lets a host refuse more than eight headers; RFC 7112 a split chain).
    let Some(transport) = packet.transport(bytes) else {
        return Reason::Unparsable;
    };
    match bytes.inside(&transport, tables, config) {
        Content::None => outer(&ends, &transport, bytes, config, reason),
        Content::NonIp => reason,
        Content::Unreadable => Reason::Unparsable,
        content @ (Content::Ip(inner) | Content::Nested(inner)) => match by_ends(&inner, tables) {
            Reason::Other | Reason::Host if matches!(content, Content::Nested(_)) => Reason::Unparsable,
            Reason::Other | Reason::Host => unless_for_pod(&ends, &inner, tables, reason),
            inside => inside,
        },
    }
}

/// By whose addresses a packet bears, or one inside of an envelope.
#[inline(always)]
fn by_ends(ends: &Ends, tables: &impl Tables) -> Reason {
    let Some((kind, peer)) = ends.source else {
        return Reason::Other;
    };
    match kind {
        PrefixKind::RemotePods => unless_bypassed(tables, peer, Reason::PlainFromPod),
        PrefixKind::UnownedPods => Reason::PlainFromPod,
        PrefixKind::LocalPods => Reason::SpoofedLocal,
        PrefixKind::RemoteNode | PrefixKind::LocalNode => match (kind, ends.destination) {
            (PrefixKind::RemoteNode, Some((PrefixKind::LocalPods, _))) => {
                unless_bypassed(tables, peer, Reason::PlainToPod)
            }
            // IPv6 has no rp_filter, and pods let their own node in.
            (_, Some((PrefixKind::LocalPods, _))) => Reason::SpoofedLocal,
            (_, Some((PrefixKind::LocalNode | PrefixKind::RemoteNode, _))) => Reason::Host,
            _ => Reason::Other,
        },
    }
}

/// An envelope from a peer node with a packet for one of our pods, wherever that one comes from.
#[inline(always)]
fn unless_for_pod(outer: &Ends, inner: &Ends, tables: &impl Tables, reason: Reason) -> Reason {
    match (outer.source, inner.destination) {
        (Some((PrefixKind::RemoteNode, peer)), Some((PrefixKind::LocalPods, _))) => {
            unless_bypassed(tables, peer, Reason::PlainToPod)
        }
        _ => reason,
    }
}

#[inline(always)]
fn unless_bypassed(tables: &impl Tables, peer: u32, reason: Reason) -> Reason {
    heard_in_plain(tables, tables.peer(peer)).unwrap_or(reason)
}

/// `reason`, or [`Reason::Outer`] for a packet to one of our WireGuard ports. Both pass: this only
/// counts, for whether such a packet is genuine only WireGuard can tell.
#[inline(always)]
fn outer(ends: &Ends, transport: &Transport, bytes: &impl Bytes, config: &Config, reason: Reason) -> Reason {
    match (transport.ports(bytes), ends.destination) {
        (Some(ports), Some((PrefixKind::LocalNode, _)))
            if is_tunnel_port(config, transport.protocol, ports & 0xffff) =>
        {
            Reason::Outer
        }
        _ => reason,
    }
}
