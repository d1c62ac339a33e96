//! What becomes of an installed chart: it is tried, upgraded under traffic, and removed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    Cluster, guest,
    guest::Watch,
    processes,
    smoke::{Pods, in_namespace_of},
};

/// What helm's hooks, and a roll-out one node at a time, may take under emulation.
const PATIENCE: Duration = Duration::from_secs(600);
/// The namespace that it is installed in, and helm's name of it.
const NAMESPACE: [&str; 2] = ["--namespace", "kubeveil"];
const RELEASE: &str = "kubeveil";

/// helm's own test: pods of two nodes speak, and a node's frames are read meanwhile.
pub(super) fn helm_test(_: &Pods, cluster: &mut Cluster) -> Result<()> {
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    processes::output(cluster.helm().args(["test", RELEASE, &timeout]).args(NAMESPACE)).map(|_| ())
}

/// Every agent is replaced, one after the other, while two pods ping each other: each ping is answered, and none seen on the wire.
pub(super) fn upgrade(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let [from, to] = [&pods.0[0], &pods.0[1]];
    let others = to.addresses.join(" ");
    let node = from.node_number()?;
    let watch = Watch::start(cluster.plan.guest, "icmp or icmp6")?;
    let pings = format!(
        "rm -f /run/stop /run/pings; for to in {others}; do nohup nsenter --net=$ns bash -c 'until [[ -e /run/stop ]]; do \
         ping -c 1 -W 5 '$to' >/dev/null && echo answered || echo lost; done' >>/run/pings 2>&1 & done"
    );
    guest::run(cluster.plan.guest, &node, &in_namespace_of(from, &pings), b"")?;
    let upgraded = roll(cluster);
    let said = guest::run(
        cluster.plan.guest,
        &node,
        "touch /run/stop; while pgrep -f '[u]ntil .. -e /run/stop' >/dev/null; do sleep 0.2; done; sort /run/pings | uniq -c",
        b"",
    )?;
    let seen = watch.stop()?;
    upgraded?;
    let count = |word: &str| {
        let line = said.lines().find(|line| line.trim().ends_with(word));
        line.and_then(|line| line.trim().split(' ').next()?.parse::<u32>().ok()).unwrap_or(0)
    };
    let (answered, lost) = (count("answered"), count("lost"));
    ensure!(answered > 50, "only {answered} pings were answered during the upgrade:\n{said}");
    ensure!(lost == 0, "{lost} of {} pings were lost during the upgrade", answered + lost);
    for (source, target) in from.addresses.iter().zip(&to.addresses) {
        let frame = format!("{source} > {target}: ICMP");
        ensure!(!seen.contains(&frame), "the wire has seen `{frame}`");
    }
    Ok(())
}

fn roll(cluster: &mut Cluster) -> Result<()> {
    let Some(chart) = cluster.product.as_ref().map(|product| product.chart.clone()) else { return Ok(()) };
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    let mut helm = cluster.helm();
    helm.args(["upgrade", RELEASE]).arg(chart).args(NAMESPACE).args(["--reuse-values", &timeout]);
    processes::output(helm.args(["--set", "agent.logLevel=info\\,kubeveil_core=debug"]))?;
    let mut rolled = cluster.kubectl(&["rollout", "status", "daemonset/kubeveil-agent", &timeout]);
    processes::output(rolled.args(NAMESPACE)).map(|_| ())
}

/// Nothing of it is left on any node and at the API server, but for the definitions; and pods speak in plain again.
pub(super) fn uninstall(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    processes::output(cluster.helm().args(["uninstall", RELEASE, &timeout]).args(NAMESPACE))?;
    let residue = "ip -o link | grep -o 'kubeveil[0-9]*'; ls -A /sys/fs/bpf /var/lib/kubeveil | grep -v '^/\\|^$'; nft list tables | grep kubeveil; \
                   for device in $(ls /sys/class/net); do tc filter show dev $device egress; tc filter show dev $device ingress; done; true";
    for node in 1..=cluster.plan.nodes {
        let left = guest::run(cluster.plan.guest, &node.to_string(), residue, b"")?;
        ensure!(left.trim().is_empty(), "on node-{node} there is still:\n{left}");
    }
    let kinds = "veilnodes,encryptionmeshes,clusterroles,clusterrolebindings,validatingadmissionpolicies,\
                 validatingadmissionpolicybindings";
    let there = processes::output(&mut cluster.kubectl(&["get", kinds, "--output=name"]))?;
    let left: Vec<&str> = there.lines().filter(|name| name.contains("veil")).collect();
    ensure!(left.is_empty(), "at the API server there is still {left:?}");
    let nodes = processes::output(&mut cluster.kubectl(&["get", "nodes", "--output=yaml"]))?;
    // The image that a node has is named in its status.
    ensure!(!nodes.contains("kubeveil.io/announcement"), "a Node has an announcement still");
    pods.plain_pings(cluster)
}
