//! What will be seen after an action, as far as that can be said without looking.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kubeveil_abi::PeerValue;
use kubeveil_keys::PublicKey;

use super::{Datapath, Observed, Peer, TunnelDevice};
use crate::action::Action;

impl Observed {
    /// `action` was carried out, and it is one that concerns a peer: what others do to the kernel is not seen until the next
    /// look.
    pub fn expect(&mut self, action: &Action) {
        match action {
            Action::SetPeer(index, value) => {
                if let Some(datapath) = &mut self.datapath {
                    datapath.set_peer(*index, *value);
                }
            }
            Action::AddPeer { device, key, endpoint, allowed_ips, keepalive } => {
                if let Some(tunnel) = self.tunnels.get_mut(device) {
                    tunnel.allow(key, allowed_ips, true);
                    tunnel
                        .change(key, |peer| (peer.endpoint, peer.keepalive) = (Some(*endpoint), *keepalive));
                }
            }
            Action::SetEndpoint(device, key, endpoint) => {
                self.of_peer(device, key, |peer| peer.endpoint = Some(*endpoint));
            }
            Action::SetKeepalive(device, key, seconds) => {
                self.of_peer(device, key, |peer| peer.keepalive = *seconds);
            }
            Action::AddAllowedIps(device, key, ips) => self.allow(device, key, ips, false),
            Action::ReplaceAllowedIps(device, key, ips) => self.allow(device, key, ips, true),
            Action::RemovePeer(device, key) => {
                if let Some(tunnel) = self.tunnels.get_mut(device) {
                    tunnel.peers.remove(key);
                }
            }
            _ => {}
        }
    }

    fn of_peer(&mut self, device: &str, key: &PublicKey, change: impl FnOnce(&mut Peer)) {
        if let Some(tunnel) = self.tunnels.get_mut(device) {
            tunnel.change(key, change);
        }
    }

    fn allow(&mut self, device: &str, key: &PublicKey, ips: &BTreeSet<IpNet>, replace: bool) {
        if let Some(tunnel) = self.tunnels.get_mut(device) {
            tunnel.allow(key, ips, replace);
        }
    }
}

impl Datapath {
    /// Says how packets to a peer index travel; [`PeerValue::NO_TUNNEL`] is what stands where nothing was said.
    pub fn set_peer(&mut self, index: u32, value: PeerValue) {
        match value {
            PeerValue::NO_TUNNEL => drop(self.peers.remove(&index)),
            value => drop(self.peers.insert(index, value)),
        }
    }
}

impl TunnelDevice {
    /// The same device, and nobody at it.
    pub fn without_peers(&self) -> Self {
        Self {
            ifindex: self.ifindex,
            public_key: self.public_key,
            port: self.port,
            fwmark: self.fwmark,
            sysctls_right: self.sysctls_right,
            peers: Default::default(),
        }
    }

    /// Is it as it was set up, whatever its peers have said and sent since, and from where?
    pub fn is_set_up_as(&self, other: &Self) -> bool {
        let settings = |device: &Self| {
            (device.ifindex, device.public_key, device.port, device.fwmark, device.sysctls_right)
        };
        let mut pairs = self.peers.iter().zip(&other.peers);
        settings(self) == settings(other)
            && self.peers.len() == other.peers.len()
            && pairs.all(|((key, peer), (other_key, other))| {
                key == other_key && peer.allowed_ips == other.allowed_ips && peer.keepalive == other.keepalive
            })
    }

    /// Changes a peer, made if it is not there: WireGuard's netlink adds whom it is told of. One with the device's own key it
    /// ignores without a word (kernel `drivers/net/wireguard/netlink.c`, `set_peer`).
    pub fn change(&mut self, key: &PublicKey, change: impl FnOnce(&mut Peer)) {
        if self.public_key != Some(*key) {
            change(self.peers.entry(*key).or_default());
        }
    }

    /// The same for a peer's AllowedIPs, which move to the peer that claimed them last (`allowedips.c`, `add`).
    pub fn allow(&mut self, key: &PublicKey, ips: &BTreeSet<IpNet>, replace: bool) {
        if self.public_key == Some(*key) {
            return;
        }
        for peer in self.peers.values_mut() {
            peer.allowed_ips.retain(|ip| !ips.contains(ip));
        }
        self.change(key, |peer| {
            if replace {
                peer.allowed_ips.clear();
            }
            peer.allowed_ips.extend(ips);
        });
    }
}
