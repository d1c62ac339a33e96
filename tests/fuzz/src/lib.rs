//! What the targets share: whose announcements they read, and the world that packets are decided in.

use kubeveil_abi::{Asked, Config, DeviceKind, ENVELOPE_PORTS, FWMARK, GENEVE, Mode, PeerValue, PrefixKind};
use kubeveil_verdict::{
    Meta,
    testing::{World, address},
};

/// The node that announcements are read as being of.
pub const NODE: &str = "node-1";
/// The UID of its Node.
pub const UID: &str = "0b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1";

/// What is somebody else's and goes into a log or a status: short, and in one line.
///
/// # Panics
/// If it is not.
pub fn is_fit_to_print(text: &str) {
    assert!(text.len() < 4_000, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// Bytes before the packet that say how it comes.
pub const HEAD: usize = 8;
/// Seconds since boot in the world.
pub const NOW: u32 = 10_000;
/// Devices: where `steer` stands, where pods are, a tunnel, and one that nobody has heard of.
pub const DEVICES: [u32; 4] = [2, 77, 7, 99];

/// Which program looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Egress of an underlay device.
    Steer,
    /// Egress of an overlay's.
    Replace,
    /// Ingress of an underlay device.
    Guard,
    /// Ingress of a tunnel.
    Deliver,
    /// Any device.
    Backstop,
}

/// A packet in a world.
pub struct Case<'a> {
    /// Who looks at it.
    pub program: Program,
    /// What the kernel knows of it.
    pub meta: Meta,
    /// Length of each segment.
    pub segment: u32,
    /// The maps.
    pub world: World,
    /// The packet.
    pub bytes: &'a [u8],
}

/// In the byte of slots: what lies on the way to each peer.
const BYPASS: u8 = 0x0c;
const BYPASSED: u8 = 0x04;
const BYPASS_OVER: u8 = 0x08;
const BYPASS_HEARD: u8 = 0x0c;
/// In the byte of the mode: policies require encryption of this node's pods.
const ASKS: u8 = 0x80;

/// The case that `data` describes; `None` if it is too short to.
pub fn case(data: &[u8]) -> Option<Case<'_>> {
    let (&[program, mode, ingress, mark, protocol, peers, slots, segment], bytes) =
        data.split_first_chunk::<HEAD>()?;
    let programs = [Program::Steer, Program::Replace, Program::Guard, Program::Deliver, Program::Backstop];
    let modes = [Mode::Require, Mode::Prefer, Mode::Observe];
    let protocols = [0x0800, 0x86dd, 0x8100, 0x88a8, 0x0806];
    let values = [
        PeerValue::NO_TUNNEL,
        PeerValue::tunnel(0, 1),
        PeerValue::bypass(NOW + 1),
        PeerValue::bypass(NOW),
        PeerValue::adopting(NOW + 1),
        PeerValue::adopting(NOW),
        PeerValue::tunnel(0, 1).heard_in_plain(NOW + 1),
        PeerValue(0x77),
    ];
    let at = |n: u8, of: usize| usize::from(n) % of;
    let value = |n: u8| {
        let value = values[at(n, values.len())];
        match slots & BYPASS {
            BYPASSED => value.bypassed(NOW + 1),
            BYPASS_OVER => value.bypassed(NOW),
            BYPASS_HEARD => value.bypass_heard(NOW + 1),
            _ => value,
        }
    };
    let mut world = World { now: NOW, ..World::default() };
    let mut envelope_ports = [0; ENVELOPE_PORTS];
    envelope_ports[..2].copy_from_slice(&[8472, 6081 | GENEVE]);
    world.config = Config {
        mode: modes[at(mode & !ASKS, modes.len())] as u32,
        unknown: Asked::Mesh as u32,
        fwmark: FWMARK,
        ports: [51_871, 51_872],
        mss_v4: 1400,
        mss_v6: 1380,
        flow_tcp_seconds: 600,
        flow_other_seconds: 600,
        mtu: 1440,
        envelope_ports,
        reserved: 0,
    };
    world.peers = [(1, value(peers)), (2, value(peers >> 3))].into();
    world.slots[0] = if slots & 1 == 0 { DEVICES[2] } else { 0 };
    world.room = usize::from(slots >> 4);
    world.devices = [(DEVICES[0], DeviceKind::Underlay), (DEVICES[2], DeviceKind::Tunnel)].into();
    for (text, length, kind, peer) in PREFIXES {
        let ip: std::net::IpAddr = text.parse().ok()?;
        world.add(address(ip), length + if ip.is_ipv4() { 96 } else { 0 }, kind, peer);
    }
    if mode & ASKS != 0 {
        world.config.unknown = Asked::Require as u32;
        world.ask(PrefixKind::LocalPods, 0, Asked::Require, 0);
    }
    let ingress_ifindex = [0, DEVICES[0], DEVICES[1], DEVICES[2]][at(ingress, 4)];
    Some(Case {
        program: programs[at(program, programs.len())],
        meta: Meta {
            protocol: protocols[at(protocol, protocols.len())],
            ingress_ifindex,
            mark: if mark & 1 == 0 { 0 } else { FWMARK },
        },
        segment: u32::from(segment) * 16,
        world,
        bytes,
    })
}

/// The nodes' addresses (tests/README.md): this node is the first.
const PREFIXES: [(&str, u32, PrefixKind, u32); 14] = [
    ("10.244.0.0", 16, PrefixKind::UnownedPods, 0),
    ("fd00:244::", 32, PrefixKind::UnownedPods, 0),
    ("10.244.1.0", 24, PrefixKind::LocalPods, 0),
    ("fd00:244:1::", 64, PrefixKind::LocalPods, 0),
    ("10.244.2.0", 24, PrefixKind::RemotePods, 1),
    ("fd00:244:2::", 64, PrefixKind::RemotePods, 1),
    ("10.244.3.0", 24, PrefixKind::RemotePods, 2),
    ("fd00:244:3::", 64, PrefixKind::RemotePods, 2),
    ("192.0.2.1", 32, PrefixKind::LocalNode, 0),
    ("2001:db8::1", 128, PrefixKind::LocalNode, 0),
    ("192.0.2.2", 32, PrefixKind::RemoteNode, 1),
    ("2001:db8::2", 128, PrefixKind::RemoteNode, 1),
    ("192.0.2.3", 32, PrefixKind::RemoteNode, 2),
    ("2001:db8::3", 128, PrefixKind::RemoteNode, 2),
];
