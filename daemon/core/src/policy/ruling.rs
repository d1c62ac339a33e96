//! Why an end, or a flow, is held to what it is: the policies that select a pod, and which rule decides.

use std::fmt;

use jiff::Timestamp;
use kubeveil_api::{
    mesh::Mode,
    policy::{FlowMode, PolicyMode},
    selector::Labels,
};
use serde::{Serialize, Serializer};

use super::{Policies, PolicyId, Standing, end, flow};

/// A pod as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Labels of that.
    pub namespace_labels: &'a Labels,
    /// Its own.
    pub labels: &'a Labels,
}

/// A policy that selects a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selecting {
    /// Which.
    #[serde(serialize_with = "as_text")]
    pub policy: PolicyId,
    /// What it asks for.
    pub mode: PolicyMode,
    /// When it ceases to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// That time has come, so it counts no more.
    pub ended: bool,
}

/// What decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Rule {
    /// A policy.
    Policy {
        /// Which.
        #[serde(serialize_with = "as_text")]
        policy: PolicyId,
        /// What it asks for.
        mode: PolicyMode,
    },
    /// The most that any policy asks for: nobody knows who this is.
    #[serde(rename_all = "camelCase")]
    Strictest {
        /// That.
        mode: FlowMode,
    },
    /// The mesh.
    #[serde(rename_all = "camelCase")]
    Mesh {
        /// Its own mode.
        mode: Mode,
        /// What that comes to, with the policies that there are.
        acts_as: FlowMode,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy { policy, mode } => write!(f, "{policy}: {mode}"),
            Self::Strictest { mode } => write!(f, "the strictest policy, of whoever is not known: {mode}"),
            Self::Mesh { mode, acts_as } if acts_as.name() == mode.name() => {
                write!(f, "EncryptionMesh default: {mode}")
            }
            Self::Mesh { mode, acts_as } => {
                write!(
                    f,
                    "EncryptionMesh default: {mode}, which acts as {acts_as}, since policies ask for encryption"
                )
            }
        }
    }
}

pub(super) fn as_text<S: Serializer>(policy: &PolicyId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(policy)
}

/// What one end is held to, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ruling {
    /// Policies that select it, by name.
    pub selected_by: Vec<Selecting>,
    /// What it is held to.
    pub mode: FlowMode,
    /// Why.
    pub rules: Vec<Rule>,
    #[serde(skip)]
    standing: Option<Standing>,
}

/// Mesh and policies: what decides on everybody.
#[derive(Clone, Debug)]
pub struct Law {
    /// The mesh's own mode.
    pub mesh: Mode,
    /// All policies.
    pub policies: Policies,
}

/// What a flow is held to, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRuling {
    /// What it is held to ([`flow`]).
    pub mode: FlowMode,
    /// Why: of the end or the ends that are as strict.
    pub rules: Vec<Rule>,
}

impl Law {
    /// What happens to a flow of which no policy asks for anything.
    pub fn base(&self) -> FlowMode {
        self.policies.base(self.mesh)
    }

    /// As it would be without a policy.
    #[must_use]
    pub fn without(&self, policy: &PolicyId) -> Self {
        let rest = self.policies.iter().filter(|(id, _)| *id != policy);
        let rest = rest.map(|(id, policy)| (id.clone(), policy.clone())).collect();
        Self { mesh: self.mesh, policies: Policies::new(rest) }
    }

    fn mesh_rule(&self) -> Rule {
        Rule::Mesh { mode: self.mesh, acts_as: self.base() }
    }

    /// On a pod at `now`.
    pub fn on_pod(&self, pod: Subject<'_>, now: Timestamp) -> Ruling {
        let of = self.policies.of_namespace(pod.namespace, pod.namespace_labels);
        let selecting = of.selecting(pod.labels).map(|(id, policy)| Selecting {
            policy: id.clone(),
            mode: policy.mode,
            until: policy.until,
            ended: policy.until.is_some_and(|until| until <= now),
        });
        let mut selected_by: Vec<Selecting> = selecting.collect();
        selected_by.sort_by(|a, b| a.policy.cmp(&b.policy));
        let standing = of.standing(pod.labels);
        let mode = end(self.base(), standing, now);
        let deciding = selected_by.iter().filter(|one| !one.ended && FlowMode::from(one.mode) == mode);
        let mut rules: Vec<Rule> =
            deciding.map(|one| Rule::Policy { policy: one.policy.clone(), mode: one.mode }).collect();
        if rules.is_empty() {
            rules.push(self.mesh_rule());
        }
        Ruling { selected_by, mode, rules, standing }
    }

    /// On whom no policy is about: a node, or what is outside of the cluster.
    pub fn on_others(&self) -> Ruling {
        let base = self.base();
        Ruling { selected_by: Vec::new(), mode: base, rules: vec![self.mesh_rule()], standing: None }
    }

    /// On a pod of whom nothing is known: as much is asked of it as of anybody.
    pub fn on_unknown(&self) -> Ruling {
        let standing = (self.policies.strictest() == Some(PolicyMode::Require))
            .then_some(Standing { mode: PolicyMode::Require, until: None });
        match standing {
            Some(_) if self.base() < FlowMode::Require => {
                let mode = FlowMode::Require;
                Ruling { selected_by: Vec::new(), mode, rules: vec![Rule::Strictest { mode }], standing }
            }
            _ => self.on_others(),
        }
    }

    /// On a flow between two ends at `now`.
    pub fn on_flow(&self, ends: [&Ruling; 2], now: Timestamp) -> FlowRuling {
        let mode = flow(self.base(), ends.map(|end| end.standing), now);
        let mut rules: Vec<Rule> = Vec::new();
        for rule in ends.iter().filter(|end| end.mode == mode).flat_map(|end| &end.rules) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        // A policy says more than the mesh that asks for the same.
        if rules.iter().any(|rule| matches!(rule, Rule::Policy { .. })) {
            rules.retain(|rule| matches!(rule, Rule::Policy { .. }));
        }
        FlowRuling { mode, rules }
    }
}
