//! What becomes of a few nodes that are otherwise than they were, where all else is as it was: among thousands of nodes
//! nearly every change is of this kind.

use std::collections::{BTreeMap, BTreeSet};

use kubeveil_abi::DEVICE_NAMES;
use kubeveil_keys::PublicKey;

use super::{
    Carrier, Desired, DesiredPeer, DesiredTunnel, Inputs, Remote, adopting, bypassing, carries, excluded,
    peers::{Peers, announced},
    travel,
};
use crate::{
    action::Action,
    observed::{Datapath, Observed},
    plan::{Endpoints, plan_part},
    snapshot::Synced,
    tunnels::To,
};

/// What is wanted, and seen, of a few nodes alone.
#[derive(Debug)]
pub struct Part {
    /// The device that they are peers of.
    device: String,
    /// The keys that they had there, or have now.
    keys: BTreeSet<PublicKey>,
    /// Their indices.
    indices: BTreeMap<String, u32>,
    desired: Desired,
    observed: Observed,
}

impl Part {
    /// Of `nodes`, whose announcements or tunnels are otherwise than when `last` was decided on; nothing else among
    /// `inputs` is, and what is observed there is as `last` wants it. `None` where that concerns other nodes too, or
    /// somebody has to be told: then all is to be decided anew.
    pub fn of(inputs: &Inputs<'_>, last: &Desired, nodes: &BTreeSet<String>) -> Option<Self> {
        // While keys are rotated each step concerns both devices.
        let &[key] = inputs.keys else { return None };
        let device = DEVICE_NAMES[key.0.parity()].to_owned();
        let standing = last.tunnels.get(&device).filter(|tunnel| tunnel.key == key)?;
        let objects: BTreeSet<String> = nodes.iter().map(|node| format!("Node {node}")).collect();
        if last.problems.iter().any(|problem| objects.contains(&problem.object)) {
            return None;
        }
        let (mut indices, mut keys, mut others) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        for node in nodes {
            let remote = last.remotes.get(node)?;
            indices.insert(node.clone(), remote.index);
            let now = announced(inputs, node, key.0).map(|entry| entry.public_key);
            keys.extend(remote.key.into_iter().chain(now));
            if now != remote.key {
                others.extend(remote.key.into_iter().chain(now));
            }
        }
        // One that another node has, or would have if this one didn't.
        let has_one = |(node, remote): (&String, &Remote)| {
            remote.key.is_some_and(|key| others.contains(&key)) && !nodes.contains(node)
        };
        if !others.is_empty()
            && (inputs.announced.anybody_but(nodes, &others) || last.remotes.iter().any(has_one))
        {
            return None;
        }
        let observed = of_peers(inputs.observed, &device, &keys, &indices)?;
        let mesh = inputs.knowledge.snapshot().mesh.as_ref();
        let inputs = Inputs { observed: &observed, ..*inputs };
        let owned = nodes.iter().map(|node| (node.as_str(), inputs.assignment.of(node)));
        let peers = Peers::of(&inputs, mesh, &device, key, &[], owned);
        if !peers.problems.is_empty() || changes_family(standing, &keys, &peers.by_key) {
            return None;
        }
        let mut desired = Desired::default();
        let carrier = Carrier { keys: peers.keys, ..Carrier::new(&inputs, key) };
        travel(&inputs, &indices, &[carrier], &mut desired);
        excluded(&inputs, &indices, &mut desired);
        adopting(&inputs, &indices, &mut desired);
        bypassing(&inputs, &indices, &mut desired);
        desired
            .tunnels
            .insert(device.clone(), DesiredTunnel { peers: peers.by_key, ..standing.without_peers() });
        Some(Self { device, keys, indices, desired, observed })
    }

