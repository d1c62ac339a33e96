//! How big a packet may be inside of the tunnel.

/// Outer IPv4 header 20, UDP 8, WireGuard data header 16 and tag 16
/// (kernel `drivers/net/wireguard/messages.h`, `MESSAGE_MINIMUM_LENGTH`).
const OVERHEAD_V4: u32 = 60;
/// The same with an IPv6 header of 40.
const OVERHEAD_V6: u32 = 80;
/// WireGuard pads its payload to multiples of this (`MESSAGE_PADDING_MULTIPLE`).
const PADDING: u32 = 16;
/// Smallest MTU with which IPv6 works (RFC 8200, section 5).
const MINIMUM: u32 = 1280;

/// MTU of the tunnel device, bytes, over an underlay of `underlay` bytes: 1440 (IPv4) or 1408 (IPv6) at 1500.
pub fn tunnel_mtu(underlay: u32, outer_v6: bool) -> u32 {
    inner(underlay, outer_v6).max(MINIMUM)
}

/// Largest inner packet, bytes, whose outer one is no larger than `outer` bytes.
pub fn inner(outer: u32, outer_v6: bool) -> u32 {
    let overhead = if outer_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
    let room = outer.saturating_sub(overhead);
    room - room % PADDING
}

/// Largest TCP MSS for inner packets of `mtu` bytes: IPv4 (20 + 20 of headers), IPv6 (40 + 20).
pub fn mss(mtu: u32) -> (u32, u32) {
    (mtu - 40, mtu - 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_design_says() {
        assert_eq!(tunnel_mtu(1500, false), 1440);
        assert_eq!(tunnel_mtu(1500, true), 1408);
        assert_eq!(tunnel_mtu(9001, false), 8928);
        assert_eq!(tunnel_mtu(1000, true), 1280);
        assert_eq!((inner(1400, false), inner(1400, true), inner(40, true)), (1328, 1312, 0));
        assert_eq!(mss(1440), (1400, 1380));
    }
}
