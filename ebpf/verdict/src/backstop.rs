use kubeveil_abi::{Address, Config, DeviceKind, PrefixKind, Reason, is_v4_mapped, v4};

use crate::{
    Ask, Decision, Owner,
    mode::End,
    packet::Bytes,
    tables::{Course, Tables},
};

/// Which way a packet goes through the node.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// Device that it came in by; 0 for what this host sent itself.
    pub ingress_ifindex: u32,
    /// Device that it is about to leave by.
    pub egress_ifindex: u32,
    /// Some program stands at the egress of that device.
    pub has_programs: bool,
}

/// Netfilter's POST_ROUTING: every packet of the node, also by a device that nobody has heard of yet.
///
/// `None`: it is left alone and not counted, for it is none of ours, or `steer` is to look at it.
#[inline(always)]
pub fn backstop(hop: Hop, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Option<Decision> {
    match tables.device(hop.egress_ifindex) {
        // Somebody took `steer` off, or made the device anew and gave it the index of the one that was guarded.
        Some(DeviceKind::Underlay) if !hop.has_programs => {}
        // At an underlay device stands `steer`, and a tunnel encrypts.
        Some(_) => return None,
        None => {}
    }
    let (held, reason) = match ends_of_ip(bytes) {
        Some([source, destination]) => {
            let destination = tables.owner(&destination)?;
            if !matches!(destination.kind, PrefixKind::RemotePods | PrefixKind::UnownedPods) {
                return None;
            }
            let ask = Ask::of(source_end(hop, bytes.port(), &source, tables), destination.end);
            (tables.held(ask, config), judge(hop, destination, tables, ask, config)?)
        }
        None => (tables.held(Ask::UNKNOWN, config), Reason::Unparsable),
    };
    Some(Decision::new(held, reason, bytes.length()))
}

/// Where a packet that begins with its IP header comes from and goes to (RFC 791, section 3.1; RFC 8200, section 3). Nothing else in the
/// header matters here. As in every other place an IPv6 header with an IPv4 address can't be read.
#[inline(always)]
pub fn ends_of_ip(bytes: &impl Bytes) -> Option<[Address; 2]> {
    let [first] = bytes.words(0)?;
    match u32::from_be(first) >> 28 {
        4 => bytes.words(12).map(|[source, destination]| [v4(source), v4(destination)]),
        6 => Some([bytes.words(8)?, bytes.words(24)?]).filter(|ends| !ends.iter().any(is_v4_mapped)),
        _ => None,
    }
}

/// Behind the node's own address may be any of its pods.
#[inline(always)]
fn source_end(hop: Hop, port: u16, source: &Address, tables: &impl Tables) -> End {
    match tables.owner(source) {
        None | Some(Owner { kind: PrefixKind::LocalNode, .. }) if hop.ingress_ifindex != 0 => End::UNKNOWN,
        source => source.map_or(End::MESH, |owner| owner.end_by(hop.ingress_ifindex, port)),
    }
}

#[inline(always)]
fn judge(
    hop: Hop,
    Owner { kind, peer, .. }: Owner,
    tables: &impl Tables,
    ask: Ask,
    config: &Config,
) -> Option<Reason> {
    match kind {
        // WireGuard's own packets go to nodes, too.
        PrefixKind::LocalPods | PrefixKind::LocalNode | PrefixKind::RemoteNode => None,
        PrefixKind::RemotePods | PrefixKind::UnownedPods if is_from_tunnel(hop, tables) => {
            Some(Reason::TunnelToPlain)
        }
        PrefixKind::RemotePods => Some(match tables.route(peer, ask, config).course() {
            Course::Plain(reason) => reason,
            Course::Tunnel(_) | Course::Nowhere(_) => Reason::UnguardedDevice,
        }),
        PrefixKind::UnownedPods => Some(Reason::UnguardedDevice),
    }
}

#[inline(always)]
fn is_from_tunnel(hop: Hop, tables: &impl Tables) -> bool {
    hop.ingress_ifindex != 0 && matches!(tables.device(hop.ingress_ifindex), Some(DeviceKind::Tunnel))
}