    /// The nodes whose tunnels have begun to answer, or ceased to, since `last` was decided on, so that something is to be done.
    pub fn turned(inputs: &Inputs<'_>, last: &Desired) -> BTreeSet<String> {
        let has_turned = |name: &str, remote: &Remote| {
            let (Some(key), &[(_, own)]) = (remote.key, inputs.keys) else { return false };
            let health = inputs.tunnels.health(&remote.device, &key, inputs.now);
            let peer = last.tunnels.get(&remote.device).and_then(|tunnel| tunnel.peers.get(&key));
            let to =
                To { device: &remote.device, own: &own, peer: &key, is_at_leisure: false, is_awaited: false };
            let keepalive = |stands| inputs.tunnels.keepalive(&to, stands, inputs.now);
            carries(inputs, name, health) != remote.tunnelled
                || peer.is_some_and(|peer| peer.keepalive != keepalive(peer.keepalive))
        };
        let turned = last.remotes.iter().filter(|(name, remote)| has_turned(name, remote));
        turned.map(|(name, _)| name.clone()).collect()
    }

    /// What leads from what is to what should be.
    pub fn plan(&self, synced: Option<&Synced>, written: &Endpoints) -> Vec<Action> {
        plan_part(&self.desired, &self.observed, synced, written)
    }

    /// The nodes' tunnels as they should be.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// `actions` were carried out: what is wanted and seen of these nodes, in place of what was in `desired` and `observed`.
    pub fn put_back(mut self, actions: &[Action], desired: &mut Desired, observed: &mut Observed) {
        for action in actions {
            self.observed.expect(action);
        }
        let of_device = |all: &mut Desired| all.tunnels.remove(&self.device);
        if let (Some(part), Some(whole)) =
            (of_device(&mut self.desired), desired.tunnels.get_mut(&self.device))
        {
            replace(&mut whole.peers, &self.keys, part.peers);
        }
        let indices: BTreeSet<u32> = self.indices.values().copied().collect();
        replace(&mut desired.values, &indices, self.desired.values);
        // Not `append`, which makes the whole map anew.
        desired.remotes.extend(self.desired.remotes);
        if let (Some(part), Some(whole)) =
            (self.observed.tunnels.remove(&self.device), observed.tunnels.get_mut(&self.device))
        {
            replace(&mut whole.peers, &self.keys, part.peers);
        }
        if let (Some(part), Some(whole)) = (self.observed.datapath, &mut observed.datapath) {
            replace(&mut whole.peers, &indices, part.peers);
        }
    }
}

/// The tunnel's MTU goes by whether any peer is reached by IPv6.
fn changes_family(
    standing: &DesiredTunnel,
    keys: &BTreeSet<PublicKey>,
    now: &BTreeMap<PublicKey, DesiredPeer>,
) -> bool {
    let mut before = keys.iter().filter_map(|key| standing.peers.get(key));
    let (was, is) = (before.any(DesiredPeer::is_by_v6), now.values().any(DesiredPeer::is_by_v6));
    (was && !is) || (is && !was && !standing.peers.values().any(DesiredPeer::is_by_v6))
}

/// What is seen of these peers, and of the device itself; `None` where that is not there.
fn of_peers(
    all: &Observed,
    device: &str,
    keys: &BTreeSet<PublicKey>,
    indices: &BTreeMap<String, u32>,
) -> Option<Observed> {
    let (tunnel, datapath) = (all.tunnels.get(device)?, all.datapath.as_ref()?);
    let link = all.links.get(&tunnel.ifindex)?;
    let mut out = Observed::default();
    out.links.insert(tunnel.ifindex, link.clone());
    let mut part = tunnel.without_peers();
    part.peers = keys.iter().filter_map(|key| Some((*key, tunnel.peers.get(key)?.clone()))).collect();
    out.tunnels.insert(device.to_owned(), part);
    let peers = indices.values().filter_map(|index| Some((*index, *datapath.peers.get(index)?)));
    out.datapath = Some(Datapath { slots: datapath.slots, peers: peers.collect(), ..Datapath::default() });
    Some(out)
}

fn replace<K: Ord, V>(whole: &mut BTreeMap<K, V>, keys: &BTreeSet<K>, part: BTreeMap<K, V>) {
    for key in keys {
        whole.remove(key);
    }
    whole.extend(part);
}

#[cfg(test)]
mod tests;
