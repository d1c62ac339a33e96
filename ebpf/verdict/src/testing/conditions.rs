//! The matrix of conditions: every kind of packet, on every way through a node, in every mode, and what is to
//! become of it. Written down apart from the decision, in the words of the README.

mod table;

use std::{boxed::Box, vec};

use etherparse::TcpOptionElement;
use kubeveil_abi::Mode;

use super::{Build, Envelope, Extension, Place, Scene, Situation, Transport};

pub use table::Table;

use Place::{LocalNode, LocalPod, Outside, RemoteNode, RemotePod, Unowned};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It goes into a tunnel, or came out of one and is handed on.
    Encrypted,
    /// It ends, and is counted.
    Dropped,
    /// It goes on as it came.
    Alone,
}

impl Fate {
    /// For a table.
    pub const fn letter(self) -> char {
        match self {
            Self::Encrypted => 'E',
            Self::Dropped => 'x',
            Self::Alone => '-',
        }
    }
}

/// Where on its way through the node a packet is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// `steer`.
    Underlay,
    /// `replace`.
    Overlay,
    /// `guard`.
    Wire,
    /// `deliver`.
    Tunnel,
    /// `backstop`.
    Unguarded,
}

/// A way through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// In a few words.
    pub name: &'static str,
    /// From where.
    pub from: Place,
    /// To where.
    pub to: Place,
    /// Where it is met.
    pub hook: Hook,
    /// Device it came in by; 0: the host's own.
    pub ingress_ifindex: u32,
}

impl Way {
    /// The host's own packets to another node, which are its affair.
    const fn is_host_to_node(&self) -> bool {
        self.ingress_ifindex == OWN && matches!(self.to, RemoteNode(_))
    }
}

const fn way(name: &'static str, hook: Hook, from: Place, to: Place, ingress_ifindex: u32) -> Way {
    Way { name, from, to, hook, ingress_ifindex }
}

const POD: u32 = Scene::POD_DEVICE;
const WIRE: u32 = Scene::UNDERLAY;
const TUNNEL: u32 = Scene::TUNNELS[0];
const OWN: u32 = 0;

/// Every way.
pub const WAYS: &[Way] = &[
    way("pod to pod", Hook::Underlay, LocalPod, RemotePod(0), POD),
    way("pod to node", Hook::Underlay, LocalPod, RemoteNode(0), POD),
    way("masqueraded to node", Hook::Underlay, LocalNode, RemoteNode(0), POD),
    way("masqueraded to pod", Hook::Underlay, LocalNode, RemotePod(0), POD),
    way("host to pod", Hook::Underlay, LocalNode, RemotePod(0), OWN),
    way("host to node", Hook::Underlay, LocalNode, RemoteNode(0), OWN),
    way("pod to nobody's pod", Hook::Underlay, LocalPod, Unowned, POD),
    way("pod to outside", Hook::Underlay, LocalPod, Outside, POD),
    way("host to outside", Hook::Underlay, LocalNode, Outside, OWN),
    way("stranger to remote pod", Hook::Underlay, Outside, RemotePod(0), WIRE),
    way("out of a tunnel to another node", Hook::Underlay, RemotePod(1), RemotePod(0), TUNNEL),
    way("out of a tunnel to outside", Hook::Underlay, RemotePod(0), Outside, TUNNEL),
    way("to a pod of ours, outward", Hook::Underlay, Outside, LocalPod, WIRE),
    way("pod to pod, overlay", Hook::Overlay, LocalPod, RemotePod(0), POD),
    way("host to pod, overlay", Hook::Overlay, LocalNode, RemotePod(0), OWN),
    way("pod to nobody's pod, overlay", Hook::Overlay, LocalPod, Unowned, POD),
    way("unguarded: pod to pod", Hook::Unguarded, LocalPod, RemotePod(0), POD),
    way("unguarded: host to pod", Hook::Unguarded, LocalNode, RemotePod(0), OWN),
    way("unguarded: pod to nobody's", Hook::Unguarded, LocalPod, Unowned, POD),
    way("unguarded: pod to outside", Hook::Unguarded, LocalPod, Outside, POD),
    way("wire: remote pod to pod", Hook::Wire, RemotePod(0), LocalPod, WIRE),
    way("wire: remote pod to node", Hook::Wire, RemotePod(0), LocalNode, WIRE),
    way("wire: node to pod", Hook::Wire, RemoteNode(0), LocalPod, WIRE),
    way("wire: nobody's pod to pod", Hook::Wire, Unowned, LocalPod, WIRE),
    way("wire: our own pod to us", Hook::Wire, LocalPod, LocalNode, WIRE),
    way("wire: node to node", Hook::Wire, RemoteNode(0), LocalNode, WIRE),
    way("wire: outside to pod", Hook::Wire, Outside, LocalPod, WIRE),
    way("tunnel: pod to pod", Hook::Tunnel, RemotePod(0), LocalPod, TUNNEL),
    way("tunnel: node to pod", Hook::Tunnel, RemoteNode(0), LocalPod, TUNNEL),
    way("tunnel: node to node", Hook::Tunnel, RemoteNode(0), LocalNode, TUNNEL),
];

