//! What the other nodes are told of pods, and the policies' own status, from who pods are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use jiff::Timestamp;
use kubeveil_api::{
    condition::{Condition, find, keep_transitions},
    mesh::Mode,
    pod_slice::SlicedPod,
    policy::{PolicyMode, PolicyStatus},
    problem::few_statements,
    schedule::Period,
};
use kubeveil_core::{
    agent::{Life, why_not_ready},
    lingering::{Lingering, SETTLE},
    policy::{
        FlowMode, OfNamespace, Policies, Policy, PolicyId, Standing,
        census::{PodId, Resident},
        pods::Pod,
    },
    rotation::schedule::is_too_old,
};

use crate::{
    census::{Census, SeenPod, SeenPolicy},
    seen::Seen,
};

/// All nodes hold pods to it.
const IN_FORCE: &str = "InForce";
/// It selects pods.
const SELECTING: &str = "Selecting";
/// No node's key is older than it allows.
const KEYS_CURRENT: &str = "KeysCurrent";
/// Most names in a message.
const MOST_NAMED: usize = 5;
/// Sets of policies that are remembered: an agent that is farther behind has not heard of the last one.
const MOST_SETS: usize = 64;

/// What is in force, as the agents have it: of a namespace that is being deleted policies stand until it is gone.
#[derive(Debug, Default)]
pub(crate) struct InForce {
    /// Which namespaces are another watch tells, perhaps later.
    lingering: Lingering<PolicyId, Policy>,
    before: Policies,
}

impl InForce {
    /// As of `now`, monotonic: those that can be read, or could be once; true if that is to be looked at again soon.
    pub(crate) fn see(&mut self, census: &Census, now: Duration) -> (Policies, bool) {
        let read = census.policies.iter().filter_map(|seen| Some((seen.id.clone(), seen.good()?.clone())));
        let (mut of_namespaces, of_cluster): (BTreeMap<_, _>, BTreeMap<_, _>) =
            read.partition(|(id, _)| id.namespace.is_some());
        let settle = if census.is_blind { Duration::MAX } else { SETTLE };
        let waits = self.lingering.keep_in(&mut of_namespaces, settle, now);
        of_namespaces.extend(of_cluster);
        let mut policies = Policies::new(of_namespaces);
        policies.or_of(&self.before, &census.ending);
        self.before.clone_from(&policies);
        (policies, waits)
    }
}

/// Pods, and what selects them.
pub(crate) struct Selected {
    /// The pods of each node of which something else is asked for than of all, or encryption is required.
    pub(crate) slices: BTreeMap<String, Vec<SlicedPod>>,
    /// How many each policy selects, and how many of them share their node's addresses.
    counts: BTreeMap<PolicyId, [u32; 2]>,
}

impl Selected {
    /// In a mesh of this mode.
    pub(crate) fn of(census: &Census, policies: &Policies, mode: Mode) -> Self {
        let base = policies.base(mode);
        let of_namespaces: BTreeMap<&str, OfNamespace> = census
            .namespaces
            .iter()
            .map(|(name, labels)| (name.as_str(), policies.of_namespace(name, labels)))
            .collect();
        let held = held(census);
        let mut selected = Self { slices: BTreeMap::new(), counts: BTreeMap::new() };
        let mut others = Vec::new();
        for pod in census.pods.values() {
            let of_namespace = of_namespaces.get(pod.0.namespace.as_str());
            let is_told = of_namespace
                .is_some_and(|of_namespace| selected.add(pod, of_namespace, base, held.contains(&pod.0)));
            if !is_told {
                others.push(&pod.1.pod);
            }
        }
        selected.tighten(base, &others);
        selected
    }

    /// Of an address that several pods have the strictest is told, as their own node holds them: so nothing less than of all where one of
    /// them is told of nothing.
    fn tighten(&mut self, base: FlowMode, others: &[&Pod]) {
        let is_loose = |pod: &SlicedPod| FlowMode::from(pod.mode) < base;
        let loose = self.slices.iter().flat_map(|(node, pods)| {
            let pods = pods.iter().filter(|pod| is_loose(pod));
            pods.flat_map(move |pod| pod.addresses.iter().map(move |address| (node.clone(), *address)))
        });
        let loose: BTreeSet<(String, IpAddr)> = loose.collect();
        let nodes: BTreeSet<&str> = loose.iter().map(|(node, _)| node.as_str()).collect();
        let mut shared = BTreeSet::new();
        for pod in others.iter().filter(|pod| nodes.contains(pod.node.as_str())) {
            let there = pod.addresses.iter().map(|address| (pod.node.clone(), *address));
            shared.extend(there.filter(|at| loose.contains(at)));
        }
        for (node, address) in shared {
            let of_node = self.slices.get_mut(&node).into_iter().flatten();
            of_node.filter(|pod| is_loose(pod)).for_each(|pod| pod.addresses.retain(|at| *at != address));
        }
        self.slices.values_mut().for_each(|pods| pods.retain(|pod| !pod.addresses.is_empty()));
        self.slices.retain(|_, pods| !pods.is_empty());
    }

