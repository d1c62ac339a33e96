//! From header to header, into every envelope.

use etherparse::{EtherType, IpNumber, LaxIpSlice, LaxSlicedPacket, UdpSlice, ip_number};

use super::{Evidence, Judgement, Leak, Watch, gre, scan, wireguard};

/// Deeper than this nobody nests; a crafted frame must not run the reader in circles.
const DEPTH: usize = 24;
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
const GENEVE_PORT: u16 = 6081;

/// Reads a frame from its Ethernet header on.
pub(super) fn walk(frame: &[u8], watch: &Watch) -> Judgement {
    let mut walk = Walk { watch, layers: Vec::new(), found: Judgement::default() };
    walk.ethernet(frame);
    walk.found
}

struct Walk<'a> {
    watch: &'a Watch,
    layers: Vec<&'static str>,
    found: Judgement,
}

impl Walk<'_> {
    fn leak(&mut self, evidence: Evidence) {
        self.found.leaks.push(Leak { evidence, layers: self.layers.clone() });
    }

    /// One layer down; back up afterwards.
    fn layer(&mut self, name: &'static str, bytes: &[u8], read: impl FnOnce(&mut Self, &[u8])) {
        if self.layers.len() >= DEPTH {
            return self.unread(bytes);
        }
        self.layers.push(name);
        read(self, bytes);
        self.layers.pop();
    }

    /// Nobody knows what these bytes are: searched for addresses.
    fn unread(&mut self, bytes: &[u8]) {
        for address in scan::addresses(bytes, &self.watch.exact) {
            self.leak(Evidence::Bytes(address));
        }
    }

    fn ethernet(&mut self, bytes: &[u8]) {
        self.layer("ethernet", bytes, |walk, bytes| {
            let packet = LaxSlicedPacket::from_ethernet(bytes).ok();
            let Some(payload) = packet.as_ref().and_then(LaxSlicedPacket::ether_payload) else {
                return walk.unread(bytes);
            };
            match payload.ether_type {
                EtherType::IPV4 | EtherType::IPV6 => walk.ip(payload.payload),
                // Asks for an address, carries nobody's packet; a node's own.
                EtherType::ARP => {}
                _ => walk.unread(payload.payload),
            }
        });
    }

    fn ip(&mut self, bytes: &[u8]) {
        let Ok((ip, _)) = LaxIpSlice::from_slice(bytes) else {
            return self.unread(bytes);
        };
        let name = if ip.ipv4().is_some() { "ipv4" } else { "ipv6" };
        self.layer(name, bytes, |walk, _| {
            for address in [ip.source_addr(), ip.destination_addr()] {
                if walk.watch.covers(address) {
                    walk.leak(Evidence::Header(address));
                }
            }
            let payload = ip.payload();
            if is_later_fragment(&ip) {
                walk.later_fragment(payload.payload);
            } else {
                walk.transport(payload.ip_number, payload.payload);
            }
        });
    }

    /// Of a packet whose head came in another frame. It may be a piece of ciphertext, in which four
    /// given bytes turn up by chance; sixteen do not.
    fn later_fragment(&mut self, bytes: &[u8]) {
        let long = |address: &&std::net::IpAddr| address.is_ipv6();
        let wanted: Vec<_> = self.watch.exact.iter().filter(long).copied().collect();
        for address in scan::addresses(bytes, &wanted) {
            self.leak(Evidence::Bytes(address));
        }
    }

    fn transport(&mut self, number: IpNumber, bytes: &[u8]) {
        match number {
            ip_number::UDP => self.udp(bytes),
            ip_number::IPV4 => self.layer("ipip", bytes, Self::ip),
            ip_number::IPV6 => self.layer("sit", bytes, Self::ip),
            ip_number::GRE => self.layer("gre", bytes, |walk, bytes| match gre::open(bytes) {
                Some(gre::Inner::Ip(inner)) => walk.ip(inner),
                Some(gre::Inner::Ethernet(inner)) => walk.ethernet(inner),
                None => walk.unread(bytes),
            }),
            ip_number::ICMP => self.icmp(bytes, |kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
            ip_number::IPV6_ICMP => self.icmp(bytes, |kind| kind < 128),
            ip_number::TCP | ip_number::IGMP => {}
            _ => self.unread(bytes),
        }
    }

    /// An error quotes the packet that it is about: a plain one about a pod's packet shows that packet.
    fn icmp(&mut self, bytes: &[u8], is_error: impl Fn(u8) -> bool) {
        if let Some(quoted) = bytes.get(8..).filter(|_| is_error(bytes[0])) {
            self.layer("icmp error", quoted, Self::ip);
        }
    }

    fn udp(&mut self, bytes: &[u8]) {
        let Ok(udp) = UdpSlice::from_slice_lax(bytes) else {
            return self.unread(bytes);
        };
        self.layer("udp", udp.payload(), |walk, payload| {
            let ports = [udp.source_port(), udp.destination_port()];
            let is = |wanted: &[u16]| ports.iter().any(|port| wanted.contains(port));
            if is(&wireguard::PORTS) {
                // Of a packet that was cut into fragments, only the header tells the whole length.
                let length = usize::from(udp.length()).saturating_sub(udp.header_len());
                if wireguard::is_packet(payload, length) {
                    walk.found.ciphertext = true;
                } else {
                    walk.layer("not wireguard", payload, Self::unread);
                    walk.envelope(payload);
                }
            } else if !walk.envelope(payload) && (is(&VXLAN_PORTS) || is(&[GENEVE_PORT])) {
                walk.unread(payload);
            }
        });
    }

    /// Opens what looks like an envelope, on whatever port it comes; false if it looks like none.
    fn envelope(&mut self, payload: &[u8]) -> bool {
        if let Some(inner) = vxlan(payload) {
            self.layer("vxlan", inner, Self::ethernet);
        } else if let Some((is_frame, inner)) = geneve(payload) {
            self.layer("geneve", inner, if is_frame { Self::ethernet } else { Self::ip });
        } else if is_whole_ip(payload) {
            self.layer("ip in udp", payload, Self::ip);
        } else {
            return false;
        }
        true
    }
}

