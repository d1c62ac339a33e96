//! By which device each pod of this node speaks, so that what is said of its address ends with the pod.
//!
//! A pod speaks by the host's end of its own device (`veth`, `netkit`), which goes with the pod. It is found by what the node's plugin
//! has set up: a route to that one address by the device, or a bridge that has the address' link-layer address behind a port.
//!
//! It is looked for once for each pod and address. When that device is gone, and another has the address by then, nobody can say whether
//! that is the same pod as long as the source has not told of another: a source lags, the more so when it is away.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use kubeveil_abi::Origin;
use sha2::{Digest as _, Sha256};

use crate::{
    observed::{Link, Neighbours, Observed},
    policy::pods::Workloads,
    snapshot::Knowledge,
};

/// Kinds of devices that are one end of a pair of which the other is in a pod.
const PAIRS: [&str; 2] = ["veth", "netkit"];

/// The devices of `node`'s pods by address: those that stand, and those that were not looked for yet. Without a source in sync nobody
/// is forgotten; where no policy asks for anything nobody needs to be known.
pub fn origins(node: &str, knowledge: &Knowledge, observed: &Observed) -> BTreeMap<IpAddr, Origin> {
    let stands = observed.datapath.as_ref().map(|datapath| &datapath.origins);
    let snapshot = knowledge.snapshot();
    let holders = match snapshot.policies.is_empty() {
        true => BTreeMap::new(),
        false => holders(node, &snapshot.workloads),
    };
    let ways = Ways::of(observed);
    let mut origins = BTreeMap::new();
    for (address, pods) in &holders {
        let stands = stands.and_then(|stands| stands.get(address));
        let origin = match stands.filter(|stands| pods.contains(&stands.pod)) {
            Some(stands) => Some(*stands),
            None => ways.origin(pods, *address),
        };
        origins.extend(origin.map(|origin| (*address, origin)));
    }
    if knowledge.synced().is_none() {
        let unheard = stands.into_iter().flatten().filter(|(address, _)| !holders.contains_key(*address));
        origins.extend(unheard.map(|(address, origin)| (*address, *origin)));
    }
    origins
}

/// Have the bridges to be asked who is behind their ports? So it is as long as a pod that is behind one was not found.
pub fn is_looking(node: &str, knowledge: &Knowledge, observed: &Observed) -> bool {
    let snapshot = knowledge.snapshot();
    if snapshot.policies.is_empty() || observed.datapath.is_none() {
        return false;
    }
    let ways = Ways::of(observed);
    let origins = origins(node, knowledge, observed);
    let mut unfound = holders(node, &snapshot.workloads).into_keys().filter(|at| !origins.contains_key(at));
    unfound.any(|address| ways.is_behind_a_bridge(address))
}

/// Pods that have an address, in few words.
fn holders(node: &str, workloads: &Workloads) -> BTreeMap<IpAddr, BTreeSet<[u32; 2]>> {
    let mut holders: BTreeMap<IpAddr, BTreeSet<[u32; 2]>> = BTreeMap::new();
    for (uid, pod) in workloads.pods.iter().filter(|(_, pod)| pod.node == node) {
        for address in &pod.addresses {
            holders.entry(*address).or_default().insert(in_few_words(uid));
        }
    }
    holders
}

/// 64 bits of a hash: nobody chooses the UIDs of pods.
pub fn in_few_words(uid: &str) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(uid));
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// What tells by which device an address is reached.
struct Ways<'a> {
    links: &'a BTreeMap<u32, Link>,
    neighbours: &'a Neighbours,
    /// Ends of pairs by the address that alone a route by them leads to.
    alone: BTreeMap<IpAddr, BTreeSet<u32>>,
}

impl<'a> Ways<'a> {
    fn of(observed: &'a Observed) -> Self {
        let mut alone: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        for (index, link) in observed.links.iter().filter(|(_, link)| is_pair(link)) {
            for net in link.routes.iter().filter(|net| net.prefix_len() == net.max_prefix_len()) {
                alone.entry(net.addr()).or_default().insert(*index);
            }
        }
        Self { links: &observed.links, neighbours: &observed.neighbours, alone }
    }

    /// Where two pods are said to have an address nobody can tell whose device it is.
    fn origin(&self, pods: &BTreeSet<[u32; 2]>, address: IpAddr) -> Option<Origin> {
        let pod = *only(pods.iter())?;
        let (device, via) = match self.alone.get(&address) {
            Some(devices) => only(devices.iter()).map(|device| (*device, *device))?,
            None => only(self.bridges().filter_map(|bridge| Some((self.port(bridge, address)?, bridge))))?,
        };
        Some(Origin { device, via, pod })
    }

    fn bridges(&self) -> impl Iterator<Item = u32> {
        self.links.iter().filter(|(_, link)| is_bridge(link)).map(|(index, _)| *index)
    }

    fn port(&self, bridge: u32, address: IpAddr) -> Option<u32> {
        let hardware = self.neighbours.hardware.get(&(bridge, address))?;
        let port = *self.neighbours.ports.get(&(bridge, *hardware))?;
        let is_pods = |link: &&Link| is_pair(link) && link.controller == Some(bridge);
        self.links.get(&port).filter(is_pods).map(|_| port)
    }

    fn is_behind_a_bridge(&self, address: IpAddr) -> bool {
        let leads_there = |link: &Link| link.routes.iter().any(|net| net.contains(&address));
        self.bridges().any(|bridge| leads_there(&self.links[&bridge]))
    }
}

/// The one of which there is no other.
fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    all.next().filter(|_| all.next().is_none())
}

fn is_pair(link: &Link) -> bool {
    link.kind.as_deref().is_some_and(|kind| PAIRS.contains(&kind))
}

fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}

#[cfg(test)]
mod tests;
