use crate::packet::{Bytes, Packet};

/// Protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub(crate) const ICMP: u32 = 1;
pub(crate) const TCP: u32 = 6;
pub(crate) const UDP: u32 = 17;
pub(crate) const ICMPV6: u32 = 58;
const DCCP: u32 = 33;
const SCTP: u32 = 132;
const UDPLITE: u32 = 136;

/// IPv6 extension headers (IANA "IPv6 Extension Header Types").
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
pub(crate) const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION: u32 = 60;
const MOBILITY: u32 = 135;
const HIP: u32 = 139;
const SHIM6: u32 = 140;

/// Extension headers that are walked. RFC 8200 (section 4.1) knows seven in their recommended order.
const BUDGET: u32 = 8;

/// What lies above the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Protocol number.
    pub protocol: u32,
    /// Where its header begins, from the network header.
    pub offset: u32,
    /// A fragment other than the first: there is no header.
    pub later_fragment: bool,
    /// It has an IPv6 fragment header.
    pub is_v6_fragment: bool,
}

impl Packet {
    /// Finds the transport header; `None` if the way to it can't be read or is too long.
    #[inline(always)]
    pub fn transport(&self, bytes: &impl Bytes) -> Option<Transport> {
        if self.is_v6 {
            return bytes.walk(self.next, self.payload);
        }
        Some(Transport {
            protocol: self.next,
            offset: self.payload,
            later_fragment: self.later_fragment,
            is_v6_fragment: false,
        })
    }
}

/// IPv6 extension headers, RFC 8200, section 4.
#[inline(always)]
pub fn walk(bytes: &impl Bytes, next: u32, at: u32) -> Option<Transport> {
    let (mut protocol, mut offset) = (next, at);
    let mut is_v6_fragment = false;
    for _ in 0..BUDGET {
        if !is_extension(protocol) {
            return Some(Transport { protocol, offset, later_fragment: false, is_v6_fragment });
        }
        let [word] = bytes.words(offset)?;
        let word = u32::from_be(word);
        let next = word >> 24;
        if protocol == FRAGMENT && word & 0xfff8 != 0 {
            // What its next header leads to is in the first fragment only.
            let known = !is_extension(next);
            return known.then_some(Transport {
                protocol: next,
                offset,
                later_fragment: true,
                is_v6_fragment: true,
            });
        }
        is_v6_fragment |= protocol == FRAGMENT;
        let length = word >> 16 & 0xff;
        offset += match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        protocol = next;
    }
    None
}

impl Transport {
    const LATER: u64 = 1 << 40;
    const FRAGMENT: u64 = 1 << 41;
    const FOUND: u64 = 1 << 42;

    /// In one word, as a function of the kernel's kind can return it; `None` is 0.
    #[inline(always)]
    pub const fn pack(found: Option<Self>) -> u64 {
        let Some(found) = found else {
            return 0;
        };
        let mut word = Self::FOUND | (found.offset as u64) << 8 | (found.protocol & 0xff) as u64;
        if found.later_fragment {
            word |= Self::LATER;
        }
        if found.is_v6_fragment {
            word |= Self::FRAGMENT;
        }
        word
    }

    /// What [`Transport::pack`] has packed.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the word is taken apart")]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word & Self::FOUND == 0 {
            return None;
        }
        Some(Self {
            protocol: word as u32 & 0xff,
            offset: (word >> 8) as u32,
            later_fragment: word & Self::LATER != 0,
            is_v6_fragment: word & Self::FRAGMENT != 0,
        })
    }

    /// Source port in the upper, destination port in the lower half; 0 for what has none.
    /// `None` if the packet ends before.
    #[inline(always)]
    pub(crate) fn ports(&self, bytes: &impl Bytes) -> Option<u32> {
        let has_ports = matches!(self.protocol, TCP | UDP | DCCP | SCTP | UDPLITE);
        if self.later_fragment || !has_ports {
            return Some(0);
        }
        let [ports] = bytes.words(self.offset)?;
        Some(u32::from_be(ports))
    }
}

#[inline(always)]
pub(crate) const fn is_extension(protocol: u32) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6
    )
}
