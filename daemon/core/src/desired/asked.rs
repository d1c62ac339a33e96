//! What policies ask for, of whoever has an address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubeveil_abi::{Asked, MAX_PREFIXES, Origin, PrefixKind};
use kubeveil_api::{policy::PolicyMode, problem::few};

use super::{Desired, Inputs};
use crate::{
    observed::{Datapath, Prefix},
    ownership::Class,
    policy::{FlowMode, Policies, Standing},
    problem::{Problem, ProblemKind},
};

/// Addresses that have an entry of their own because more is asked of them than of all. With more of them in the cluster, other nodes'
/// pods are held to it by their node's whole range: the map has room for those of 5,000 nodes beside ([`MAX_PREFIXES`]).
const MOST_EXCEPTIONS: usize = 16_384;
const _: () = assert!(MOST_EXCEPTIONS + 5_000 * 4 < MAX_PREFIXES / 3 * 2);

/// What is asked for of those whom nobody can tell from any other.
pub(super) fn unknown(policies: &Policies) -> Asked {
    // Of whom nothing is known nothing less is asked than of all.
    match policies.strictest() {
        Some(PolicyMode::Require) => Asked::Require,
        Some(PolicyMode::Prefer | PolicyMode::Exempt) | None => Asked::Mesh,
    }
}

/// Seconds by which two clocks differ that go differently, and are read one after the other.
const SLACK: u32 = 2;

/// What is asked for of who has this standing, in a mesh of mode `base`, and until when, seconds since boot.
fn of(base: FlowMode, standing: Option<Standing>, inputs: &Inputs<'_>) -> (Asked, u32) {
    let Some(standing) = standing else { return (Asked::Mesh, 0) };
    match standing.mode {
        PolicyMode::Require => (Asked::Require, 0),
        PolicyMode::Prefer if base == FlowMode::Require => (Asked::Prefer, 0),
        // As the mesh does of all.
        PolicyMode::Prefer => (Asked::Mesh, 0),
        // Where nothing is steered there is nothing to be exempt from.
        PolicyMode::Exempt if base == FlowMode::Observe => (Asked::Mesh, 0),
        PolicyMode::Exempt => match standing.until {
            None => (Asked::Exempt, 0),
            Some(until) => {
                let left =
                    u64::try_from(until.as_second()).unwrap_or(0).saturating_sub(inputs.epoch.as_secs());
                let end = u32::try_from(inputs.now.as_secs().saturating_add(left)).unwrap_or(u32::MAX);
                if left == 0 { (Asked::Mesh, 0) } else { (Asked::Exempt, end) }
            }
        },
    }
}

const fn is_loose(asked: Asked) -> bool {
    matches!(asked, Asked::Exempt | Asked::Prefer)
}

/// Writes it into `prefixes`. Of a pod of this node that nobody has told us of the most is asked for that is of anybody, and so it is of
/// an address of the pods' ranges that no node owns; of a pod of another node of which nothing else was said what is asked of all, since
/// that node knows better, and refuses what comes in plain. Until it was told of whom something else is said, what `stands` in the map of
/// other nodes' pods stays, and of a prefix that is not there yet the most is asked: a node that begins anew opens nothing by that it
/// has not heard yet.
///
/// Less than the mesh asks for is asked only of pods of this node of which it is known by which device they speak (`origins`). Returns
/// the addresses of others of which less would be asked.
pub(super) fn ask(
    inputs: &Inputs<'_>,
    origins: &BTreeMap<IpAddr, Origin>,
    stands: &BTreeMap<IpNet, Prefix>,
    prefixes: &mut BTreeMap<IpNet, Prefix>,
) -> Vec<IpAddr> {
    let mut unknown_device = Vec::new();
    let (snapshot, assignment) = (inputs.knowledge.snapshot(), inputs.assignment);
    let Some(base) = snapshot.mode().filter(|_| !snapshot.policies.is_empty()) else { return Vec::new() };
    let unknown = unknown(&snapshot.policies);
    for (net, prefix) in prefixes.iter_mut() {
        prefix.asked = match prefix.kind {
            PrefixKind::LocalPods | PrefixKind::UnownedPods => unknown,
            PrefixKind::RemotePods if !snapshot.workloads.knows_elsewhere => {
                stands.get(net).map_or(unknown, |stands| stands.asked)
            }
            _ => prefix.asked,
        };
    }
    let owners: BTreeMap<IpNet, &str> = assignment.nodes().flat_map(pods_of).collect();
    // The longest first.
    let lengths: BTreeSet<_> = owners.keys().map(|net| Reverse(net.prefix_len())).collect();
    let owner = |address: &IpAddr| {
        let around = |length: &Reverse<u8>| IpNet::new(*address, length.0).ok().map(|net| net.trunc());
        let mut nets = lengths.iter().filter_map(around);
        nets.find_map(|net| Some((net, *owners.get(&net)?)))
    };
    let owner_of = |address: &IpAddr| owner(address).map(|(_, node)| node);
    let asked_of = snapshot.workloads.asked(&snapshot.policies, base, owner_of);
    let count = |is_it: fn(Asked) -> bool| {
        asked_of.values().filter(|standing| is_it(of(base, **standing, inputs).0)).count()
    };
    let required = count(|asked| asked == Asked::Require);
    let is_too_much = required > MOST_EXCEPTIONS;
    // Who is exempt takes no room from others.
    let has_room = required + count(is_loose) <= MOST_EXCEPTIONS;
    for (address, standing) in asked_of {
        let (asked, until) = of(base, standing, inputs);
        let own = IpNet::from(address);
        let net = owner(&address).map(|(net, _)| net);
        let holder = match net {
            Some(net) => prefixes.get(&net).copied(),
            // A pod whose plugin gives it an address that is none of its node's.
            None => Some(Prefix::new(PrefixKind::UnownedPods, 0)),
        };
        let Some(holder) = holder else { continue };
        if is_too_much && holder.kind == PrefixKind::RemotePods {
            let range = net.filter(|_| asked == Asked::Require).and_then(|net| prefixes.get_mut(&net));
            range.into_iter().for_each(|range| range.asked = asked);
            continue;
        }
        let (asked, until) = match holder.kind {
            PrefixKind::RemotePods if is_loose(asked) && !has_room => (Asked::Mesh, 0),
            PrefixKind::LocalPods if is_loose(asked) && !origins.contains_key(&address) => {
                unknown_device.push(address);
                (Asked::Mesh, 0)
            }
            // What no node owns goes nowhere, whatever is asked of it.
            PrefixKind::UnownedPods if is_loose(asked) => (Asked::Mesh, 0),
            _ => (asked, until),
        };
        // A node's own address is no pod's, whatever a pod says.
        let is_pods = prefixes.get(&own).is_none_or(|_| Some(own) == net);
        // Said of pods of this node even where it goes without saying: what was said before has to give way, and nothing is removed on
        // hearsay.
        let is_worth_it =
            asked != Asked::Mesh || holder.kind == PrefixKind::LocalPods && unknown != Asked::Mesh;
        if is_worth_it && is_pods {
            // Told anew only where it is another end.
            let same = stands.get(&own).filter(|stands| stands.until.abs_diff(until) <= SLACK && until != 0);
            let until = same.map_or(until, |stands| stands.until);
            prefixes.insert(own, Prefix { asked, until, ..holder });
        }
    }
    unknown_device
}

