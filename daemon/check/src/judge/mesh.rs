//! What there is to say after an installation.

use std::{collections::BTreeMap, sync::Arc};

use kubeveil_api::{
    condition::{self, Condition, ConditionStatus, DEGRADED, READY, ROTATING, ROTATION_LATE},
    mesh::{EncryptionMesh, Mode},
    status::Way,
    veil_node::VeilNodeStatus,
};
use kubeveil_core::{
    announced::Announced, problem::few_statements, rotation::progress::Progress, snapshot::NodeFacts,
};

use super::{Findings, nodes_named, some};
use crate::{
    facts::{Facts, Installed, Node, Pod},
    ranges::{in_force, strangers},
};

/// Most nodes of which it is said why they are not done.
const MOST_WAITS: usize = 3;
/// Labels by which agents' pods are found.
pub(crate) const AGENT: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "kubeveil"), ("app.kubernetes.io/component", "agent")];

pub(super) fn judge(facts: &Facts, installed: &Installed, findings: &mut Findings) {
    match &installed.definitions_missing {
        Ok(missing) if missing.is_empty() => {
            findings.ok("definitions", "the cluster", "kubeveil's definitions are installed")
        }
        Ok(missing) => findings.failed(
            "definitions",
            "the cluster",
            format!("there is no CustomResourceDefinition {}", some(missing)),
            "no agent knows the mesh, so nothing new is encrypted",
            "kubectl apply -f deploy/crds/",
        ),
        Err(why) => findings.unread("definitions", "the cluster", why, "customresourcedefinitions"),
    }
    if let (Ok(nodes), Ok(pods)) = (&facts.nodes, &facts.pods) {
        agents(&facts.namespace, nodes, pods, findings);
    }
    match &installed.mesh {
        Ok(Some(mesh)) => conditions(mesh, findings),
        Ok(None) => findings.failed(
            "mesh",
            "EncryptionMesh default",
            "there is none",
            "agents go by the last that they knew; where they never knew one, nothing is encrypted",
            "helm upgrade kubeveil CHART -n kubeveil --reuse-values",
        ),
        Err(why) => findings.unread("mesh", "EncryptionMesh default", why, "encryptionmeshes.kubeveil.io"),
    }
    if let (Ok(Some(mesh)), Ok(nodes)) = (&installed.mesh, &facts.nodes) {
        rotation(mesh, nodes, findings);
        ranges(mesh, nodes, findings);
        match &installed.veil_nodes {
            Ok(said) => pairs(&facts.namespace, mesh.spec.mode, nodes, said, findings),
            Err(why) => findings.unread("pairs", "the cluster", why, "veilnodes.kubeveil.io"),
        }
    }
}

fn agents(namespace: &str, nodes: &BTreeMap<String, Node>, pods: &[Pod], findings: &mut Findings) {
    let is_agent =
        |pod: &&Pod| AGENT.iter().all(|(key, value)| pod.labels.get(*key).is_some_and(|v| v == value));
    let ready: BTreeMap<&str, bool> =
        pods.iter().filter(is_agent).map(|pod| (pod.node.as_str(), pod.ready)).collect();
    let linux = || nodes.iter().filter(|(_, node)| node.linux).map(|(name, _)| name.as_str());
    let without: Vec<&str> = linux().filter(|name| !ready.contains_key(name)).collect();
    let unready: Vec<&str> = linux().filter(|name| ready.get(name) == Some(&false)).collect();
    if !without.is_empty() {
        findings.failed(
            "agents",
            nodes_named(&without),
            "no agent runs there",
            "what its agent once closed stays closed; nothing new is encrypted to or from there",
            &format!("kubectl -n {namespace} describe daemonset kubeveil-agent"),
        );
    }
    if !unready.is_empty() {
        let mend = format!(
            "kubectl -n {namespace} get pods -o wide -l app.kubernetes.io/component=agent    # and: kubectl -n {namespace} exec POD -- kubeveil status"
        );
        findings.failed(
            "agents",
            nodes_named(&unready),
            "its agent is not ready",
            "something of what it should enforce does not stand yet",
            &mend,
        );
    }
    if without.is_empty() && unready.is_empty() {
        findings.ok("agents", "every Linux node", "an agent is ready");
    }
}

const OBJECT: &str = "EncryptionMesh default";

/// Who holds a rotation up, and why. While one goes on both UDP ports are in use, so no probe can ask there: nodes that can't reach each
/// other say so themselves.
fn rotation(mesh: &EncryptionMesh, nodes: &BTreeMap<String, Node>, findings: &mut Findings) {
    let facts = |node: &Node| {
        let (uid, announcement) = (node.uid.clone(), node.announcement.clone());
        Arc::new(NodeFacts { uid, announcement, ..NodeFacts::default() })
    };
    let mut announced = Announced::default();
    announced.update(&nodes.iter().map(|(name, node)| (name.clone(), facts(node))).collect());
    let awaited = nodes.iter().filter(|(_, node)| !node.excluded).map(|(name, _)| name);
    let progress = Progress::towards(&mesh.spec, awaited, &announced);
    let waits: Vec<String> = progress
        .waits_for(mesh.spec.asked().retire_before)
        .map(|(node, why)| format!("{node} {why}"))
        .collect();
    if waits.is_empty() {
        return;
    }
    let found = format!(
        "the rotation to generation {} is not over: {}",
        progress.generation,
        few_statements(waits.iter(), MOST_WAITS)
    );
    let means = "nodes that are named keep their older keys for each other, and nothing is lost by that; no other rotation can begin";
    let mend = "kubeveil rotate status    # all of them; one takes some 20 s, longer with many nodes. Of a blocked port, on both nodes: \
                iptables -A INPUT -p udp --dport 51871:51872 -j ACCEPT, or the cloud's security group";
    if mesh.status.iter().flat_map(|status| &status.conditions).any(is_late) {
        findings.failed("rotation", OBJECT, found, means, mend);
    } else {
        findings.warning("rotation", OBJECT, found, means, mend);
    }
}

