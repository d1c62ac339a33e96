//! What must be encrypted, by who pods are: policies select pods by labels, and a pod's standing is the strictest of what those that
//! select it ask for. A flow is as strict as the stricter of its two ends ([`flow`]); what no policy selects goes by the mesh.
//!
//! There are no priorities, so the order of policies can't matter; and since the strictest counts, one policy more that only tightens
//! never opens anything. An exemption ends by the clock without anybody deciding anew: when it does is a part of the standing.

pub mod census;
pub mod diff;
pub mod expect;
pub mod explain;
mod given;
mod place;
pub mod pods;
pub mod ruling;
pub mod services;
#[cfg(test)]
mod tests;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use jiff::Timestamp;
use kubeveil_api::{
    mesh::Mode,
    policy::PolicyMode,
    schedule::Period,
    selector::{LabelSelector, Labels},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use given::Refusal;
pub use kubeveil_api::policy::FlowMode;

/// A policy's name; of a namespace if it is of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct PolicyId {
    /// `None`: it is of the cluster.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "EncryptionPolicy {namespace}/{}", self.name),
            None => write!(f, "ClusterEncryptionPolicy {}", self.name),
        }
    }
}

/// Of which namespaces a policy selects pods.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Namespaces {
    /// Of this one.
    One(String),
    /// Of those whose labels are so.
    Labelled(LabelSelector),
}

/// A policy, as far as it is about the mode.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Policy {
    /// Whose pods.
    pub namespaces: Namespaces,
    /// Which of them.
    pub pods: LabelSelector,
    /// What it asks for.
    pub mode: PolicyMode,
    /// When it ceases to; only what is exempt has an end.
    pub until: Option<Timestamp>,
    /// Keys that are older are told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_key_age: Option<Period>,
}

/// What policies ask for of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Without a tunnel.
    pub mode: PolicyMode,
    /// Until when; after that no policy selects the pod. `None`: for ever.
    pub until: Option<Timestamp>,
}

impl Standing {
    /// Does it come to something else than a mesh of mode `base` asks of all? What a policy requires does, though the mesh requires it of all:
    /// pairs that adoption leaves open are closed to whom a policy is about. Where nothing is steered there is nothing to be exempt from.
    pub fn is_exception(&self, base: FlowMode) -> bool {
        match self.mode {
            PolicyMode::Require => true,
            PolicyMode::Prefer => base == FlowMode::Require,
            PolicyMode::Exempt => base != FlowMode::Observe,
        }
    }

    /// The stricter of both. Of two exemptions that is none: either of them suffices, so the later end counts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self.mode.cmp(&other.mode) {
            Ordering::Greater => self,
            Ordering::Less => other,
            Ordering::Equal => {
                Self { mode: self.mode, until: self.until.and_then(|until| Some(until.max(other.until?))) }
            }
        }
    }
}

impl Policy {
    fn standing(&self) -> Standing {
        Standing { mode: self.mode, until: self.until.filter(|_| self.mode == PolicyMode::Exempt) }
    }

    fn is_of(&self, namespace: &str, labels: &Labels) -> bool {
        match &self.namespaces {
            Namespaces::One(name) => name == namespace,
            Namespaces::Labelled(selector) => selector.selects(labels),
        }
    }
}

/// All policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Vec<(PolicyId, Policy)>", into = "Vec<(PolicyId, Policy)>")]
pub struct Policies {
    all: BTreeMap<PolicyId, Arc<Policy>>,
}

impl From<Vec<(PolicyId, Policy)>> for Policies {
    fn from(all: Vec<(PolicyId, Policy)>) -> Self {
        Self::new(all.into_iter().collect())
    }
}

impl From<Policies> for Vec<(PolicyId, Policy)> {
    fn from(policies: Policies) -> Self {
        policies.all.into_iter().map(|(id, policy)| (id, (*policy).clone())).collect()
    }
}

impl Policies {
    /// Those.
    pub fn new(all: BTreeMap<PolicyId, Policy>) -> Self {
        Self { all: all.into_iter().map(|(id, policy)| (id, Arc::new(policy))).collect() }
    }

