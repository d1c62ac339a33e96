//! What the API server says that matters before anything is installed.

use std::collections::BTreeMap;

use super::{Findings, nodes_named, some};
use crate::facts::{Facts, Node, Pod, Webhook};

/// Oldest minor version of Kubernetes 1 whose rules the mesh's definition is checked by.
const OLDEST_MINOR: u32 = 31;

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    version(facts, findings);
    policies(facts, findings);
    match (&facts.nodes, &facts.pods) {
        (Ok(nodes), Ok(pods)) => {
            plugins(pods, findings);
            addresses(nodes, pods, findings);
        }
        (Err(why), _) => findings.unread("nodes", "the cluster", why, "nodes"),
        (_, Err(why)) => findings.unread("addresses", "the cluster", why, "pods"),
    }
    match &facts.webhooks {
        Ok(webhooks) => hooks(facts, webhooks, findings),
        Err(why) => findings.unread("webhooks", "the cluster", why, "validatingwebhookconfigurations"),
    }
}

fn version(facts: &Facts, findings: &mut Findings) {
    const SHOW: &str = "kubectl version";
    match &facts.version {
        Err(why) => findings.unknown("version", "API server", why, SHOW),
        Ok(version) => match minor(version) {
            Some(minor) if minor < OLDEST_MINOR => findings.failed(
                "version",
                "API server",
                format!("it is Kubernetes {version}; 1.{OLDEST_MINOR} is the oldest that serves"),
                "the mesh's definition has rules that this API server does not know, so the installation fails",
                "kubeadm upgrade plan    # or your distribution's way",
            ),
            Some(_) => findings.ok("version", "API server", format!("Kubernetes {version}")),
            None => findings.unknown("version", "API server", format!("its version can't be read: {version:?}"), SHOW),
        },
    }
}

fn minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("v1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn policies(facts: &Facts, findings: &mut Findings) {
    const SHOW: &str = "kubectl api-resources --api-group=admissionregistration.k8s.io";
    match facts.serves_policies {
        Ok(true) => findings.ok("policies", "API server", "it serves ValidatingAdmissionPolicies"),
        Ok(false) => findings.failed(
            "policies",
            "API server",
            "it serves no ValidatingAdmissionPolicies",
            "a credential that was stolen from one node could write every Node, so the chart does not install",
            "helm upgrade --install … --set admissionPolicy.acceptMissing=true    # accepts that",
        ),
        Err(ref why) => findings.unknown("policies", "API server", why, SHOW),
    }
}

/// Network plugins, by the names and labels of their pods.
fn plugins(pods: &[Pod], findings: &mut Findings) {
    const KNOWN: [(&str, &str); 9] = [
        ("cilium", "Cilium"),
        ("calico-node", "Calico"),
        ("kube-flannel", "flannel"),
        ("antrea-agent", "Antrea"),
        ("ovnkube", "OVN-Kubernetes"),
        ("kube-router", "kube-router"),
        ("weave-net", "Weave Net"),
        ("aws-node", "Amazon VPC CNI"),
        ("kindnet", "kindnet"),
    ];
    let runs = |name: &&(&str, &str)| pods.iter().any(|pod| pod.host_network && pod.name.starts_with(name.0));
    let found: Vec<&str> = KNOWN.iter().filter(runs).map(|(_, name)| *name).collect();
    if found.contains(&"Cilium") {
        findings.warning(
            "cni",
            "the cluster",
            "its network plugin is Cilium, with which kubeveil has not been tried",
            "in mode require what a node itself sends to other nodes' pods is dropped there",
            "helm upgrade --install … --set encryption.enabled=false    # observe first; Cilium can encrypt by itself",
        );
    } else if found.is_empty() {
        findings.ok(
            "cni",
            "the cluster",
            "its network plugin is none of those known by name; pods' addresses decide (below)",
        );
    } else {
        findings.ok("cni", "the cluster", format!("its network plugin: {}", found.join(", ")));
    }
}

