use kubeveil_abi::{Config, FlowKey, PrefixKind, Reason};

use crate::{
    Ask, Decision, Owner,
    envelope::{self, Content},
    flow::{self, Flow, Sight},
    packet::{Bytes, Meta, Packet},
    tables::Tables,
};

/// Ingress of one of our WireGuard devices: what was encrypted on the wire.
///
/// The far end's addresses were checked by WireGuard itself (AllowedIPs). What is dropped here is dropped for what it could
/// come to, whoever it is for.
#[inline(always)]
pub fn deliver(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    match Decision::or_ip(meta, bytes, tables, config) {
        Ok(packet) => {
            let held = tables.held(Ask::UNKNOWN, config);
            Decision::new(held, judge(&packet, bytes, tables, config), packet.length)
        }
        Err(decided) => decided,
    }
}

#[inline(always)]
fn judge(packet: &Packet, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Reason {
    // To this node's own, or to a Service's address that ends here; nothing else can be an envelope for us.
    let destination = tables.owner(&packet.destination);
    if !matches!(destination, None | Some(Owner { kind: PrefixKind::LocalNode, .. })) {
        return Reason::Delivered;
    }
    let Some(transport) = packet.transport(bytes) else {
        return Reason::Unparsable;
    };
    // Envelopes, and what may be a part of one, are answered by envelopes, which are steered as they are.
    match envelope::is_envelope(&transport, bytes, config) {
        Some(false) => {}
        Some(true) => {
            let content = bytes.inside(&transport, tables, config);
            return inside(tables.owner(&packet.source), content);
        }
        None => return Reason::Unparsable,
    }
    // A node's address is a pod's behind masquerading; the answer may be the host's own packet.
    let source = tables.owner(&packet.source);
    if !matches!(source, Some(Owner { kind: PrefixKind::RemoteNode, .. })) {
        return Reason::Delivered;
    }
    let key = match flow::incoming(packet, &transport, bytes) {
        Flow::Of(key) => key,
        Flow::Link | Flow::Pods => return Reason::Delivered,
        Flow::Unreadable => return Reason::Unparsable,
    };
    // WireGuard's answers are encrypted as they are. Remembered, this flow would send our own outer
    // packets into the tunnel.
    if is_to_tunnel_port(config, &key) {
        return Reason::Delivered;
    }
    // Later fragments of the replies have no ports.
    let fragments = FlowKey { ports: 0, ..key };
    let has_room = |key: &FlowKey| tables.follow(key, Sight::arrives(key, &transport, bytes), config);
    if !has_room(&key) || key.ports != 0 && !has_room(&fragments) {
        return Reason::FlowTableFull;
    }
    Reason::Delivered
}

/// WireGuard holds a peer to its own addresses; what is inside of its envelopes nobody does but we.
#[inline(always)]
fn inside(sender: Option<Owner>, content: Content) -> Reason {
    use PrefixKind::{LocalPods, RemotePods};
    let ends = match content {
        Content::None | Content::NonIp => return Reason::Delivered,
        Content::Unreadable => return Reason::Unparsable,
        Content::Ip(ends) | Content::Nested(ends) => ends,
    };
    match (sender, ends.source) {
        (_, Some(Owner { kind: LocalPods, .. })) => Reason::EnvelopeSpoofed,
        (Some(sender), Some(claimed @ Owner { kind: RemotePods, .. })) if sender.peer != claimed.peer => {
            Reason::EnvelopeSpoofed
        }
        _ => Reason::Delivered,
    }
}

#[inline(always)]
fn is_to_tunnel_port(config: &Config, key: &FlowKey) -> bool {
    flow::is_tunnel_port(config, key.protocol, key.ports & 0xffff)
}
