use std::{
    boxed::Box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    vec,
    vec::Vec,
};

use etherparse::TcpOptionElement;
use kubeveil_abi::{
    Asked, BASE_PORT, Config, DeviceKind, FWMARK, FlowKey, FlowValue, GENEVE, Mode, Origin, PeerValue,
    PrefixKind, v4_mapped_length,
};
use proptest::prelude::*;

use super::{Build, Envelope, Extension, GENEVE_PORT, Transport, VXLAN_PORT, World, address};
use crate::Meta;

/// Where an address lies. Node 1 is this one; peer p is node p + 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod of this node.
    LocalPod,
    /// This node.
    LocalNode,
    /// A pod of a peer.
    RemotePod(u8),
    /// A peer.
    RemoteNode(u8),
    /// In the pods' range, of no known node.
    Unowned,
    /// Elsewhere.
    Outside,
    /// Link-local.
    Link,
    /// All nodes on the link.
    Multicast,
}

impl Place {
    /// An address there.
    pub fn ip(self, is_v6: bool) -> IpAddr {
        let (v4, v6): ([u8; 4], [u16; 8]) = match self {
            Self::LocalPod => ([10, 244, 1, 10], [0xfd00, 0x244, 1, 0, 0, 0, 0, 0x10]),
            Self::LocalNode => ([192, 0, 2, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            Self::RemotePod(p) => ([10, 244, p + 2, 10], [0xfd00, 0x244, u16::from(p) + 2, 0, 0, 0, 0, 0x10]),
            Self::RemoteNode(p) => ([192, 0, 2, p + 2], [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(p) + 2]),
            Self::Unowned => ([10, 244, 99, 10], [0xfd00, 0x244, 99, 0, 0, 0, 0, 0x10]),
            Self::Outside => ([203, 0, 113, 7], [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7]),
            Self::Link => ([169, 254, 1, 1], [0xfe80, 0, 0, 0, 0, 0, 0, 1]),
            Self::Multicast => ([224, 0, 0, 1], [0xff02, 0, 0, 0, 0, 0, 0, 1]),
        };
        if is_v6 { Ipv6Addr::from(v6).into() } else { Ipv4Addr::from(v4).into() }
    }

    fn any() -> impl Strategy<Value = Self> {
        let peer = 0..Scene::PEERS;
        prop_oneof![
            3 => Just(Self::LocalPod),
            3 => Just(Self::LocalNode),
            4 => peer.clone().prop_map(Self::RemotePod),
            4 => peer.prop_map(Self::RemoteNode),
            1 => Just(Self::Unowned),
            1 => Just(Self::Outside),
            1 => Just(Self::Link),
            1 => Just(Self::Multicast),
        ]
    }
}

/// State of the world that a packet meets.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The mode.
    pub mode: Mode,
    /// How packets to the peers travel.
    pub peers: [PeerValue; Scene::PEERS as usize],
    /// Devices of the two slots.
    pub slots: [u32; 2],
    /// Seconds since boot.
    pub now: u32,
    /// Flows from peers to this node that are known: peer, family, what of, age in seconds.
    pub flows: Vec<(u8, bool, Transport, u32)>,
}

impl Scene {
    /// Peers that there are.
    pub const PEERS: u8 = 4;
    /// Devices: a pod's, which the kernel has to have where it is asked, the underlay, the tunnels of both slots.
    pub const POD_DEVICE: u32 = Self::LOOPBACK;
    /// The device that is there in every network namespace.
    pub const LOOPBACK: u32 = 1;
    /// See [`Scene::POD_DEVICE`].
    pub const UNDERLAY: u32 = 2;
    /// See [`Scene::POD_DEVICE`].
    pub const TUNNELS: [u32; 2] = [11, 12];

    /// All tunnels proven, nothing odd.
    pub fn calm(mode: Mode) -> Self {
        Self {
            mode,
            peers: [PeerValue::tunnel(0, 0); Self::PEERS as usize],
            slots: Self::TUNNELS,
            now: 10_000,
            flows: Vec::new(),
        }
    }

