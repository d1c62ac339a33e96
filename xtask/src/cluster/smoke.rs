//! Whether a cluster is one: its pods talk across nodes and through Services, and the wire sees it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Cluster, guest, guest::Watch, plan::on_wire};
use crate::{process, report, test::Tally, workspace::Workspace};

/// What three pods may take to get ready under emulation.
const ROLLED_OUT: Duration = Duration::from_secs(180);

/// A pod of the Deployment.
struct Pod {
    name: String,
    node: String,
    /// IPv4 first.
    addresses: [String; 2],
}

/// Brings a cluster of three nodes up and tries it.
pub(crate) fn test(workspace: &Workspace, filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    super::with(workspace, 3, super::MEMORY, |cluster| {
        let pods = roll_out(cluster, workspace)?;
        let checks: [(&str, Check); 3] = [
            ("pods_of_all_nodes_ping_each_other_and_the_wire_sees_it", pings),
            ("a_service_answers_a_pod_in_both_families", service),
            ("a_node_port_answers_from_the_wire_in_both_families", node_port),
        ];
        for (name, check) in checks {
            if filter.is_some_and(|filter| !name.contains(filter)) {
                continue;
            }
            let result = check(cluster, &pods);
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

type Check = fn(&Cluster, &[Pod]) -> Result<()>;

fn roll_out(cluster: &mut Cluster, workspace: &Workspace) -> Result<Vec<Pod>> {
    let manifest = workspace.script("kubernetes/smoke.yaml");
    process::output(cluster.kubectl(&["apply", "-f"]).arg(manifest))?;
    let mut status = cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=1s"]);
    cluster.processes.wait_until("the pods get ready", ROLLED_OUT, || process::succeeds(&mut status))?;
    let query =
        "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIPs[*].ip}{\"\\n\"}{end}";
    let lines = process::output(&mut cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", query]))?;
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
    Ok(pods)
}

fn pings(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let watch = Watch::start(cluster.plan.guest, "icmp or icmp6")?;
    let mut expected = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            for (source, address) in from.addresses.iter().zip(&to.addresses) {
                in_pod(cluster, from, &["ping", "-c", "2", "-W", "5", address])?;
                expected.push(format!("{source} > {address}: ICMP"));
            }
        }
    }
    let seen = watch.stop()?;
    for frame in expected {
        ensure!(seen.contains(&frame), "the wire has not seen `{frame}`, but:\n{seen}");
    }
    Ok(())
}

fn service(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let query = "jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}";
    let addresses = process::output(&mut cluster.kubectl(&["get", "service", "web", "-o", query]))?;
    let (v4, v6) = addresses.split_once(' ').context("a Service of both families")?;
    for url in [format!("http://{v4}/"), format!("http://[{v6}]/")] {
        let said = in_pod(cluster, &pods[0], &["timeout", "20", "wget", "-qO-", &url])?;
        ensure!(pods.iter().any(|pod| pod.name == said.trim()), "{url} gave no pod's name but {said:?}");
    }
    Ok(())
}

fn node_port(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let [v4, v6] = on_wire(1);
    for to in [format!("TCP4:{v4}:30080"), format!("TCP6:[{v6}]:30080")] {
        let line = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 20 socat -t 10 - {to}");
        let said = guest::run(cluster.plan.guest, "wire", &line, b"")?;
        ensure!(pods.iter().any(|pod| said.contains(&pod.name)), "{to} gave no pod's name but {said:?}");
    }
    Ok(())
}

fn in_pod(cluster: &Cluster, pod: &Pod, words: &[&str]) -> Result<String> {
    process::output(cluster.kubectl(&["exec", &pod.name, "--"]).args(words))
}
