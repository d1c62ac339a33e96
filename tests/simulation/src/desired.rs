//! What a node's kernel should hold: `core::desired` and `desired::peers` over announcements without signatures, and nodes that own one
//! address each, of pods.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kubeveil_abi::{BASE_PORT, DEVICE_NAMES, DeviceKind, FWMARK, Mode, PeerState, PeerValue, PrefixKind};
use kubeveil_core::{
    announced::Heard as From,
    desired::{Desired, DesiredPeer, DesiredTunnel, Remote},
    observed::{Datapath, Observed, Peer, Prefix, Program},
    rotation::{self, Rotation},
    tunnels::{self, Health, To},
};
use kubeveil_keys::{Generation, PublicKey};

use crate::{
    daemon::{Daemon, Keys},
    kernel::{MTU, RANGE, address, endpoint, index},
    maps::UNDERLAY,
    rules::Rules,
    world::place,
};

/// As in `core::desired`: seconds by which two clocks differ.
const SLACK: u32 = 2;

/// A device that packets can go by.
struct Carrier {
    generation: Generation,
    up: Option<u32>,
    keys: BTreeMap<&'static str, PublicKey>,
}

impl Carrier {
    fn device(&self) -> &'static str {
        DEVICE_NAMES[self.generation.parity()]
    }

    fn health(&self, daemon: &Daemon, node: &str) -> Health {
        let never = Health::Never(Default::default());
        self.keys.get(node).map_or(never, |key| daemon.tunnels.health(self.device(), key, daemon.began))
    }
}

/// The devices, their peers, and by which of them packets go to whom; the generation of the latter too.
pub(crate) fn desired(
    daemon: &Daemon,
    held: &Keys,
    observed: &Observed,
    rules: Rules,
) -> (Desired, BTreeMap<&'static str, Generation>) {
    let mut out = Desired { prefixes: prefixes(daemon), ..Desired::default() };
    let mode = if daemon.requires() { Mode::Require } else { Mode::Prefer };
    let stands = observed.datapath.as_ref().and_then(Datapath::written);
    out.config.mode = match stands {
        Some(stands) if !daemon.is_told_of_mesh => mode.stricter(Mode::from_raw(stands.mode)),
        _ => mode,
    } as u32;
    out.config.fwmark = FWMARK;
    out.devices.insert(UNDERLAY, DeviceKind::Underlay);
    out.hooks.extend([(Program::Steer, UNDERLAY), (Program::Guard, UNDERLAY)]);
    let mut carriers: Vec<Carrier> = Vec::new();
    for (generation, key) in held.iter().rev() {
        let device = DEVICE_NAMES[generation.parity()];
        let standing = observed.tunnels.get(device).filter(|device| device.public_key == Some(*key));
        let is_up = |index: &u32| observed.links.get(index).is_some_and(|link| link.up);
        let up = standing.map(|device| device.ifindex).filter(is_up);
        let older = held.keys().next().copied().filter(|oldest| oldest < generation);
        let (peers, keys) = peers(daemon, observed, (*generation, *key), older, &carriers);
        let port = generation.port(BASE_PORT).unwrap_or(BASE_PORT);
        let revoked = daemon.known.mesh.iter().flat_map(|mesh| &mesh.revoked).copied().collect();
        let tunnel = DesiredTunnel { key: (*generation, *key), port, mtu: MTU, peers, revoked };
        out.tunnels.insert(device.to_owned(), tunnel);
        carriers.push(Carrier { generation: *generation, up, keys });
    }
    let ways = travel(daemon, &carriers, observed, rules, &mut out);
    adopting(daemon, observed, rules, &mut out);
    (out, ways)
}

