use kubeveil_abi::{Config, PrefixKind, Reason};

use crate::{
    Ask, Decision, Held, Owner,
    envelope::{Content, Ends},
    flow::is_tunnel_port,
    packet::{Bytes, Meta, Packet},
    tables::{Tables, heard_in_plain},
    transport::Transport,
};

/// Ingress of an underlay device: nothing from the wire may pass for a pod's traffic. How strictly that is meant the ends say,
/// those of a packet inside of an envelope if there is one.
#[inline(always)]
pub fn guard(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    match Decision::or_ip(meta, bytes, tables, config) {
        Ok(packet) => {
            let (reason, held) = judge(&packet, bytes, tables, config);
            Decision::new(held, reason, packet.length)
        }
        Err(decided) => decided,
    }
}

#[inline(always)]
fn judge(packet: &Packet, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> (Reason, Held) {
    let ends = Ends::of(packet, tables);
    let held = tables.held(ends.ask(), config);
    let reason = by_ends(&ends, tables, held);
    if !matches!(reason, Reason::Other | Reason::Host) {
        return (reason, held);
    }
    let unreadable = (Reason::Unparsable, tables.held(Ask::UNKNOWN, config));
    // A header beyond the budget, or chained over several fragments, could hide an envelope. Nobody sends such
    // packets (RFC 8504, section 5.3, lets a host refuse more than eight headers; RFC 7112 a split chain).
    let Some(transport) = packet.transport(bytes) else {
        return unreadable;
    };
    match bytes.inside(&transport, tables, config) {
        Content::None => (outer(&ends, &transport, bytes, config, reason), held),
        Content::NonIp => (reason, held),
        Content::Unreadable => unreadable,
        content @ (Content::Ip(inner) | Content::Nested(inner)) => {
            let held = tables.held(inner.ask(), config);
            match by_ends(&inner, tables, held) {
                Reason::Other | Reason::Host if matches!(content, Content::Nested(_)) => unreadable,
                Reason::Other | Reason::Host => (unless_for_pod(&ends, &inner, tables, held, reason), held),
                inside => (inside, held),
            }
        }
    }
}

/// By whose addresses a packet bears, or one inside of an envelope.
#[inline(always)]
fn by_ends(ends: &Ends, tables: &impl Tables, held: Held) -> Reason {
    let Some(Owner { kind, peer, .. }) = ends.source else {
        return Reason::Other;
    };
    let destination = ends.destination.map(|owner| owner.kind);
    match kind {
        PrefixKind::RemotePods => unless_accepted_in_plain(tables, peer, held, Reason::PlainFromPod),
        PrefixKind::UnownedPods => Reason::PlainFromPod,
        PrefixKind::LocalPods => Reason::SpoofedLocal,
        PrefixKind::RemoteNode | PrefixKind::LocalNode => match (kind, destination) {
            (PrefixKind::RemoteNode, Some(PrefixKind::LocalPods)) => {
                unless_accepted_in_plain(tables, peer, held, Reason::PlainToPod)
            }
            // IPv6 has no rp_filter, and pods let their own node in.
            (_, Some(PrefixKind::LocalPods)) => Reason::SpoofedLocal,
            (_, Some(PrefixKind::LocalNode | PrefixKind::RemoteNode)) => Reason::Host,
            _ => Reason::Other,
        },
    }
}

/// An envelope from a peer node with a packet for one of our pods, wherever that one comes from.
#[inline(always)]
fn unless_for_pod(outer: &Ends, inner: &Ends, tables: &impl Tables, held: Held, reason: Reason) -> Reason {
    match (outer.source, inner.destination) {
        (
            Some(Owner { kind: PrefixKind::RemoteNode, peer, .. }),
            Some(Owner { kind: PrefixKind::LocalPods, .. }),
        ) => unless_accepted_in_plain(tables, peer, held, Reason::PlainToPod),
        _ => reason,
    }
}

#[inline(always)]
fn unless_accepted_in_plain(tables: &impl Tables, peer: u32, held: Held, reason: Reason) -> Reason {
    heard_in_plain(tables, tables.peer(peer), held).unwrap_or(reason)
}

/// `reason`, or [`Reason::Outer`] for a packet to one of our WireGuard ports. Both pass: this only
/// counts, for whether such a packet is genuine only WireGuard can tell.
#[inline(always)]
fn outer(ends: &Ends, transport: &Transport, bytes: &impl Bytes, config: &Config, reason: Reason) -> Reason {
    match (transport.ports(bytes), ends.destination) {
        (Some(ports), Some(Owner { kind: PrefixKind::LocalNode, .. }))
            if is_tunnel_port(config, transport.protocol, ports & 0xffff) =>
        {
            Reason::Outer
        }
        _ => reason,
    }
}
