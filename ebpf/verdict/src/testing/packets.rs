use std::{
    net::{IpAddr, Ipv6Addr},
    vec,
    vec::Vec,
};

use etherparse::{Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, TcpHeader, TcpOptionElement};
use kubeveil_abi::Address;

/// An [`Address`] of an address.
pub fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(octets.as_chunks().0) {
        *word = u32::from_ne_bytes(*chunk);
    }
    words
}

/// The address of an [`Address`]; a mapped one is IPv4.
pub fn ip_of(address: Address) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.as_chunks_mut().0.iter_mut().zip(address) {
        *chunk = word.to_ne_bytes();
    }
    Ipv6Addr::from(octets).to_canonical()
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP with its ports.
    Udp(u16, u16),
    /// TCP with its ports, and for a SYN its options.
    Tcp(u16, u16, Option<Vec<TcpOptionElement>>),
    /// An echo request, or reply, with its identifier.
    Echo(u16, bool),
    /// Port unreachable, quoting a packet.
    Unreachable(std::boxed::Box<Build>),
    /// A neighbour solicitation (IPv6; for IPv4 an ICMP type of the same number).
    Neighbour,
    /// An overlay's envelope with a packet inside.
    Envelope(Envelope, std::boxed::Box<Build>),
    /// Another protocol, without a header that we know.
    Raw(u8),
}

/// UDP port of VXLAN envelopes here (that of flannel).
pub const VXLAN_PORT: u16 = 8_472;
/// UDP port of Geneve envelopes here (RFC 8926).
pub const GENEVE_PORT: u16 = 6_081;

/// What overlays put around packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// With an Ethernet header inside.
    Vxlan,
    /// The same without one (VXLAN-GPE).
    VxlanGpe,
    /// With so many words of options, and an Ethernet header inside.
    Geneve(u8),
    /// IPv4 or IPv6 directly in IP (IPIP, SIT, ip6tnl).
    Ip,
    /// With checksum, key and sequence number, or without.
    Gre(bool),
    /// With an Ethernet header inside (gretap).
    Gretap,
}

impl Envelope {
    /// Protocol number, and everything before what is inside.
    fn head(self, inner: &Build) -> (u8, Vec<u8>) {
        let ip = inner.ip_type();
        let next = if inner.source.is_ipv6() { 2 } else { 1 };
        let ethernet = inner.ethernet();
        let udp = |port: u16, rest: Vec<u8>| {
            let length = u16::try_from(8 + rest.len() + inner.network().len()).unwrap_or(u16::MAX);
            let words = [40_000, port, length, 0];
            (17, words.iter().flat_map(|word| word.to_be_bytes()).chain(rest).collect())
        };
        match self {
            Self::Vxlan => udp(VXLAN_PORT, [vec![8, 0, 0, 0, 0, 0, 1, 0], ethernet].concat()),
            Self::VxlanGpe => udp(VXLAN_PORT, vec![0xc, 0, 0, next, 0, 0, 1, 0]),
            Self::Geneve(words) => {
                let options = vec![0; usize::from(words) * 4];
                udp(GENEVE_PORT, [vec![words, 0, 0x65, 0x58, 0, 0, 1, 0], options, ethernet].concat())
            }
            Self::Ip => (if inner.source.is_ipv6() { 41 } else { 4 }, Vec::new()),
            Self::Gre(false) => (47, [[0, 0], ip.to_be_bytes()].concat()),
            Self::Gre(true) => (47, [vec![0xb0, 0], ip.to_be_bytes().to_vec(), vec![0; 12]].concat()),
            Self::Gretap => (47, [vec![0, 0, 0x65, 0x58], ethernet].concat()),
        }
    }
}

/// An IPv6 extension header; its content is its length in units of its own, and zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Any of the ordinary form: protocol number, and units of 8 bytes beyond the first.
    Options(u8, u8),
    /// Authentication header with so many words beyond the first two.
    Authentication(u8),
    /// A fragment header of an unfragmented packet ("atomic fragment", RFC 6946).
    Atomic,
}