/// Without a mesh no address is known to be a pod's.
fn prefixes(daemon: &Daemon) -> BTreeMap<IpNet, Prefix> {
    if daemon.known.mesh.is_none() {
        return BTreeMap::new();
    }
    let owned = daemon.known.nodes.keys().map(|node| match *node == daemon.name {
        true => (address(place(node)), Prefix::new(PrefixKind::LocalPods, 0)),
        false => (address(place(node)), Prefix::new(PrefixKind::RemotePods, index(place(node)))),
    });
    [(RANGE, Prefix::new(PrefixKind::UnownedPods, 0))].into_iter().chain(owned).collect()
}

/// Peers that packets may go to in plain, until they are proven.
fn adopting(daemon: &Daemon, observed: &Observed, rules: Rules, out: &mut Desired) {
    let forever = PeerValue::adopting(u32::MAX);
    let until = daemon.adopting.until;
    for node in daemon.known.nodes.keys().copied().filter(|node| *node != daemon.name) {
        let index = index(place(node));
        let is_same = |value: &&PeerValue| {
            value.state() == PeerState::Adopting && value.bypass_until().abs_diff(until) <= SLACK
        };
        let standing = observed.datapath.as_ref().and_then(|datapath| datapath.peers.get(&index));
        let value = standing.filter(is_same).copied().unwrap_or(PeerValue::adopting(until));
        if daemon.adopting.open.contains(node) {
            out.values.entry(index).or_insert(value);
        } else if rules == Rules::OpensWhileUnproven {
            out.values.entry(index).or_insert(forever);
        }
    }
}

