//! By which device each pod of this node speaks, so that what is said of its address ends with the pod.
//!
//! A pod speaks by the host's end of its own device (`veth`, `netkit`), which goes with the pod. It is found by what the node's plugin
//! has set up: a route to that one address by the device, or a bridge that has the address' link-layer address behind a port.
//!
//! It is looked for once for each pod, address and network of the pod's: when that device is gone, and another has the address by then,
//! nobody can say whether that is the same pod as long as the source has not told of another. A source lags, the more so when it is away;
//! and it may go back, so a device that is there is not given to another pod on its word.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use kubeveil_abi::{MAX_ORIGINS, Origin, port_number};
use sha2::{Digest as _, Sha256};

use crate::{
    observed::{Datapath, Link, Neighbours, Observed},
    policy::pods::{Pod, Workloads},
    snapshot::Knowledge,
};

/// Kinds of devices that are one end of a pair of which the other is in a pod.
const PAIRS: [&str; 2] = ["veth", "netkit"];

/// Pods of this node, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Their devices: those that stand in the map, though they be gone, and those that were found now.
    pub known: BTreeMap<IpAddr, Origin>,
    /// Addresses of which the source tells otherwise than the device that is there: whose they are nobody can say.
    pub disputed: BTreeSet<IpAddr>,
    /// Addresses of pods behind bridges whose devices were not found yet.
    pub unfound: BTreeSet<IpAddr>,
}

/// The devices of `node`'s pods as they should stand in the map. Without a source in sync nobody is forgotten; where no policy asks for anything
/// nobody needs to be known.
pub fn origins(node: &str, knowledge: &Knowledge, observed: &Observed) -> Origins {
    static NONE: BTreeMap<IpAddr, Origin> = BTreeMap::new();
    let stands = observed.datapath.as_ref().map_or(&NONE, |datapath| &datapath.origins);
    let snapshot = knowledge.snapshot();
    let mut origins = Origins::default();
    let holders = match snapshot.policies.is_empty() {
        true => BTreeMap::new(),
        false => holders(node, &snapshot.workloads),
    };
    let ways = Ways::of(observed);
    for (address, pods) in &holders {
        match stands.get(address) {
            Some(there) if is_alive(observed.datapath.as_ref(), there) => {
                if !pods.iter().any(|pod| is_same_pod(*pod, there.pod)) {
                    origins.disputed.insert(*address);
                }
                origins.known.insert(*address, *there);
            }
            Some(gone) if pods.contains(&gone.pod) => drop(origins.known.insert(*address, *gone)),
            // Where the map is full it is bound to nothing.
            _ => match ways.origin(pods, *address).filter(|_| origins.known.len() < MAX_ORIGINS) {
                Some(found) => drop(origins.known.insert(*address, found)),
                None if ways.is_behind_a_bridge(*address) => drop(origins.unfound.insert(*address)),
                None => {}
            },
        }
    }
    if knowledge.synced().is_none() {
        let unheard = stands.iter().filter(|(address, _)| !holders.contains_key(*address));
        origins.known.extend(unheard.map(|(address, origin)| (*address, *origin)));
    }
    origins
}

/// The ports of the bridges behind which some of these pods are, with a pod behind each, that can be told from all others.
pub fn ports(known: &BTreeMap<IpAddr, Origin>, links: &BTreeMap<u32, Link>) -> BTreeSet<u32> {
    let bridges: BTreeSet<u32> =
        known.values().filter(|origin| origin.port() != 0).map(|origin| origin.via).collect();
    numbered(links)
        .into_iter()
        .filter(|((bridge, _), _)| bridges.contains(bridge))
        .map(|(_, port)| port)
        .collect()
}

/// Ports of bridges with a pod behind them, by their bridge and their number there ([`port_number`]). Of those that would have the same only the
/// oldest has it: the other is as one of which nothing is known.
fn numbered(links: &BTreeMap<u32, Link>) -> BTreeMap<(u32, u16), u32> {
    let bridge = |link: &Link| link.controller.filter(|_| is_pair(link));
    let mut oldest = BTreeMap::new();
    for (port, link) in links {
        if let Some(bridge) = bridge(link) {
            oldest.entry((bridge, port_number(*port))).or_insert(*port);
        }
    }
    oldest
}

