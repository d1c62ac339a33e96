//! Whether a cluster is one: its pods talk across nodes and through Services, and the wire sees it. Then, whether the chart
//! encrypts it: they still talk, and the wire sees nothing of theirs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Cluster, guest,
    guest::Watch,
    installed::{self, Product},
    life,
    plan::on_wire,
    processes,
};
use crate::{report, test::Tally, workspace::Workspace};

/// What three pods may take to get ready under emulation, beside a busy core.
const ROLLED_OUT: Duration = Duration::from_secs(600);
/// What kube-proxy may take to have heard of a Service's pods.
const PROXIED: Duration = Duration::from_secs(240);

/// A pod of the Deployment.
pub(super) struct Pod {
    name: String,
    node: String,
    /// IPv4 first.
    pub(super) addresses: [String; 2],
}

impl Pod {
    /// Of its node.
    pub(super) fn node_number(&self) -> Result<String> {
        let number = self.node.strip_prefix("node-").context("a node without a number")?;
        Ok(number.to_owned())
    }
}

/// The pods of the Deployment.
pub(super) struct Pods(pub(super) Vec<Pod>);

type Check = fn(&Pods, &mut Cluster) -> Result<()>;

/// In this order: the second half needs the chart, and the first shows that what is captured then would be found.
const CHECKS: [(&str, Check); 10] = [
    ("pods_of_all_nodes_ping_each_other_and_the_wire_sees_it", Pods::plain_pings),
    ("a_service_answers_a_pod_in_both_families", Pods::service),
    ("a_node_port_answers_from_the_wire_in_both_families", Pods::node_port),
    ("the_chart_is_installed_and_every_way_is_encrypted", Pods::install),
    ("pods_ping_each_other_and_the_wire_sees_nothing_of_it", Pods::hidden_pings),
    ("a_service_answers_once_all_is_encrypted", Pods::service),
    ("a_node_port_answers_once_all_is_encrypted", Pods::node_port),
    ("helm_test_passes", life::helm_test),
    ("an_upgrade_under_traffic_loses_and_shows_nothing", life::upgrade),
    ("the_chart_is_removed_without_residue", life::uninstall),
];

/// Brings a cluster of three nodes up and tries it.
pub(crate) fn test(workspace: &Workspace, filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    let product = Product::new(workspace)?;
    super::with(workspace, 3, super::MEMORY, Some(product), |cluster| {
        let pods = roll_out(cluster, workspace)?;
        for (name, check) in CHECKS {
            if filter.is_some_and(|filter| !name.contains(filter)) {
                continue;
            }
            let result = check(&pods, cluster);
            if processes::interrupted() {
                anyhow::bail!("interrupted in {name}");
            }
            report::print(format!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" }));
            match result {
                Ok(()) => tally.passed += 1,
                Err(error) => {
                    report::print(format!("    {error:#}"));
                    tally.failed += 1;
                    tally.failures.push(name.to_owned());
                }
            }
        }
        Ok(())
    })?;
    Ok(tally)
}

/// A pod on each node, and every node's kube-proxy knows them.
fn roll_out(cluster: &mut Cluster, workspace: &Workspace) -> Result<Pods> {
    let manifest = workspace.script("kubernetes/smoke.yaml");
    processes::output(cluster.kubectl(&["apply", "-f"]).arg(manifest))?;
    let mut status = cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=1s"]);
    cluster
        .processes
        .wait_until("the pods get ready", ROLLED_OUT, || crate::process::succeeds(&mut status))?;
    let query =
        "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIPs[*].ip}{\"\\n\"}{end}";
    let lines = processes::output(&mut cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", query]))?;
    let pods = lines.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, node, v4, v6] = words[..] else { return None };
        Some(Pod { name: name.to_owned(), node: node.to_owned(), addresses: [v4.to_owned(), v6.to_owned()] })
    });
    let pods: Vec<Pod> =
        pods.collect::<Option<_>>().with_context(|| format!("pods without both addresses: {lines}"))?;
    let mut nodes: Vec<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    ensure!(
        nodes.len() == 3 && pods.len() == 3,
        "a pod on each of three nodes is wanted, there are:\n{lines}"
    );
    wait_for_proxies(cluster, pods.len())?;
    Ok(Pods(pods))
}

/// A Service answers from a node once its kube-proxy has a rule for each pod, in each family.
fn wait_for_proxies(cluster: &mut Cluster, pods: usize) -> Result<()> {
    let (port, nodes) = (cluster.plan.guest, cluster.plan.nodes);
    for node in 1..=nodes {
        for save in ["iptables-save", "ip6tables-save"] {
            let line = format!("{save} -t nat | grep -c -- '--comment \"default/web -> .* KUBE-SEP-'");
            let what = format!("kube-proxy of node-{node} knows the Service's pods ({save})");
            cluster.processes.wait_until(&what, PROXIED, || {
                let said = guest::run(port, &node.to_string(), &line, b"").unwrap_or_default();
                said.trim().parse() == Ok(pods)
            })?;
        }
    }
    Ok(())
}