type Peers = (BTreeMap<PublicKey, DesiredPeer>, BTreeMap<&'static str, PublicKey>);

fn peers(
    daemon: &Daemon,
    observed: &Observed,
    (generation, own): (Generation, PublicKey),
    older: Option<Generation>,
    newer: &[Carrier],
) -> Peers {
    let (mut by_key, mut keys) = Peers::default();
    let device = DEVICE_NAMES[generation.parity()];
    let standing = observed.tunnels.get(device);
    let revoked = daemon.known.mesh.as_ref().map_or(&[][..], |mesh| &mesh.revoked);
    for node in daemon.known.nodes.keys().copied().filter(|node| *node != daemon.name) {
        let allowed = address(place(node));
        let mut held = standing.into_iter().flat_map(|device| &device.peers);
        let holder = held.find(|(_, peer)| peer.allowed_ips.contains(&allowed));
        let Some(heard) = daemon.heard.get(node) else { continue };
        let from = heard.from();
        let is_older = |key: &PublicKey| {
            from != From::Told && holder.is_some_and(|(holder, _): (&_, &Peer)| holder != key)
        };
        let key = heard.said.as_ref().and_then(|said| said.key(generation)).filter(|key| !is_older(key));
        let Some(key) = key else {
            let is_dead = |(key, _): (&PublicKey, &Peer)| {
                matches!(daemon.tunnels.health(device, key, daemon.began), Health::Stale(_))
            };
            let is_given_up = match from {
                From::Told => heard.said.is_some(),
                From::Past => holder.is_none_or(is_dead),
                From::Kept => false,
            };
            let is_silent = |(key, peer): (&PublicKey, &Peer)| {
                !is_dead((key, peer)) && tunnels::at_rest(peer.keepalive) == peer.keepalive
            };
            let goes_soon = daemon.rotation.goes_soon(generation, daemon.began);
            if is_given_up && !(goes_soon && holder.is_some_and(is_silent)) {
                continue;
            }
            if let Some((key, peer)) = holder.filter(|(key, _)| !revoked.contains(key)) {
                let as_it_is = DesiredPeer {
                    endpoint: None,
                    allowed_ips: peer.allowed_ips.clone(),
                    keepalive: peer.keepalive,
                };
                by_key.entry(*key).or_insert(as_it_is);
                if !is_given_up {
                    keys.insert(node, *key);
                }
            }
            continue;
        };
        if revoked.contains(&key) || by_key.contains_key(&key) {
            continue;
        }
        let stands = standing.and_then(|device| device.peers.get(&key)).map_or(0, |peer| peer.keepalive);
        let keepalive = if newer.iter().any(|newer| newer.health(daemon, node).is_proven()) {
            tunnels::at_rest(stands)
        } else {
            let sends =
                |oldest| heard.said.as_ref().is_some_and(|said| said.said().may_send(daemon.name, oldest));
            let is_at_leisure = older.is_some_and(sends);
            let waits =
                |oldest| heard.said.as_ref().is_some_and(|said| said.said().sends(daemon.name, oldest));
            let is_awaited = older.is_some_and(waits);
            daemon.tunnels.keepalive(
                &To { device, own: &own, peer: &key, is_at_leisure, is_awaited },
                stands,
                daemon.began,
            )
        };
        let peer = DesiredPeer {
            endpoint: Some(endpoint(place(node), generation)),
            allowed_ips: [allowed].into(),
            keepalive,
        };
        by_key.insert(key, peer);
        keys.insert(node, key);
    }
    (by_key, keys)
}

fn travel(
    daemon: &Daemon,
    carriers: &[Carrier],
    observed: &Observed,
    rules: Rules,
    out: &mut Desired,
) -> BTreeMap<&'static str, Generation> {
    for carrier in carriers {
        out.slots[carrier.generation.parity()] = carrier.up.unwrap_or(0);
    }
    let mut ways = BTreeMap::new();
    let Some(newest) = carriers.first() else { return ways };
    let forgetful = Rotation::default();
    let rotation = if rules == Rules::GoesByTheSourceAlone { &forgetful } else { &daemon.rotation };
    for node in daemon.known.nodes.keys().copied().filter(|node| *node != daemon.name) {
        let standing =
            observed.datapath.as_ref().and_then(|datapath| datapath.peers.get(&index(place(node))));
        let slot = standing.filter(|value| value.has_tunnel()).map(|value| value.slot());
        let is_by = |carrier: &&Carrier| slot == Some(u8::from(carrier.generation.parity() == 1));
        let goes_by = carriers.iter().find(is_by).map(|carrier| carrier.generation);
        let goes_by = goes_by.filter(|_| rules != Rules::GoesByTheSourceAlone);
        let health = |carrier: &Carrier| match (rules, carrier.keys.get(node)) {
            (Rules::FlipsBeforeEvidence, Some(_)) => Health::Up(Default::default()),
            _ => carrier.health(daemon, node),
        };
        let may = |carrier: &&Carrier| {
            carrier.up.is_some()
                && (rules == Rules::GoesBackUnsaid
                    || rotation.may_use(
                        daemon.own(),
                        daemon.is_told_of_itself(),
                        node,
                        carrier.generation,
                        goes_by,
                    ))
                && carries(daemon, health(carrier))
        };
        let may: Vec<&Carrier> = carriers.iter().filter(may).collect();
        let chosen = rotation::choose(may.iter().map(|carrier| health(carrier))).map(|at| may[at]);
        let index = index(place(node));
        if let Some(carrier) = chosen {
            let slot = u8::from(carrier.generation.parity() == 1);
            let value = PeerValue::tunnel(slot, carrier.generation.number());
            let heard = daemon.adopting.heard.get(node);
            out.values.insert(index, heard.map_or(value, |until| value.heard_in_plain(*until)));
            ways.insert(node, carrier.generation);
        }
        let shown = chosen.or_else(|| carriers.iter().find(|c| c.keys.contains_key(node))).unwrap_or(newest);
        let remote = Remote {
            index,
            generation: shown.generation,
            key: shown.keys.get(node).copied(),
            device: shown.device().to_owned(),
            health: shown.health(daemon, node),
            tunnelled: chosen.is_some(),
        };
        out.remotes.insert(node.to_owned(), remote);
    }
    ways
}

/// Do packets go into a tunnel of this health? In prefer not into one that takes and never answers.
fn carries(daemon: &Daemon, health: Health) -> bool {
    health.is_proven() && (daemon.requires() || !matches!(health, Health::Stale(_)))
}