/// Is its device there?
pub fn is_alive(datapath: Option<&Datapath>, origin: &Origin) -> bool {
    datapath.is_some_and(|datapath| datapath.alive.contains(&origin.key()))
}

/// Pods that have an address, in few words.
fn holders(node: &str, workloads: &Workloads) -> BTreeMap<IpAddr, BTreeSet<[u32; 2]>> {
    let mut holders: BTreeMap<IpAddr, BTreeSet<[u32; 2]>> = BTreeMap::new();
    for (uid, pod) in workloads.pods.iter().filter(|(_, pod)| pod.node == node) {
        for address in &pod.addresses {
            holders.entry(*address).or_default().insert(in_few_words(uid, pod));
        }
    }
    holders
}

/// A pod by its UID, and a network of its by when that was made, 32 bits of a hash each: nobody chooses either.
pub fn in_few_words(uid: &str, pod: &Pod) -> [u32; 2] {
    let word = |bytes: &[u8]| {
        let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(bytes));
        u32::from_ne_bytes([a, b, c, d])
    };
    let since = pod.network_since.map_or(0, |since| word(&since.as_second().to_ne_bytes()));
    [word(uid.as_bytes()), since]
}

const fn is_same_pod(one: [u32; 2], other: [u32; 2]) -> bool {
    one[0] == other[0]
}

/// What tells by which device an address is reached.
struct Ways<'a> {
    links: &'a BTreeMap<u32, Link>,
    neighbours: &'a Neighbours,
    numbered: BTreeMap<(u32, u16), u32>,
    /// Ends of pairs by the address that alone a route by them leads to.
    alone: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// Devices that are there, and whose they are.
    taken: BTreeMap<u32, [u32; 2]>,
}

impl<'a> Ways<'a> {
    fn of(observed: &'a Observed) -> Self {
        let mut alone: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        for (index, link) in observed.links.iter().filter(|(_, link)| is_pair(link)) {
            for net in link.routes.iter().filter(|net| net.prefix_len() == net.max_prefix_len()) {
                alone.entry(net.addr()).or_default().insert(*index);
            }
        }
        let datapath = observed.datapath.as_ref();
        let standing = datapath.into_iter().flat_map(|datapath| datapath.origins.values());
        let there = standing.filter(|origin| is_alive(datapath, origin));
        let taken = there.map(|origin| (origin.device, origin.pod)).collect();
        let (links, neighbours) = (&observed.links, &observed.neighbours);
        Self { links, neighbours, numbered: numbered(links), alone, taken }
    }

    /// Where two pods are said to have an address nobody can tell whose device it is.
    fn origin(&self, pods: &BTreeSet<[u32; 2]>, address: IpAddr) -> Option<Origin> {
        let pod = *only(pods.iter())?;
        let (device, via) = match self.alone.get(&address) {
            Some(devices) => only(devices.iter()).map(|device| (*device, *device))?,
            None => only(self.bridges().filter_map(|bridge| Some((self.port(bridge, address)?, bridge))))?,
        };
        let is_free = self.taken.get(&device).is_none_or(|other| is_same_pod(*other, pod));
        is_free.then_some(Origin { device, via, pod })
    }

    fn bridges(&self) -> impl Iterator<Item = u32> {
        self.links.iter().filter(|(_, link)| is_bridge(link)).map(|(index, _)| *index)
    }

    fn port(&self, bridge: u32, address: IpAddr) -> Option<u32> {
        let hardware = self.neighbours.hardware.get(&(bridge, address))?;
        let port = *self.neighbours.ports.get(&(bridge, *hardware))?;
        Some(port).filter(|port| self.numbered.get(&(bridge, port_number(*port))) == Some(port))
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