/// Prefixes come from Nodes; a plugin that gives pods other addresses makes them wrong.
fn addresses(nodes: &BTreeMap<String, Node>, pods: &[Pod], findings: &mut Findings) {
    let without: Vec<&String> = nodes
        .iter()
        .filter(|(_, node)| node.linux && node.pod_cidrs.is_empty())
        .map(|(name, _)| name)
        .collect();
    if !without.is_empty() {
        findings.failed(
            "addresses",
            nodes_named(&without),
            "it has no spec.podCIDRs",
            "whose a pod's address is can't be known, so nothing to its pods is encrypted",
            "kubectl get nodes -o custom-columns=N:.metadata.name,P:.spec.podCIDRs    # kube-controller-manager --allocate-node-cidrs --cluster-cidr",
        );
    }
    let mut strange: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut inside = 0_usize;
    for pod in pods.iter().filter(|pod| !pod.host_network) {
        let Some(node) = nodes.get(&pod.node).filter(|node| !node.pod_cidrs.is_empty()) else { continue };
        match pod.addresses.iter().find(|ip| !node.pod_cidrs.iter().any(|net| net.contains(*ip))) {
            Some(ip) => {
                strange.entry(&pod.node).or_default().push(format!("{}/{} ({ip})", pod.namespace, pod.name))
            }
            None => inside += 1,
        }
    }
    let named: Vec<&str> = strange.keys().copied().collect();
    if let Some(first) = strange.values().next() {
        findings.failed(
            "addresses",
            nodes_named(&named),
            format!("pods have addresses outside of their Node's podCIDRs: {}", some(first)),
            "PodAddressesUnknown: the network plugin hands out addresses of its own pools, so prefixes of Nodes say nothing; no pair of these nodes closes, nothing there is encrypted for certain",
            "kubectl get pods -A -o wide    # a plugin that goes by spec.podCIDRs (Calico: host-local IPAM; Cilium: ipam.mode=kubernetes)",
        );
    } else if without.is_empty() && inside > 0 {
        findings.ok(
            "addresses",
            "the cluster",
            format!("{inside} pods have addresses of their Node's podCIDRs"),
        );
    } else if without.is_empty() {
        findings.unknown(
            "addresses",
            "the cluster",
            "no pod with an address of its own runs, so it can't be seen which addresses they get",
            "kubectl run veil-look --image=registry.k8s.io/pause:3.10 && kubeveil check --pre",
        );
    }
}

fn hooks(facts: &Facts, webhooks: &[Webhook], findings: &mut Findings) {
    let before = findings.0.len();
    for webhook in webhooks {
        let about_pods = webhook.pods && webhook.namespaces.selects(&facts.namespace_labels);
        if !webhook.nodes && !about_pods {
            continue;
        }
        let by = match behind(facts, webhook) {
            Behind::Pods(by) => by,
            Behind::HostNetwork => continue,
        };
        let about = match (webhook.nodes, about_pods) {
            (true, true) => "Nodes and of Pods",
            (true, false) => "Nodes",
            _ => "Pods",
        };
        let object = format!("{} {}", webhook.kind, webhook.configuration);
        let found = format!(
            "webhooks[{}] must answer before changes of {about} are taken (failurePolicy Fail); it is {by}",
            webhook.at
        );
        let path = format!("kubectl patch {} {} --type=json -p", webhook.kind, webhook.configuration);
        if webhook.nodes {
            findings.warning(
                "webhooks",
                object,
                found,
                "where its pods can't be reached no agent can announce its key, and without that they may not be reached: the cluster locks itself out",
                &format!(r#"{path} '[{{"op":"replace","path":"/webhooks/{}/failurePolicy","value":"Ignore"}}]'"#, webhook.at),
            );
        } else {
            findings.warning(
                "webhooks",
                object,
                found,
                "where its pods can't be reached no agent's pod can be made, and without that they may not be reached: the cluster locks itself out",
                &format!(
                    r#"{path} '[{{"op":"add","path":"/webhooks/{}/namespaceSelector","value":{{"matchExpressions":[{{"key":"kubernetes.io/metadata.name","operator":"NotIn","values":["{}"]}}]}}}}]'"#,
                    webhook.at, facts.namespace
                ),
            );
        }
    }
    if before == findings.0.len() {
        findings.ok(
            "webhooks",
            "the cluster",
            "none that runs in pods must answer about Nodes or kubeveil's pods",
        );
    }
}

enum Behind {
    /// It can be out of reach; in words.
    Pods(String),
    /// It is at its node's own address, which is never steered.
    HostNetwork,
}

fn behind(facts: &Facts, webhook: &Webhook) -> Behind {
    let Some(service) = &webhook.service else {
        return Behind::Pods("at a URL, of which nobody knows where it leads".to_owned());
    };
    let name = format!("behind Service {}/{}", service.namespace, service.name);
    let is_its = |pod: &&Pod| {
        pod.namespace == service.namespace
            && service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
    };
    let Ok(pods) = &facts.pods else { return Behind::Pods(name) };
    let pods: Vec<&Pod> = pods.iter().filter(is_its).collect();
    if service.selector.is_empty() || pods.is_empty() {
        return Behind::Pods(format!("{name}, whose pods are not known"));
    }
    if pods.iter().all(|pod| pod.host_network) { Behind::HostNetwork } else { Behind::Pods(name) }
}