    /// The maps of it.
    pub fn world(&self) -> World {
        let mut world = World {
            config: Config {
                mode: self.mode as u32,
                unknown: Asked::Mesh as u32,
                fwmark: FWMARK,
                ports: [u32::from(BASE_PORT), u32::from(BASE_PORT) + 1],
                mss_v4: 1400,
                mss_v6: 1348,
                flow_tcp_seconds: 3_600,
                flow_other_seconds: 120,
                mtu: 1_440,
                envelope_ports: [VXLAN_PORT.into(), u32::from(GENEVE_PORT) | GENEVE, 0, 0, 0, 0, 0],
                reserved: 0,
            },
            now: self.now,
            ..World::default()
        };
        world.slots[..2].copy_from_slice(&self.slots);
        world.devices.insert(Self::UNDERLAY, DeviceKind::Underlay);
        for tunnel in Self::TUNNELS {
            world.devices.insert(tunnel, DeviceKind::Tunnel);
        }
        for is_v6 in [false, true] {
            let mut add = |place: Place, v4, v6, kind, peer| {
                let length = if is_v6 { v6 } else { v4_mapped_length(v4) };
                world.add(address(place.ip(is_v6)), length, kind, peer);
            };
            add(Place::LocalPod, 24, 48, PrefixKind::LocalPods, 0);
            add(Place::LocalNode, 32, 128, PrefixKind::LocalNode, 0);
            add(Place::Unowned, 16, 32, PrefixKind::UnownedPods, 0);
            for p in 0..Self::PEERS {
                let peer = u32::from(p);
                add(Place::RemotePod(p), 24, 48, PrefixKind::RemotePods, peer);
                add(Place::RemoteNode(p), 32, 128, PrefixKind::RemoteNode, peer);
            }
        }
        world.peers = (0..).zip(self.peers).collect();
        world.flows = self.flow_entries().into();
        world
    }

    fn flow_entries(&self) -> Vec<(FlowKey, FlowValue)> {
        let mut entries = Vec::new();
        for (peer, is_v6, transport, age) in &self.flows {
            let (protocol, ports) = match transport {
                Transport::Udp(remote, local) => (17, [*remote, *local]),
                Transport::Tcp(remote, local, _) => (6, [*remote, *local]),
                Transport::Echo(identifier, _) => (if *is_v6 { 58 } else { 1 }, [*identifier; 2]),
                _ => continue,
            };
            let ports = u32::from(ports[0]) << 16 | u32::from(ports[1]);
            for ports in [ports, 0] {
                let key = FlowKey {
                    remote: address(Place::RemoteNode(*peer).ip(*is_v6)),
                    local: address(Place::LocalNode.ip(*is_v6)),
                    protocol,
                    ports,
                };
                let value = FlowValue { seen: self.now.saturating_sub(*age), state: 0 };
                if entries.iter().all(|(other, _)| *other != key) {
                    entries.push((key, value));
                }
            }
        }
        entries
    }
}

/// A packet and what the kernel knows of it.
#[derive(Clone, Debug)]
pub struct Situation {
    /// Where it comes from.
    pub from: Place,
    /// Where it goes to.
    pub to: Place,
    /// The packet.
    pub build: Build,
    /// Device it came in by, 0 if it is the host's own.
    pub ingress_ifindex: u32,
    /// Firewall mark.
    pub mark: u32,
}

impl Situation {
    /// One without anything special about it.
    pub fn new(from: Place, to: Place, is_v6: bool, transport: Transport) -> Self {
        let build = Build::new(from.ip(is_v6), to.ip(is_v6), transport);
        Self { from, to, build, ingress_ifindex: 0, mark: 0 }
    }

    /// The same, forwarded from a device.
    #[must_use]
    pub fn by(self, ingress_ifindex: u32) -> Self {
        Self { ingress_ifindex, ..self }
    }

    /// The same, marked.
    #[must_use]
    pub fn marked(self, mark: u32) -> Self {
        Self { mark, ..self }
    }

    /// The same between the same places in the other family.
    #[must_use]
    pub fn other_family(self) -> Self {
        let (from, to) = (self.from, self.to);
        let is_v6 = self.build.source.is_ipv4();
        self.addressed(from, to, is_v6)
    }

    /// The same between other places.
    #[must_use]
    pub fn between(self, from: Place, to: Place) -> Self {
        let is_v6 = self.build.source.is_ipv6();
        self.addressed(from, to, is_v6)
    }

    fn addressed(mut self, from: Place, to: Place, is_v6: bool) -> Self {
        (self.from, self.to) = (from, to);
        (self.build.source, self.build.destination) = (from.ip(is_v6), to.ip(is_v6));
        if let Transport::Unreachable(quoted) = &mut self.build.transport {
            (quoted.source, quoted.destination) = (to.ip(is_v6), from.ip(is_v6));
        }
        self
    }

    /// What the kernel would say of it.
    pub fn meta(&self) -> Meta {
        Meta { protocol: self.build.ether_type(), ingress_ifindex: self.ingress_ifindex, mark: self.mark }
    }

    /// Whether it carries an IPv6 fragment header.
    pub fn is_v6_fragment(&self) -> bool {
        let has_header = self.build.fragment.is_some() || self.build.extensions.contains(&Extension::Atomic);
        self.build.destination.is_ipv6() && has_header
    }