/// EtherType of LLDP (IEEE 802.1AB), which neighbours on a cable tell each other.
const LLDP: u16 = 0x88cc;

/// What is special about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UDP.
    Udp,
    /// A TCP segment.
    Tcp,
    /// The first of a connection, with a segment size.
    Syn,
    /// An echo request.
    Echo,
    /// A protocol that we don't read (SCTP).
    Foreign,
    /// IPv4 options, or IPv6 hop-by-hop options.
    Options,
    /// IPv6 routing header.
    Routing,
    /// IPv6 destination options.
    DestinationOptions,
    /// IPv6 authentication header.
    Authentication,
    /// More IPv6 extension headers than are looked through.
    ManyHeaders,
    /// IPv6 fragment header of a whole packet.
    AtomicFragment,
    /// The first part of a packet.
    FirstFragment,
    /// Another part of one.
    LaterFragment,
    /// An ICMP error that quotes a packet for one of our pods, or of one.
    Error,
    /// The same, where that packet is in an envelope between the nodes.
    ErrorAboutEnvelope,
    /// One VLAN tag.
    Tagged,
    /// Two.
    DoubleTagged,
    /// Two, of which the outer one is a provider's.
    ProviderTagged,
    /// One more than is looked through.
    TripleTagged,
    /// Its header is of another version than it is said to be.
    FalseVersion,
    /// No IP packet by what it is said to be: LLDP's, say.
    NonIp,
    /// Several segments, each of which fits into the tunnel.
    Segments,
    /// More than fits into the tunnel, and not to be cut.
    Undivided,
    /// More than fits into the tunnel, and may be cut (IPv4).
    Divisible,
    /// An overlay's envelope, with a packet between pods in it.
    Enveloped(Envelope),
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::Udp,
        Self::Tcp,
        Self::Syn,
        Self::Echo,
        Self::Foreign,
        Self::Options,
        Self::Routing,
        Self::DestinationOptions,
        Self::Authentication,
        Self::ManyHeaders,
        Self::AtomicFragment,
        Self::FirstFragment,
        Self::LaterFragment,
        Self::Error,
        Self::ErrorAboutEnvelope,
        Self::Tagged,
        Self::DoubleTagged,
        Self::ProviderTagged,
        Self::TripleTagged,
        Self::FalseVersion,
        Self::NonIp,
        Self::Segments,
        Self::Undivided,
        Self::Divisible,
        Self::Enveloped(Envelope::Vxlan),
        Self::Enveloped(Envelope::VxlanGpe),
        Self::Enveloped(Envelope::Geneve(2)),
        Self::Enveloped(Envelope::Ip),
        Self::Enveloped(Envelope::Gre(true)),
        Self::Enveloped(Envelope::Gretap),
    ];

    /// In a few words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Syn => "TCP SYN",
            Self::Echo => "ICMP echo",
            Self::Foreign => "SCTP",
            Self::Options => "IPv4 options, hop-by-hop",
            Self::Routing => "routing header",
            Self::DestinationOptions => "destination options",
            Self::Authentication => "authentication header",
            Self::ManyHeaders => "too many headers",
            Self::AtomicFragment => "atomic fragment",
            Self::FirstFragment => "first fragment",
            Self::LaterFragment => "later fragment",
            Self::Error => "ICMP error about a pod's",
            Self::ErrorAboutEnvelope => "ICMP error, an envelope's",
            Self::Tagged => "VLAN tag",
            Self::DoubleTagged => "two VLAN tags",
            Self::ProviderTagged => "VLAN tag in a provider's",
            Self::TripleTagged => "three VLAN tags",
            Self::FalseVersion => "of another IP version",
            Self::NonIp => "no IP packet",
            Self::Segments => "several segments (GSO)",
            Self::Undivided => "too big, not to be cut",
            Self::Divisible => "too big, may be cut",
            Self::Enveloped(Envelope::Vxlan) => "in VXLAN",
            Self::Enveloped(Envelope::VxlanGpe) => "in VXLAN-GPE",
            Self::Enveloped(Envelope::Geneve(_)) => "in Geneve",
            Self::Enveloped(Envelope::Ip) => "in IP",
            Self::Enveloped(Envelope::Gre(_)) => "in GRE",
            Self::Enveloped(Envelope::Gretap) => "in GRE with Ethernet",
        }
    }

    /// Whether there is such a packet of that family.
    pub const fn is_of(self, is_v6: bool) -> bool {
        match self {
            Self::Routing
            | Self::DestinationOptions
            | Self::Authentication
            | Self::ManyHeaders
            | Self::AtomicFragment => is_v6,
            Self::Divisible => !is_v6,
            _ => true,
        }
    }

    /// The packet, on this way.
    pub fn on(self, way: &Way, is_v6: bool) -> Situation {
        let udp = Transport::Udp(40_000, 53);
        let transport = match self {
            Self::Tcp => Transport::Tcp(40_000, 443, None),
            Self::Syn => Transport::Tcp(40_000, 443, Some(vec![TcpOptionElement::MaximumSegmentSize(1_460)])),
            Self::Segments => Transport::Tcp(40_000, 443, None),
            Self::Echo => Transport::Echo(7, false),
            Self::Foreign => Transport::Raw(132),
            Self::Error => Transport::Unreachable(Box::new(quoted(way, is_v6))),
            Self::ErrorAboutEnvelope => {
                let envelope = Transport::Envelope(Envelope::Ip, Box::new(inner(way, is_v6)));
                let quoted = Build::new(way.to.ip(is_v6), way.from.ip(is_v6), envelope);
                Transport::Unreachable(Box::new(quoted))
            }
            Self::Enveloped(envelope) => Transport::Envelope(envelope, Box::new(inner(way, is_v6))),
            _ => udp,
        };
        let mut situation = Situation::new(way.from, way.to, is_v6, transport).by(way.ingress_ifindex);
        let build = &mut situation.build;
        build.undivided = self != Self::Divisible;
        match self {
            Self::Options => build.extensions = vec![Extension::Options(0, 0)],
            Self::Routing => build.extensions = vec![Extension::Options(43, 0)],
            Self::DestinationOptions => build.extensions = vec![Extension::Options(60, 0)],
            Self::Authentication => build.extensions = vec![Extension::Authentication(2)],
            Self::ManyHeaders => build.extensions = vec![Extension::Options(60, 0); 12],
            Self::AtomicFragment => build.extensions = vec![Extension::Atomic],
            Self::FirstFragment => (build.fragment, build.payload) = (Some((0, true)), 64),
            Self::LaterFragment => (build.fragment, build.payload) = (Some((20, false)), 64),
            Self::Tagged => build.tags = 1,
            Self::DoubleTagged => build.tags = 2,
            Self::ProviderTagged => (build.tags, build.provider_tags) = (2, 1),
            Self::TripleTagged => build.tags = 3,
            Self::FalseVersion => build.false_type = Some(if is_v6 { 0x0800 } else { 0x86dd }),
            Self::NonIp => build.false_type = Some(LLDP),
            Self::Segments => build.payload = 2_400,
            Self::Undivided | Self::Divisible => build.payload = 1_445,
            _ => {}
        }
        situation
    }

    /// Nobody can say whose such a packet is.
    const fn is_unreadable(self) -> bool {
        matches!(self, Self::FalseVersion | Self::TripleTagged)
    }
}