    /// Is something told of it?
    fn add(
        &mut self,
        (id, resident): &SeenPod,
        policies: &OfNamespace,
        base: FlowMode,
        is_held: bool,
    ) -> bool {
        let Resident { pod, host_network, .. } = resident;
        for (policy, _) in policies.selecting(&pod.labels) {
            let [all, sharing] = self.counts.entry(policy.clone()).or_default();
            (*all, *sharing) = (*all + 1, *sharing + u32::from(*host_network));
        }
        let asked = policies.standing(&pod.labels);
        let held = is_held.then_some(Standing { mode: PolicyMode::Require, until: None });
        let standing = asked.into_iter().chain(held).reduce(Standing::and);
        let standing = standing.filter(|standing| standing.is_exception(base));
        let Some(standing) = standing.filter(|_| !pod.addresses.is_empty()) else { return false };
        let sliced = SlicedPod {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            addresses: pod.addresses.iter().copied().collect(),
            mode: standing.mode,
            until: standing.until,
        };
        self.slices.entry(pod.node.clone()).or_default().push(sliced);
        true
    }
}

/// Pods of namespaces that are being deleted of which the other nodes were told that encryption is required: by a policy that this
/// controller, if it is a later one, has never seen.
fn held(census: &Census) -> BTreeSet<PodId> {
    let told = census.slices.values().filter_map(|slice| slice.pods.as_ref()).flatten();
    let is_held =
        |pod: &&SlicedPod| pod.mode == PolicyMode::Require && census.ending.contains(&pod.namespace);
    told.filter(is_held)
        .map(|pod| PodId { namespace: pod.namespace.clone(), name: pod.name.clone() })
        .collect()
}

/// Which policies there were together, so that an agent that names a digest can be taken at its word for each of them.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    last: Option<String>,
    /// Numbers of sets, by their digest: the later, the greater.
    numbers: BTreeMap<String, u64>,
    /// The first set that each was in, as it is now.
    since: BTreeMap<PolicyId, (Policy, u64)>,
}

impl Sets {
    /// These are in force from now on.
    pub(crate) fn see(&mut self, policies: &Policies, ending: &BTreeSet<String>) {
        let digest = policies.digest(ending).unwrap_or_default();
        if self.last.as_ref() == Some(&digest) {
            return;
        }
        // One that was there before counts anew: others were in between.
        let number = self.numbers.values().max().map_or(0, |last| last + 1);
        self.numbers.insert(digest.clone(), number);
        self.numbers.retain(|_, old| *old + MOST_SETS as u64 > number);
        self.last = Some(digest);
        let before = std::mem::take(&mut self.since);
        for (id, policy) in policies.iter() {
            let first = before.get(id).filter(|(was, _)| was == policy).map_or(number, |(_, first)| *first);
            self.since.insert(id.clone(), (policy.clone(), first));
        }
    }

    /// Does who names `digest` hold pods to this one, as it is now? `None`: nobody can tell.
    fn holds(&self, id: &PolicyId, digest: &str) -> Option<bool> {
        Some(self.numbers.get(digest)? >= &self.since.get(id)?.1)
    }
}

/// The status of each policy that has to be told anew; `are_told`: all slices stand as they should.
pub(crate) fn statuses<'a>(
    census: &'a Census,
    selected: &Selected,
    sets: &Sets,
    seen: &Seen,
    are_told: bool,
    now: Timestamp,
) -> Vec<(&'a SeenPolicy, PolicyStatus)> {
    let told = |policy: &'a SeenPolicy| {
        let behind = are_told.then(|| behind(policy, sets, seen));
        let old = keys_too_old(policy, seen, now);
        let status = status(policy, selected, behind.as_ref(), old, now);
        (policy, status)
    };
    census.policies.iter().map(told).filter(|(policy, status)| policy.status != *status).collect()
}

