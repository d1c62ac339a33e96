//! What policies ask for, of whoever has an address.

mod address_part;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubeveil_abi::{Asked, MAX_PREFIXES, Origin, PrefixKind};
use kubeveil_api::policy::PolicyMode;

pub use address_part::AddressPart;

use super::{Desired, Inputs, SLACK};
use crate::{
    observed::{Datapath, Prefix},
    origin::{Origins, is_alive},
    ownership::Class,
    policy::{FlowMode, Policies, Standing},
    problem::{Problem, ProblemKind},
};

/// Addresses that have an entry of their own because more is asked of them than of all. With more of them in the cluster, other nodes'
/// pods are held to it by their node's whole range: the map has room for those of 5,000 nodes beside ([`MAX_PREFIXES`]).
const MOST_EXCEPTIONS: usize = 16_384;
/// Of what it is told that they are more.
const TOO_MANY: &str = "policies";
const _: () = assert!(MOST_EXCEPTIONS + 5_000 * 4 < MAX_PREFIXES / 3 * 2);

/// What is asked for of those whom nobody can tell from any other.
pub(super) fn unknown(policies: &Policies) -> Asked {
    // Of whom nothing is known nothing less is asked than of all.
    match policies.strictest() {
        Some(PolicyMode::Require) => Asked::Require,
        Some(PolicyMode::Prefer | PolicyMode::Exempt) | None => Asked::Mesh,
    }
}

/// What is asked for of who has this standing, in a mesh of mode `base`, and until when, seconds since boot.
fn of(base: FlowMode, standing: Option<Standing>, inputs: &Inputs<'_>) -> (Asked, u32) {
    let exception = standing.filter(|standing| standing.is_exception(base));
    let Some(standing) = exception else { return (Asked::Mesh, 0) };
    match standing.mode {
        PolicyMode::Require => (Asked::Require, 0),
        PolicyMode::Prefer => (Asked::Prefer, 0),
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

/// May policies have been made that neither the disk nor a source has told of? Who has just joined was never told of any; and where another
/// version's programs decide, the maps are empty for another reason than a boot.
pub(super) fn may_have_come(inputs: &Inputs<'_>) -> bool {
    let is_upgrade =
        inputs.observed.datapath.as_ref().is_some_and(|datapath| !datapath.predecessors.is_empty());
    inputs.told.kept && !inputs.told.all && !is_upgrade
}

const fn is_pods(prefix: &Prefix) -> bool {
    matches!(prefix.kind, PrefixKind::LocalPods | PrefixKind::RemotePods | PrefixKind::UnownedPods)
}

/// Addresses of which nothing is to be said beside what is said of all around them, and of which less `stands`, with what is said of them
/// instead: that an entry is removed waits until all is known, and comes after another device may speak by that address; whose it is next
/// is not to be held to as little.
fn left_standing<'a>(
    inputs: &'a Inputs<'_>,
    origins: &'a Origins,
    stands: &'a BTreeMap<IpNet, Prefix>,
    out: &'a Desired,
) -> impl Iterator<Item = (IpNet, Prefix)> + 'a {
    let is_whole = inputs.knowledge.synced().is_some();
    let workloads = &inputs.knowledge.snapshot().workloads;
    // Of a pod that was not told of yet what stands stands.
    let told = workloads.pods.values().filter(|pod| !is_whole && pod.node == inputs.node);
    let told = told.filter(|pod| workloads.namespaces.contains_key(&pod.namespace));
    let told: BTreeSet<IpAddr> = told.flat_map(|pod| &pod.addresses).copied().collect();
    let bound = inputs.observed.datapath.as_ref().map(|datapath| &datapath.origins);
    let is_handed_on = move |address: &IpAddr| {
        let speaks = origins.known.get(address);
        speaks.is_some() && speaks != bound.and_then(|bound| bound.get(address))
    };
    stands
        .iter()
        .filter(|(net, _)| !out.prefixes.contains_key(*net))
        .filter(move |(net, stands)| {
            let is_told = match stands.kind {
                PrefixKind::LocalPods => told.contains(&net.addr()),
                _ => workloads.knows_elsewhere,
            };
            is_handed_on(&net.addr()) || !is_whole && is_told
        })
        .filter_map(|(net, stands)| Some((*net, taken_back(stands, around(&out.prefixes, *net)?)?)))
}