/// A packet between pods: from here to there, or the other way where it comes from the wire.
fn inner(way: &Way, is_v6: bool) -> Build {
    let (here, there) = (LocalPod.ip(is_v6), RemotePod(0).ip(is_v6));
    let is_inward = matches!(way.hook, Hook::Wire | Hook::Tunnel);
    let (from, to) = if is_inward { (there, here) } else { (here, there) };
    Build::new(from, to, Transport::Udp(40_000, 53))
}

/// What an error on this way is about: a packet for a pod on its sender's side, from whom it goes to.
fn quoted(way: &Way, is_v6: bool) -> Build {
    let is_inward = matches!(way.hook, Hook::Wire | Hook::Tunnel);
    let pod = if is_inward { RemotePod(0) } else { LocalPod };
    Build::new(way.to.ip(is_v6), pod.ip(is_v6), Transport::Udp(40_000, 53))
}

/// Whether the peers' tunnels are proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnels {
    /// They are.
    Proven,
    /// They are not.
    Unproven,
}

/// What is to become of a packet of this kind on this way.
pub fn fate(way: &Way, kind: Kind, is_v6: bool, tunnels: Tunnels, mode: Mode) -> Fate {
    let required = required(way, kind, is_v6, tunnels);
    let was_encrypted = way.ingress_ifindex == TUNNEL && way.hook == Hook::Underlay && !kind.is_unreadable();
    match mode {
        Mode::Require => required,
        Mode::Observe => Fate::Alone,
        // It never drops but what was encrypted already, and what can be sent again in a size that fits.
        Mode::Prefer => match required {
            Fate::Dropped if was_encrypted && !matches!(way.to, Outside) => Fate::Dropped,
            Fate::Dropped if is_too_big(way, kind) && tunnels == Tunnels::Proven => Fate::Dropped,
            Fate::Dropped => Fate::Alone,
            fate => fate,
        },
    }
}

