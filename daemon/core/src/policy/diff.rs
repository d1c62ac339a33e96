//! What other policies would change: of which flows, from what to what.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kubeveil_api::{policy::FlowMode, selector::Labels};
use serde::Serialize;

use super::{
    Policies,
    census::{Census, PodId},
    ruling::{FlowRuling, Law, Rule, Ruling, Subject},
};

/// Those whom no policy can tell apart: of one namespace, and alike in all labels that any policy looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Class {
    /// Nodes, and pods of their network.
    Nodes,
    /// Pods.
    Pods {
        /// Their namespace.
        namespace: String,
        /// Those of their labels that policies look at.
        labels: Labels,
        /// How many there are.
        count: usize,
        /// The first of them.
        example: PodId,
    },
}

/// Classes of whom the same rules decide, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Which.
    pub classes: Vec<Class>,
    #[serde(skip)]
    before: Ruling,
    #[serde(skip)]
    after: Ruling,
}

impl Group {
    /// Is there a flow from one of it to another of it?
    fn has_pairs(&self) -> bool {
        let count = |class: &Class| match class {
            // From node to node all is left alone.
            Class::Nodes => 0,
            Class::Pods { count, .. } => *count,
        };
        let pods: usize = self.classes.iter().map(count).sum();
        let has_nodes = self.classes.contains(&Class::Nodes);
        pods > 1 || pods == 1 && has_nodes
    }
}

/// Flows that would be held to something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Between whom, by their place in [`Diff::groups`]; twice the same is among themselves.
    pub between: [usize; 2],
    /// What they are held to now.
    pub before: FlowRuling,
    /// What they would be.
    pub after: FlowRuling,
}

/// What would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// Those of whom a change speaks.
    pub groups: Vec<Group>,
    /// Changes, those that loosen first.
    pub changes: Vec<Change>,
}

/// What is otherwise by `after` than by `before` at `now`, for those whom `census` knows.
pub fn diff(census: &Census, before: &Law, after: &Law, now: Timestamp) -> Diff {
    let groups = groups(census, before, after, now);
    let mut changes = Vec::new();
    for (i, one) in groups.iter().enumerate() {
        for (j, other) in groups.iter().enumerate().skip(i) {
            if i == j && !one.has_pairs() {
                continue;
            }
            let was = before.on_flow([&one.before, &other.before], now);
            let is = after.on_flow([&one.after, &other.after], now);
            if was.mode != is.mode {
                changes.push(Change { between: [i, j], before: was, after: is });
            }
        }
    }
    // What is loosened is what somebody has to see.
    changes.sort_by_key(|change| (change.after.mode > change.before.mode, change.between));
    let (groups, changes) = spoken_of(groups, changes);
    Diff { groups, changes }
}

/// Only those groups of which a change speaks.
fn spoken_of(groups: Vec<Group>, mut changes: Vec<Change>) -> (Vec<Group>, Vec<Change>) {
    let used: BTreeSet<usize> = changes.iter().flat_map(|change| change.between).collect();
    let places: BTreeMap<usize, usize> = used.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    for change in &mut changes {
        change.between = change.between.map(|old| places[&old]);
    }
    let groups = groups.into_iter().enumerate().filter(|(at, _)| used.contains(at));
    (groups.map(|(_, group)| group).collect(), changes)
}

/// What two are alike in that are of one group: modes and rules, before and after.
type Decided = ([FlowMode; 2], [Vec<Rule>; 2]);

/// All classes, by what decides on them.
fn groups(census: &Census, before: &Law, after: &Law, now: Timestamp) -> Vec<Group> {
    let keys = keys([&before.policies, &after.policies]);
    let mut members: BTreeMap<(&str, Labels), Vec<&PodId>> = BTreeMap::new();
    for (id, resident) in
        census.pods.iter().filter(|(_, resident)| !resident.host_network && !resident.has_ended)
    {
        let labels = &resident.pod.labels;
        let seen = labels.iter().filter(|(key, _)| keys.contains(key.as_str()));
        let seen = seen.map(|(key, value)| (key.clone(), value.clone())).collect();
        members.entry((id.namespace.as_str(), seen)).or_default().push(id);
    }
    let nodes = (Class::Nodes, before.on_others(), after.on_others());
    let pods = members.into_iter().filter_map(|((namespace, labels), pods)| {
        let held = |law: &Law| match census.namespaces.get(namespace) {
            Some(namespace_labels) => {
                law.on_pod(Subject { namespace, namespace_labels, labels: &labels }, now)
            }
            None => law.on_unknown(),
        };
        let (was, is) = (held(before), held(after));
        let (count, example) = (pods.len(), (*pods.first()?).clone());
        Some((Class::Pods { namespace: namespace.to_owned(), labels, count, example }, was, is))
    });
    let mut groups: BTreeMap<Decided, Group> = BTreeMap::new();
    for (class, was, is) in pods.chain([nodes]) {
        let modes = [was.mode, is.mode];
        let key = (modes, [was.rules.clone(), is.rules.clone()]);
        let group = Group { classes: Vec::new(), before: was, after: is };
        groups.entry(key).or_insert(group).classes.push(class);
    }
    groups.into_values().collect()
}

/// Labels of pods that any policy looks at.
fn keys(policies: [&Policies; 2]) -> BTreeSet<&str> {
    let all = policies.into_iter().flat_map(Policies::iter);
    all.flat_map(|(_, policy)| {
        let pods = &policy.pods;
        let more = pods.match_expressions.iter().map(|requirement| requirement.key.as_str());
        pods.match_labels.keys().map(String::as_str).chain(more)
    })
    .collect()
}
