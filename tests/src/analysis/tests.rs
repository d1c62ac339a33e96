//! Frames made by hand: what a reader must find, and what it must leave alone.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;

const NODES: [[u8; 4]; 2] = [[192, 0, 2, 1], [192, 0, 2, 2]];
const PODS: [[u8; 4]; 2] = [[10, 244, 1, 10], [10, 244, 2, 11]];

fn node6(n: u16) -> [u8; 16] {
    std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).octets()
}

fn pod6(n: u16) -> [u8; 16] {
    std::net::Ipv6Addr::new(0xfd00, 0x244, n, 0, 0, 0, 0, 0x10).octets()
}

fn watch() -> Watch {
    Watch::pods(2, Families::Dual)
}

fn leaks(frame: &[u8]) -> Vec<String> {
    judge(frame, &watch()).leaks.iter().map(ToString::to_string).collect()
}

/// A pod's packet without an Ethernet header; its payload has no marker.
fn inner4() -> Vec<u8> {
    written(PacketBuilder::ipv4(PODS[0], PODS[1], 63).udp(4000, 5000), b"hello")
}

fn inner6() -> Vec<u8> {
    written(PacketBuilder::ipv6(pod6(1), pod6(2), 63).tcp(4000, 5000, 1, 100), b"hello")
}

fn written<S>(builder: etherparse::PacketBuilderStep<S>, payload: &[u8]) -> Vec<u8>
where
    etherparse::PacketBuilderStep<S>: Write,
{
    builder.bytes(payload)
}

/// What the library's builders share, but not by a trait.
trait Write {
    fn bytes(self, payload: &[u8]) -> Vec<u8>;
}

macro_rules! write {
    ($($step:ty),*) => {$(
        impl Write for etherparse::PacketBuilderStep<$step> {
            fn bytes(self, payload: &[u8]) -> Vec<u8> {
                let mut bytes = Vec::new();
                self.write(&mut bytes, payload).expect("a packet");
                bytes
            }
        }
    )*};
}
write!(etherparse::UdpHeader, etherparse::TcpHeader);

/// An Ethernet header before a packet.
fn framed(packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &ether_type, packet].concat()
}

/// From node to node: an IPv4 packet of any protocol.
fn between_nodes(number: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(NODES[0], NODES[1], 64);
    let mut packet = Vec::new();
    builder.write(&mut packet, etherparse::IpNumber(number), payload).expect("a packet");
    packet
}

fn udp_between_nodes(port: u16, payload: &[u8]) -> Vec<u8> {
    framed(&written(PacketBuilder::ipv4(NODES[0], NODES[1], 64).udp(40000, port), payload))
}

fn vxlan(frame: &[u8]) -> Vec<u8> {
    [&[0x08, 0, 0, 0, 0, 0, 1, 0][..], frame].concat()
}

fn geneve(options: u8, protocol: [u8; 2], inner: &[u8]) -> Vec<u8> {
    let words = usize::from(options) * 4;
    [&[options, 0][..], &protocol, &[0, 0, 1, 0], &vec![7; words], inner].concat()
}

#[test]
fn a_pods_packet_on_top() {
    assert_eq!(
        leaks(&framed(&inner4())),
        ["10.244.1.10 in a header (ethernet > ipv4)", "10.244.2.11 in a header (ethernet > ipv4)"]
    );
    assert_eq!(leaks(&framed(&inner6()))[0], "fd00:244:1::10 in a header (ethernet > ipv6)");
}

#[test]
fn one_address_is_enough() {
    // As masquerading leaves it: the node's address towards a pod.
    let frame = framed(&written(PacketBuilder::ipv4(NODES[0], PODS[1], 63).udp(1, 2), b"x"));
    assert_eq!(leaks(&frame).len(), 1);
}

#[test]
fn behind_vlan_tags() {
    let packet = framed(&inner4());
    let (addresses, rest) = packet.split_at(12);
    let tag = [0x81, 0x00, 0x00, 0x07];
    for tags in 1..6 {
        let frame = [addresses, &tag.repeat(tags), rest].concat();
        assert!(!leaks(&frame).is_empty(), "{tags} tags");
    }
}

