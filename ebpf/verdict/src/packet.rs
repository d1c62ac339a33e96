use kubeveil_abi::{Address, Config, is_v4_mapped, v4};

use crate::{
    Tables, envelope,
    envelope::Content,
    fit::{self, Fitting},
    transport::{self, Transport},
};

/// EtherTypes (`include/uapi/linux/if_ether.h`).
pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// VLAN tags that are looked through. The kernel moves one more into the packet's metadata.
const MAX_TAGS: u32 = 2;

/// Length of the IPv6 header (RFC 8200, section 3).
const IPV6_HEADER: u32 = 40;
/// The 13 bits of an IPv4 fragment's offset (RFC 791, section 3.1).
const IPV4_OFFSET_MASK: u32 = 0x1fff;
/// Its flag "don't fragment".
const IPV4_DF: u32 = 0x4000;

/// The packet's memory, from its network header on.
pub trait Bytes {
    /// `N` words as they lie at `offset`, which need not be aligned; `None` if the packet ends before.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// Length of the packet. It may count a link header too, so it bounds what can be there.
    fn length(&self) -> u32;

    /// Bytes that each of several segments under one header carries; 0 if it is but one. Only segmented
    /// packets may say that their length is 0: the kernel does so above 64 KiB ("BIG TCP", `iph_set_totlen`).
    fn segment(&self) -> u32;

    /// The number of the bridge's port that it came in by ([`port_number`](kubeveil_abi::port_number)); 0 where nobody has written one.
    fn port(&self) -> u16;

    /// What lies behind IPv6 extension headers, of which the first is of protocol `next` and lies at `at`. A method
    /// so that the programs can put it where the verifier looks at it but once.
    fn walk(&self, next: u32, at: u32) -> Option<Transport>
    where
        Self: Sized,
    {
        transport::walk(self, next, at)
    }

    /// What the packet needs on its way into the tunnel. A method for the same reason.
    fn fitting(&self, packet: &Packet, config: &Config) -> Fitting
    where
        Self: Sized,
    {
        fit::fitting(self, packet, config)
    }

    /// What is inside, if the packet is an envelope. A method for the same reason.
    fn inside(&self, transport: &Transport, tables: &impl Tables, config: &Config) -> Content
    where
        Self: Sized,
    {
        envelope::inside(self, transport, tables, config)
    }
}

/// What the kernel knows of a packet beside its bytes (`struct __sk_buff`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// EtherType in host order (`skb->protocol`, which is right with an offloaded VLAN tag too).
    pub protocol: u16,
    /// Device that it came in by; 0 for what this host sent itself.
    pub ingress_ifindex: u32,
    /// Firewall mark.
    pub mark: u32,
}

/// The network header, IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Bytes from the IP header on.
    pub length: u32,
    /// VLAN tags in front of the IP header that the kernel has left in the packet.
    pub tags: u32,
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Protocol of what follows; for IPv6 it may be an extension header.
    pub(crate) next: u32,
    /// Where that begins, from the network header.
    pub(crate) payload: u32,
    /// An IPv4 fragment other than the first.
    pub(crate) later_fragment: bool,
    /// It may be cut into fragments on its way: IPv4 without "don't fragment".
    pub(crate) is_divisible: bool,
}

impl Packet {
    /// All but the addresses in one word, as a global function of the programs can take it.
    #[inline(always)]
    pub const fn outline(&self) -> u64 {
        // Two tags and an IPv4 header with options are 68 bytes.
        self.length as u64
            | (self.payload as u64 & 0xff) << 32
            | (self.next as u64 & 0xff) << 40
            | (self.tags as u64 & 3) << 48
            | (self.is_v6 as u64) << 50
            | (self.later_fragment as u64) << 51
            | (self.is_divisible as u64) << 52
    }

    /// What [`Packet::outline`] has kept.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the word is taken apart")]
    pub const fn of_outline(word: u64) -> Self {
        Self {
            source: [0; 4],
            destination: [0; 4],
            length: word as u32,
            payload: (word >> 32) as u32 & 0xff,
            next: (word >> 40) as u32 & 0xff,
            tags: (word >> 48) as u32 & 3,
            is_v6: word >> 50 & 1 != 0,
            later_fragment: word >> 51 & 1 != 0,
            is_divisible: word >> 52 & 1 != 0,
        }
    }
}

/// What [`parse`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Neither IPv4 nor IPv6.
    NonIp,
    /// Said to be IP, but its header makes no sense or is cut short.
    Unparsable,
    /// An IP packet.
    Ip(Packet),
}

