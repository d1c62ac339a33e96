//! The peers of a device: which node is spoken to, by which key, and where.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use kubeveil_api::{announcement::GenerationEntry, mesh::MeshSpec};
use kubeveil_keys::{Generation, PublicKey};

use super::{Carrier, DesiredPeer, Inputs, passes};
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
        let device = Device { inputs, mesh, name: device, generation, own_key };
        let holders = holders(device.standing());
        let mut nodes: Vec<_> = nodes.filter(|(n, _)| *n != inputs.node).collect();
        // Of two nodes with one key, the one that the device has it for keeps it, whatever the other is called.
        nodes.sort_by_cached_key(|(node, owned)| {
            let key = announced(inputs, node, generation).map(|entry| entry.public_key);
            let mut held = owned.iter().filter_map(|(prefix, _)| holders.get(prefix));
            !held.any(|(holder, _)| Some(**holder) == key)
        });
        let wrong = Wrong::of(inputs);
        // Which pairs are open follows from the maps, so not before there are any.
        let is_before =
            inputs.observed.datapath.is_none() && mesh.is_some_and(|mesh| mesh.adoption.is_some());
        let may_pass = |node: &str| is_before || passes(inputs, node);
        for (node, owned) in nodes {
            let holder = owned.iter().find_map(|(prefix, _)| holders.get(prefix));
            // What was kept on disk may be older than what is in the device.
            let heard = inputs.announced.heard(node);
            let is_older =
                |key: &PublicKey| heard != Heard::Told && holder.is_some_and(|(holder, _)| *holder != key);
            let entry = announced(inputs, node, generation).filter(|entry| !is_older(&entry.public_key));
            let Some(entry) = entry else {
                if let Some(((key, peer), carries)) = device.left(node, heard, holder.copied()) {
                    out.by_key.entry(*key).or_insert_with(|| as_it_is(peer));
                    if carries {
                        out.keys.insert(node.to_owned(), *key);
                    }
                }
                continue;
            };
            let key = entry.public_key;
            if wrong.as_ref().is_some_and(|wrong| !wrong.stands(owned)) && may_pass(node) {
                continue;
            }
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
            let peer = DesiredPeer {
                endpoint: address.map(|a| SocketAddr::new(a, entry.port.get())),
                allowed_ips: owned.iter().map(|(prefix, _)| *prefix).collect(),
                keepalive: device.keepalive(node, &key, newer),
            };
            out.by_key.insert(key, peer);
            out.keys.insert(node.to_owned(), key);
        }
        out
    }
}

/// This node's prefixes, where they are known to be wrong, or may be for all that a node knows that has just joined: the far end, which would take
/// the pair for proven, would steer by them.
struct Wrong {
    /// Prefixes of those that any device has for a peer: they stay, also over a rotation.
    standing: BTreeSet<IpNet>,
}

impl Wrong {
    fn of(inputs: &Inputs<'_>) -> Option<Self> {
        let is_new = inputs.told.is_early && !inputs.told.kept && inputs.knowledge.synced().is_none();
        let is_misled = inputs.adopting.misled || !inputs.knowledge.snapshot().strangers.is_empty();
        if !is_misled && !is_new {
            return None;
        }
        let peers = inputs.observed.tunnels.values().flat_map(|device| device.peers.values());
        Some(Self { standing: peers.flat_map(|peer| peer.allowed_ips.iter().copied()).collect() })
    }

    fn stands(&self, owned: &[(IpNet, Class)]) -> bool {
        owned.iter().any(|(prefix, _)| self.standing.contains(prefix))
    }
}

/// A device of ours, whose peers are looked for.
struct Device<'a> {
    inputs: &'a Inputs<'a>,
    mesh: Option<&'a MeshSpec>,
    name: &'a str,
    generation: Generation,
    own_key: PublicKey,
}

/// A peer that a device has for some prefix.
type Holder<'a> = (&'a PublicKey, &'a Peer);

impl<'a> Device<'a> {
    fn standing(&self) -> Option<&'a TunnelDevice> {
        self.inputs.observed.tunnels.get(self.name)
    }

    fn is_dead(&self, (key, _): Holder<'_>) -> bool {
        matches!(self.inputs.tunnels.health(self.name, key, self.inputs.now), Health::Stale(_))
    }

    /// What stays of a node that announces no key of this generation, `holder` of its prefixes; and whether packets may go to it.
    fn left<'p>(&self, node: &str, heard: Heard, holder: Option<Holder<'p>>) -> Option<(Holder<'p>, bool)> {
        // One that has given this generation up says so.
        let is_given_up = match heard {
            Heard::Told => self.inputs.announced.of(node).is_some(),
            Heard::Past => holder.is_none_or(|holder| self.is_dead(holder)),
            Heard::Kept => false,
        };
        // Who has given it up stays at a device that goes soon; but not who is still spoken to, in vain: that would not fall silent.
        let goes_along = |holder: Holder<'_>| {
            self.inputs.rotation.goes_soon(self.generation, self.inputs.now)
                && !self.is_dead(holder)
                && tunnels::at_rest(holder.1.keepalive) == holder.1.keepalive
        };
        // A node whose announcement is not known (not any more, or not yet since we started) is not cut off for that: the peer that
        // the device has for its prefixes stays as it is.
        let stays =
            |holder: &Holder<'_>| !is_revoked(self.mesh, holder.0) && (!is_given_up || goes_along(*holder));
        holder.filter(stays).map(|holder| (holder, !is_given_up))
    }

    /// The keepalive of a node whose key is `peer`.
    fn keepalive(&self, node: &str, peer: &PublicKey, newer: &[Carrier]) -> u16 {
        let inputs = self.inputs;
        let stands =
            self.standing().and_then(|device| device.peers.get(peer)).map_or(0, |peer| peer.keepalive);
        // Nobody needs an older one that is proven on a newer.
        if newer.iter().any(|newer| newer.health(inputs, node).is_proven()) {
            return tunnels::at_rest(stands);
        }
        // It says whom it still sends to by an older one. Who has none, or began anew, waits for us.
        let older = inputs.keys.first().map(|(oldest, _)| *oldest).filter(|oldest| *oldest < self.generation);
        let said = inputs.announced.of(node).map(Said::from);
        let of_it = older.zip(said.as_ref());
        let is_at_leisure = of_it.is_some_and(|(older, said)| said.may_send(inputs.node, older));
        let is_awaited = of_it.is_some_and(|(older, said)| said.sends(inputs.node, older));
        let to = To { device: self.name, own: &self.own_key, peer, is_at_leisure, is_awaited };
        inputs.tunnels.keepalive(&to, stands, inputs.now)
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
    mesh.is_some_and(|mesh| mesh.revokes(key))
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
fn holders(device: Option<&TunnelDevice>) -> BTreeMap<IpNet, Holder<'_>> {
    let peers = device.into_iter().flat_map(|device| &device.peers);
    peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |p| (*p, (key, peer)))).collect()
}

fn addresses(owned: &[(IpNet, Class)]) -> Vec<IpAddr> {
    owned.iter().filter(|(_, class)| *class == Class::Node).map(|(prefix, _)| prefix.addr()).collect()
}