/// How to make a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Source; its family is the packet's.
    pub source: IpAddr,
    /// Destination, of the same family.
    pub destination: IpAddr,
    /// What it carries.
    pub transport: Transport,
    /// Extension headers; for IPv4 options of their length that do nothing, as far as there is room for them.
    pub extensions: Vec<Extension>,
    /// Offset (in units of 8 bytes) and "more fragments".
    pub fragment: Option<(u16, bool)>,
    /// VLAN tags in front.
    pub tags: u8,
    /// So many of them, from outside, are a provider's (IEEE 802.1ad).
    pub provider_tags: u8,
    /// An EtherType that is not that of the packet.
    pub false_type: Option<u16>,
    /// May not be cut on its way, by IPv4's flag; of IPv6 that is always so.
    pub undivided: bool,
    /// Of a SYN: it answers one (SYN and ACK).
    pub answer: bool,
    /// Bytes behind the transport header.
    pub payload: usize,
    /// What they are, over and over.
    pub content: Vec<u8>,
}

impl Build {
    /// A packet without anything special about it.
    pub fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        Self {
            source,
            destination,
            transport,
            extensions: Vec::new(),
            fragment: None,
            tags: 0,
            provider_tags: 0,
            false_type: None,
            undivided: true,
            answer: false,
            payload: 16,
            content: vec![0xa5],
        }
    }

    /// EtherType of what follows the Ethernet header.
    pub fn ether_type(&self) -> u16 {
        self.type_at(0)
    }

    /// EtherType of what lies behind so many tags: another, or the packet.
    fn type_at(&self, place: u8) -> u16 {
        match place {
            _ if place == self.tags => self.ip_type(),
            _ if place < self.provider_tags => 0x88a8,
            _ => 0x8100,
        }
    }

    fn ip_type(&self) -> u16 {
        let own = if self.source.is_ipv4() { 0x0800 } else { 0x86dd };
        self.false_type.unwrap_or(own)
    }

    /// From the network header on (VLAN tags lie behind it, as in the kernel).
    pub fn network(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for tag in 0..self.tags {
            out.extend([0, 7]);
            out.extend(self.type_at(tag + 1).to_be_bytes());
        }
        out.extend(self.ip());
        out
    }

    /// With an Ethernet header.
    pub fn frame(&self) -> Vec<u8> {
        [self.ethernet(), self.network()].concat()
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut header = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        header.extend(self.ether_type().to_be_bytes());
        header
    }

    fn ip(&self) -> Vec<u8> {
        let (protocol, body) = self.body();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = u16::try_from(body.len()).unwrap_or(u16::MAX - 60);
                let (source, destination) = (source.octets(), destination.octets());
                let mut header =
                    Ipv4Header::new(length, 64, protocol.into(), source, destination).unwrap_or_default();
                if let Some((offset, more)) = self.fragment {
                    header.fragment_offset = offset.try_into().unwrap_or_default();
                    header.more_fragments = more;
                }
                header.dont_fragment = self.undivided && self.fragment.is_none();
                header.options = self.options();
                // It counts the options too; more than fits into its field was cut above.
                let _ = header.set_payload_len(length.into());
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &body].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (next, mut chain) = self.chain(protocol);
                chain.extend(body);
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: u16::try_from(chain.len()).unwrap_or(u16::MAX),
                    next_header: next.into(),
                    hop_limit: 255,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                [&header.to_bytes()[..], &chain].concat()
            }
            _ => Vec::new(),
        }
    }

    /// IPv4 options that do nothing (RFC 791, section 3.1: number 1).
    fn options(&self) -> Ipv4Options {
        const NO_OPERATION: u8 = 1;
        const MOST: usize = 40;
        let length = |extension: &Extension| match *extension {
            Extension::Options(_, units) => (usize::from(units) + 1) * 8,
            Extension::Authentication(words) => (usize::from(words) + 2) * 4,
            Extension::Atomic => 0,
        };
        let length = self.extensions.iter().map(length).sum::<usize>().min(MOST);
        Ipv4Options::try_from(&vec![NO_OPERATION; length][..]).unwrap_or_default()
    }

    /// The extension headers before `protocol`, and the number of the first.
    fn chain(&self, protocol: u8) -> (u8, Vec<u8>) {
        let mut headers: Vec<(u8, Vec<u8>)> = Vec::new();
        for extension in &self.extensions {
            headers.push(match *extension {
                Extension::Options(number, units) => {
                    let mut header = vec![0; (usize::from(units) + 1) * 8];
                    header[1] = units;
                    (number, header)
                }
                Extension::Authentication(words) => {
                    let mut header = vec![0; (usize::from(words) + 2) * 4];
                    header[1] = words;
                    (51, header)
                }
                Extension::Atomic => (44, vec![0; 8]),
            });
        }
        if let Some((offset, more)) = self.fragment {
            let field = (offset << 3 | u16::from(more)).to_be_bytes();
            headers.push((44, vec![0, 0, field[0], field[1], 0, 0, 0, 1]));
        }
        let mut next = protocol;
        let mut chain = Vec::new();
        for (number, mut header) in headers.into_iter().rev() {
            header[0] = next;
            next = number;
            header.extend(chain);
            chain = header;
        }
        (next, chain)
    }

    /// Protocol number, transport header and payload.
    fn body(&self) -> (u8, Vec<u8>) {
        let payload: Vec<u8> = self.content.iter().copied().cycle().take(self.payload).collect();
        let is_v6 = self.source.is_ipv6();
        let icmp = if is_v6 { 58 } else { 1 };
        let (protocol, mut header) = match &self.transport {
            Transport::Udp(source, destination) => {
                let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
                let words = [*source, *destination, length, 0];
                (17, words.iter().flat_map(|word| word.to_be_bytes()).collect())
            }
            Transport::Tcp(source, destination, options) => {
                (6, self.tcp(*source, *destination, options.as_deref(), &payload))
            }
            Transport::Echo(identifier, is_reply) => {
                let kind = match (is_v6, is_reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                let [high, low] = identifier.to_be_bytes();
                (icmp, vec![kind, 0, 0, 0, high, low, 0, 1])
            }
            Transport::Unreachable(quoted) => {
                let kind = if is_v6 { [1, 4] } else { [3, 3] };
                let mut header = vec![kind[0], kind[1], 0, 0, 0, 0, 0, 0];
                header.extend(quoted.ip());
                (icmp, header)
            }
            Transport::Envelope(envelope, inner) => {
                let (protocol, mut header) = envelope.head(inner);
                // What is inside of an IP header directly has no VLAN tags.
                let is_framed = matches!(envelope, Envelope::Vxlan | Envelope::Geneve(_) | Envelope::Gretap);
                header.extend(if is_framed { inner.network() } else { inner.ip() });
                (protocol, header)
            }
            Transport::Neighbour => (icmp, vec![135, 0, 0, 0, 0, 0, 0, 0]),
            Transport::Raw(protocol) => (*protocol, Vec::new()),
        };
        if self.fragment.is_some_and(|(offset, _)| offset != 0) {
            header.clear();
        }
        header.extend(payload);
        (protocol, header)
    }

    fn tcp(
        &self,
        source: u16,
        destination: u16,
        syn: Option<&[TcpOptionElement]>,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut header = TcpHeader::new(source, destination, 1, 65_535);
        header.ack = syn.is_none() || self.answer;
        header.syn = syn.is_some();
        // More options than fit are none.
        let _ = header.set_options(syn.unwrap_or_default());
        header.checksum = match (self.source, self.destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => header.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload),
            (IpAddr::V6(s), IpAddr::V6(d)) => header.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload),
            _ => Ok(0),
        }
        .unwrap_or_default();
        header.to_bytes().to_vec()
    }
}