fn is_later_fragment(ip: &LaxIpSlice<'_>) -> bool {
    match ip {
        LaxIpSlice::Ipv4(ip) => ip.header().fragments_offset().value() != 0,
        LaxIpSlice::Ipv6(ip) => ip.extensions().clone().into_iter().any(|extension| {
            matches!(extension, etherparse::Ipv6ExtensionSlice::Fragment(fragment)
                if fragment.fragment_offset().value() != 0)
        }),
    }
}

/// The frame in it (RFC 7348): one flag, and reserved bytes that are zero.
fn vxlan(payload: &[u8]) -> Option<&[u8]> {
    matches!(payload, [0x08, 0, 0, 0, _, _, _, 0, ..]).then(|| &payload[8..])
}

/// Whether it carries a frame or an IP packet, and that (RFC 8926): version 0, a protocol that we know.
fn geneve(payload: &[u8]) -> Option<(bool, &[u8])> {
    let &[first, flags, high, low, _, _, _, 0, ..] = payload else { return None };
    if first >> 6 != 0 || flags & 0x3f != 0 {
        return None;
    }
    let inner = payload.get(8 + 4 * usize::from(first & 0x3f)..)?;
    match u16::from_be_bytes([high, low]) {
        0x6558 => Some((true, inner)),
        0x0800 | 0x86dd => Some((false, inner)),
        _ => None,
    }
}

/// An IP packet that fills the payload (as FOU has it).
fn is_whole_ip(payload: &[u8]) -> bool {
    match payload {
        [0x45..=0x4f, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])) == payload.len(),
        [0x60..=0x6f, _, _, _, high, low, ..] => {
            usize::from(u16::from_be_bytes([*high, *low])) + 40 == payload.len()
        }
        _ => false,
    }
}
