use kubeveil_abi::{Address, Config, FlowKey, FlowValue, PrefixKind};

use crate::{
    envelope,
    packet::{Bytes, Packet, parse_quoted},
    tables::Tables,
    tcp::{self, ACK, FIN, RST, SYN},
    transport::{ICMP, ICMPV6, TCP, Transport, UDP},
};

/// ICMP types (RFC 792) and ICMPv6 types (RFC 4443; RFC 4861 for neighbour discovery, RFC 2710 and
/// RFC 3810 for multicast listeners).
const ECHO_REPLY: u32 = 0;
const UNREACHABLE: u32 = 3;
const SOURCE_QUENCH: u32 = 4;
const REDIRECT: u32 = 5;
const ECHO: u32 = 8;
const TIME_EXCEEDED: u32 = 11;
const PARAMETER_PROBLEM: u32 = 12;
const V6_ERRORS_END: u32 = 128;
const V6_ECHO: u32 = 128;
const V6_ECHO_REPLY: u32 = 129;
const V6_MULTICAST_LISTENER: core::ops::RangeInclusive<u32> = 130..=132;
const V6_NEIGHBOUR: core::ops::RangeInclusive<u32> = 133..=137;
const V6_MULTICAST_LISTENER_2: u32 = 143;

/// Which flow a packet belongs to.
pub(crate) enum Flow {
    /// This one.
    Of(FlowKey),
    /// None that could be a pod's: the link's own business (neighbour discovery).
    Link,
    /// None of the host's, whoever sends it: it carries bytes of a pod's packet.
    Pods,
    /// It can't be read.
    Unreadable,
}

/// The flow of a packet that arrived, seen from here.
#[inline(always)]
pub(crate) fn incoming(packet: &Packet, transport: &Transport, bytes: &impl Bytes) -> Flow {
    let icmp = match icmp(transport, bytes) {
        Some(icmp) => icmp,
        None => return Flow::Unreadable,
    };
    let ports = match icmp {
        Icmp::Echo(ports) => Some(ports),
        Icmp::Link => return Flow::Link,
        Icmp::Error | Icmp::Other | Icmp::No => transport.ports(bytes),
    };
    let Some(ports) = ports else {
        return Flow::Unreadable;
    };
    Flow::Of(FlowKey {
        remote: packet.source,
        local: packet.destination,
        protocol: transport.protocol,
        ports,
    })
}

/// The flow that a packet of this host replies to.
///
/// An error is about the packet that it quotes, and carries that one's bytes: it belongs to its flow.
#[inline(always)]
pub(crate) fn outgoing(
    packet: &Packet,
    transport: &Transport,
    bytes: &impl Bytes,
    tables: &impl Tables,
    config: &Config,
) -> Flow {
    let ports = match icmp(transport, bytes) {
        None => return Flow::Unreadable,
        Some(Icmp::Error) => return quoted(packet, transport, bytes, tables, config),
        Some(Icmp::Link) => return Flow::Link,
        Some(Icmp::Echo(ports)) => Some(ports),
        Some(Icmp::Other | Icmp::No) => transport.ports(bytes),
    };
    let Some(ports) = ports else {
        return Flow::Unreadable;
    };
    Flow::Of(FlowKey {
        remote: packet.destination,
        local: packet.source,
        protocol: transport.protocol,
        // Ours is the source.
        ports: ports.rotate_left(16),
    })
}

#[inline(always)]
fn quoted(
    error: &Packet,
    transport: &Transport,
    bytes: &impl Bytes,
    tables: &impl Tables,
    config: &Config,
) -> Flow {
    // Type, code, checksum and four bytes that depend on the type (RFC 792, RFC 4443).
    let Some(packet) = parse_quoted(error.is_v6, bytes, transport.offset + 8) else {
        return Flow::Unreadable;
    };
    if is_pods(tables, &packet.destination) || is_pods(tables, &packet.source) {
        return Flow::Pods;
    }
    let Some(transport) = packet.transport(bytes) else {
        return Flow::Unreadable;
    };
    // An envelope that nobody took: between nodes' addresses it carries a pod's packet.
    match envelope::is_envelope(&transport, bytes, config) {
        Some(false) => incoming(&packet, &transport, bytes),
        Some(true) => Flow::Pods,
        None => Flow::Unreadable,
    }
}

#[inline(always)]
fn is_pods(tables: &impl Tables, address: &Address) -> bool {
    use PrefixKind::{LocalPods, RemotePods, UnownedPods};
    let kind = tables.owner(address).map(|owner| owner.kind);
    matches!(kind, Some(LocalPods | RemotePods | UnownedPods))
}

/// What an ICMP or ICMPv6 message is.
enum Icmp {
    /// Another protocol.
    No,
    /// Echo request or reply: its identifier in both halves.
    Echo(u32),
    /// About the packet that it quotes.
    Error,
    /// Between neighbours on a link.
    Link,
    /// Anything else.
    Other,
}

