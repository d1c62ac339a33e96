//! What the kernel holds.

mod expected;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use kubeveil_abi::{Asked, Config, DeviceKind, MAX_SLOTS, Origin, PeerValue, PrefixKind};
use kubeveil_keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::backstop::Standing;

/// One look at everything that is planned over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Network devices by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// WireGuard devices of our names, by name.
    pub tunnels: BTreeMap<String, TunnelDevice>,
    /// Maps and attachments; `None` until they are loaded or adopted.
    pub datapath: Option<Datapath>,
    /// What holds where no program of ours stands at a device.
    pub backstop: Standing,
    /// Chains of somebody else's firewall that take only what comes in by the device that its answer leaves by.
    pub route_checks: BTreeSet<String>,
    /// Who is behind which port of a bridge; looked at only where that is asked for.
    pub neighbours: Neighbours,
}

/// A link-layer address, as of Ethernet.
pub type HardwareAddress = [u8; 6];

/// Who is behind which port of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Link-layer addresses, by the ifindex of the device that an address is reached by, and the address.
    pub hardware: BTreeMap<(u32, IpAddr), HardwareAddress>,
    /// ifindex of ports, by that of their bridge, and the link-layer address that was seen to speak by it.
    pub ports: BTreeMap<(u32, HardwareAddress), u32>,
}

impl Observed {
    /// Is that the same of which nobody tells when it is changed: what holds packets back, and the sysctls of tunnels?
    pub fn holds_as(&self, other: &Self) -> bool {
        let sysctls = |all: &Self| -> Vec<bool> { all.tunnels.values().map(|t| t.sysctls_right).collect() };
        self.datapath == other.datapath && self.backstop == other.backstop && sysctls(self) == sysctls(other)
    }
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// What created it by software (`veth`, `bridge`, `wireguard`, …); `None` for hardware.
    pub kind: Option<String>,
    /// Set up by the administrator.
    pub up: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Bytes.
    pub mtu: u32,
    /// Its addresses with their prefix lengths.
    pub addresses: BTreeSet<IpNet>,
    /// Where routes lead that leave by it, of all tables.
    pub routes: Vec<IpNet>,
    /// The device that it is a port of (a bridge, a bond, Open vSwitch), by ifindex.
    pub controller: Option<u32>,
    /// UDP port of the envelopes of a VXLAN or Geneve device.
    pub port: Option<u16>,
    /// It puts packets into envelopes as others tell it, packet by packet (`ip link … external`).
    pub external: bool,
    /// What the device itself dropped or refused.
    pub statistics: LinkStatistics,
}

/// The kernel's own counters of a device (`struct rtnl_link_stats64`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LinkStatistics {
    /// Packets that could not be sent for want of room.
    pub tx_dropped: u64,
    /// Packets that could not be sent: for WireGuard, no peer or no endpoint.
    pub tx_errors: u64,
    /// Packets received and dropped for want of room.
    pub rx_dropped: u64,
    /// Packets received that were refused: for WireGuard, those that failed authentication or came from a source that is not allowed.
    pub rx_errors: u64,
    /// For WireGuard, decrypted packets that were no IP packets or came from a source that is not allowed.
    pub rx_frame_errors: u64,
}

/// A WireGuard device of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TunnelDevice {
    /// Index among links.
    pub ifindex: u32,
    /// Public half of its key; `None` before one is set.
    pub public_key: Option<PublicKey>,
    /// UDP port it listens on; 0 before one is set.
    pub port: u16,
    /// Mark of its own packets.
    pub fwmark: u32,
    /// The sysctls that packets out of it need are as they should be.
    pub sysctls_right: bool,
    /// Peers by key.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// A peer of a WireGuard device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peer {
    /// Where its packets go; the kernel follows a peer that roams.
    pub endpoint: Option<SocketAddr>,
    /// Inner sources and destinations.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives; 0 is off.
    pub keepalive: u16,
    /// Last completed handshake, wall clock since the epoch; `None` before the first.
    pub last_handshake: Option<Duration>,
    /// Bytes received, of this peer's life in the device.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// An eBPF program of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// Egress of an underlay device.
    Steer,
    /// Egress of an overlay's device that the tunnel replaces.
    Replace,
    /// Ingress of an underlay device.
    Guard,
    /// Ingress of a tunnel device.
    Deliver,
    /// Ingress of a bridge's port with a pod behind it.
    Origin,
}