    /// Whether it is an overlay's envelope, or may be a part of one: a later fragment of UDP shows no port.
    pub fn may_be_envelope(&self) -> bool {
        let is_later = self.build.fragment.is_some_and(|(offset, _)| offset != 0);
        match &self.build.transport {
            Transport::Udp(_, port) => is_later || [VXLAN_PORT, GENEVE_PORT].contains(port),
            Transport::Envelope(..) | Transport::Raw(4 | 41 | 47) => true,
            _ => false,
        }
    }

    /// The same in an overlay's envelope between two places; whatever the kernel knew of it, it has forgotten.
    #[must_use]
    pub fn in_envelope(self, envelope: Envelope, from: Place, to: Place, is_v6: bool) -> Self {
        Self::new(from, to, is_v6, Transport::Envelope(envelope, Box::new(self.build)))
    }

    /// Whether it is WireGuard's own: the host's, marked, UDP from one of its ports (or a later fragment,
    /// which shows none).
    pub fn is_outer(&self) -> bool {
        let is_later = self.build.fragment.is_some_and(|(offset, _)| offset != 0);
        let is_from_port = match self.build.transport {
            Transport::Udp(source, _) => is_later || source == BASE_PORT || source == BASE_PORT + 1,
            Transport::Envelope(Envelope::Vxlan | Envelope::VxlanGpe | Envelope::Geneve(_), _) => is_later,
            _ => false,
        };
        self.ingress_ifindex == 0 && self.mark == FWMARK && is_from_port
    }
}

/// Any state of the world at `now` seconds since boot. Nothing in it changes within a minute, so that
/// it may be shown to a kernel whose clock goes on.
pub fn scene(now: u32) -> impl Strategy<Value = Scene> {
    let moment = || prop_oneof![Just(now.saturating_sub(60)), Just(now + 600)];
    let peer = prop_oneof![
        Just(PeerValue::NO_TUNNEL),
        Just(PeerValue::tunnel(0, 3)),
        Just(PeerValue::tunnel(1, 4)),
        Just(PeerValue::tunnel(9, 4)),
        moment().prop_map(PeerValue::bypass),
        moment().prop_map(|until| PeerValue::tunnel(0, 3).bypassed(until)),
        moment().prop_map(|until| PeerValue::tunnel(9, 3).bypassed(until)),
        moment().prop_map(|until| PeerValue::tunnel(1, 4).bypass_heard(until)),
        moment().prop_map(PeerValue::adopting),
        moment().prop_map(|until| PeerValue::tunnel(0, 3).heard_in_plain(until)),
        any::<u32>().prop_map(|upper| PeerValue(u64::from(upper) << 32 | 0x77)),
    ];
    let slot = prop_oneof![3 => Just(true), 1 => Just(false)];
    let age = prop_oneof![Just(0), Just(60), Just(600), Just(7_200)];
    let flow = (0..Scene::PEERS, any::<bool>(), transport(), age);
    (
        prop_oneof![2 => Just(Mode::Require), 1 => Just(Mode::Prefer), 1 => Just(Mode::Observe)],
        prop::array::uniform4(peer),
        [slot.clone(), slot],
        prop::collection::vec(flow, 0..4),
    )
        .prop_map(move |(mode, peers, slots, flows)| Scene {
            mode,
            peers,
            slots: [
                if slots[0] { Scene::TUNNELS[0] } else { 0 },
                if slots[1] { Scene::TUNNELS[1] } else { 0 },
            ],
            now,
            flows,
        })
}

/// What policies ask for.
#[derive(Clone, Debug)]
pub struct Policies {
    unknown: Asked,
    asked: Vec<(PrefixKind, u32, Asked, u32)>,
    /// The device of this node's pod, and whether it is there.
    origin: Option<(Origin, bool)>,
}

impl Policies {
    /// A world in which they are in force.
    pub fn in_force(&self, mut world: World) -> World {
        world.config.unknown = self.unknown as u32;
        for (kind, peer, asked, until) in &self.asked {
            world.ask(*kind, *peer, *asked, *until);
        }
        if let Some((origin, is_alive)) = self.origin {
            world.bind_pod_to(origin);
            world.alive.extend(is_alive.then_some(origin.key()));
        }
        world
    }
}

/// Any policies, at `now` seconds since boot.
pub fn policies(now: u32) -> impl Strategy<Value = Policies> {
    let asked = || prop::sample::select(&[Asked::Mesh, Asked::Exempt, Asked::Prefer, Asked::Require][..]);
    let until = prop_oneof![2 => Just(0), 1 => Just(now.saturating_sub(60)), 1 => Just(now + 600)];
    let whose = prop_oneof![
        Just((PrefixKind::LocalPods, 0)),
        (0..u32::from(Scene::PEERS)).prop_map(|peer| (PrefixKind::RemotePods, peer)),
        Just((PrefixKind::UnownedPods, 0)),
    ];
    let one = (whose, asked(), until).prop_map(|((kind, peer), asked, until)| (kind, peer, asked, until));
    let via = prop::sample::select(&[Scene::POD_DEVICE, 8][..]);
    let origin = prop::option::of(
        (via, any::<bool>())
            .prop_map(|(via, is_alive)| (Origin { device: Scene::LOOPBACK, via, pod: [1, via] }, is_alive)),
    );
    (asked(), prop::collection::vec(one, 0..4), origin).prop_map(|(unknown, asked, origin)| Policies {
        unknown,
        asked,
        origin,
    })
}

/// Any packet.
pub fn situation() -> impl Strategy<Value = Situation> {
    let extension = prop_oneof![
        (prop::sample::select(vec![0_u8, 43, 60, 135, 139, 140]), 0_u8..4)
            .prop_map(|(number, units)| Extension::Options(number, units)),
        (1_u8..6).prop_map(Extension::Authentication),
        Just(Extension::Atomic),
    ];
    let extensions = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(extension, 0..11)];
    let fragment = prop_oneof![
        6 => Just(None),
        1 => Just(Some((0, true))),
        1 => (1_u16..100, any::<bool>()).prop_map(Some),
    ];
    let ingress = prop_oneof![
        3 => Just(0),
        3 => Just(Scene::POD_DEVICE),
        1 => Just(Scene::UNDERLAY),
        2 => prop::sample::select(Scene::TUNNELS.to_vec()),
    ];
    let mark = prop_oneof![3 => Just(0), 1 => Just(FWMARK), 1 => Just(0x4000)];
    let tags = prop_oneof![6 => Just([0_u8; 2]), 1 => [1_u8..4, 0..4]];
    // Around the tunnel's MTU, too.
    let payload = prop_oneof![6 => 0_usize..40, 1 => 1_380_usize..1_480];
    let inner = (Place::any(), Place::any(), any::<bool>(), transport(), [0..2_u8, 0..2]);
    let inner = inner.prop_map(|(from, to, is_v6, transport, tags)| {
        let mut build = Build::new(from.ip(is_v6), to.ip(is_v6), transport);
        [build.tags, build.provider_tags] = tags;
        build
    });
    let inner = prop_oneof![4 => Just(None), 1 => (envelope(), inner).prop_map(Some)];
    (
        (Place::any(), Place::any(), any::<bool>(), transport(), any::<bool>(), inner),
        (extensions, fragment, ingress, mark, tags, any::<bool>(), payload),
    )
        .prop_map(|((from, to, is_v6, transport, is_error, inner), rest)| {
            let (extensions, fragment, ingress_ifindex, mark, tags, answer, payload) = rest;
            let transport = match inner {
                Some((envelope, inner)) => Transport::Envelope(envelope, Box::new(inner)),
                None => transport,
            };
            let mut situation = Situation::new(from, to, is_v6, transport);
            if is_error && matches!(situation.build.transport, Transport::Raw(_)) {
                // About a packet that went the other way.
                let Situation { build, .. } = Situation::new(to, from, is_v6, Transport::Udp(40_000, 53));
                situation.build.transport = Transport::Unreachable(Box::new(build));
            }
            situation.build.extensions = extensions;
            situation.build.fragment = fragment;
            [situation.build.tags, situation.build.provider_tags] = tags;
            situation.build.answer = answer;
            situation.build.payload = payload;
            situation.by(ingress_ifindex).marked(mark)
        })
}

