//! Envelopes: what overlays (flannel, Cilium, OVN, Calico, Antrea) put around pods' packets.
//!
//! An envelope is the host's own packet to another node, and the kernel has forgotten that it forwarded what
//! is inside (`skb_scrub_packet`), so only its bytes tell.

use kubeveil_abi::{Config, GENEVE, PrefixKind};

use crate::{
    Ask, Owner,
    mode::End,
    packet::{Bytes, ETH_P_IP, ETH_P_IPV6, Packet, Parsed, low_half, parse_header},
    tables::Tables,
    transport::{Transport, UDP, is_extension},
};

/// Protocol numbers (IANA "Assigned Internet Protocol Numbers").
const IPIP: u32 = 4;
const IPV6_IN_IP: u32 = 41;
const GRE: u32 = 47;
/// EtherType of a whole Ethernet frame (`ETH_P_TEB`).
const ETH_P_TEB: u16 = 0x6558;

/// GRE's first word, host order (RFC 2784, RFC 2890): a checksum, a key, a sequence number follow; what must
/// be zero (routing, which RFC 2784 took away, and the version: 1 is PPTP's).
const GRE_CHECKSUM: u32 = 0x8000_0000;
const GRE_KEY: u32 = 0x2000_0000;
const GRE_SEQUENCE: u32 = 0x1000_0000;
const GRE_ROUTING: u32 = 0x4000_0000;
const GRE_VERSION: u32 = 0x0007_0000;

/// VXLAN-GPE: the last byte of the first word says what is inside (`struct vxlanhdr_gpe`).
const VXLAN_NEXT_PROTOCOL: u32 = 0x0400_0000;
const VXLAN_HEADER: u32 = 8;
/// `NSH_P_*` of the kernel's `include/net/tun_proto.h`.
const NEXT_IPV4: u32 = 1;
const NEXT_IPV6: u32 = 2;
const NEXT_ETHERNET: u32 = 3;

/// Geneve (RFC 8926, section 3.4): length of its options in words.
const GENEVE_HEADER: u32 = 8;
const GENEVE_OPTIONS_SHIFT: u32 = 24;
const GENEVE_OPTIONS_MASK: u32 = 0x3f;

/// UDP header.
const UDP_HEADER: u32 = 8;
/// Ethernet header, and where the two bytes before its EtherType begin.
const ETHERNET_HEADER: u32 = 14;
const ETHER_TYPE_WORD: u32 = 10;

/// What kind of envelope a packet is.
enum Kind {
    /// None.
    No,
    /// Of a kind whose first fragment shows what is inside.
    Later,
    Ipip,
    Sit,
    Gre,
    Vxlan,
    Geneve,
}

/// Whether the packet is an envelope or a part of one; `None` if it can't be read. A later fragment of UDP shows
/// no port, so it may be.
#[inline(always)]
pub(crate) fn is_envelope(transport: &Transport, bytes: &impl Bytes, config: &Config) -> Option<bool> {
    kind(transport, bytes, config).map(|kind| !matches!(kind, Kind::No))
}

/// What an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It is no envelope, or a part that does not show it.
    None,
    /// No IP packet: the overlay's own business.
    NonIp,
    /// It can't be read.
    Unreadable,
    /// A packet of whom to whom.
    Ip(Ends),
    /// The same, and it is, or may be, an envelope in turn. Nobody looks deeper.
    Nested(Ends),
}

/// Whose the addresses of a packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The source's.
    pub source: Option<Owner>,
    /// The destination's.
    pub destination: Option<Owner>,
}

impl Ends {
    /// Those of a packet.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet, tables: &impl Tables) -> Self {
        Self { source: tables.owner(&packet.source), destination: tables.owner(&packet.destination) }
    }

    /// What they ask for. Behind this node's own address may be any of its pods.
    #[inline(always)]
    pub(crate) fn ask(&self) -> Ask {
        let source = match self.source {
            Some(Owner { kind: PrefixKind::LocalNode, .. }) => End::UNKNOWN,
            source => End::at(source),
        };
        Ask::of(source, End::at(self.destination))
    }
}

/// What [`Owner::pack`] makes of all but the device.
const OWNER: u64 = (1 << Owner::BITS) - 1;

impl Content {
    /// In one word, as a global function of the programs can return it.
    #[inline(always)]
    pub const fn pack(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::NonIp => 1,
            Self::Unreadable => 2,
            // Which device what is inside came in by the kernel has forgotten.
            Self::Ip(ends) | Self::Nested(ends) => {
                (if matches!(self, Self::Ip(_)) { 3 } else { 4 })
                    | (Owner::pack(ends.source) & OWNER) << 8
                    | (Owner::pack(ends.destination) & OWNER) << 32
            }
        }
    }

    /// What [`Content::pack`] has packed.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        let [source, destination] = [word >> 8 & OWNER, word >> 32 & OWNER];
        let ends = Ends { source: Owner::unpack(source), destination: Owner::unpack(destination) };
        match word & 0xff {
            0 => Self::None,
            1 => Self::NonIp,
            2 => Self::Unreadable,
            3 => Self::Ip(ends),
            _ => Self::Nested(ends),
        }
    }
}

