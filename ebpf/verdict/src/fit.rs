//! What fits into the tunnel.

use kubeveil_abi::Config;

use crate::{
    flow,
    packet::{Bytes, Packet},
    transport::{FRAGMENT, ICMP, ICMPV6, TCP, UDP, is_extension},
};

/// How a packet meets the tunnel's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Fits,
    /// It does not, and WireGuard's own packet will be fragmented.
    InFragments,
    /// It does not and must not be cut; whether its sender may be told.
    TooBig {
        tell: bool,
    },
}

/// WireGuard itself takes whatever a redirect gives it, and sends it on in fragments
/// (`drivers/net/wireguard/device.c`, `wg_xmit`, holds no packet against its MTU).
#[inline(always)]
pub(crate) fn fit(packet: &Packet, bytes: &impl Bytes, config: &Config) -> Fit {
    if config.mtu == 0 || largest(packet, bytes) <= config.mtu {
        return Fit::Fits;
    }
    if packet.is_divisible {
        return Fit::InFragments;
    }
    Fit::TooBig { tell: may_be_told(packet, bytes) }
}

/// Bytes of the largest packet that this becomes: of what is segmented, one segment with its headers. A kind of
/// segments that we don't know counts as small.
#[inline(always)]
fn largest(packet: &Packet, bytes: &impl Bytes) -> u32 {
    let segment = bytes.segment();
    if segment == 0 {
        return packet.length;
    }
    let network = packet.payload - packet.tags * 4;
    match packet.next {
        TCP => match bytes.words(packet.payload + 12) {
            Some([flags]) => network + (u32::from_be(flags) >> 28) * 4 + segment,
            None => 0,
        },
        UDP => network + 8 + segment,
        _ => 0,
    }
}

/// No error about an error (RFC 1122, section 3.2.2; RFC 4443, section 2.4), none about a later fragment of IPv4.
/// Of IPv6 extension headers only that of a fragment is looked behind: nobody else sends such packets of this size.
#[inline(always)]
fn may_be_told(packet: &Packet, bytes: &impl Bytes) -> bool {
    let (mut protocol, mut at) = (packet.next, packet.payload);
    if packet.later_fragment {
        return false;
    }
    if protocol == FRAGMENT {
        let Some([first]) = bytes.words(at) else {
            return false;
        };
        protocol = u32::from_be(first) >> 24;
        at += 8;
    }
    let icmp = if packet.is_v6 { ICMPV6 } else { ICMP };
    if protocol != icmp {
        return !is_extension(protocol);
    }
    match bytes.words(at) {
        Some([first]) => !flow::is_error(packet.is_v6, u32::from_be(first) >> 24),
        None => false,
    }
}
