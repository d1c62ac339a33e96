//! What policies ask for, of whoever has an address.

use std::{cmp::Reverse, collections::BTreeMap};

use ipnet::IpNet;
use kubeveil_abi::{Asked, PrefixKind};
use kubeveil_api::policy::PolicyMode;

use crate::{
    observed::Prefix,
    policy::{FlowMode, Standing},
    problem::{Problem, ProblemKind},
    snapshot::Snapshot,
};

/// What is asked for of those whom nobody can tell from any other.
pub(super) fn unknown(snapshot: &Snapshot) -> Asked {
    let Some(base) = snapshot.mode() else { return Asked::Mesh };
    beyond(base, snapshot.policies.unknown(base))
}

/// Writes it into `prefixes`. Of a pod of this node that nobody has told us of the most is asked for that is of anybody; of one of
/// another node what is asked for of all, since that node knows better, and refuses what comes in plain.
pub(super) fn ask(snapshot: &Snapshot, prefixes: &mut BTreeMap<IpNet, Prefix>) {
    let Some(base) = snapshot.mode() else { return };
    if snapshot.policies.is_empty() {
        return;
    }
    let unknown = unknown(snapshot);
    let mut pods: Vec<(IpNet, Prefix)> = prefixes
        .iter()
        .filter(|(_, prefix)| matches!(prefix.kind, PrefixKind::LocalPods | PrefixKind::RemotePods))
        .map(|(net, prefix)| (*net, *prefix))
        .collect();
    for (net, prefix) in &pods {
        if prefix.kind == PrefixKind::LocalPods {
            prefixes.insert(*net, Prefix { asked: unknown, ..*prefix });
        }
    }
    pods.sort_by_key(|(net, _)| Reverse(net.prefix_len()));
    for (address, standing) in snapshot.workloads.asked(&snapshot.policies, base) {
        let asked = of(base, standing);
        let Some((net, owner)) = pods.iter().find(|(net, _)| net.contains(&address)) else { continue };
        let own = IpNet::from(address);
        // A node's own address is no pod's, whatever a pod says.
        let is_pods = prefixes.get(&own).is_none_or(|_| own == *net);
        // Said of pods of this node even where it goes without saying: what was said before has to give way, and nothing is removed on
        // hearsay.
        let is_worth_it =
            asked != Asked::Mesh || owner.kind == PrefixKind::LocalPods && unknown != Asked::Mesh;
        if is_worth_it && is_pods {
            prefixes.insert(own, Prefix { asked, ..*owner });
        }
    }
}

fn of(base: FlowMode, standing: Option<Standing>) -> Asked {
    standing.map_or(Asked::Mesh, |standing| beyond(base, standing.mode.into()))
}

/// Less than the mesh asks for counts as what the mesh asks for.
fn beyond(base: FlowMode, mode: FlowMode) -> Asked {
    match mode {
        FlowMode::Require if base != FlowMode::Observe => Asked::Require,
        _ => Asked::Mesh,
    }
}

/// Policies that ask for less than is asked for of all.
pub(super) fn problems(snapshot: &Snapshot) -> impl Iterator<Item = Problem> {
    let base = snapshot.mode().unwrap_or(FlowMode::Require);
    let loosens = move |mode: PolicyMode| FlowMode::from(mode) < base || mode == PolicyMode::Exempt;
    let loose = snapshot.policies.iter().filter(move |(_, policy)| loosens(policy.mode));
    loose.map(|(id, policy)| Problem {
        kind: ProblemKind::Manifest,
        object: id.to_string(),
        field: "spec.mode".to_owned(),
        message: format!(
            "{} asks for less than the mesh does, which is not in force yet: it counts as not being there",
            policy.mode
        ),
        advice: "Its pods are held to spec.mode of the mesh. Remove it, or set it to require".to_owned(),
    })
}
