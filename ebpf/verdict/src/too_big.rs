//! "Packet too big": the message that tells a sender the tunnel's MTU.
//!
//! Its source is where the packet was going: it comes out of the tunnel towards the sender, where the far end's
//! addresses are at home, and a masqueraded sender is found by the kernel's connection tracking as usual.

use crate::transport::{ICMP, ICMPV6};

/// Bytes of the packet that are quoted. Fixed, for every packet too big is longer, and checksums are
/// computed over at most 512 bytes at a time (kernel `net/core/filter.c`, `bpf_csum_diff`). IPv4: within
/// the 576 of RFC 1812, section 4.3.2.3; IPv6: within its least MTU (RFC 4443, section 3.2).
pub const QUOTE_V4: u32 = 512;
/// The same for IPv6.
pub const QUOTE_V6: u32 = 512 + 512 + 208;

/// Words of an IPv4 and an ICMP header.
pub const HEAD_V4: usize = 7;
/// Words of an IPv6 and an ICMPv6 header.
pub const HEAD_V6: usize = 12;

/// Time to live, hop limit.
const HOPS: u32 = 64;

/// The headers of the message about a packet with the IPv4 header `packet`. `quote` is the sum over the
/// quoted bytes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a handful of words")]
pub fn head_v4(packet: &[u32; 5], mtu: u32, quote: u32) -> [u32; HEAD_V4] {
    let length = HEAD_V4 as u32 * 4 + QUOTE_V4;
    let mut head = [
        // Type of service 0xc0: internetwork control (RFC 1812, section 4.3.2.5).
        (0x45c0_0000 | length).to_be(),
        0,
        (HOPS << 24 | ICMP << 16).to_be(),
        packet[4],
        packet[3],
        // Destination unreachable, fragmentation needed (RFC 1191, section 4).
        0x0304_0000_u32.to_be(),
        (mtu & 0xffff).to_be(),
    ];
    head[2] |= last_half(sum(&head, 0..5, 0));
    head[5] |= last_half(sum(&head, 5..7, quote));
    head
}

/// The same about a packet with the IPv6 header `packet`.
#[inline(always)]
pub fn head_v6(packet: &[u32; 10], mtu: u32, quote: u32) -> [u32; HEAD_V6] {
    let length = 8 + QUOTE_V6;
    let p = packet;
    let mut head = [
        0x6000_0000_u32.to_be(),
        (length << 16 | ICMPV6 << 8 | HOPS).to_be(),
        p[6],
        p[7],
        p[8],
        p[9],
        p[2],
        p[3],
        p[4],
        p[5],
        // Packet too big (RFC 4443, section 3.2).
        0x0200_0000_u32.to_be(),
        mtu.to_be(),
    ];
    // The pseudo-header of RFC 8200, section 8.1: addresses, length, protocol.
    let pseudo = u64::from(length.to_be()) + u64::from(ICMPV6.to_be()) + u64::from(quote);
    let checksum = sum(&head, 2..12, fold_once(pseudo));
    head[10] |= last_half(checksum);
    head
}

/// The internet checksum (RFC 1071) as it lies in memory, which is the same sum in either byte order.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded into 16 bits")]
fn sum(words: &[u32], of: core::ops::Range<usize>, more: u32) -> u16 {
    let mut total = u64::from(more);
    for index in of {
        total += u64::from(words[index]);
    }
    let total = fold_once(fold_once(total).into());
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

/// 64 bits into 32, with the carry.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the halves are added")]
fn fold_once(total: u64) -> u32 {
    let folded = (total & 0xffff_ffff) + (total >> 32);
    (folded as u32).wrapping_add((folded >> 32) as u32)
}

/// The last two bytes of a word as it lies in memory.
#[inline(always)]
const fn last_half(half: u16) -> u32 {
    u32::from_ne_bytes([0, 0, half.to_ne_bytes()[0], half.to_ne_bytes()[1]])
}
