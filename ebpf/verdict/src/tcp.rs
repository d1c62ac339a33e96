use kubeveil_abi::Config;

use crate::{
    packet::{Bytes, Packet, low_half},
    transport::TCP,
};

/// Flags, in the 14th byte of the header (RFC 9293, section 3.1).
pub(crate) const FIN: u32 = 0x01;
pub(crate) const SYN: u32 = 0x02;
pub(crate) const RST: u32 = 0x04;
pub(crate) const ACK: u32 = 0x10;
/// Offset of the word with the header's length and the flags.
const FLAGS: u32 = 12;
/// Offset of the checksum in the header.
const CHECKSUM: u32 = 16;
/// Length of a header without options.
const HEADER: u32 = 20;
/// Options (RFC 9293, section 3.2).
const END: u32 = 0;
const NO_OPERATION: u32 = 1;
const MAXIMUM_SEGMENT_SIZE: u32 = 2;
/// Options that are read. Every stack that we know of puts the MSS first; a SYN with more in front of
/// it is not clamped, and meets the tunnel's MTU as any other packet does. Each one more multiplies
/// the states that the verifier looks at.
const BUDGET: u32 = 4;

/// A maximum segment size to lower; all zeros is none.
///
/// No `Option`: the compiler leaves the fields of a `None` unset, copies them all the same, and the verifier refuses
/// to read what nobody has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MssClamp {
    /// Where the two bytes stand, from the IP header on.
    pub offset: u32,
    /// Where the TCP checksum stands, from the IP header on.
    pub checksum: u32,
    /// What stands there, host order.
    pub old: u16,
    /// What has to, host order.
    pub new: u16,
}

impl MssClamp {
    /// Whether there is anything to lower.
    #[inline(always)]
    pub const fn is_needed(&self) -> bool {
        self.new != 0
    }

    /// The old and new value as the checksum sees them, in memory order: it sums words from the TCP
    /// header on, and an option may begin at an odd byte (RFC 1624).
    #[inline(always)]
    pub const fn checksum_words(&self) -> (u16, u16) {
        if (self.offset - self.checksum).is_multiple_of(2) {
            (self.old.to_be(), self.new.to_be())
        } else {
            (self.old.to_le(), self.new.to_le())
        }
    }
}

/// The flags of a TCP header at `offset`. Of what ends before them it is nothing but a packet of its connection.
#[inline(always)]
pub(crate) fn flags(bytes: &impl Bytes, offset: u32) -> u32 {
    match bytes.words(offset + FLAGS) {
        Some([word]) => u32::from_be(word) >> 16 & (FIN | SYN | RST | ACK),
        None => ACK,
    }
}

/// The clamp that a packet into a tunnel needs.
///
/// A SYN behind IPv6 extension headers is left alone: no stack puts them there by itself, the tunnel's
/// MTU holds for it as for any other packet, and the walk to it would be paid for by every packet.
#[inline(always)]
pub(crate) fn clamp(packet: &Packet, bytes: &impl Bytes, config: &Config) -> Option<MssClamp> {
    let limit = if packet.is_v6 { config.mss_v6 } else { config.mss_v4 };
    let limit = u16::try_from(limit).ok().filter(|limit| *limit != 0)?;
    if packet.next != TCP || packet.later_fragment {
        return None;
    }
    let header = packet.payload;
    let [flags] = bytes.words(header + FLAGS)?;
    let flags = u32::from_be(flags);
    if flags >> 16 & SYN == 0 {
        return None;
    }
    let (offset, old) = find(bytes, header, (flags >> 28) * 4)?;
    let ip = packet.tags * 4;
    (old > limit).then_some(MssClamp {
        offset: offset - ip,
        checksum: header + CHECKSUM - ip,
        old,
        new: limit,
    })
}

/// The option in a TCP header of `length` bytes at `header`: where its value stands, and the value.
#[inline(always)]
fn find(bytes: &impl Bytes, header: u32, length: u32) -> Option<(u32, u16)> {
    // Counted from the header on: were `header` part of a comparison, the verifier would have to look
    // at all of this anew for each place that a header can lie at.
    let mut at = HEADER;
    for _ in 0..BUDGET {
        if at + 4 > length {
            return None;
        }
        let [option] = bytes.words(header + at)?;
        let host_order = u32::from_be(option);
        match host_order >> 24 {
            END => return None,
            NO_OPERATION => at += 1,
            MAXIMUM_SEGMENT_SIZE => return Some((header + at + 2, low_half(option))),
            // A length of 0 is nonsense, and keeps us here until the budget is spent.
            _ => at += host_order >> 16 & 0xff,
        }
    }
    None
}