/// Opens an envelope.
#[inline(always)]
pub fn inside(bytes: &impl Bytes, transport: &Transport, tables: &impl Tables, config: &Config) -> Content {
    match open(transport, bytes, config) {
        None => Content::None,
        Some(Parsed::NonIp) => Content::NonIp,
        Some(Parsed::Unparsable) => Content::Unreadable,
        Some(Parsed::Ip(inner)) if is_nested(&inner, bytes, config) => {
            Content::Nested(Ends::of(&inner, tables))
        }
        Some(Parsed::Ip(inner)) => Content::Ip(Ends::of(&inner, tables)),
    }
}

/// What is inside of an envelope; `None` if the packet is none, or a part that does not show it.
#[inline(always)]
fn open(transport: &Transport, bytes: &impl Bytes, config: &Config) -> Option<Parsed> {
    let at = transport.offset;
    let Some(kind) = kind(transport, bytes, config) else {
        return Some(Parsed::Unparsable);
    };
    let inside = match kind {
        Kind::No | Kind::Later => return None,
        Kind::Ipip => Some((ETH_P_IP, at)),
        Kind::Sit => Some((ETH_P_IPV6, at)),
        Kind::Gre => gre(bytes, at),
        Kind::Vxlan => vxlan(bytes, at + UDP_HEADER),
        Kind::Geneve => geneve(bytes, at + UDP_HEADER),
    };
    let Some((protocol, at)) = inside else {
        return Some(Parsed::Unparsable);
    };
    if protocol != ETH_P_TEB {
        return Some(parse_header(protocol, bytes, at));
    }
    Some(match bytes.words(at + ETHER_TYPE_WORD) {
        Some([word]) => parse_header(low_half(word), bytes, at + ETHERNET_HEADER),
        None => Parsed::Unparsable,
    })
}

/// Whether what an envelope held is, or may be, an envelope in turn.
#[inline(always)]
fn is_nested(inner: &Packet, bytes: &impl Bytes, config: &Config) -> bool {
    let transport = Transport {
        protocol: inner.next,
        offset: inner.payload,
        later_fragment: false,
        is_v6_fragment: false,
    };
    is_extension(inner.next) || is_envelope(&transport, bytes, config).unwrap_or(true)
}

#[inline(always)]
fn kind(transport: &Transport, bytes: &impl Bytes, config: &Config) -> Option<Kind> {
    let kind = match transport.protocol {
        IPIP => Kind::Ipip,
        IPV6_IN_IP => Kind::Sit,
        GRE => Kind::Gre,
        UDP if transport.later_fragment => Kind::Later,
        UDP => {
            let port = transport.ports(bytes)? & 0xffff;
            by_port(config, port)
        }
        _ => Kind::No,
    };
    Some(match kind {
        Kind::No => Kind::No,
        _ if transport.later_fragment => Kind::Later,
        kind => kind,
    })
}

#[inline(always)]
fn by_port(config: &Config, port: u32) -> Kind {
    if port == 0 {
        return Kind::No;
    }
    let mut kind = Kind::No;
    for known in config.envelope_ports {
        if known == port {
            kind = Kind::Vxlan;
        } else if known == port | GENEVE {
            kind = Kind::Geneve;
        }
    }
    kind
}

/// EtherType of what is inside, and where it begins.
#[inline(always)]
fn gre(bytes: &impl Bytes, at: u32) -> Option<(u16, u32)> {
    let [first] = bytes.words(at)?;
    let flags = u32::from_be(first);
    if flags & (GRE_ROUTING | GRE_VERSION) != 0 {
        return None;
    }
    let mut header = 4;
    for optional in [GRE_CHECKSUM, GRE_KEY, GRE_SEQUENCE] {
        if flags & optional != 0 {
            header += 4;
        }
    }
    Some((low_half(first), at + header))
}

#[inline(always)]
fn vxlan(bytes: &impl Bytes, at: u32) -> Option<(u16, u32)> {
    let [first] = bytes.words(at)?;
    let flags = u32::from_be(first);
    let protocol = if flags & VXLAN_NEXT_PROTOCOL == 0 {
        ETH_P_TEB
    } else {
        match flags & 0xff {
            NEXT_IPV4 => ETH_P_IP,
            NEXT_IPV6 => ETH_P_IPV6,
            NEXT_ETHERNET => ETH_P_TEB,
            _ => return None,
        }
    };
    Some((protocol, at + VXLAN_HEADER))
}

#[inline(always)]
fn geneve(bytes: &impl Bytes, at: u32) -> Option<(u16, u32)> {
    let [first] = bytes.words(at)?;
    let options = (u32::from_be(first) >> GENEVE_OPTIONS_SHIFT & GENEVE_OPTIONS_MASK) * 4;
    Some((low_half(first), at + GENEVE_HEADER + options))
}
