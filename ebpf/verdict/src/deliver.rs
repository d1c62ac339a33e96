use kubeveil_abi::{Config, FlowKey, PrefixKind, Reason};

use crate::{
    Decision,
    flow::{self, Flow},
    packet::{Bytes, Meta, Packet},
    tables::{Tables, owner},
};

/// Ingress of one of our WireGuard devices: what was encrypted on the wire.
///
/// The far end's addresses were checked by WireGuard itself (AllowedIPs).
#[inline(always)]
pub fn deliver(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    Decision::on_ip(meta, bytes, config, |packet| {
        Decision::new(config, judge(packet, bytes, tables, config), packet.length)
    })
}

#[inline(always)]
fn judge(packet: &Packet, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Reason {
    if !may_answer_as_host(packet, tables) {
        return Reason::Delivered;
    }
    let Some(transport) = packet.transport(bytes) else {
        return Reason::Unparsable;
    };
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
    let now = tables.now();
    // Later fragments of the replies have no ports.
    let fragments = FlowKey { ports: 0, ..key };
    if !flow::refresh(tables, &key, now) || key.ports != 0 && !flow::refresh(tables, &fragments, now) {
        return Reason::FlowTableFull;
    }
    Reason::Delivered
}

#[inline(always)]
fn is_to_tunnel_port(config: &Config, key: &FlowKey) -> bool {
    flow::is_tunnel_port(config, key.protocol, key.ports & 0xffff)
}

/// From a node's address (a pod behind masquerading), to none that is known to be a pod's: this
/// node's own, or a Service's that ends here. The answer may be the host's own packet.
#[inline(always)]
fn may_answer_as_host(packet: &Packet, tables: &impl Tables) -> bool {
    matches!(owner(tables, &packet.destination), None | Some((PrefixKind::LocalNode, _)))
        && matches!(owner(tables, &packet.source), Some((PrefixKind::RemoteNode, _)))
}