/// The controller says so that a rotation has taken longer than it may.
fn is_late(condition: &Condition) -> bool {
    condition.kind == ROTATING && condition.reason == ROTATION_LATE
}

fn conditions(mesh: &EncryptionMesh, findings: &mut Findings) {
    const SHOW: &str = "kubectl describe encryptionmesh default";
    let said = mesh.status.iter().flat_map(|status| &status.conditions);
    let mut any = false;
    for condition in said {
        any = true;
        // By whom is told apart from this.
        if is_late(condition) {
            continue;
        }
        let found = format!("{} is {}: {}", condition.kind, condition.status, condition.message);
        // That the mode is observe is what somebody wants.
        let wanted = condition.status == ConditionStatus::True
            || condition.kind == ROTATING
            || condition.reason == "Observing";
        if wanted {
            findings.ok("mesh", OBJECT, found);
        } else if condition.status == ConditionStatus::Unknown {
            findings.unknown("mesh", OBJECT, found, SHOW);
        } else {
            findings.failed(
                "mesh",
                OBJECT,
                found,
                "the cluster is not as the mesh wants it",
                "kubectl get veil -o wide    # which nodes, and why",
            );
        }
    }
    if !any {
        findings.unknown(
            "mesh",
            OBJECT,
            "it has no status: no controller has looked at it",
            "kubectl get pods -A -l app.kubernetes.io/name=kubeveil,app.kubernetes.io/component=controller",
        );
    }
}

fn ranges(mesh: &EncryptionMesh, nodes: &BTreeMap<String, Node>, findings: &mut Findings) {
    let now = in_force(mesh);
    let outside = strangers(&now.ranges, nodes);
    for (is_pods, what) in [(true, "podCIDRs"), (false, "nodeCIDRs")] {
        let of: Vec<_> = outside.iter().filter(|stranger| stranger.is_pods == is_pods).collect();
        let Some(first) = of.first() else { continue };
        let mut names: Vec<&str> = of.iter().map(|stranger| stranger.node.as_str()).collect();
        names.dedup();
        let told: Vec<String> = of.iter().map(|stranger| stranger.prefix.to_string()).collect();
        findings.failed(
            "ranges",
            nodes_named(&names),
            format!("outside of the mesh's {what}: {}", some(&told)),
            "agents refuse it, so nothing to it is encrypted; if it is no stranger, approve it",
            &format!("kubeveil ranges approve {}{}", first.prefix, if is_pods { "" } else { " --nodes" }),
        );
    }
    if outside.is_empty() {
        findings.ok("ranges", "the cluster", "every node and its pods are within the mesh's ranges");
    }
}

/// Ways from one node to another that are not encrypted, and what else agents find wrong.
fn pairs(
    namespace: &str,
    mode: Mode,
    nodes: &BTreeMap<String, Node>,
    said: &BTreeMap<String, Option<VeilNodeStatus>>,
    findings: &mut Findings,
) {
    let before = findings.0.len();
    for name in nodes.iter().filter(|(_, node)| node.linux).map(|(name, _)| name) {
        let show = format!(
            "kubectl describe veilnode {name}    # and there: kubectl -n {namespace} exec POD -- kubeveil status"
        );
        let object = format!("Node {name}");
        let Some(Some(status)) = said.get(name) else {
            findings.unknown("pairs", object, "its agent has said nothing yet", &show);
            continue;
        };
        for kind in [READY, DEGRADED] {
            let Some(condition) = condition::find(&status.conditions, kind) else { continue };
            if condition.holds() != (kind == READY) {
                findings.failed(
                    "agents",
                    &*object,
                    format!("{kind} is {}: {}", condition.status, condition.message),
                    "its agent says so itself",
                    &show,
                );
            }
        }
        if mode == Mode::Observe || status.not_encrypted.is_empty() {
            continue;
        }
        let ways: Vec<String> = status
            .not_encrypted
            .iter()
            .map(|to| {
                format!(
                    "{} ({}, {})",
                    to.node,
                    if to.way == Way::Plain { "in plain" } else { "dropped" },
                    to.reason
                )
            })
            .collect();
        findings.failed(
            "pairs",
            object,
            format!("not encrypted to {}", some(&ways)),
            "pods there speak in plain with those nodes, or not at all",
            &show,
        );
    }
    if before == findings.0.len() {
        let found = if mode == Mode::Observe {
            "the mode is observe: nothing is encrypted, as wanted"
        } else {
            "every node encrypts to every other that it knows"
        };
        findings.ok("pairs", "every Linux node", found);
    }
}
