//! The peers of a device: which node is spoken to, by which key, and where.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use kubeveil_api::{announcement::GenerationEntry, mesh::MeshSpec};
use kubeveil_keys::{Generation, PublicKey};

use super::{Carrier, DesiredPeer, Inputs};
use crate::{
    announced::Heard,
    endpoint,
    observed::{Peer, TunnelDevice},
    ownership::Class,
    problem::{Problem, ProblemKind},
    rotation::Said,
    tunnels::{self, Health, To},
};

/// What comes of all nodes.
#[derive(Default)]
pub(super) struct Peers {
    /// Peers by key.
    pub(super) by_key: BTreeMap<PublicKey, DesiredPeer>,
    /// The key of each node that is a peer.
    pub(super) keys: BTreeMap<String, PublicKey>,
    /// Why others are none.
    pub(super) problems: Vec<Problem>,
}

impl Peers {
    /// The peers of `device`, whose key is `own_key` of `generation`, among `nodes` and what they own; `newer` are the devices
    /// of newer generations.
    pub(super) fn of<'a>(
        inputs: &Inputs<'_>,
        mesh: Option<&MeshSpec>,
        device: &str,
        (generation, own_key): (Generation, PublicKey),
        newer: &[Carrier],
        nodes: impl Iterator<Item = (&'a str, &'a [(IpNet, Class)])>,
    ) -> Self {
        let mut out = Self::default();
        let own_ips = addresses(inputs.assignment.of(inputs.node));
        let standing = inputs.observed.tunnels.get(device);
        let holders = holders(standing);
        let goes_soon = inputs.rotation.goes_soon(generation, inputs.now);
        let older = inputs.keys.first().map(|(oldest, _)| *oldest).filter(|oldest| *oldest < generation);
        let mut nodes: Vec<_> = nodes.filter(|(n, _)| *n != inputs.node).collect();
        // Of two nodes with one key, the one that the device has it for keeps it, whatever the other is called.
        nodes.sort_by_cached_key(|(node, owned)| {
            let key = announced(inputs, node, generation).map(|entry| entry.public_key);
            let mut held = owned.iter().filter_map(|(prefix, _)| holders.get(prefix));
            !held.any(|(holder, _)| Some(**holder) == key)
        });
        for (node, owned) in nodes {
            let holder = owned.iter().find_map(|(prefix, _)| holders.get(prefix));
            // What was kept on disk may be older than what is in the device.
            let heard = inputs.announced.heard(node);
            let is_older =
                |key: &PublicKey| heard != Heard::Told && holder.is_some_and(|(holder, _)| *holder != key);
            let entry = announced(inputs, node, generation).filter(|entry| !is_older(&entry.public_key));
            let Some(entry) = entry else {
                let is_dead = |(key, _): &(&PublicKey, &Peer)| {
                    matches!(inputs.tunnels.health(device, key, inputs.now), Health::Stale(_))
                };
                // One that has given this generation up says so.
                let is_given_up = match heard {
                    Heard::Told => inputs.announced.of(node).is_some(),
                    Heard::Past => holder.is_none_or(is_dead),
                    Heard::Kept => false,
                };
                // Nor does one stay that we are still speaking to, in vain: the device would not fall silent.
                let is_silent = |holder: &(&PublicKey, &Peer)| {
                    !is_dead(holder) && tunnels::at_rest(holder.1.keepalive) == holder.1.keepalive
                };
                if is_given_up && !(goes_soon && holder.is_some_and(is_silent)) {
                    continue;
                }
                // A node whose announcement is not known (not any more, or not yet since we started) is not
                // cut off for that: the peer that the device has for its prefixes stays as it is.
                if let Some((key, peer)) = holder.filter(|(key, _)| !is_revoked(mesh, key)) {
                    out.by_key.entry(**key).or_insert_with(|| as_it_is(peer));
                    if !is_given_up {
                        out.keys.insert(node.to_owned(), **key);
                    }
                }
                continue;
            };
            let key = entry.public_key;
            let address = endpoint::choose(&own_ips, &addresses(owned));
            let taken = out.by_key.contains_key(&key);
            let unreachable = address.is_none() && !own_ips.is_empty();
            if let Some((field, message, advice)) = refusal(&key, &own_key, mesh, taken, unreachable) {
                out.problems.push(Problem {
                    kind: ProblemKind::Announcement,
                    object: format!("Node {node}"),
                    field: field.to_owned(),
                    message: message.to_owned(),
                    advice: advice.to_owned(),
                });
                continue;
            }
            let stands = standing.and_then(|device| device.peers.get(&key)).map_or(0, |peer| peer.keepalive);
            // Nobody needs an older one that is proven on a newer.
            let keepalive = if newer.iter().any(|newer| newer.health(inputs, node).is_proven()) {
                tunnels::at_rest(stands)
            } else {
                // It says whom it still sends to by an older one. Who has none, or began anew, waits for us.
                let sends = |oldest| {
                    inputs
                        .announced
                        .of(node)
                        .is_some_and(|said| Said::from(said).may_send(inputs.node, oldest))
                };
                let to = To { device, own: &own_key, peer: &key, is_at_leisure: older.is_some_and(sends) };
                inputs.tunnels.keepalive(&to, stands, inputs.now)
            };
            let peer = DesiredPeer {
                endpoint: address.map(|a| SocketAddr::new(a, entry.port.get())),
                allowed_ips: owned.iter().map(|(prefix, _)| *prefix).collect(),
                keepalive,
            };
            out.by_key.insert(key, peer);
            out.keys.insert(node.to_owned(), key);
        }
        out
    }
}