/// Reads the network header of a packet whose EtherType is `protocol`.
#[inline(always)]
pub fn parse(protocol: u16, bytes: &impl Bytes) -> Parsed {
    let mut packet = match parse_header(protocol, bytes, 0) {
        Parsed::Ip(packet) => packet,
        other => return other,
    };
    let at = packet.tags * 4;
    // `length` counts from the network header on or from further left, so this is no false alarm.
    let room = bytes.length().saturating_sub(at);
    let header = packet.payload - at;
    let stated = packet.length;
    let empty = if packet.is_v6 { IPV6_HEADER } else { 0 };
    if stated == empty && bytes.segment() != 0 {
        packet.length = room;
    } else if stated < header || stated > room {
        return Parsed::Unparsable;
    }
    Parsed::Ip(packet)
}

/// Where an IP packet whose EtherType is `protocol` comes from and goes to.
#[inline(always)]
pub fn ends(protocol: u16, bytes: &impl Bytes) -> Option<[Address; 2]> {
    match parse_header(protocol, bytes, 0) {
        Parsed::Ip(packet) => Some([packet.source, packet.destination]),
        Parsed::NonIp | Parsed::Unparsable => None,
    }
}

/// Reads the network header of what begins at `at` with the EtherType `protocol`. Its length is not held against
/// the room: what an envelope or an ICMP error holds may go on elsewhere.
#[inline(always)]
pub(crate) fn parse_header(protocol: u16, bytes: &impl Bytes, at: u32) -> Parsed {
    let (mut protocol, mut tags) = (protocol, 0);
    // A pod that reaches the wire by a bridge can put tags of its own in front.
    while is_vlan(protocol) {
        if tags == MAX_TAGS {
            return Parsed::Unparsable;
        }
        let Some([tag]) = bytes.words(at + tags * 4) else {
            return Parsed::Unparsable;
        };
        protocol = low_half(tag);
        tags += 1;
    }
    let packet = match protocol {
        ETH_P_IP => parse_v4(bytes, at + tags * 4),
        ETH_P_IPV6 => parse_v6(bytes, at + tags * 4),
        _ => return Parsed::NonIp,
    };
    match packet {
        Some(packet) => Parsed::Ip(Packet { tags, ..packet }),
        None => Parsed::Unparsable,
    }
}

/// Whether an EtherType (host order) announces a VLAN tag.
#[inline(always)]
pub const fn is_vlan(protocol: u16) -> bool {
    matches!(protocol, ETH_P_8021Q | ETH_P_8021AD)
}

/// The header that an ICMP error quotes.
#[inline(always)]
pub(crate) fn parse_quoted(is_v6: bool, bytes: &impl Bytes, at: u32) -> Option<Packet> {
    if is_v6 { parse_v6(bytes, at) } else { parse_v4(bytes, at) }
}

/// RFC 791, section 3.1.
#[inline(always)]
fn parse_v4(bytes: &impl Bytes, at: u32) -> Option<Packet> {
    let [first, fragment, ttl, source, destination] = bytes.words(at)?;
    let (first, fragment) = (u32::from_be(first), u32::from_be(fragment));
    let header = (first >> 24 & 0xf) * 4;
    if first >> 28 != 4 || header < 20 {
        return None;
    }
    Some(Packet {
        source: v4(source),
        destination: v4(destination),
        length: first & 0xffff,
        tags: 0,
        is_v6: false,
        next: u32::from_be(ttl) >> 16 & 0xff,
        payload: at + header,
        later_fragment: fragment & IPV4_OFFSET_MASK != 0,
        is_divisible: fragment & IPV4_DF == 0,
    })
}

/// RFC 8200, section 3. Extension headers are left to [`Packet::transport`].
///
/// One with a mapped address would pass for who has the IPv4 address, since the maps hold that so. No such packet has any business on a
/// wire: the kernel takes none whose source is one (`net/ipv6/ip6_input.c`, `ip6_rcv_core`).
#[inline(always)]
fn parse_v6(bytes: &impl Bytes, at: u32) -> Option<Packet> {
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = bytes.words(at)?;
    let (source, destination) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
    if u32::from_be(first) >> 28 != 6 || is_v4_mapped(&source) || is_v4_mapped(&destination) {
        return None;
    }
    let second = u32::from_be(second);
    Some(Packet {
        source,
        destination,
        length: IPV6_HEADER + (second >> 16),
        tags: 0,
        is_v6: true,
        next: second >> 8 & 0xff,
        payload: at + IPV6_HEADER,
        later_fragment: false,
        is_divisible: false,
    })
}

/// The last two bytes of a word as it lies in a packet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it is what the function is for")]
pub(crate) const fn low_half(word: u32) -> u16 {
    u32::from_be(word) as u16
}