/// What is said of an address in the prefix `holder`, if less `stands` there.
fn taken_back(stands: &Prefix, holder: Prefix) -> Option<Prefix> {
    let is_less = stands.kind == holder.kind && stricter(stands.asked, holder.asked) != stands.asked;
    is_less.then_some(Prefix { until: 0, ..holder })
}

/// Until when it is asked for.
const fn end(prefix: &Prefix) -> u32 {
    if prefix.until == 0 { u32::MAX } else { prefix.until }
}

const fn is_loose(asked: Asked) -> bool {
    matches!(asked, Asked::Exempt | Asked::Prefer)
}

/// The stricter of both. What the mesh asks for is no less than `Prefer`, and no more than `Require`.
pub(super) fn stricter(one: Asked, other: Asked) -> Asked {
    let rank = |asked: &Asked| match asked {
        Asked::Exempt => 0,
        Asked::Prefer => 1,
        Asked::Mesh => 2,
        Asked::Require => 3,
    };
    [one, other].into_iter().max_by_key(rank).unwrap_or(one)
}

/// Writes it into `out`. What was kept on disk may be older than what `stands` in the map, so until all was told nothing that stands is
/// loosened.
pub(super) fn ask(
    inputs: &Inputs<'_>,
    origins: &Origins,
    stands: &BTreeMap<IpNet, Prefix>,
    out: &mut Desired,
) {
    ask_as_known(inputs, origins, stands, out);
    if may_have_come(inputs) && inputs.knowledge.snapshot().mode() != Some(FlowMode::Require) {
        // A node that boots: of whom nothing stands, as much may be asked as of anybody.
        let new =
            out.prefixes.iter_mut().filter(|(net, prefix)| is_pods(prefix) && !stands.contains_key(*net));
        new.for_each(|(_, prefix)| prefix.asked = Asked::Require);
    }
    let less: Vec<_> = left_standing(inputs, origins, stands, out).collect();
    out.prefixes.extend(less);
    if inputs.told.all {
        return;
    }
    for (net, prefix) in &mut out.prefixes {
        let is_stricter = |stands: &Prefix| {
            let is_sooner = stands.asked == prefix.asked && end(stands) < end(prefix);
            stands.kind == prefix.kind && (is_sooner || stricter(stands.asked, prefix.asked) != prefix.asked)
        };
        if let Some(stands) = around(stands, *net).filter(is_stricter) {
            (prefix.asked, prefix.until) = (stands.asked, stands.until);
        }
    }
}

/// Of a pod of this node that nobody has told us of the most is asked for that is of anybody, and so it is of
/// an address of the pods' ranges that no node owns; of a pod of another node of which nothing else was said what is asked of all, since
/// that node knows better, and refuses what comes in plain. Until it was told of whom something else is said, what `stands` in the map of
/// other nodes' pods stays, and of a prefix that is not there yet the most is asked: a node that begins anew opens nothing by that it
/// has not heard yet.
///
/// Less than the mesh asks for is asked only of pods of this node of which it is known by which device they speak.
fn ask_as_known(inputs: &Inputs<'_>, origins: &Origins, stands: &BTreeMap<IpNet, Prefix>, out: &mut Desired) {
    let prefixes = &mut out.prefixes;
    let (snapshot, assignment) = (inputs.knowledge.snapshot(), inputs.assignment);
    let Some(base) = snapshot.mode().filter(|_| !snapshot.policies.is_empty()) else { return };
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
    let asked_of = snapshot.workloads.asked(&snapshot.policies, base, inputs.node, owner_of);
    let count = |is_it: fn(Asked) -> bool| {
        asked_of.values().filter(|standing| is_it(of(base, **standing, inputs).0)).count()
    };
    let required = count(|asked| asked == Asked::Require);
    let is_too_much = required > MOST_EXCEPTIONS;
    // Who is exempt takes no room from others.
    let loose = count(is_loose);
    let has_room = required + loose <= MOST_EXCEPTIONS;
    out.problems.extend((!has_room).then(|| too_many(required, loose)));
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
            PrefixKind::LocalPods if origins.disputed.contains(&address) => {
                out.held_back.insert(address, HeldBack::Disputed);
                continue;
            }
            PrefixKind::LocalPods if is_loose(asked) && !origins.known.contains_key(&address) => {
                out.held_back.insert(address, HeldBack::DeviceUnknown);
                (Asked::Mesh, 0)
            }
            // What no node owns goes nowhere, whatever is asked of it.
            PrefixKind::UnownedPods if is_loose(asked) => (Asked::Mesh, 0),
            _ => (asked, until),
        };
        // A node's own address is no pod's, whatever a pod says.
        let is_pods = prefixes.get(&own).is_none_or(|_| Some(own) == net);
        if let Some(entry) = entry(asked, until, unknown, holder, stands.get(&own)).filter(|_| is_pods) {
            prefixes.insert(own, entry);
        }
        let datapath = inputs.observed.datapath.as_ref();
        if falls_to_stricter(asked, unknown)
            && holder.kind == PrefixKind::LocalPods
            && is_gone(&address, &origins.known, datapath)
        {
            out.held_back.insert(address, HeldBack::DeviceGone);
        }
    }
}