impl Program {
    /// Name in the object file and in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steer => kubeveil_abi::names::STEER,
            Self::Replace => kubeveil_abi::names::REPLACE,
            Self::Guard => kubeveil_abi::names::GUARD,
            Self::Deliver => kubeveil_abi::names::DELIVER,
            Self::Origin => kubeveil_abi::names::ORIGIN,
        }
    }

    /// Every program.
    pub const ALL: [Self; 5] = [Self::Steer, Self::Replace, Self::Guard, Self::Deliver, Self::Origin];
}

/// Where a program is attached: the program and the ifindex.
pub type Hook = (Program, u32);

/// A prefix and whose it is, as it stands in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Whose.
    pub kind: PrefixKind,
    /// Peer index for remote kinds, else 0.
    pub peer: u32,
    /// What policies ask for of whoever has an address of it.
    pub asked: Asked,
    /// When that ends, seconds since boot; 0: never.
    pub until: u32,
}

impl Prefix {
    /// Addresses that no policy is about.
    pub const fn new(kind: PrefixKind, peer: u32) -> Self {
        Self { kind, peer, asked: Asked::Mesh, until: 0 }
    }
}

/// Our maps and attachments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Datapath {
    /// Hash of the object that the programs in the kernel came from.
    pub build: String,
    /// Settings.
    pub config: Config,
    /// Prefixes.
    pub prefixes: BTreeMap<IpNet, Prefix>,
    /// Peers other than [`PeerValue::NO_TUNNEL`], by index.
    pub peers: BTreeMap<u32, PeerValue>,
    /// ifindex by slot.
    pub slots: [u32; MAX_SLOTS],
    /// Devices by ifindex.
    pub devices: BTreeMap<u32, DeviceKind>,
    /// The devices of this node's pods, by their addresses.
    pub origins: BTreeMap<IpAddr, Origin>,
    /// Those of them that are there, by [`Origin::key`].
    pub alive: BTreeSet<u32>,
    /// Where ours is attached: what runs before it, in that order.
    pub attached: BTreeMap<Hook, Vec<Ahead>>,
    /// Pins that somebody removed. What they held goes on as long as the daemon lives, and no longer.
    pub unpinned: BTreeSet<String>,
    /// What builds of other ABI versions left pinned, by the folder's name.
    pub predecessors: BTreeMap<String, Predecessor>,
}

impl Datapath {
    /// Settings that somebody has written; none have been where the maps are as the kernel makes them.
    pub fn written(&self) -> Option<Config> {
        Some(self.config).filter(|config| *config != Config::default())
    }
}

/// What a build of another ABI version left pinned. It stands, over maps of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Predecessor {
    /// Its attachments.
    pub hooks: BTreeSet<Hook>,
    /// It has a backstop.
    pub has_backstop: bool,
}

/// Somebody else's program or filter that runs before ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Number of the program; 0 for a filter without one.
    pub program: u32,
    /// Name of the program, or kind of the filter; empty where we may not ask for it.
    pub name: String,
    /// Priority, where it is a filter of a qdisc.
    pub priority: Option<u16>,
}

impl fmt::Display for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { program: 0, name, .. } => write!(f, "a filter of kind {name}")?,
            Self { program, name, .. } if name.is_empty() => write!(f, "program {program}")?,
            Self { program, name, .. } => write!(f, "program {program} ({name})")?,
        }
        self.priority.map_or(Ok(()), |priority| write!(f, " at priority {priority}"))
    }
}
