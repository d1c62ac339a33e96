//! The endpoint last written for each peer.

use std::net::SocketAddr;

use kubeveil_core::{action::Action, desired::Desired, observed::Observed, plan::Endpoints};
use kubeveil_keys::PublicKey;

/// What was written, by this daemon or by the one before: what the kernel holds may differ, since a peer roams.
#[derive(Debug, Default)]
pub(super) struct Written {
    endpoints: Endpoints,
    remembers: bool,
}

impl Written {
    /// What `plan` compares with.
    pub(super) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Has it been told what an earlier daemon has written?
    pub(super) fn remembers(&self) -> bool {
        self.remembers
    }

    /// What an earlier daemon has written: `kept` follows from what that one kept. Else a node that moved while
    /// no daemon ran here would count as written where it is now.
    pub(super) fn remember(&mut self, kept: &Desired) {
        self.remembers = true;
        self.endpoints.extend(announced(kept));
    }

    /// Forgets peers that are gone. One that is there and unknown was written by an earlier daemon: taken for
    /// written as it is announced now.
    pub(super) fn look(&mut self, desired: &Desired, observed: &Observed) {
        let there = |id: &(String, PublicKey)| {
            observed.tunnels.get(&id.0).is_some_and(|d| d.peers.contains_key(&id.1))
        };
        self.endpoints.retain(|id, _| there(id));
        for (id, endpoint) in announced(desired).filter(|(id, _)| there(id)) {
            self.endpoints.entry(id).or_insert(endpoint);
        }
    }

    /// `action` was carried out.
    pub(super) fn carried_out(&mut self, action: &Action) {
        if let Action::AddPeer { device, key, endpoint, .. } | Action::SetEndpoint(device, key, endpoint) =
            action
        {
            self.endpoints.insert((device.clone(), *key), *endpoint);
        } else if let Action::RemovePeer(device, key) = action {
            self.endpoints.remove(&(device.clone(), *key));
        }
    }
}

/// Each peer's endpoint as it is announced.
fn announced(desired: &Desired) -> impl Iterator<Item = ((String, PublicKey), SocketAddr)> {
    desired.tunnels.iter().flat_map(|(device, tunnel)| {
        tunnel.peers.iter().filter_map(move |(key, peer)| Some(((device.clone(), *key), peer.endpoint?)))
    })
}