/// Would more be asked of its address than `asked`, if the pod were not known any more?
fn falls_to_stricter(asked: Asked, unknown: Asked) -> bool {
    is_loose(asked) || asked == Asked::Mesh && unknown != Asked::Mesh
}

/// What is said of an address that lies in the prefix `holder`, over what `stands` there; `None` where that says it already.
fn entry(
    asked: Asked,
    until: u32,
    unknown: Asked,
    holder: Prefix,
    stands: Option<&Prefix>,
) -> Option<Prefix> {
    // Said of pods of this node even where it goes without saying: what was said before has to give way, and nothing is removed on
    // hearsay.
    let is_worth_it = asked != Asked::Mesh || holder.kind == PrefixKind::LocalPods && unknown != Asked::Mesh;
    // Told anew only where it is another end.
    let same = stands.filter(|stands| stands.until.abs_diff(until) <= SLACK && until != 0);
    let until = same.map_or(until, |stands| stands.until);
    is_worth_it.then_some(Prefix { asked, until, ..holder })
}

/// Why an address of a pod of this node is held to more than policies ask of that pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeldBack {
    /// Less would be asked of it than of all, but it is not known by which device it speaks.
    DeviceUnknown,
    /// The device by which it spoke is gone.
    DeviceGone,
    /// The source tells of another pod than the one whose device is there.
    Disputed,
    /// All that is told of the pod is of before this node was started.
    BeforeBoot,
}

fn too_many(required: usize, loose: usize) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: TOO_MANY.to_owned(),
        field: String::new(),
        message: format!(
            "{required} addresses of which encryption is required, and {loose} of which less is asked than of all, are more than the \
             {MOST_EXCEPTIONS} that are told one by one: other nodes' pods are held to what the mesh asks for where less is asked of them, \
             and all of a node's to what is required of one where those alone are too many"
        ),
        advice: "Let policies select fewer pods, or ask it of all by spec.mode of EncryptionMesh default"
            .to_owned(),
    }
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
    around(prefixes, IpNet::from(address))
}

/// What the longest prefix says that holds all of `net`.
fn around(prefixes: &BTreeMap<IpNet, Prefix>, net: IpNet) -> Option<Prefix> {
    let mut holders = (0..=net.prefix_len()).rev().filter_map(|length| IpNet::new(net.addr(), length).ok());
    holders.find_map(|net| prefixes.get(&net.trunc())).copied()
}

fn pods_of<'a>((node, owned): (&'a str, &'a [(IpNet, Class)])) -> impl Iterator<Item = (IpNet, &'a str)> {
    owned.iter().filter(|(_, class)| *class == Class::Pods).map(move |(net, _)| (*net, node))
}

/// The device by which the pod with this address spoke is not there any more.
fn is_gone(address: &IpAddr, origins: &BTreeMap<IpAddr, Origin>, datapath: Option<&Datapath>) -> bool {
    datapath.zip(origins.get(address)).is_some_and(|(datapath, origin)| {
        datapath.origins.get(address) == Some(origin) && !is_alive(Some(datapath), origin)
    })
}