/// Any envelope.
pub fn envelope() -> impl Strategy<Value = Envelope> {
    prop_oneof![
        Just(Envelope::Vxlan),
        Just(Envelope::VxlanGpe),
        (0_u8..16).prop_map(Envelope::Geneve),
        Just(Envelope::Ip),
        any::<bool>().prop_map(Envelope::Gre),
        Just(Envelope::Gretap),
    ]
}

fn transport() -> impl Strategy<Value = Transport> {
    let port = || prop::sample::select(vec![53_u16, 443, 40_000, BASE_PORT, BASE_PORT + 1]);
    let option = prop_oneof![
        3 => (500_u16..9_000).prop_map(TcpOptionElement::MaximumSegmentSize),
        1 => Just(TcpOptionElement::Noop),
        1 => Just(TcpOptionElement::WindowScale(7)),
        1 => Just(TcpOptionElement::SelectiveAcknowledgementPermitted),
    ];
    prop_oneof![
        3 => (port(), port()).prop_map(|(s, d)| Transport::Udp(s, d)),
        3 => (port(), port(), prop::option::of(prop::collection::vec(option, 0..5)))
            .prop_map(|(s, d, syn)| Transport::Tcp(s, d, syn)),
        1 => (1_u16..3, any::<bool>()).prop_map(|(id, reply)| Transport::Echo(id, reply)),
        1 => Just(Transport::Neighbour),
        1 => prop::sample::select(vec![4_u8, 41, 47, 50, 59, 89, 132]).prop_map(Transport::Raw),
    ]
}
