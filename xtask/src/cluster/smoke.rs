//! Whether a cluster is one: its pods talk across nodes and through Services, and the wire sees it. Then, whether the chart
//! encrypts it: they still talk, and the wire sees nothing of theirs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Cluster, guest,
    guest::Watch,
    installed,
    plan::on_wire,
    processes,
    traffic::{ENVELOPES, between_pods, frames},
};
use crate::workspace::Workspace;

/// What three pods may take to get ready under emulation, beside a busy core.
const ROLLED_OUT: Duration = Duration::from_secs(600);
/// What kube-proxy may take to have heard of a Service's pods.
const PROXIED: Duration = Duration::from_secs(240);

/// A pod of the Deployment.
pub(super) struct Pod {
    name: String,
    pub(super) node: String,
    /// IPv4 first.
    pub(super) addresses: [String; 2],
}

impl Pod {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Of its node.
    pub(super) fn node_number(&self) -> Result<String> {
        let number = self.node.strip_prefix("node-").context("a node without a number")?;
        Ok(number.to_owned())
    }
}

/// The pods of the Deployment.
pub(super) struct Pods(pub(super) Vec<Pod>);

/// Shell words: a request, and what sends it and shows the answer.
pub(super) const GET: &str = r"printf 'GET / HTTP/1.0\r\n\r\n'";
const ONCE: &str = "timeout 20 socat -t 10 -";

/// A pod on each node, and every node's kube-proxy knows them.
pub(super) fn roll_out(cluster: &mut Cluster, workspace: &Workspace) -> Result<Pods> {
    let manifest = workspace.script("kubernetes/smoke.yaml");
    processes::output(cluster.kubectl(&["apply", "-f"]).arg(manifest))?;
    let pods = Pods::once_ready(cluster)?;
    wait_for_proxies(cluster, pods.0.len())?;
    Ok(pods)
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
    /// The Deployment's pods, one on each node, as soon as all are ready.
    pub(super) fn once_ready(cluster: &mut Cluster) -> Result<Self> {
        let mut status = cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=1s"]);
        cluster
            .processes
            .wait_until("the pods get ready", ROLLED_OUT, || crate::process::succeeds(&mut status))?;
        let query = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIPs[*].ip}{\"\\n\"}{end}";
        let lines = processes::output(&mut cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", query]))?;
        let pods = lines.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, node, v4, v6] = words[..] else { return None };
            Some(Pod {
                name: name.to_owned(),
                node: node.to_owned(),
                addresses: [v4.to_owned(), v6.to_owned()],
            })
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
        Ok(Self(pods))
    }

    pub(super) fn all(&self) -> Vec<&Pod> {
        self.0.iter().collect()
    }

    pub(super) fn plain_pings(&self, cluster: &mut Cluster) -> Result<()> {
        // By this filter it is seen later that nothing is in plain.
        let watch = Watch::start(cluster.plan.guest, &between_pods())?;
        let expected = self.ping(cluster)?;
        let seen = watch.stop()?;
        for frame in expected {
            ensure!(seen.contains(&frame), "the wire has not seen `{frame}`, but:\n{seen}");
        }
        Ok(())
    }

    pub(super) fn hidden_pings(&self, cluster: &mut Cluster) -> Result<()> {
        // Neighbours are found in plain; they are no pods. Every other generation of keys has the second port.
        let filter = format!("icmp or icmp6 or {ENVELOPES} or udp portrange 51871-51872");
        let watch = Watch::start(cluster.plan.guest, &filter)?;
        let hidden = self.ping(cluster)?;
        let seen = watch.stop()?;
        for frame in hidden {
            ensure!(!seen.contains(&frame), "the wire has seen `{frame}`");
        }
        let is_tunnel = |line: &&str| line.contains(".51871 > ") || line.contains(".51872 > ");
        let encrypted = seen.lines().filter(is_tunnel).count();
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

    pub(super) fn service(&self, cluster: &mut Cluster) -> Result<()> {
        let query = "jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}";
        let addresses = processes::output(&mut cluster.kubectl(&["get", "service", "web", "-o", query]))?;
        let (v4, v6) = addresses.split_once(' ').context("a Service of both families")?;
        for url in [format!("http://{v4}/"), format!("http://[{v6}]/")] {
            let said = in_pod(cluster, &self.0[0], &["timeout", "20", "wget", "-qO-", &url])?;
            ensure!(self.is_pod(said.trim()), "{url} gave no pod's name but {said:?}");
        }
        Ok(())
    }

    /// Its name stands for its pods; here nobody resolves names, so they are taken from where a resolver takes them.
    pub(super) fn headless(&self, cluster: &mut Cluster) -> Result<()> {
        let slices =
            ["get", "endpointslices", "--selector=kubernetes.io/service-name=web-headless", "--output"];
        let query = "jsonpath={range .items[*].endpoints[*]}{.addresses[0]}{\"\\n\"}{end}";
        let told = processes::output(cluster.kubectl(&slices).arg(query))?;
        let mut told: Vec<&str> = told.lines().collect();
        let mut wanted: Vec<&str> =
            self.0.iter().flat_map(|pod| &pod.addresses).map(String::as_str).collect();
        told.sort_unstable();
        wanted.sort_unstable();
        ensure!(told == wanted, "the Service stands for {told:?}, its pods are {wanted:?}");
        let watch = Watch::start(cluster.plan.guest, &between_pods())?;
        for pod in &self.0[1..] {
            let [v4, v6] = &pod.addresses;
            for to in [format!("TCP4:{v4}:8080"), format!("TCP6:[{v6}]:8080")] {
                let line = in_namespace_of(&self.0[0], &format!("{GET} | nsenter --net=$ns {ONCE} {to}"));
                let said = guest::run(cluster.plan.guest, &self.0[0].node_number()?, &line, b"")?;
                ensure!(
                    said.lines().any(|line| line.trim() == pod.name),
                    "{to} is {}, and said {said:?}",
                    pod.name
                );
            }
        }
        let plain = frames(&watch.stop()?);
        ensure!(plain.is_empty(), "the wire has seen {} frames, the first: {}", plain.len(), plain[0]);
        Ok(())
    }

    pub(super) fn node_port(&self, cluster: &mut Cluster) -> Result<()> {
        let [v4, v6] = on_wire(1);
        for to in [format!("TCP4:{v4}:30080"), format!("TCP6:[{v6}]:30080")] {
            let line = format!("{GET} | {ONCE} {to}");
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

    pub(super) fn install(&self, cluster: &mut Cluster) -> Result<()> {
        installed::install(cluster)
    }
}

/// From the pod's network namespace, found by its address: `kubectl exec` starts a process by way of containerd and runc,
/// which takes an emulated node a minute.
fn ping_from(cluster: &Cluster, pod: &Pod, addresses: &[&str]) -> Result<()> {
    let others = addresses.join(" ");
    let pings = format!("nsenter --net=$ns bash -ec 'for to in {others}; do ping -c 2 -W 5 $to; done'");
    let (port, node) = (cluster.plan.guest, pod.node_number()?);
    guest::run(port, &node, &in_namespace_of(pod, &pings), b"").map(drop).with_context(|| {
        let known = guest::run(port, &node, "ip neigh; ip route; ip -6 route", b"");
        let known = known.unwrap_or_else(|error| format!("{error:#}"));
        format!("{} pings {others}, and its node has\n{known}", pod.name)
    })
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