/// What `node` announces for `generation`.
pub(super) fn announced<'a>(
    inputs: &Inputs<'a>,
    node: &str,
    generation: Generation,
) -> Option<&'a GenerationEntry> {
    inputs.announced.of(node)?.generations().iter().find(|g| g.generation == generation)
}

fn as_it_is(peer: &Peer) -> DesiredPeer {
    DesiredPeer { endpoint: None, allowed_ips: peer.allowed_ips.clone(), keepalive: peer.keepalive }
}

fn is_revoked(mesh: Option<&MeshSpec>, key: &PublicKey) -> bool {
    mesh.is_some_and(|m| m.revoked_keys.contains(key))
}

/// Why a key that was announced is not used: field, message, advice.
fn refusal(
    key: &PublicKey,
    own: &PublicKey,
    mesh: Option<&MeshSpec>,
    taken: bool,
    unreachable: bool,
) -> Option<(&'static str, &'static str, &'static str)> {
    if key == own {
        return Some((
            "publicKey",
            "it announces this node's own key; the kernel would ignore such a peer",
            "One of the two was cloned from the other: remove its state folder and restart kubeveild there",
        ));
    }
    if is_revoked(mesh, key) {
        return Some((
            "publicKey",
            "the key is revoked",
            "Remove its state folder and restart kubeveild there, so that it makes a new one",
        ));
    }
    if taken {
        return Some((
            "publicKey",
            "another node announces the same key",
            "One of the two was cloned from the other: remove its state folder and restart kubeveild there",
        ));
    }
    unreachable.then_some((
        "status.addresses[InternalIP]",
        "it has no address of a family that this node has too, within the mesh's nodeCIDRs",
        "Give both nodes an InternalIP of one family",
    ))
}

/// Which peer of the device holds each prefix.
fn holders(device: Option<&TunnelDevice>) -> BTreeMap<IpNet, (&PublicKey, &Peer)> {
    let peers = device.into_iter().flat_map(|device| &device.peers);
    peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |p| (*p, (key, peer)))).collect()
}

fn addresses(owned: &[(IpNet, Class)]) -> Vec<IpAddr> {
    owned.iter().filter(|(_, class)| *class == Class::Node).map(|(prefix, _)| prefix.addr()).collect()
}
