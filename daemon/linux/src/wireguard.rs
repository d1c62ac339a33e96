//! WireGuard devices and peers, over generic netlink.
//!
//! `wireguard-control` holds the private key un-zeroized in a type whose `Debug` prints it, so none
//! of its types leaves this file, and none is formatted. The kernel tells that key whenever a device is read, so what is read is
//! cleared as well as what is set: the heap by [`crate::Forgetful`], the stack here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    time::UNIX_EPOCH,
};

use ipnet::IpNet;
use kubeveil_core::{action::Action, observed::Peer};
use kubeveil_keys::{PrivateKey, PublicKey, scrub_stack};
use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo};

use crate::KernelError;

/// AllowedIPs that fit into one netlink request together with a peer's other attributes.
const ALLOWED_IPS_A_REQUEST: usize = 128;

/// A device as WireGuard itself describes it.
#[derive(Debug, Default)]
pub struct Dump {
    /// Public half of its key.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub port: u16,
    /// Mark of its packets.
    pub fwmark: u32,
    /// Peers by key.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// Reads `device`; `None` if there is no such WireGuard device.
pub fn dump(device: &str) -> Result<Option<Dump>, KernelError> {
    let found = read(device);
    scrub_stack();
    found
}

// Not inlined, nor is what sets a key: so what they leave on the stack lies where `scrub_stack` writes.
#[inline(never)]
fn read(device: &str) -> Result<Option<Dump>, KernelError> {
    let name = interface(device)?;
    let found = match Device::get(&name, Backend::Kernel) {
        Ok(found) => found,
        Err(e)
            if e.kind() == io::ErrorKind::NotFound
                || e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(KernelError::new("read WireGuard device", device, e)),
    };
    let mut peers: BTreeMap<PublicKey, Peer> = BTreeMap::new();
    for info in &found.peers {
        // A peer with many AllowedIPs comes in several parts.
        let peer = peers.entry(PublicKey::from_bytes(info.config.public_key.0)).or_default();
        merge(peer, info);
    }
    // A device without a key reports one of zeros.
    let public_key =
        found.public_key.map(|key| PublicKey::from_bytes(key.0)).filter(|key| *key.as_bytes() != [0; 32]);
    Ok(Some(Dump {
        public_key,
        port: found.listen_port.unwrap_or(0),
        fwmark: found.fwmark.unwrap_or(0),
        peers,
    }))
}

/// Why the kernel has no WireGuard; `None` if it has. To be asked loads its module.
pub(crate) fn missing() -> Option<String> {
    /// No device is called so.
    const NOBODY: &str = "kubeveil-none";
    let name = interface(NOBODY).ok()?;
    match Device::get(&name, Backend::Kernel) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => None,
        // Nobody speaks its language (kernel `net/netlink/genetlink.c`, `ctrl_getfamily`).
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some("the kernel does not know it".to_owned()),
        Err(e) => Some(e.to_string()),
        Ok(_) => None,
    }
}

fn merge(peer: &mut Peer, info: &PeerInfo) {
    let allowed = info.config.allowed_ips.iter().filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok());
    peer.allowed_ips.extend(allowed);
    peer.endpoint = peer.endpoint.or(info.config.endpoint);
    peer.keepalive = peer.keepalive.max(info.config.persistent_keepalive_interval.unwrap_or(0));
    let handshake = info.stats.last_handshake_time.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    peer.last_handshake = peer.last_handshake.max(handshake.filter(|at| !at.is_zero()));
    peer.received = peer.received.max(info.stats.rx_bytes);
    peer.sent = peer.sent.max(info.stats.tx_bytes);
}

/// Sets what is given of a device that exists.
pub fn configure(
    device: &str,
    key: Option<&PrivateKey>,
    port: Option<u16>,
    fwmark: Option<u32>,
) -> Result<(), KernelError> {
    let done = set(device, key, port, fwmark);
    scrub_stack();
    done
}

#[inline(never)]
fn set(
    device: &str,
    key: Option<&PrivateKey>,
    port: Option<u16>,
    fwmark: Option<u32>,
) -> Result<(), KernelError> {
    let mut update = DeviceUpdate::new();
    if let Some(port) = port {
        update = update.set_listen_port(port);
    }
    if let Some(mark) = fwmark {
        update = update.set_fwmark(mark);
    }
    if let Some(key) = key {
        update = key.expose(|bytes| update.set_private_key(Key(*bytes)));
    }
    apply(update, device, "configure WireGuard device", device)
}

