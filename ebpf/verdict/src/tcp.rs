use kubeveil_abi::Config;

use crate::{
    packet::{Bytes, Packet},
    transport::TCP,
};

/// SYN, in the 14th byte of the header (RFC 9293, section 3.1).
const SYN: u32 = 0x02;
/// Offset of the checksum in the header.
const CHECKSUM: u32 = 16;
/// Length of a header without options.
const HEADER: u32 = 20;
/// Options (RFC 9293, section 3.2).
const END: u32 = 0;
const NO_OPERATION: u32 = 1;
const MAXIMUM_SEGMENT_SIZE: u32 = 2;
/// Options that are read. Every stack that we know of puts the MSS first; a SYN with more in front of
/// it is not clamped, and meets the tunnel's MTU as any other packet does.
const BUDGET: u32 = 10;

/// A maximum segment size to lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The clamp that a packet into a tunnel needs.
#[inline(always)]
pub(crate) fn clamp(packet: &Packet, bytes: &impl Bytes, config: &Config) -> Option<MssClamp> {
    let limit = if packet.is_v6 { config.mss_v6 } else { config.mss_v4 };
    let limit = u16::try_from(limit).ok().filter(|limit| *limit != 0)?;
    if !packet.is_v6 && packet.next != TCP {
        return None;
    }
    let transport = packet.transport(bytes)?;
    if transport.protocol != TCP || transport.later_fragment {
        return None;
    }
    let [flags] = bytes.words(transport.offset + 12)?;
    let flags = u32::from_be(flags);
    if flags >> 16 & SYN == 0 {
        return None;
    }
    let end = transport.offset + (flags >> 28) * 4;
    find(bytes, transport.offset, end, packet.tags * 4, limit)
}

#[inline(always)]
fn find(bytes: &impl Bytes, header: u32, end: u32, ip: u32, limit: u16) -> Option<MssClamp> {
    let mut at = header + HEADER;
    for _ in 0..BUDGET {
        if at + 4 > end {
            return None;
        }
        let [option] = bytes.words(at)?;
        let option_word = u32::from_be(option);
        match option_word >> 24 {
            END => return None,
            NO_OPERATION => at += 1,
            MAXIMUM_SEGMENT_SIZE => {
                let old = crate::packet::low_half(option);
                return (old > limit).then_some(MssClamp {
                    offset: at + 2 - ip,
                    checksum: header + CHECKSUM - ip,
                    old,
                    new: limit,
                });
            }
            // A length below 2 would keep us here for ever; the receiver ignores the rest as well.
            _ => match option_word >> 16 & 0xff {
                0 | 1 => return None,
                length => at += length,
            },
        }
    }
    None
}
