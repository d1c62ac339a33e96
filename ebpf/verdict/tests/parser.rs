//! The parser against another one (etherparse), on packets well made, cut short and made of noise.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use etherparse::{IpSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice};
use kubeveil_verdict::{
    Packet, Parsed, parse,
    testing::{Build, Extension, Place, Slice, Transport, address, ip_of, situation},
};
use proptest::prelude::*;

fn read(build: &Build, bytes: &[u8]) -> Parsed {
    parse(build.ether_type(), &Slice::new(bytes))
}

fn ip(parsed: Parsed) -> Packet {
    match parsed {
        Parsed::Ip(packet) => packet,
        other => panic!("{other:?}"),
    }
}

/// Extension headers that the other parser knows too: it takes 135, 139 and 140 for protocols, and
/// hop-by-hop options for one where they are not first (RFC 8200, section 4.1).
fn is_known_to_both(build: &Build) -> bool {
    let is_odd = |(place, extension): (usize, &Extension)| match extension {
        Extension::Options(0, _) => place != 0,
        Extension::Options(number, _) => matches!(number, 135 | 139 | 140),
        _ => false,
    };
    !build.extensions.iter().enumerate().any(is_odd)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4_000,
        max_global_rejects: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn addresses_and_length_are_what_another_parser_reads(situation in situation()) {
        let build = situation.build;
        let bytes = build.network();
        if build.tags > 2 {
            prop_assert_eq!(read(&build, &bytes), Parsed::Unparsable);
            return Ok(());
        }
        let packet = ip(read(&build, &bytes));
        prop_assert_eq!(ip_of(packet.source), build.source);
        prop_assert_eq!(ip_of(packet.destination), build.destination);
        let rest = &bytes[usize::from(build.tags) * 4..];
        prop_assert_eq!(packet.length as usize, rest.len());
        let theirs = etherparse::LaxIpSlice::from_slice(rest).unwrap().0;
        prop_assert_eq!(theirs.source_addr(), build.source);
        prop_assert_eq!(theirs.destination_addr(), build.destination);
    }

    #[test]
    fn the_transport_is_where_another_parser_finds_it(situation in situation()) {
        let build = situation.build;
        prop_assume!(build.tags == 0 && is_known_to_both(&build));
        let bytes = build.network();
        let slice = Slice::new(&bytes);
        let Some(ours) = ip(read(&build, &bytes)).transport(&slice) else {
            // Longer than the budget, or an extension header in a later fragment.
            prop_assert!(build.extensions.len() + usize::from(build.fragment.is_some()) >= 8);
            return Ok(());
        };
        let theirs = LaxSlicedPacket::from_ip(&bytes).unwrap();
        let payload = theirs.net.as_ref().unwrap().ip_payload_ref().unwrap();
        prop_assert_eq!(ours.protocol, u32::from(payload.ip_number.0));
        prop_assert_eq!(ours.later_fragment, build.fragment.is_some_and(|(offset, _)| offset != 0));
        if !ours.later_fragment {
            let offset = payload.payload.as_ptr() as usize - bytes.as_ptr() as usize;
            prop_assert_eq!(ours.offset as usize, offset);
        }
    }

    #[test]
    fn noise_is_never_read_otherwise_than_by_another_parser(
        v6 in any::<bool>(), mut bytes in prop::collection::vec(any::<u8>(), 0..120), nibble in 3_u8..8, ihl in 0_u8..16,
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = nibble << 4 | ihl;
        }
        let protocol = if v6 { 0x86dd } else { 0x0800 };
        // The Ethernet type decides, so the other parser is asked for this family only.
        let (source, destination) = match (v6, parse(protocol, &Slice::new(&bytes))) {
            (_, Parsed::NonIp) => return Err(TestCaseError::fail("it is said to be IP")),
            (false, Parsed::Unparsable) => {
                prop_assert!(nibble != 4 || IpSlice::from_slice(&bytes).is_err());
                return Ok(());
            }
            (true, Parsed::Unparsable) => {
                prop_assert!(nibble != 6 || IpSlice::from_slice(&bytes).is_err());
                return Ok(());
            }
            (false, Parsed::Ip(packet)) => {
                let header = etherparse::Ipv4HeaderSlice::from_slice(&bytes).unwrap();
                prop_assert!(usize::from(header.total_len()) <= bytes.len());
                prop_assert_eq!(address(header.source_addr().into()), packet.source);
                (header.source_addr().into(), header.destination_addr().into())
            }
            (true, Parsed::Ip(packet)) => {
                let header = etherparse::Ipv6HeaderSlice::from_slice(&bytes).unwrap();
                prop_assert_eq!(address(header.source_addr().into()), packet.source);
                (std::net::IpAddr::from(header.source_addr()), header.destination_addr().into())
            }
        };
        let Parsed::Ip(packet) = parse(protocol, &Slice::new(&bytes)) else { unreachable!() };
        prop_assert_eq!(packet.source, address(source));
        prop_assert_eq!(packet.destination, address(destination));
    }

    #[test]
    fn a_packet_cut_short_anywhere_is_unparsable(situation in situation(), cut in any::<prop::sample::Index>()) {
        let bytes = situation.build.network();
        let cut = &bytes[..cut.index(bytes.len())];
        prop_assert_eq!(read(&situation.build, cut), Parsed::Unparsable);
    }
}

#[test]
fn ports_of_a_plain_packet() {
    for is_v6 in [false, true] {
        let build =
            Build::new(Place::LocalPod.ip(is_v6), Place::RemotePod(0).ip(is_v6), Transport::Udp(1_000, 53));
        let bytes = build.network();
        let theirs = SlicedPacket::from_ip(&bytes).unwrap();
        assert!(matches!(theirs.net, Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_))));
        let Some(TransportSlice::Udp(udp)) = theirs.transport else { panic!() };
        let transport = ip(read(&build, &bytes)).transport(&Slice::new(&bytes)).unwrap();
        let at = transport.offset as usize;
        assert_eq!(&bytes[at..at + 8], udp.header_slice());
    }
}

#[test]
fn a_length_of_nothing_is_for_segmented_packets_only() {
    for (is_v6, at) in [(false, 2), (true, 4)] {
        let build =
            Build::new(Place::LocalPod.ip(is_v6), Place::RemotePod(0).ip(is_v6), Transport::Tcp(1, 2, None));
        let mut bytes = build.network();
        bytes[at..at + 2].fill(0);
        let whole = u32::try_from(bytes.len()).unwrap();
        let segmented = Slice { segment: 1_400, ..Slice::new(&bytes) };
        assert_eq!(ip(parse(build.ether_type(), &segmented)).length, whole);
        match read(&build, &bytes) {
            // An IPv6 packet may carry nothing; what lies behind it is padding.
            Parsed::Ip(packet) => assert_eq!((is_v6, packet.length), (true, 40)),
            other => assert_eq!((is_v6, other), (false, Parsed::Unparsable)),
        }
    }
}

#[test]
fn other_ether_types_are_not_ip() {
    // ARP, LLDP, PPPoE session, MPLS, and a VLAN tag in front of ARP.
    for protocol in [0x0806, 0x88cc, 0x8864, 0x8847] {
        assert_eq!(parse(protocol, &Slice::new(&[0x45; 40])), Parsed::NonIp);
    }
    for tag in [0x8100, 0x88a8] {
        assert_eq!(parse(tag, &Slice::new(&[0, 1, 8, 6, 0, 0])), Parsed::NonIp);
        assert_eq!(parse(tag, &Slice::new(&[0, 1])), Parsed::Unparsable);
    }
}