/// Nodes that don't hold pods to it, as far as they say.
fn behind<'a>(policy: &SeenPolicy, sets: &Sets, seen: &'a Seen) -> BTreeSet<&'a str> {
    let was_in_force = policy.status.observed_generation == policy.generation
        && find(&policy.status.conditions, IN_FORCE).is_some_and(Condition::holds);
    let holds = |node: &&String| {
        // What an agent said last counts no more where it is gone, or does not enforce.
        let said = seen.veil_nodes.get(*node).and_then(Option::as_ref);
        let said =
            said.filter(|_| why_not_ready(Life::of_pod(seen.agents.get(*node).copied()), said).is_none());
        let digest = said.and_then(|said| said.policies.as_deref());
        digest.is_some_and(|digest| sets.holds(&policy.id, digest).unwrap_or(was_in_force))
    };
    seen.nodes.keys().filter(|node| !holds(node)).map(String::as_str).collect()
}

/// Nodes whose keys are older than the policy allows, as far as they say; `None` if it allows any age.
fn keys_too_old<'a>(policy: &SeenPolicy, seen: &'a Seen, now: Timestamp) -> Option<(Period, Vec<&'a str>)> {
    let most = policy.good()?.max_key_age?;
    let is_old = |node: &&String| {
        let said = seen.veil_nodes.get(*node).and_then(Option::as_ref);
        said.and_then(|said| said.key_created_at).is_some_and(|created| is_too_old(Some(most), created, now))
    };
    Some((most, seen.nodes.keys().filter(is_old).map(String::as_str).collect()))
}

fn status(
    seen: &SeenPolicy,
    selected: &Selected,
    behind: Option<&BTreeSet<&str>>,
    old: Option<(Period, Vec<&str>)>,
    now: Timestamp,
) -> PolicyStatus {
    let [pods, sharing] = selected.counts.get(&seen.id).copied().unwrap_or_default();
    let in_force =
        |holds: bool, reason: &str, message: String| Condition::new(IN_FORCE, holds, reason, message, now);
    let first = match &seen.policy {
        Err(why) => in_force(false, "Unreadable", format!("{why}; its last good state, if there was one, stands")),
        Ok(_) => match behind {
            None => in_force(
                false,
                "SendersNotTold",
                "the VeilPodSlices, which tell nodes of each other's pods, can't be written: see the controller's log"
                    .to_owned(),
            ),
            Some(nodes) if nodes.is_empty() => {
                in_force(true, "AllNodesHold", "all nodes hold pods to it".to_owned())
            }
            Some(nodes) => {
                let named = few_statements(nodes.iter(), MOST_NAMED);
                let message = format!("{} nodes don't hold pods to it yet: {named}", nodes.len());
                in_force(false, "NodesBehind", message)
            }
        },
    };
    let selecting =
        |holds: bool, reason: &str, message: String| Condition::new(SELECTING, holds, reason, message, now);
    let second = match (pods, sharing) {
        (0, _) => selecting(
            false,
            "NoPods",
            "it selects no pod that there is: compare its selectors with labels of pods and namespaces"
                .to_owned(),
        ),
        (_, 0) => selecting(true, "PodsSelected", "it selects pods".to_owned()),
        (all, sharing) if all == sharing => selecting(
            false,
            "OnlyHostNetwork",
            "all pods that it selects share their node's addresses, of which no policy asks anything"
                .to_owned(),
        ),
        _ => selecting(
            true,
            "SomeHostNetwork",
            "some pods that it selects share their node's addresses, of which no policy asks anything"
                .to_owned(),
        ),
    };
    let third = old.map(|(most, nodes)| match nodes.len() {
        0 => Condition::new(
            KEYS_CURRENT,
            true,
            "AllKeysCurrent",
            format!("no node's key is older than {most}"),
            now,
        ),
        count => {
            let named = few_statements(nodes.into_iter(), MOST_NAMED);
            let message = format!("{count} nodes have keys older than {most} (`kubeveil rotate`): {named}");
            Condition::new(KEYS_CURRENT, false, "KeysTooOld", message, now)
        }
    });
    let mut conditions: Vec<Condition> = [first, second].into_iter().chain(third).collect();
    keep_transitions(&mut conditions, &seen.status.conditions);
    PolicyStatus { observed_generation: seen.generation, pods, conditions }
}

#[cfg(test)]
mod tests;