#[test]
fn in_every_envelope() {
    let inners = [inner4(), inner6()];
    for inner in inners {
        let is4 = inner[0] >> 4 == 4;
        let ether_type = if is4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        let envelopes = [
            ("vxlan", udp_between_nodes(4789, &vxlan(&framed(&inner)))),
            ("vxlan on flannel's port", udp_between_nodes(8472, &vxlan(&framed(&inner)))),
            ("vxlan on any port", udp_between_nodes(9999, &vxlan(&framed(&inner)))),
            ("vxlan on WireGuard's port", udp_between_nodes(51871, &vxlan(&framed(&inner)))),
            ("geneve", udp_between_nodes(6081, &geneve(0, [0x65, 0x58], &framed(&inner)))),
            ("geneve with options", udp_between_nodes(6081, &geneve(3, [0x65, 0x58], &framed(&inner)))),
            ("geneve of IP", udp_between_nodes(6081, &geneve(1, ether_type, &inner))),
            ("ip in udp", udp_between_nodes(5555, &inner)),
            ("ip on WireGuard's port", udp_between_nodes(51872, &inner)),
            ("ipip or sit", framed(&between_nodes(if is4 { 4 } else { 41 }, &inner))),
            ("gre", framed(&between_nodes(47, &[&[0, 0][..], &ether_type, &inner].concat()))),
            (
                "gre with checksum, key and sequence",
                framed(&between_nodes(47, &[&[0xb0, 0][..], &ether_type, &[9; 12], &inner].concat())),
            ),
            ("gretap", framed(&between_nodes(47, &[&[0, 0, 0x65, 0x58][..], &framed(&inner)].concat()))),
            ("an unknown protocol", framed(&between_nodes(253, &[&[1, 2, 3][..], &inner].concat()))),
            ("an icmp error", framed(&between_nodes(1, &[&[11, 0, 0, 0, 0, 0, 0, 0][..], &inner].concat()))),
        ];
        for (name, frame) in envelopes {
            let found = judge(&frame, &watch());
            assert!(found.leaks.len() >= 2, "{name}: {found:?}");
            assert!(!found.ciphertext, "{name}");
        }
    }
}

#[test]
fn in_envelopes_inside_envelopes() {
    let ipip = between_nodes(4, &inner4());
    let gre = between_nodes(47, &[&[0, 0, 0x65, 0x58][..], &framed(&ipip)].concat());
    let frame = udp_between_nodes(4789, &vxlan(&framed(&gre)));
    assert_eq!(
        leaks(&frame)[0],
        "10.244.1.10 in a header (ethernet > ipv4 > udp > vxlan > ethernet > ipv4 > gre > ethernet > ipv4 > ipip > ipv4)"
    );
}

#[test]
fn nested_beyond_reason() {
    let mut packet = inner4();
    for _ in 0..40 {
        packet = between_nodes(4, &packet);
    }
    assert!(leaks(&framed(&packet))[0].contains("the bytes of 10.244.1.10"));
}

#[test]
fn in_what_no_library_reads() {
    for ether_type in [[0x88, 0x47], [0x88, 0x64], [0x12, 0x34]] {
        let mut frame = framed(&[&[0, 1, 2, 3][..], &inner4()].concat());
        frame[12..14].copy_from_slice(&ether_type);
        assert_eq!(leaks(&frame).len(), 2, "{ether_type:?}");
    }
    // Says that it is IPv4, and has a version of nobody's.
    let mut frame = framed(&inner4());
    frame[14] = 0xf5;
    assert_eq!(leaks(&frame).len(), 2);
}

#[test]
fn fragments_show_addresses_first_and_the_marker_later() {
    let mut first = inner4();
    first[6..8].copy_from_slice(&[0x20, 0x00]);
    assert!(!leaks(&framed(&first)).is_empty(), "a first fragment");
    let mut later = inner4();
    later[6..8].copy_from_slice(&[0x00, 0x10]);
    assert!(!leaks(&framed(&later)).is_empty(), "a later fragment");
    // An envelope between nodes that was cut: no header of the pod's in the second piece.
    let mut piece = between_nodes(17, &MARKER.repeat(4));
    piece[6..8].copy_from_slice(&[0x00, 0xb0]);
    assert_eq!(leaks(&framed(&piece)), ["a pod's payload (anywhere)"]);
}

#[test]
fn the_marker_anywhere() {
    let payload = [&[0, 1, 2][..], MARKER].concat();
    assert_eq!(leaks(&udp_between_nodes(1234, &payload)), ["a pod's payload (anywhere)"]);
    // Even in what has the shape of ciphertext: then it was not encrypted.
    let fake = [&[4, 0, 0, 0][..], &[9; 12], MARKER, &[0; 16]].concat();
    let found = judge(&udp_between_nodes(51871, &fake), &watch());
    assert!(found.ciphertext);
    assert_eq!(found.leaks.len(), 1);
}

#[test]
fn ciphertext_is_left_alone() {
    // A pod's IPv4 address by chance in the ciphertext.
    let data = [&[4, 0, 0, 0][..], &[9; 12], &PODS[0], &[7; 28]].concat();
    let found = judge(&udp_between_nodes(51872, &data), &watch());
    assert!(found.ciphertext && found.leaks.is_empty(), "{found:?}");
    for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
        let mut message = vec![0; length];
        message[0] = kind;
        assert!(judge(&udp_between_nodes(51871, &message), &watch()).ciphertext, "type {kind}");
    }
}

