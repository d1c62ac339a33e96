//! What is to be done to the kernel, as data: it can be printed, counted, refused on purpose in a
//! test, and holds no secret (a private key is named by its public half).

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use kubeveil_abi::{Config, DeviceKind, Origin, PeerValue};
use kubeveil_keys::{Generation, PublicKey};

use crate::{
    backstop::{Backstop, Form},
    observed::{Hook, Prefix},
};

/// One privileged step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Adopt the pinned programs and maps, or load ours and put them in place of older ones.
    LoadPrograms,
    /// Pin again what somebody unpinned.
    PinAgain,
    /// Drop what builds of other ABI versions left pinned, after ours has taken its flows over.
    DropPredecessors,
    /// Write the datapath's settings.
    SetConfig(Config),
    /// Write a prefix.
    PutPrefix(IpNet, Prefix),
    /// Take a prefix out.
    RemovePrefix(IpNet),
    /// Tell the programs by which device a pod of this node speaks, and that this device is there.
    PutOrigin(IpAddr, Origin),
    /// Nobody has this address any more.
    RemoveOrigin(IpAddr),
    /// Tell the programs what a device is.
    PutDevice(u32, DeviceKind),
    /// Forget a device.
    RemoveDevice(u32),
    /// Attach a program ahead of all others.
    Attach(Hook),
    /// Take a program off.
    Detach(Hook),
    /// Put the backstop into the kernel, in the place of an older one; where the kernel can't have this form, that
    /// is observed afterwards and no failure.
    RaiseBackstop(Backstop),
    /// Take a form of the backstop away.
    RemoveBackstop(Form),
    /// Make a WireGuard device, down.
    CreateTunnel(String),
    /// Delete a WireGuard device of ours, by ifindex, with its key and sessions.
    DeleteTunnel(u32, String),
    /// Give a WireGuard device of ours, by ifindex, its name again.
    RenameTunnel(u32, String),
    /// Set key, port and mark of a WireGuard device. What is `None` is right already; a key set on a
    /// device that carries traffic would end every session of it.
    ConfigureTunnel {
        /// Name of the device.
        device: String,
        /// Generation of the key, by its public half.
        key: Option<(Generation, PublicKey)>,
        /// UDP port.
        port: Option<u16>,
        /// Mark of its own packets.
        fwmark: Option<u32>,
    },
    /// Set what packets out of the device need: loose `rp_filter`, forwarding, IPv6.
    SetSysctls(String),
    /// Give a device an address of host scope.
    AddAddress(u32, IpNet),
    /// Bytes.
    SetMtu(u32, u32),
    /// Set a device up.
    SetUp(u32),
    /// Add a peer, whole, in one message.
    AddPeer {
        /// Name of the device.
        device: String,
        /// The peer's key.
        key: PublicKey,
        /// Where its packets go.
        endpoint: SocketAddr,
        /// Its inner addresses.
        allowed_ips: BTreeSet<IpNet>,
        /// Seconds; 0 is off.
        keepalive: u16,
    },
    /// Move a peer's packets to another address.
    SetEndpoint(String, PublicKey, SocketAddr),
    /// Add inner addresses to a peer; one that another peer has moves to it.
    AddAllowedIps(String, PublicKey, BTreeSet<IpNet>),
    /// Replace a peer's inner addresses.
    ReplaceAllowedIps(String, PublicKey, BTreeSet<IpNet>),
    /// Seconds; 0 is off.
    SetKeepalive(String, PublicKey, u16),
    /// Remove a peer.
    RemovePeer(String, PublicKey),
    /// Point a slot to a device, by ifindex; 0 is none.
    SetSlot(u8, u32),
    /// Say how packets to a peer index travel: one atomic store.
    SetPeer(u32, PeerValue),
}

impl Action {
    /// Whether a kernel may take both in one message: new peers of one device, of which there are thousands.
    pub fn goes_with(&self, other: &Self) -> bool {
        matches!((self, other), (Self::AddPeer { device, .. }, Self::AddPeer { device: same, .. }) if device == same)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadPrograms => write!(f, "adopt or load the programs"),
            Self::PinAgain => write!(f, "pin again what was unpinned"),
            Self::DropPredecessors => write!(f, "drop what another version left"),
            Self::SetConfig(config) => write!(f, "set the configuration {config:?}"),
            Self::PutPrefix(prefix, value) => {
                write!(f, "put prefix {prefix} {:?} peer {} {:?}", value.kind, value.peer, value.asked)
            }
            Self::RemovePrefix(prefix) => write!(f, "remove prefix {prefix}"),
            Self::PutOrigin(address, origin) => {
                write!(f, "put {address} behind device {} by device {}", origin.device, origin.via)
            }
            Self::RemoveOrigin(address) => write!(f, "remove {address} from those behind devices"),
            Self::PutDevice(index, kind) => write!(f, "put device {index} {kind:?}"),
            Self::RemoveDevice(index) => write!(f, "remove device {index}"),
            Self::Attach((program, index)) => write!(f, "attach {} to device {index}", program.name()),
            Self::Detach((program, index)) => write!(f, "detach {} from device {index}", program.name()),
            Self::RaiseBackstop(backstop) => write!(f, "raise the backstop ({})", backstop.form().name()),
            Self::RemoveBackstop(form) => write!(f, "remove the backstop ({})", form.name()),
            Self::CreateTunnel(device) => write!(f, "create WireGuard device {device}"),
            Self::DeleteTunnel(_, device) => write!(f, "delete WireGuard device {device}"),
            Self::RenameTunnel(index, name) => write!(f, "rename device {index} to {name} again"),
            Self::ConfigureTunnel { device, key, port, fwmark } => {
                write!(f, "configure {device}:")?;
                if let Some((generation, public)) = key {
                    write!(f, " key of generation {generation}, public {public}")?;
                }
                if let Some(port) = port {
                    write!(f, " port {port}")?;
                }
                if let Some(fwmark) = fwmark {
                    write!(f, " mark {fwmark:#x}")?;
                }
                Ok(())
            }
            Self::SetSysctls(device) => write!(f, "set sysctls of {device}"),
            Self::AddAddress(index, address) => write!(f, "give device {index} the address {address}"),
            Self::SetMtu(index, mtu) => write!(f, "set MTU of device {index} to {mtu}"),
            Self::SetUp(index) => write!(f, "set device {index} up"),
            Self::AddPeer { device, key, endpoint, .. } => {
                write!(f, "add peer {key} at {endpoint} to {device}")
            }
            Self::SetEndpoint(device, key, endpoint) => {
                write!(f, "move peer {key} of {device} to {endpoint}")
            }
            Self::AddAllowedIps(device, key, ips) => write!(f, "give peer {key} of {device} {ips:?}"),
            Self::ReplaceAllowedIps(device, key, ips) => {
                write!(f, "give peer {key} of {device} only {ips:?}")
            }
            Self::SetKeepalive(device, key, seconds) => {
                write!(f, "set keepalive of peer {key} of {device} to {seconds} s")
            }
            Self::RemovePeer(device, key) => write!(f, "remove peer {key} of {device}"),
            Self::SetSlot(slot, index) => write!(f, "point slot {slot} to device {index}"),
            Self::SetPeer(index, value) => {
                write!(f, "set peer {index} to {:?} slot {}", value.state(), value.slot())
            }
        }
    }
}
