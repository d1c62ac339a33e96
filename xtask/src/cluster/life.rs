//! What becomes of an installed chart: it is tried, upgraded and rolled back under traffic, and removed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Cluster, guest, processes, smoke::Pods, traffic::undisturbed};

/// What helm's hooks, and a roll-out one node at a time, may take under emulation.
const PATIENCE: Duration = Duration::from_secs(600);
/// The namespace that it is installed in, and helm's name of it.
pub(super) const NAMESPACE: [&str; 2] = ["--namespace", "kubeveil"];
const RELEASE: &str = "kubeveil";
/// Revision 1 is what was installed.
const INSTALLED: &str = "1";

fn timeout() -> String {
    format!("--timeout={}s", PATIENCE.as_secs())
}

/// helm's own test: pods of two nodes speak, and a node's frames are read meanwhile.
pub(super) fn helm_test(_: &Pods, cluster: &mut Cluster) -> Result<()> {
    processes::output(cluster.helm().args(["test", RELEASE, &timeout()]).args(NAMESPACE)).map(|_| ())
}

/// Every agent is replaced, one after the other, while pods ping each other.
pub(super) fn upgrade(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    undisturbed(cluster, &pods.all(), |cluster| {
        upgraded(cluster, "agent.logLevel=info\\,kubeveil_core=debug")
    })
}

/// An upgrade to other values, as helm's `--set` takes them; comes back once every agent is of it.
pub(super) fn upgraded(cluster: &mut Cluster, values: &str) -> Result<()> {
    let Some(product) = &cluster.product else { return Ok(()) };
    let mut helm = cluster.helm();
    helm.args(["upgrade", RELEASE]).arg(&product.chart).args(NAMESPACE).args(["--reuse-values", &timeout()]);
    processes::output(helm.args(["--set", values]))?;
    rolled(cluster)
}

/// And back, likewise.
pub(super) fn rollback(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    undisturbed(cluster, &pods.all(), |cluster| {
        let mut helm = cluster.helm();
        processes::output(helm.args(["rollback", RELEASE, INSTALLED, &timeout()]).args(NAMESPACE))?;
        rolled(cluster)
    })
}

/// An agent's pod goes, as an eviction or the kernel's lack of memory takes it, and another comes.
pub(super) fn agent_gone(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    undisturbed(cluster, &pods.all(), |cluster| replace_agent(cluster, &pods.0[1].node))
}

/// Deletes the agent's pod on a node; comes back once its successor is ready.
pub(super) fn replace_agent(cluster: &Cluster, node: &str) -> Result<()> {
    let on = format!("--field-selector=spec.nodeName={node}");
    let agent = ["--selector=app.kubernetes.io/component=agent", &on];
    let name = || {
        let mut get = cluster.kubectl(&["get", "pods", "--output=name"]);
        processes::output(get.args(agent).args(NAMESPACE))
    };
    let before = name()?;
    processes::output(cluster.kubectl(&["delete", "pods"]).args(agent).args(NAMESPACE))?;
    rolled(cluster)?;
    let after = name()?;
    ensure!(before != after && !after.is_empty(), "{node}'s agent was {before:?}, and is {after:?}");
    Ok(())
}

/// Waits until every node's agent is of the latest revision, and ready.
fn rolled(cluster: &Cluster) -> Result<()> {
    let mut status = cluster.kubectl(&["rollout", "status", "daemonset/kubeveil-agent", &timeout()]);
    processes::output(status.args(NAMESPACE)).map(|_| ())
}

/// Nothing of it is left on any node and at the API server, but for the definitions; and pods speak in plain again.
pub(super) fn uninstall(_: &Pods, cluster: &mut Cluster) -> Result<()> {
    processes::output(cluster.helm().args(["uninstall", RELEASE, &timeout()]).args(NAMESPACE))?;
    let left = residue(cluster)?;
    ensure!(left.is_empty(), "there is still\n{}", left.join("\n"));
    // Some have come since.
    Pods::once_ready(cluster)?.plain_pings(cluster)
}

/// Devices, pins, state, rules and attachments, one a line.
const RESIDUE: &str = "ip -o link | grep -o 'kubeveil[0-9]*'; for dir in /sys/fs/bpf /var/lib/kubeveil; do \
    [[ ! -e $dir ]] || busybox find $dir -mindepth 1; done; nft list tables | grep kubeveil; \
    for device in $(ls /sys/class/net); do tc filter show dev $device egress; tc filter show dev $device ingress; done; \
    true";

/// What there is of it on nodes and at the API server, definitions apart.
fn residue(cluster: &Cluster) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for node in 1..=cluster.plan.nodes {
        let found = guest::run(cluster.plan.guest, &node.to_string(), RESIDUE, b"")?;
        left.extend(
            found.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("node-{node}: {line}")),
        );
    }
    // Links belong to no node; nothing else here makes any.
    let links = guest::run(cluster.plan.guest, "vm", "bpftool link show | grep '^[0-9]'; true", b"")?;
    left.extend(links.lines().map(|line| format!("a link in the kernel: {line}")));
    let kinds = "veilnodes,veilpodslices,veilpeerslices,encryptionmeshes,clusterroles,clusterrolebindings,validatingadmissionpolicies,\
                 validatingadmissionpolicybindings";
    let there = processes::output(&mut cluster.kubectl(&["get", kinds, "--output=name"]))?;
    left.extend(there.lines().filter(|name| name.contains("veil")).map(str::to_owned));
    // Not the whole of it: the image that a node has is named in its status.
    let query = "jsonpath={range .items[*]}{.metadata.name} {.metadata.annotations}{\"\\n\"}{end}";
    let annotations = processes::output(&mut cluster.kubectl(&["get", "nodes", "--output", query]))?;
    left.extend(annotations.lines().filter(|line| line.contains("kubeveil.io/")).map(str::to_owned));
    Ok(left)
}
