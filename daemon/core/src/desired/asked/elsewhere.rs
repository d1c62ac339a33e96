//! What becomes of a few nodes' pods of which something else is asked than was, where all else is as it was: while pods come and go
//! somewhere in a large cluster, nearly all that an agent hears is of this kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use kubeveil_abi::PrefixKind;

use super::{MOST_EXCEPTIONS, TOO_MANY, entry, of, pods_of, unknown};
use crate::{
    action::Action,
    desired::{Desired, Inputs},
    observed::{Observed, Prefix},
    plan::plan_addresses,
    policy::pods::Exceptions,
    snapshot::{Snapshot, Synced},
};

/// What is wanted, and seen, of a few addresses alone.
#[derive(Debug)]
pub struct Elsewhere {
    desired: BTreeMap<IpNet, Prefix>,
    observed: BTreeMap<IpNet, Prefix>,
    /// All that is decided of.
    addresses: BTreeSet<IpNet>,
}

impl Elsewhere {
    /// Of pods of nodes of which something else is said than `before`, when `last` was decided on; nothing else among `inputs` is, and
    /// what is observed there is as `last` wants it. `None` where that concerns others too, or somebody has to be told: then all is to be
    /// decided anew.
    pub fn of(
        inputs: &Inputs<'_>,
        last: &Desired,
        before: &BTreeMap<String, Arc<Exceptions>>,
    ) -> Option<Self> {
        let snapshot = inputs.knowledge.snapshot();
        let datapath = inputs.observed.datapath.as_ref()?;
        let base = snapshot.mode().filter(|_| !snapshot.policies.is_empty())?;
        let is_told = last.problems.iter().any(|problem| problem.object == TOO_MANY);
        if is_told || !has_room(snapshot, before) || before.contains_key(inputs.node) {
            return None;
        }
        let unknown = unknown(&snapshot.policies);
        let mut part =
            Self { desired: BTreeMap::new(), observed: BTreeMap::new(), addresses: BTreeSet::new() };
        for (node, before) in before {
            let now = snapshot.workloads.elsewhere.get(node);
            let prefixes: Vec<IpNet> =
                pods_of((node.as_str(), inputs.assignment.of(node))).map(|(net, _)| net).collect();
            let addresses: BTreeSet<&IpAddr> =
                before.keys().chain(now.iter().flat_map(|now| now.keys())).collect();
            for address in addresses {
                // Nobody but its owner says what has an address.
                let around = prefixes.iter().filter(|net| net.contains(address));
                let Some(net) = around.max_by_key(|net| net.prefix_len()) else { continue };
                let own = IpNet::from(*address);
                if is_somebody_elses(inputs, own) || names(snapshot, address) {
                    return None;
                }
                let Some(holder) = last.prefixes.get(net) else { continue };
                if holder.kind != PrefixKind::RemotePods {
                    return None;
                }
                let (asked, until) = of(base, now.and_then(|now| now.get(address)).copied(), inputs);
                let stands = datapath.prefixes.get(&own);
                part.addresses.insert(own);
                part.observed.extend(stands.map(|stands| (own, *stands)));
                let entry = entry(asked, until, unknown, *holder, stands);
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
            for address in &self.addresses {
                match self.desired.get(address) {
                    Some(entry) => prefixes.insert(*address, *entry),
                    None => prefixes.remove(address),
                };
            }
        }
    }
}

/// Is there, and was there, an entry for each of whom anything is said?
fn has_room(snapshot: &Snapshot, before: &BTreeMap<String, Arc<Exceptions>>) -> bool {
    let workloads = &snapshot.workloads;
    let elsewhere = workloads.elsewhere.values().chain(before.values()).map(|of| of.len());
    let named = workloads.pods.values().map(|pod| pod.addresses.len());
    workloads.knows_elsewhere && elsewhere.chain(named).sum::<usize>() <= MOST_EXCEPTIONS
}

/// A prefix of one address that is there without any policy.
fn is_somebody_elses(inputs: &Inputs<'_>, own: IpNet) -> bool {
    let mesh = inputs.knowledge.snapshot().mesh.as_ref();
    let is_range = mesh.is_some_and(|mesh| mesh.pod_cidrs.iter().any(|range| range.trunc() == own));
    is_range || inputs.assignment.contested.contains(&own) || inputs.assignment.prefixes.contains_key(&own)
}

/// A pod with this address was told of by name.
fn names(snapshot: &Snapshot, address: &IpAddr) -> bool {
    snapshot.workloads.pods.values().any(|pod| pod.addresses.contains(address))
}

#[cfg(test)]
mod tests;
