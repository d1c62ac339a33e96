//! What policies ask for, of whoever has an address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubeveil_abi::{Asked, MAX_PREFIXES, PrefixKind};
use kubeveil_api::policy::PolicyMode;

use crate::{
    observed::Prefix,
    ownership::{Assignment, Class},
    policy::{FlowMode, Policies, Standing},
    problem::{Problem, ProblemKind},
    snapshot::Snapshot,
};

/// Addresses that have an entry of their own because more is asked of them than of all. With more of them in the cluster, other nodes'
/// pods are held to it by their node's whole range: the map has room for those of 5,000 nodes beside ([`MAX_PREFIXES`]).
const MOST_EXCEPTIONS: usize = 16_384;
const _: () = assert!(MOST_EXCEPTIONS + 5_000 * 4 < MAX_PREFIXES / 3 * 2);

/// What is asked for of those whom nobody can tell from any other.
pub(super) fn unknown(policies: &Policies) -> Asked {
    of(policies.strictest())
}

/// Less than the mesh asks for counts as what the mesh asks for.
const fn of(mode: Option<PolicyMode>) -> Asked {
    match mode {
        Some(PolicyMode::Require) => Asked::Require,
        Some(PolicyMode::Prefer | PolicyMode::Exempt) | None => Asked::Mesh,
    }
}

/// Writes it into `prefixes`. Of a pod of this node that nobody has told us of the most is asked for that is of anybody, and so it is of
/// an address of the pods' ranges that no node owns; of a pod of another node of which nothing else was said what is asked of all, since
/// that node knows better, and refuses what comes in plain. Until it was told of whom something else is said, what `stands` in the map of
/// other nodes' pods stays, and of a prefix that is not there yet the most is asked: a node that begins anew opens nothing by that it
/// has not heard yet.
pub(super) fn ask(
    snapshot: &Snapshot,
    assignment: &Assignment,
    stands: &BTreeMap<IpNet, Prefix>,
    prefixes: &mut BTreeMap<IpNet, Prefix>,
) {
    let Some(base) = snapshot.mode() else { return };
    if snapshot.policies.is_empty() {
        return;
    }
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
    let is_exception = |(_, standing): &(&IpAddr, &Option<Standing>)| {
        of(standing.map(|standing| standing.mode)) != Asked::Mesh
    };
    let is_too_much = asked_of.iter().filter(is_exception).count() > MOST_EXCEPTIONS;
    for (address, standing) in asked_of {
        let asked = of(standing.map(|standing| standing.mode));
        let own = IpNet::from(address);
        let net = owner(&address).map(|(net, _)| net);
        let holder = match net {
            Some(net) => prefixes.get(&net).copied(),
            // A pod whose plugin gives it an address that is none of its node's.
            None => Some(Prefix::new(PrefixKind::UnownedPods, 0)),
        };
        let Some(holder) = holder else { continue };
        if is_too_much && holder.kind == PrefixKind::RemotePods {
            let range = net.filter(|_| asked != Asked::Mesh).and_then(|net| prefixes.get_mut(&net));
            range.into_iter().for_each(|range| range.asked = asked);
            continue;
        }
        // A node's own address is no pod's, whatever a pod says.
        let is_pods = prefixes.get(&own).is_none_or(|_| Some(own) == net);
        // Said of pods of this node even where it goes without saying: what was said before has to give way, and nothing is removed on
        // hearsay.
        let is_worth_it =
            asked != Asked::Mesh || holder.kind == PrefixKind::LocalPods && unknown != Asked::Mesh;
        if is_worth_it && is_pods {
            prefixes.insert(own, Prefix { asked, ..holder });
        }
    }
}

/// What a pod with these addresses is held to where `prefixes` stand, in a mesh of mode `base`; `None` as long as it has none.
pub fn held<'a>(
    base: FlowMode,
    prefixes: &BTreeMap<IpNet, Prefix>,
    addresses: impl IntoIterator<Item = &'a IpAddr>,
) -> Option<FlowMode> {
    let mode = |asked: Asked| match (base, asked) {
        (FlowMode::Observe, _) | (_, Asked::Mesh) => base,
        (_, Asked::Exempt) => FlowMode::Exempt,
        (_, Asked::Prefer) => FlowMode::Prefer,
        (_, Asked::Require) => FlowMode::Require,
    };
    let asked = |address: &IpAddr| longest(prefixes, *address).map_or(Asked::Mesh, |prefix| prefix.asked);
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

/// Policies that ask for less than is asked for of all.
pub(super) fn problems(snapshot: &Snapshot) -> impl Iterator<Item = Problem> {
    let base = snapshot.mode().unwrap_or(FlowMode::Require);
    let loose = snapshot.policies.iter().filter(move |(_, policy)| !policy.is_in_force(base));
    loose.map(|(id, policy)| Problem {
        kind: ProblemKind::Manifest,
        object: id.to_string(),
        field: "spec.mode".to_owned(),
        message: format!(
            "{} asks for less than the mesh does, which is not in force yet: it counts as not being there",
            policy.mode
        ),
        advice: "Other policies and the mesh decide on its pods. Remove it, or set it to require".to_owned(),
    })
}