#[inline(always)]
fn icmp(transport: &Transport, bytes: &impl Bytes) -> Option<Icmp> {
    let is_v6 = transport.protocol == ICMPV6;
    if transport.later_fragment || !is_v6 && transport.protocol != ICMP {
        return Some(Icmp::No);
    }
    let [first] = bytes.words(transport.offset)?;
    let kind = u32::from_be(first) >> 24;
    Some(match (is_v6, kind) {
        (false, ECHO | ECHO_REPLY) | (true, V6_ECHO | V6_ECHO_REPLY) => {
            let [second] = bytes.words(transport.offset + 4)?;
            let identifier = u32::from_be(second) >> 16;
            Icmp::Echo(identifier << 16 | identifier)
        }
        (is_v6, kind) if is_error(is_v6, kind) => Icmp::Error,
        (true, kind)
            if V6_NEIGHBOUR.contains(&kind)
                || V6_MULTICAST_LISTENER.contains(&kind)
                || kind == V6_MULTICAST_LISTENER_2 =>
        {
            Icmp::Link
        }
        _ => Icmp::Other,
    })
}

/// Whether this type of ICMP or ICMPv6 message is an error, about the packet that it quotes.
#[inline(always)]
pub(crate) const fn is_error(is_v6: bool, kind: u32) -> bool {
    if is_v6 {
        kind < V6_ERRORS_END
    } else {
        matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

/// A packet of a flow: the flags of TCP's header, and which way it goes. In a number, as a global function of the programs can be given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight(pub u32);

impl Sight {
    /// It has come out of the tunnel.
    const ARRIVES: u32 = 1 << 8;

    #[inline(always)]
    pub(crate) fn arrives(key: &FlowKey, transport: &Transport, bytes: &impl Bytes) -> Self {
        Self(Self::flags(key, transport, bytes) | Self::ARRIVES)
    }

    /// This host sends it.
    #[inline(always)]
    pub(crate) fn answers(key: &FlowKey, transport: &Transport, bytes: &impl Bytes) -> Self {
        Self(Self::flags(key, transport, bytes))
    }

    /// What shows no flags of the connection itself is nothing but a packet of it: an ICMP error about one, a later fragment, and what
    /// stands in the entry of those, which has no ports.
    #[inline(always)]
    fn flags(key: &FlowKey, transport: &Transport, bytes: &impl Bytes) -> u32 {
        if transport.protocol == TCP && key.ports != 0 && !transport.later_fragment {
            tcp::flags(bytes, transport.offset)
        } else {
            ACK
        }
    }
}

/// Notes a packet of the flow. Of what came out of the tunnel: is there room for it? Of what this host sends: is it an answer, which goes into
/// the tunnel? A stream that only goes out keeps its flow alive, as it does in the far end's NAT.
#[inline(always)]
pub fn follow(key: &FlowKey, sight: Sight, tables: &impl Tables, config: &Config) -> bool {
    let before = tables.flow(key);
    let now = tables.now();
    let Sight(flags) = sight;
    if flags & Sight::ARRIVES != 0 {
        let state = before.map_or(0, |value| value.state);
        let state = if key.protocol == TCP { arrived(state, flags, now) } else { state };
        return refresh(key, before, FlowValue { seen: now, state }, tables);
    }
    let Some(FlowValue { seen, state }) = before else { return false };
    if (FlowValue { seen, state }).is_over(key.protocol, config, now) {
        return false;
    }
    // A connection that this host begins, or that was begun in plain, has the addresses and ports of one that is over.
    let is_another = flags & SYN != 0 && (flags & ACK == 0 || is_late(state, now));
    let after = if is_another {
        FlowValue::OVER
    } else {
        let reset = if flags & RST != 0 { FlowValue::RESET } else { 0 };
        let ended = if flags & FIN != 0 { FlowValue::ENDED_HERE } else { 0 };
        FlowValue { seen: now, state: state | FlowValue::SPOKE_HERE | reset | ended }
    };
    // There is room: the entry exists.
    refresh(key, before, after, tables);
    !is_another
}

/// What is known of a connection after a packet with these `flags` has come out of the tunnel. A SYN begins another; and what goes on after a
/// reset was not reset.
#[inline(always)]
const fn arrived(state: u32, flags: u32, now: u32) -> u32 {
    const GOES_ON: u32 = !(FlowValue::OPENING | FlowValue::RESET);
    if flags & (SYN | ACK) == SYN {
        FlowValue::OPENING | now & FlowValue::SECOND
    } else if flags & SYN != 0 {
        0
    } else if flags & RST != 0 {
        state | FlowValue::RESET
    } else if flags & FIN != 0 {
        state & GOES_ON | FlowValue::ENDED_THERE
    } else {
        state & GOES_ON
    }
}

/// Is a SYN that comes now answered again in vain?
#[inline(always)]
const fn is_late(state: u32, now: u32) -> bool {
    (now & FlowValue::SECOND).saturating_sub(state & FlowValue::SECOND) > FlowValue::BRIEF_SECONDS
}

/// Notes what is known of a flow now; false if there is no room. Writes once a second at most, where nothing else changes.
#[inline(always)]
fn refresh(key: &FlowKey, before: Option<FlowValue>, after: FlowValue, tables: &impl Tables) -> bool {
    before == Some(after) || tables.remember(key, after)
}

/// Whether the port (host order) is one of WireGuard's own. 0, in a configuration nobody has
/// written to, is none.
#[inline(always)]
pub(crate) fn is_tunnel_port(config: &Config, protocol: u32, port: u32) -> bool {
    protocol == UDP && port != 0 && (port == config.ports[0] || port == config.ports[1])
}
