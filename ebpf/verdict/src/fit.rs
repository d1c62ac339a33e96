//! What fits into the tunnel, and what is to be done that more will.

use kubeveil_abi::Config;

use crate::{
    MssClamp, flow,
    packet::{Bytes, Packet},
    tcp,
    transport::{FRAGMENT, ICMP, ICMPV6, TCP, UDP, is_extension},
};

/// How a packet meets the tunnel's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Fits,
    /// It does not, and WireGuard's own packet will be fragmented.
    InFragments,
    /// It does not and must not be cut.
    TooBig {
        /// Whether its sender may be told.
        tell: bool,
    },
}

/// What a packet on its way into the tunnel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitting {
    pub(crate) fit: Fit,
    pub(crate) clamp: MssClamp,
}

impl Fitting {
    /// Dropped, and nobody is told.
    pub const NOT: Self =
        Self { fit: Fit::TooBig { tell: false }, clamp: MssClamp { offset: 0, checksum: 0, old: 0, new: 0 } };

    /// In one word, as a global function of the programs can return it.
    #[inline(always)]
    pub const fn pack(&self) -> u64 {
        let fit = match self.fit {
            Fit::Fits => 0,
            Fit::InFragments => 1,
            Fit::TooBig { tell: false } => 2,
            Fit::TooBig { tell: true } => 3,
        };
        let MssClamp { offset, checksum, old, new } = self.clamp;
        // Offsets are within two IP headers with options and one of TCP.
        fit | (offset as u64 & 0x3fff) << 2
            | (checksum as u64 & 0x3fff) << 16
            | (old as u64) << 30
            | (new as u64) << 46
    }

    /// What [`Fitting::pack`] has packed.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the word is taken apart")]
    pub const fn unpack(word: u64) -> Self {
        let fit = match word & 3 {
            0 => Fit::Fits,
            1 => Fit::InFragments,
            2 => Fit::TooBig { tell: false },
            _ => Fit::TooBig { tell: true },
        };
        let clamp = MssClamp {
            offset: (word >> 2) as u32 & 0x3fff,
            checksum: (word >> 16) as u32 & 0x3fff,
            old: (word >> 30) as u16,
            new: (word >> 46) as u16,
        };
        Self { fit, clamp }
    }
}

/// Of the packet only what [`Packet::outline`] keeps is looked at.
#[inline(always)]
pub fn fitting(bytes: &impl Bytes, packet: &Packet, config: &Config) -> Fitting {
    Fitting { fit: fit(packet, bytes, config), clamp: tcp::clamp(packet, bytes, config).unwrap_or_default() }
}

/// WireGuard itself takes whatever a redirect gives it, and sends it on in fragments
/// (`drivers/net/wireguard/device.c`, `wg_xmit`, holds no packet against its MTU).
#[inline(always)]
fn fit(packet: &Packet, bytes: &impl Bytes, config: &Config) -> Fit {
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