/// What a pod with these addresses is held to where `desired` stands, in a mesh of mode `base`, over this datapath; `None` as long as it
/// has none.
pub fn held<'a>(
    base: FlowMode,
    desired: &Desired,
    datapath: Option<&Datapath>,
    addresses: impl IntoIterator<Item = &'a IpAddr>,
) -> Option<FlowMode> {
    let mode = |asked: Asked| match (base, asked) {
        (FlowMode::Observe, _) | (_, Asked::Mesh) => base,
        (_, Asked::Exempt) => FlowMode::Exempt,
        (_, Asked::Prefer) => FlowMode::Prefer,
        (_, Asked::Require) => FlowMode::Require,
    };
    let asked =
        |address: &IpAddr| match longest(&desired.prefixes, *address).map_or(Asked::Mesh, |net| net.asked) {
            Asked::Require => Asked::Require,
            _ if is_gone(address, &desired.origins, datapath) => Asked::from_raw(desired.config.unknown),
            asked => asked,
        };
    addresses.into_iter().map(|address| mode(asked(address))).max()
}

/// What the longest prefix says that holds the address.
fn longest(prefixes: &BTreeMap<IpNet, Prefix>, address: IpAddr) -> Option<Prefix> {
    let own = IpNet::from(address);
    let mut holders = (0..=own.max_prefix_len()).rev().filter_map(|length| IpNet::new(address, length).ok());
    holders.find_map(|net| prefixes.get(&net.trunc())).copied()
}

fn pods_of<'a>((node, owned): (&'a str, &'a [(IpNet, Class)])) -> impl Iterator<Item = (IpNet, &'a str)> {
    owned.iter().filter(|(_, class)| *class == Class::Pods).map(move |(net, _)| (*net, node))
}

/// The device by which the pod with this address spoke is not there any more.
fn is_gone(address: &IpAddr, origins: &BTreeMap<IpAddr, Origin>, datapath: Option<&Datapath>) -> bool {
    datapath.zip(origins.get(address)).is_some_and(|(datapath, origin)| {
        datapath.origins.get(address) == Some(origin) && !datapath.alive.contains(&origin.device)
    })
}

/// Pods of this node that are held to more than policies ask for, since it is not known by which device they speak, or that is gone.
pub(super) fn problems(
    inputs: &Inputs<'_>,
    unknown_device: Vec<IpAddr>,
    prefixes: &BTreeMap<IpNet, Prefix>,
    origins: &BTreeMap<IpAddr, Origin>,
) -> Vec<Problem> {
    /// Most addresses that are named.
    const MOST: usize = 5;
    let problem = |addresses: Vec<IpAddr>, message: &str, advice: &str| Problem {
        kind: ProblemKind::Kernel,
        object: format!("pods of this node at {}", few(addresses.into_iter(), MOST)),
        field: String::new(),
        message: message.to_owned(),
        advice: advice.to_owned(),
    };
    let is_required = |address: &IpAddr| {
        prefixes.get(&IpNet::from(*address)).is_some_and(|prefix| prefix.asked == Asked::Require)
    };
    let datapath = inputs.observed.datapath.as_ref();
    let is_held = |address: &&IpAddr| !is_required(address) && is_gone(address, origins, datapath);
    let gone: Vec<IpAddr> = origins.keys().filter(is_held).copied().collect();
    let unknown = (!unknown_device.is_empty()).then(|| {
        problem(
            unknown_device,
            "a policy asks for less of them than the mesh does, but it is not known by which device they speak, and so whether it is they \
             who have these addresses: they are held to what the mesh asks for",
            "If this lasts, the node's network plugin is one of those whose pods' devices kubeveil does not find: it knows veth and netkit \
             devices that have a route of their own, or are ports of a bridge",
        )
    });
    let gone = (!gone.is_empty()).then(|| {
        problem(
            gone,
            "the devices by which they spoke are gone, so that anybody may have these addresses: as much is asked of them as of a pod \
             that is not known",
            "If this lasts, delete the pods, so that they are made anew",
        )
    });
    unknown.into_iter().chain(gone).collect()
}