impl Pods {
    pub(super) fn plain_pings(&self, cluster: &mut Cluster) -> Result<()> {
        let watch = Watch::start(cluster.plan.guest, "icmp or icmp6")?;
        let expected = self.ping(cluster)?;
        let seen = watch.stop()?;
        for frame in expected {
            ensure!(seen.contains(&frame), "the wire has not seen `{frame}`, but:\n{seen}");
        }
        Ok(())
    }

    fn hidden_pings(&self, cluster: &mut Cluster) -> Result<()> {
        // Neighbours are found in plain; they are no pods.
        let watch = Watch::start(cluster.plan.guest, "icmp or icmp6 or udp port 51871")?;
        let hidden = self.ping(cluster)?;
        let seen = watch.stop()?;
        for frame in hidden {
            ensure!(!seen.contains(&frame), "the wire has seen `{frame}`");
        }
        let encrypted = seen.lines().filter(|line| line.contains("51871 > ")).count();
        ensure!(encrypted > 0, "the wire has seen nothing of WireGuard, so where did the pings go?\n{seen}");
        Ok(())
    }

    /// Every pod pings every other in both families; gives what a wire sees of it where nothing is encrypted.
    fn ping(&self, cluster: &Cluster) -> Result<Vec<String>> {
        let mut expected = Vec::new();
        for from in &self.0 {
            ensure!(!processes::interrupted(), "interrupted");
            let others = || self.0.iter().filter(|to| to.name != from.name);
            let addresses: Vec<&str> = others().flat_map(|to| &to.addresses).map(String::as_str).collect();
            ping_from(cluster, from, &addresses)?;
            for (index, source) in from.addresses.iter().enumerate() {
                expected.extend(others().map(|to| format!("{source} > {}: ICMP", to.addresses[index])));
            }
        }
        Ok(expected)
    }

    fn service(&self, cluster: &mut Cluster) -> Result<()> {
        let query = "jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}";
        let addresses = processes::output(&mut cluster.kubectl(&["get", "service", "web", "-o", query]))?;
        let (v4, v6) = addresses.split_once(' ').context("a Service of both families")?;
        for url in [format!("http://{v4}/"), format!("http://[{v6}]/")] {
            let said = in_pod(cluster, &self.0[0], &["timeout", "20", "wget", "-qO-", &url])?;
            ensure!(self.is_pod(said.trim()), "{url} gave no pod's name but {said:?}");
        }
        Ok(())
    }

    fn node_port(&self, cluster: &mut Cluster) -> Result<()> {
        let [v4, v6] = on_wire(1);
        for to in [format!("TCP4:{v4}:30080"), format!("TCP6:[{v6}]:30080")] {
            let line = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 20 socat -t 10 - {to}");
            let said = guest::run(cluster.plan.guest, "wire", &line, b"")?;
            ensure!(
                said.lines().any(|line| self.is_pod(line.trim())),
                "{to} gave no pod's name but {said:?}"
            );
        }
        Ok(())
    }

    fn is_pod(&self, name: &str) -> bool {
        self.0.iter().any(|pod| pod.name == name)
    }

    fn install(&self, cluster: &mut Cluster) -> Result<()> {
        installed::install(cluster)
    }
}

/// From the pod's network namespace, found by its address: `kubectl exec` starts a process by way of containerd and runc,
/// which takes an emulated node a minute.
fn ping_from(cluster: &Cluster, pod: &Pod, addresses: &[&str]) -> Result<()> {
    let others = addresses.join(" ");
    let pings = format!("nsenter --net=$ns bash -ec 'for to in {others}; do ping -c 2 -W 5 $to; done'");
    let line = in_namespace_of(pod, &pings);
    guest::run(cluster.plan.guest, &pod.node_number()?, &line, b"")
        .with_context(|| format!("{} pings {others}", pod.name))?;
    Ok(())
}

/// A shell line for the pod's node, in which `$ns` is the pod's network namespace.
pub(super) fn in_namespace_of(pod: &Pod, line: &str) -> String {
    let own = &pod.addresses[0];
    format!(
        "ns=$(for ns in /run/netns/cni-*; do nsenter --net=$ns ip -o addr | grep -qF ' {own}/' && echo $ns; done)\n\
         [[ -n $ns ]] || exit 1\n{line}"
    )
}

fn in_pod(cluster: &Cluster, pod: &Pod, words: &[&str]) -> Result<String> {
    processes::output(cluster.kubectl(&["exec", &pod.name, "--"]).args(words))
}