#[test]
fn what_only_looks_like_ciphertext() {
    let wrong: [&[u8]; 7] = [
        // Sixteen times three bytes with the pod's address, as data would be; one reserved byte is not zero.
        &[&[4, 0, 0, 1][..], &[0; 40]].concat(),
        &[&[1, 0, 0, 0][..], &[0; 100]].concat(),
        &[&[4, 0, 0, 0][..], &[0; 29]].concat(),
        &[&[4, 0, 0][..], &[1; 45]].concat(),
        &[&[5, 0, 0, 0][..], &[0; 44]].concat(),
        &[4, 0, 0, 0],
        &[],
    ];
    for payload in wrong {
        let with_pod = [payload, &PODS[0]].concat();
        let found = judge(&udp_between_nodes(51871, &with_pod), &watch());
        assert!(!found.ciphertext && !found.leaks.is_empty(), "{payload:?}");
    }
}

#[test]
fn the_hosts_own_traffic_is_no_leak() {
    let arp = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1],
        &[2, 0, 0, 0, 0, 1],
        &NODES[0],
        &[0; 6],
        &NODES[1],
    ]
    .concat();
    let ssh = framed(&written(PacketBuilder::ipv6(node6(1), node6(2), 64).tcp(40000, 22, 1, 9), b"SSH-2.0"));
    for frame in [arp, ssh, udp_between_nodes(9, b"a probe")] {
        assert_eq!(judge(&frame, &watch()), Judgement::default());
    }
}

#[test]
fn a_census_counts_frames_not_leaks() {
    let mut census = Census::default();
    for frame in [framed(&inner4()), framed(&inner6()), udp_between_nodes(9, b"a probe")] {
        census.add(&frame, &watch());
    }
    assert_eq!((census.frames, census.plaintext, census.addresses, census.markers), (3, 2, [1, 1], 0));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        judge(&bytes, &watch());
    }

    /// A pod's packet is found in whatever order envelopes are put around it.
    #[test]
    fn any_nesting_is_opened(order in prop::collection::vec(0..6_u8, 0..4), six in any::<bool>()) {
        let mut packet = if six { inner6() } else { inner4() };
        for envelope in order {
            packet = wrapped(envelope, &packet);
        }
        let found = leaks(&framed(&packet));
        prop_assert!(found.iter().any(|leak| leak.contains("in a header")), "{:?}", found);
    }

    /// Ciphertext has random bytes, and is never taken for plaintext by its addresses.
    #[test]
    fn random_ciphertext_is_no_leak(body in prop::collection::vec(any::<u8>(), 28..29), at in 0..24_usize) {
        let mut data = [&[4, 0, 0, 0][..], &body].concat();
        let at = at + 4;
        data[at..at + 4].copy_from_slice(&PODS[1]);
        prop_assert!(judge(&udp_between_nodes(51871, &data), &watch()).leaks.is_empty());
    }
}

fn wrapped(envelope: u8, packet: &[u8]) -> Vec<u8> {
    let six = packet[0] >> 4 == 6;
    let ether_type = if six { [0x86, 0xdd] } else { [0x08, 0x00] };
    let udp =
        |port, payload: &[u8]| written(PacketBuilder::ipv6(node6(1), node6(2), 64).udp(50000, port), payload);
    match envelope {
        0 => udp(4789, &vxlan(&framed(packet))),
        1 => udp(6081, &geneve(2, [0x65, 0x58], &framed(packet))),
        2 => udp(6081, &geneve(0, ether_type, packet)),
        3 => between_nodes(if six { 41 } else { 4 }, packet),
        4 => between_nodes(47, &[&[0x20, 0][..], &ether_type, &[1; 4], packet].concat()),
        _ => between_nodes(47, &[&[0, 0, 0x65, 0x58][..], &framed(packet)].concat()),
    }
}

/// An address of another range is not a pod's.
#[test]
fn prefixes_are_compared_by_bits() {
    let outside: [IpAddr; 4] = [
        [10, 245, 0, 1].into(),
        [10, 243, 255, 255].into(),
        [0xfd00, 0x245, 0, 0, 0, 0, 0, 1].into(),
        [0xfd01, 0x244, 0, 0, 0, 0, 0, 1].into(),
    ];
    for address in outside {
        assert!(!watch().covers(address), "{address}");
    }
    assert!(watch().covers([10, 244, 255, 255].into()));
    assert!(watch().covers([0xfd00, 0x244, 0xffff, 0, 0, 0, 0, 0].into()));
}

#[test]
fn frames_are_counted_by_the_load_that_they_show() {
    let payload = |load: u64| [&MARKER[..], &load.to_be_bytes(), MARKER].concat();
    let frame = |load| [&[0xa5; 42][..], &payload(load)].concat();
    let mut census = Census::default();
    for frame in [frame(7), frame(8), frame(7), [&[0xa5; 42][..], MARKER].concat(), vec![0xa5; 90]] {
        census.add(&frame, &watch());
    }
    let mut all = census.clone();
    all.merge(&census);
    assert_eq!((census.of(7), census.of(8), census.of(9), census.markers), (2, 1, 0, 4));
    assert_eq!((all.of(7), all.of(8)), (4, 2));
}