    /// Each, by its name.
    pub fn iter(&self) -> impl Iterator<Item = (&PolicyId, &Policy)> {
        self.all.iter().map(|(id, policy)| (id, &**policy))
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those of `before` as well that are not among these.
    pub fn or_before(&mut self, before: &Self) {
        for (id, policy) in &before.all {
            self.all.entry(id.clone()).or_insert_with(|| policy.clone());
        }
    }

    /// Of what there was `before`, those of these namespaces as well. What ends a namespace takes its objects away in any order, so
    /// that pods speak when the policies that held them are gone: as long as it is not over, those stand.
    pub fn or_of(&mut self, before: &Self, namespaces: &BTreeSet<String>) {
        let of_them = |id: &PolicyId| id.namespace.as_ref().is_some_and(|name| namespaces.contains(name));
        for (id, policy) in before.all.iter().filter(|(id, _)| of_them(id)) {
            self.all.entry(id.clone()).or_insert_with(|| policy.clone());
        }
    }

    /// Those that select pods of `namespace` with `labels`.
    pub fn of_namespace(&self, namespace: &str, labels: &Labels) -> OfNamespace {
        let mut of = OfNamespace::default();
        for (id, policy) in self.all.iter().filter(|(_, policy)| policy.is_of(namespace, labels)) {
            of.add(id.clone(), policy.clone());
        }
        of
    }

    /// What the mesh's mode comes to: with anything in force that wants encryption, an observing mesh steers as well.
    pub fn base(&self, mesh: Mode) -> FlowMode {
        let wants = self.all.values().any(|policy| policy.mode > PolicyMode::Exempt);
        match mesh {
            Mode::Require => FlowMode::Require,
            Mode::Observe if !wants => FlowMode::Observe,
            Mode::Prefer | Mode::Observe => FlowMode::Prefer,
        }
    }

    /// The least age above which any of them has keys told of, and which it is.
    pub fn max_key_age(&self) -> Option<(&PolicyId, Period)> {
        let ages = self.all.iter().filter_map(|(id, policy)| Some((id, policy.max_key_age?)));
        ages.min_by_key(|(_, most)| most.seconds())
    }

    /// When each exemption ends that has not at `now`; `None`: never.
    pub fn exemptions(&self, now: Timestamp) -> impl Iterator<Item = Option<Timestamp>> {
        let exempt = self.all.values().filter(|policy| policy.mode == PolicyMode::Exempt);
        exempt.map(|policy| policy.until).filter(move |until| until.is_none_or(|until| now < until))
    }

    /// Which they are, in few words: those who name the same digest have the same policies. `None` where there is none. Those of namespaces
    /// that are being deleted are left out: who came later never heard of them.
    pub fn digest(&self, ending: &BTreeSet<String>) -> Option<String> {
        // 64 bits: nobody gains by two sets that have the same.
        const BYTES: usize = 8;
        let ends = |id: &PolicyId| id.namespace.as_ref().is_some_and(|namespace| ending.contains(namespace));
        let stay: Vec<_> = self.all.iter().filter(|(id, _)| !ends(id)).collect();
        let text = serde_json::to_vec(&stay).ok().filter(|_| !stay.is_empty())?;
        let bytes = Sha256::digest(&text);
        Some(bytes[..BYTES].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The most that any of them asks for: of somebody of whom nothing is known as much might be asked.
    pub fn strictest(&self) -> Option<PolicyMode> {
        self.all.values().map(|policy| policy.mode).max()
    }

    /// The least.
    pub fn loosest(&self) -> Option<PolicyMode> {
        self.all.values().map(|policy| policy.mode).min()
    }
}

type Named = (PolicyId, Arc<Policy>);

/// The policies that select pods of one namespace, where most of them need not be looked at for a pod: one that asks for a label is
/// found by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfNamespace {
    /// By the first label that each asks for: its key, and its value.
    by_label: HashMap<String, HashMap<String, Vec<Named>>>,
    others: Vec<Named>,
}

impl OfNamespace {
    fn add(&mut self, id: PolicyId, policy: Arc<Policy>) {
        let place = match policy.pods.match_labels.first_key_value() {
            Some((key, value)) => {
                self.by_label.entry(key.clone()).or_default().entry(value.clone()).or_default()
            }
            None => &mut self.others,
        };
        place.push((id, policy));
    }

    /// Those that select a pod with `labels`, in no order.
    pub fn selecting(&self, labels: &Labels) -> impl Iterator<Item = (&PolicyId, &Policy)> {
        let labelled = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value));
        let candidates = labelled.flatten().chain(&self.others);
        candidates.filter(|(_, policy)| policy.pods.selects(labels)).map(|(id, policy)| (id, &**policy))
    }

    /// What they ask for of it; `None`: nothing, so it goes by the mesh.
    pub fn standing(&self, labels: &Labels) -> Option<Standing> {
        self.selecting(labels).map(|(_, policy)| policy.standing()).reduce(Standing::and)
    }
}

/// What one end asks for at `now`, in a mesh of mode `base`.
pub fn end(base: FlowMode, standing: Option<Standing>, now: Timestamp) -> FlowMode {
    match standing.filter(|standing| standing.until.is_none_or(|until| now < until)) {
        None => base,
        // Where nothing is steered there is nothing to be exempt from.
        Some(_) if base == FlowMode::Observe => base,
        Some(standing) => standing.mode.into(),
    }
}

/// What both of two pods are held to that have one address: the stricter; of two exemptions the one that ends first.
pub fn both(base: FlowMode, one: Option<Standing>, other: Option<Standing>) -> Option<Standing> {
    let mode = |standing: Option<Standing>| standing.map_or(base, |standing| standing.mode.into());
    match mode(one).cmp(&mode(other)) {
        Ordering::Greater => one,
        Ordering::Less => other,
        Ordering::Equal => one.zip(other).map(|(one, other)| stricter(one, other)),
    }
}

/// The same of two that are told of.
fn stricter(one: Standing, other: Standing) -> Standing {
    match one.mode.cmp(&other.mode) {
        Ordering::Greater => one,
        Ordering::Less => other,
        Ordering::Equal => Standing { until: one.until.into_iter().chain(other.until).min(), ..one },
    }
}

/// The mode of a flow between two ends.
pub fn flow(base: FlowMode, ends: [Option<Standing>; 2], now: Timestamp) -> FlowMode {
    let [one, other] = ends.map(|standing| end(base, standing, now));
    one.max(other)
}