/// Adds a peer, whole: its addresses come in the same message as its key, or it would be a peer that
/// nothing is sent to.
pub fn add_peer(
    device: &str,
    key: &PublicKey,
    endpoint: SocketAddr,
    allowed_ips: &BTreeSet<IpNet>,
    keepalive: u16,
) -> Result<(), KernelError> {
    let all: Vec<IpNet> = allowed_ips.iter().copied().collect();
    let (first, rest) = all.split_at(all.len().min(ALLOWED_IPS_A_REQUEST));
    update_peer(device, key, allowed(new_peer(key, endpoint, keepalive), first), "add peer")?;
    rest.chunks(ALLOWED_IPS_A_REQUEST)
        .try_for_each(|part| update_peer(device, key, allowed(builder(key), part), "give addresses to peer"))
}

/// Whether a peer that is added is whole in one message.
pub fn fits_one_message(action: &Action) -> bool {
    matches!(action, Action::AddPeer { allowed_ips, .. } if allowed_ips.len() <= ALLOWED_IPS_A_REQUEST)
}

/// Adds peers of one device, each whole, in as few messages as hold them. What is no [`Action::AddPeer`] is left out.
pub fn add_peers(actions: &[Action]) -> Result<(), KernelError> {
    let mut update = DeviceUpdate::new();
    let mut to = "";
    for action in actions {
        if let Action::AddPeer { device, key, endpoint, allowed_ips, keepalive } = action {
            let all: Vec<IpNet> = allowed_ips.iter().copied().collect();
            update = update.add_peer(allowed(new_peer(key, *endpoint, *keepalive), &all));
            to = device;
        }
    }
    apply(update, to, "add peers", to)
}

fn new_peer(key: &PublicKey, endpoint: SocketAddr, keepalive: u16) -> PeerConfigBuilder {
    let peer = builder(key).set_endpoint(endpoint).replace_allowed_ips();
    if keepalive == 0 { peer } else { peer.set_persistent_keepalive_interval(keepalive) }
}

/// Gives a peer more addresses, or with `replace` these and no others.
pub fn set_allowed_ips(
    device: &str,
    key: &PublicKey,
    allowed_ips: &BTreeSet<IpNet>,
    replace: bool,
) -> Result<(), KernelError> {
    let all: Vec<IpNet> = allowed_ips.iter().copied().collect();
    let (first, rest) = all.split_at(all.len().min(ALLOWED_IPS_A_REQUEST));
    let start = if replace { builder(key).replace_allowed_ips() } else { builder(key) };
    update_peer(device, key, allowed(start, first), "give addresses to peer")?;
    rest.chunks(ALLOWED_IPS_A_REQUEST)
        .try_for_each(|part| update_peer(device, key, allowed(builder(key), part), "give addresses to peer"))
}

/// Moves a peer.
pub fn set_endpoint(device: &str, key: &PublicKey, endpoint: SocketAddr) -> Result<(), KernelError> {
    update_peer(device, key, builder(key).set_endpoint(endpoint), "move peer")
}

/// Sets the seconds between keepalives; 0 is off. A new interval on a device that is up sends one at once.
pub fn set_keepalive(device: &str, key: &PublicKey, seconds: u16) -> Result<(), KernelError> {
    let peer = match seconds {
        0 => builder(key).unset_persistent_keepalive(),
        seconds => builder(key).set_persistent_keepalive_interval(seconds),
    };
    update_peer(device, key, peer, "set keepalive of peer")
}

/// Removes a peer.
pub fn remove_peer(device: &str, key: &PublicKey) -> Result<(), KernelError> {
    update_peer(device, key, builder(key).remove(), "remove peer")
}

fn builder(key: &PublicKey) -> PeerConfigBuilder {
    PeerConfigBuilder::new(&Key(*key.as_bytes()))
}

fn allowed(peer: PeerConfigBuilder, prefixes: &[IpNet]) -> PeerConfigBuilder {
    prefixes.iter().fold(peer, |peer, net| peer.add_allowed_ip(net.addr(), net.prefix_len()))
}

fn update_peer(
    device: &str,
    key: &PublicKey,
    peer: PeerConfigBuilder,
    operation: &'static str,
) -> Result<(), KernelError> {
    apply(DeviceUpdate::new().add_peer(peer), device, operation, &format!("{key} of {device}"))
}

/// `DeviceUpdate::apply` makes the device where there is none; the caller has seen that there is one.
fn apply(
    update: DeviceUpdate,
    device: &str,
    operation: &'static str,
    object: &str,
) -> Result<(), KernelError> {
    update.apply(&interface(device)?, Backend::Kernel).map_err(|e| KernelError::new(operation, object, e))
}

fn interface(device: &str) -> Result<InterfaceName, KernelError> {
    device.parse().map_err(|e| KernelError::new("name", device, e))
}