fn required(way: &Way, kind: Kind, is_v6: bool, tunnels: Tunnels) -> Fate {
    // Neighbours have to find each other, and the kernel forwards nothing but IP.
    match way.hook {
        _ if kind == Kind::NonIp => Fate::Alone,
        _ if kind.is_unreadable() => Fate::Dropped,
        Hook::Underlay | Hook::Overlay => outward(way, kind, is_v6, tunnels),
        Hook::Unguarded if matches!(way.to, RemotePod(_) | Unowned) => Fate::Dropped,
        Hook::Unguarded => Fate::Alone,
        Hook::Wire => from_wire(way, kind, is_v6),
        Hook::Tunnel => from_tunnel(way, kind),
    }
}

fn outward(way: &Way, kind: Kind, is_v6: bool, tunnels: Tunnels) -> Fate {
    let by_tunnel = match tunnels {
        Tunnels::Proven => Fate::Encrypted,
        Tunnels::Unproven => Fate::Dropped,
    };
    match way.to {
        // No such packet has any business at a node's own uplink.
        Unowned | LocalPod => Fate::Dropped,
        _ if way.from == Outside => Fate::Dropped,
        Outside if way.ingress_ifindex == OWN && matches!(kind, Kind::Enveloped(_)) => Fate::Dropped,
        RemotePod(_) if way.ingress_ifindex == TUNNEL => Fate::Dropped,
        RemoteNode(_) if way.is_host_to_node() && matches!(kind, Kind::ManyHeaders) => Fate::Dropped,
        RemoteNode(_) if way.is_host_to_node() && !may_be_pods(kind, is_v6) => Fate::Alone,
        _ if matches!(way.to, RemotePod(_) | RemoteNode(_)) && is_too_big(way, kind) => Fate::Dropped,
        RemotePod(_) | RemoteNode(_) => by_tunnel,
        _ => Fate::Alone,
    }
}

/// What the host sends to a node, and what may be a pod's all the same.
const fn may_be_pods(kind: Kind, is_v6: bool) -> bool {
    match kind {
        Kind::FirstFragment | Kind::AtomicFragment => is_v6,
        Kind::LaterFragment | Kind::Error | Kind::ErrorAboutEnvelope | Kind::Enveloped(_) => true,
        _ => false,
    }
}

fn is_too_big(way: &Way, kind: Kind) -> bool {
    matches!(way.hook, Hook::Underlay | Hook::Overlay)
        && matches!(way.to, RemotePod(_) | RemoteNode(_))
        && way.from != Outside
        && !way.is_host_to_node()
        && kind == Kind::Undivided
}

fn from_wire(way: &Way, kind: Kind, is_v6: bool) -> Fate {
    let claims_pod = matches!(way.from, RemotePod(_) | Unowned | LocalPod);
    let is_for_pod = way.to == LocalPod && matches!(way.from, RemoteNode(_) | LocalNode);
    // Too many headers could hide an envelope.
    let hides = is_v6 && kind == Kind::ManyHeaders;
    if claims_pod || is_for_pod || hides || matches!(kind, Kind::Enveloped(_)) {
        Fate::Dropped
    } else {
        Fate::Alone
    }
}

fn from_tunnel(way: &Way, kind: Kind) -> Fate {
    if way.to == LocalNode && kind == Kind::ManyHeaders { Fate::Dropped } else { Fate::Encrypted }
}

/// Every condition of a family on a way.
pub fn conditions() -> impl Iterator<Item = (&'static Way, Kind, bool)> {
    let families = || [false, true].into_iter();
    let kinds = move |way| {
        let all = Kind::ALL.iter().copied();
        all.flat_map(move |kind| families().filter(move |&v6| kind.is_of(v6)).map(move |v6| (way, kind, v6)))
    };
    WAYS.iter().flat_map(kinds)
}
