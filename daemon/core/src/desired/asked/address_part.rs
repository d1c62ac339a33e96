//! What becomes of a few addresses of pods of which something else is asked than was, where all else is as it was: while pods come and go
//! somewhere in a large cluster, and people label those that are there, nearly all that an agent hears is of this kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubeveil_abi::{Asked, PrefixKind};

use super::{
    MOST_EXCEPTIONS, TOO_MANY, entry, falls_to_stricter, is_gone, is_loose, of, pods_of, taken_back, unknown,
};
use crate::{
    action::Action,
    desired::{Desired, Inputs},
    observed::{Observed, Prefix},
    plan::plan_addresses,
    policy::{
        OfNamespace, Standing,
        pods::{Concerned, Pod},
    },
    snapshot::{Snapshot, Synced},
};

/// What is wanted, and seen, of a few addresses alone.
#[derive(Debug, Default)]
pub struct AddressPart {
    desired: BTreeMap<IpNet, Prefix>,
    observed: BTreeMap<IpNet, Prefix>,
    /// All that is decided of.
    all: BTreeSet<IpNet>,
}

impl AddressPart {
    /// Of those of which something else may be asked than when `last` was decided on; nothing else among `inputs` is otherwise, and what
    /// is observed there is as `last` wants it. `None` where that concerns others too, or somebody has to be told: then all is to be
    /// decided anew.
    pub fn of(inputs: &Inputs<'_>, last: &Desired, concerned: &Concerned) -> Option<Self> {
        let snapshot = inputs.knowledge.snapshot();
        let datapath = inputs.observed.datapath.as_ref()?;
        let base = snapshot.mode().filter(|_| !snapshot.policies.is_empty())?;
        let is_too_much = last.problems.iter().any(|problem| problem.object == TOO_MANY);
        if is_too_much || !inputs.told.all || !has_room(snapshot) {
            return None;
        }
        let unknown = unknown(&snapshot.policies);
        let is_whole = inputs.knowledge.synced().is_some();
        let mut part = Self::default();
        // Of a namespace that is labelled otherwise all pods are asked about.
        let mut of_namespaces = BTreeMap::new();
        for (node, addresses) in concerned {
            let is_ours = node == inputs.node;
            let prefixes: Vec<IpNet> =
                pods_of((node.as_str(), inputs.assignment.of(node))).map(|(net, _)| net).collect();
            for address in addresses {
                let around = prefixes.iter().filter(|net| net.contains(address));
                let net = match around.max_by_key(|net| net.prefix_len()) {
                    Some(net) => net,
                    // Of a pod of ours it may be all the same.
                    None if is_ours => return None,
                    // Nobody but its owner says what has an address.
                    None => continue,
                };
                let own = IpNet::from(*address);
                if is_somebody_elses(inputs, own) {
                    return None;
                }
                let standing = match is_ours {
                    true => ours(snapshot, &mut of_namespaces, node, address)?,
                    false => theirs(snapshot, node, address)?,
                };
                let (asked, until) = of(base, standing, inputs);
                let Some(holder) = last.prefixes.get(net) else { continue };
                match holder.kind {
                    PrefixKind::RemotePods if !is_ours => {}
                    PrefixKind::LocalPods if is_ours && is_held_as_asked(inputs, last, address, asked) => {}
                    _ => return None,
                }
                let stands = datapath.prefixes.get(&own);
                part.all.insert(own);
                part.observed.extend(stands.map(|stands| (own, *stands)));
                let entry = entry(asked, until, unknown, *holder, stands);
                let entry = entry.or_else(|| taken_back(stands.filter(|_| !is_whole)?, *holder));
                part.desired.extend(entry.map(|entry| (own, entry)));
            }
        }
        Some(part)
    }

    /// What leads from what is to what should be.
    pub fn plan(&self, synced: Option<&Synced>) -> Vec<Action> {
        plan_addresses(&self.desired, &self.observed, synced)
    }

    /// That was carried out: what is wanted and seen of these addresses, in place of what was in `desired` and `observed`.
    pub fn put_back(self, desired: &mut Desired, observed: &mut Observed) {
        let seen = observed.datapath.as_mut().map(|datapath| &mut datapath.prefixes);
        for prefixes in [Some(&mut desired.prefixes), seen].into_iter().flatten() {
            for address in &self.all {
                match self.desired.get(address) {
                    Some(entry) => prefixes.insert(*address, *entry),
                    None => prefixes.remove(address),
                };
            }
        }
    }
}

/// Is there an entry for each of whom anything is said?
fn has_room(snapshot: &Snapshot) -> bool {
    let workloads = &snapshot.workloads;
    let elsewhere = workloads.elsewhere.values().map(|of| of.len());
    let named = workloads.pods.values().map(|pod| pod.addresses.len());
    workloads.knows_elsewhere && elsewhere.chain(named).sum::<usize>() <= MOST_EXCEPTIONS
}

/// A prefix of one address that is there without any policy.
fn is_somebody_elses(inputs: &Inputs<'_>, own: IpNet) -> bool {
    let mesh = inputs.knowledge.snapshot().mesh.as_ref();
    let is_range = mesh.is_some_and(|mesh| mesh.pod_cidrs.iter().any(|range| range.trunc() == own));
    is_range || inputs.assignment.contested.contains(&own) || inputs.assignment.prefixes.contains_key(&own)
}

/// What is asked of the pod of `node`, this very one, that has `address`; `None` where several have it, or its namespace is not known.
/// What selects pods of a namespace is looked for once, and kept in `of_namespaces`.
fn ours<'a>(
    snapshot: &'a Snapshot,
    of_namespaces: &mut BTreeMap<&'a str, OfNamespace>,
    node: &str,
    address: &IpAddr,
) -> Option<Option<Standing>> {
    let mut holders = holders(snapshot, address);
    let pod = holders.next().filter(|pod| holders.next().is_none() && pod.node == node)?;
    let labels = snapshot.workloads.namespaces.get(&pod.namespace)?;
    let of_namespace = of_namespaces
        .entry(&pod.namespace)
        .or_insert_with(|| snapshot.policies.of_namespace(&pod.namespace, labels));
    Some(of_namespace.standing(&pod.labels))
}

/// What `node` says of `address`; `None` where a pod that has it was told of by name.
fn theirs(snapshot: &Snapshot, node: &str, address: &IpAddr) -> Option<Option<Standing>> {
    if holders(snapshot, address).next().is_some() {
        return None;
    }
    Some(snapshot.workloads.elsewhere.get(node).and_then(|of| of.get(address)).copied())
}

fn holders<'a>(snapshot: &'a Snapshot, address: &IpAddr) -> impl Iterator<Item = &'a Pod> {
    snapshot.workloads.pods.values().filter(|pod| pod.addresses.contains(address))
}

/// Was nothing else to be held of this node's pod there, and is nothing else to be now that this is asked?
fn is_held_as_asked(inputs: &Inputs<'_>, last: &Desired, address: &IpAddr, asked: Asked) -> bool {
    let unknown = unknown(&inputs.knowledge.snapshot().policies);
    let is_known = last.origins.contains_key(address);
    let is_gone = is_gone(address, &last.origins, inputs.observed.datapath.as_ref());
    let is_held_back = last.held_back.contains_key(address)
        || is_loose(asked) && !is_known
        || is_gone && falls_to_stricter(asked, unknown);
    !is_held_back
}

#[cfg(test)]
mod tests;
