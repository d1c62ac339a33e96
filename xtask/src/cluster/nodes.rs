//! What becomes of nodes, agents and the controller: they die, lose their power, go and come anew, while pods of others ping each
//! other.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Cluster, guest, life, processes, rotation,
    smoke::{Pod, Pods},
    traffic::{observed, undisturbed},
};
use crate::report;

/// What a node and its pods may take to come up under emulation, and the cluster to know of it.
const PATIENCE: Duration = Duration::from_secs(600);
/// Shell words for a node: `$pid` is its agent, which is not the only one there that is called kubeveild.
pub(super) const AGENT: &str = "pid=$(pgrep -f '^/usr/bin/kubeveild --source')";
/// A pod that speaks as soon as its node runs it.
const EARLY: &str = "early";
/// Where the kernel's programs at a node's devices are pinned: made when they were attached, by the guest's clock.
const ATTACHED: &str = "stat -c %.9Y /sys/fs/bpf/kubeveil/v*/links/steer-*";

/// Without one, agents go and come, and nothing is lost.
pub(super) fn controller_gone(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let scale = |cluster: &Cluster, replicas: u8| {
        let replicas = format!("--replicas={replicas}");
        let mut scale =
            cluster.kubectl(&["scale", "deployment/kubeveil-controller", &replicas, "--timeout=300s"]);
        processes::output(scale.args(life::NAMESPACE)).map(|_| ())
    };
    undisturbed(cluster, &pods.all(), |cluster| {
        scale(cluster, 0)?;
        let gone = [
            "wait",
            "--for=delete",
            "pod",
            "--selector=app.kubernetes.io/component=controller",
            "--timeout=300s",
        ];
        let gone = processes::output(cluster.kubectl(&gone).args(life::NAMESPACE));
        let replaced = gone.and_then(|_| life::replace_agent(cluster, &pods.0[0].node));
        // Whatever came of it: others come after this.
        scale(cluster, 2)?;
        replaced?;
        let rolled = ["rollout", "status", "deployment/kubeveil-controller", "--timeout=600s"];
        processes::output(cluster.kubectl(&rolled).args(life::NAMESPACE)).map(|_| ())
    })
}

/// As the kernel ends it where memory is short: at once, and its kubelet starts it again.
pub(super) fn agent_killed(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let node = pods.0[2].node_number()?;
    undisturbed(cluster, &pods.all(), |cluster| {
        let kill = format!("{AGENT} && kill -9 $pid && echo $pid");
        let before = guest::run(cluster.plan.guest, &node, &kill, b"")?;
        cluster.encrypts(&node, pods.0.len() - 1, Some(&before))
    })
}

/// It comes back with its disk and nothing else. What its own pods send before its agent has attached the programs is in plain, and
/// counted here; what anybody else sends never is.
pub(super) fn reboot(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let [others @ .., gone] = &pods.0[..] else { return Ok(()) };
    let (node, others): (_, Vec<&Pod>) = (gone.node_number()?, others.iter().collect());
    cluster.apply(&[early(gone, &others)])?;
    cluster.kubectl_waits(PATIENCE, &["--for=condition=Ready", "pod/early"])?;
    let mut attached = 0.0;
    let mut told = observed(cluster, &others, |cluster| {
        guest::run(cluster.plan.guest, "vm", &format!("/opt/node/plug {node} out"), b"")?;
        guest::run(cluster.plan.guest, "vm", &format!("/opt/node/plug {node} in"), b"")?;
        cluster.lay_network()?;
        cluster.encrypts(&node, others.len(), None)?;
        let moments = guest::run(cluster.plan.guest, &node, ATTACHED, b"")?;
        let moments = moments.lines().map(str::trim).map(str::parse::<f64>);
        let moments = moments.collect::<Result<Vec<_>, _>>().context("when programs were attached")?;
        attached = moments.into_iter().reduce(f64::max).context("no program is attached")?;
        // Until the pod speaks again.
        cluster.early_speaks(&others)
    })?;
    let ranges = gone.ranges(cluster)?;
    let is_excused = |frame: &String| {
        moment(frame).is_some_and(|moment| moment < attached)
            && ranges.iter().any(|range| comes_from(frame, range))
    };
    let (before, others): (Vec<String>, Vec<String>) = told.plain.drain(..).partition(is_excused);
    told.plain = others;
    let first = before.iter().filter_map(|frame| moment(frame)).reduce(f64::min).unwrap_or(attached);
    report::print(format!(
        "    {} frames of the node's own pods were in plain before its programs were attached, in {:.1} s",
        before.len(),
        attached - first
    ));
    told.judge()?;
    processes::output(&mut cluster.kubectl(&["delete", "pod", EARLY, "--wait=true", "--timeout=120s"]))?;
    Ok(())
}

/// Its pods are taken off it, its Node is deleted, and the machine joins again: as another node, with the disk it had.
pub(super) fn joins_anew(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let [others @ .., gone] = &pods.0[..] else { return Ok(()) };
    let (node, others): (_, Vec<&Pod>) = (gone.node_number()?, others.iter().collect());
    let name = gone.node.as_str();
    undisturbed(cluster, &others, |cluster| {
        let drain =
            ["drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=300s"];
        processes::output(&mut cluster.kubectl(&drain))?;
        guest::run(cluster.plan.guest, "vm", &format!("/opt/node/plug {node} out"), b"")?;
        processes::output(&mut cluster.kubectl(&["delete", "node", name, "--timeout=120s"]))?;
        cluster.kubectl_waits(PATIENCE, &["--for=delete", &format!("veilnode/{name}")])?;
        for other in &others {
            cluster.encrypts(&other.node_number()?, others.len() - 1, None)?;
        }
        guest::run(cluster.plan.guest, "vm", &format!("/opt/node/plug {node} in"), b"")?;
        cluster.lay_network()?;
        cluster.encrypts(&node, others.len(), None)?;
        for other in &others {
            cluster.encrypts(&other.node_number()?, others.len(), None)?;
        }
        Ok(())
    })?;
    // What was to run there ran elsewhere meanwhile.
    let there = others.iter().map(|pod| format!("metadata.name!={}", pod.name())).collect::<Vec<_>>();
    let selector = format!("--field-selector={}", there.join(","));
    let moved = ["delete", "pods", "--selector=app=web", &selector, "--timeout=120s"];
    processes::output(&mut cluster.kubectl(&moved))?;
    Pods::once_ready(cluster)?.hidden_pings(cluster)
}

/// As in a cluster of many nodes: agents know others by the controller's slices. They change to that, one begins by it, keys are rotated and
/// a node joins anew by it, and they change back.
pub(super) fn by_slices(_: &Pods, cluster: &mut Cluster) -> Result<()> {
    // Some have moved since.
    let pods = Pods::once_ready(cluster)?;
    undisturbed(cluster, &pods.all(), |cluster| {
        life::upgraded(cluster, "encryption.peerSlices=always")?;
        cluster.all_go_by_slices(&pods, true)?;
        life::replace_agent(cluster, &pods.0[0].node)?;
        cluster.all_go_by_slices(&pods, true)
    })?;
    rotation::by_gitops(&pods, cluster)?;
    joins_anew(&pods, cluster)?;
    let pods = Pods::once_ready(cluster)?;
    cluster.all_go_by_slices(&pods, true)?;
    undisturbed(cluster, &pods.all(), |cluster| {
        life::upgraded(cluster, "encryption.peerSlices=auto")?;
        cluster.all_go_by_slices(&pods, false)
    })
}

impl Cluster {
    /// Until every node's agent says that it knows others by slices, or that it does not; and that it encrypts to all.
    fn all_go_by_slices(&mut self, pods: &Pods, wanted: bool) -> Result<()> {
        for pod in &pods.0 {
            self.says(&pod.node_number()?, "which way it knows other nodes", |_, said| {
                said["source"]["name"]
                    .as_str()
                    .is_some_and(|source| source.contains("VeilPeerSlices") == wanted)
                    && encrypts(said, pods.0.len() - 1)
            })?;
        }
        Ok(())
    }

    /// Until a node's agent says, on its node, that it is ready and that it encrypts to so many others; and that it is not the process
    /// that it was.
    fn encrypts(&mut self, node: &str, others: usize, before: Option<&str>) -> Result<()> {
        self.says(node, &format!("that it encrypts to {others} others"), |pid, said| {
            before.is_none_or(|before| pid.trim() != before.trim()) && encrypts(said, others)
        })
    }

    /// Until a node's agent, which is the process `pid`, says something of itself.
    fn says(&mut self, node: &str, what: &str, says: impl Fn(&str, &Value) -> bool) -> Result<()> {
        let line = format!("{AGENT} && echo $pid && nsenter -t $pid -m /usr/bin/kubeveil status -o json");
        let (port, mut last) = (self.plan.guest, String::new());
        let done = self.processes.wait_until(&format!("node-{node} says {what}"), PATIENCE, || {
            last = guest::run(port, node, &line, b"").unwrap_or_else(|error| format!("{error:#}"));
            let Some((pid, said)) = last.split_once('\n') else { return false };
            serde_json::from_str(said).is_ok_and(|said| says(pid, &said))
        });
        done.map_err(|error| error.context(format!("the last that it said: {last}")))
    }

    fn early_speaks(&mut self, others: &[&Pod]) -> Result<()> {
        let mut logs = self.kubectl(&["logs", EARLY, "--since=5s"]);
        let addresses: Vec<_> = others.iter().flat_map(|pod| &pod.addresses).collect();
        self.processes.wait_until("the pod of the node that came back is answered", PATIENCE, || {
            let said = processes::output(&mut logs).unwrap_or_default();
            addresses.iter().all(|address| said.contains(&format!("bytes from {address}:")))
        })
    }
}

/// Is it ready, and does it encrypt to so many others, and to all?
fn encrypts(said: &Value, others: usize) -> bool {
    let peers = said["peers"].as_array().map_or(&[][..], Vec::as_slice);
    said["ready"] == true && peers.len() == others && peers.iter().all(|peer| peer["tunnelled"] == true)
}

/// A pod on the same node that pings others, one after the other, from its first moment.
fn early(on: &Pod, others: &[&Pod]) -> Value {
    let addresses: Vec<&str> = others.iter().flat_map(|pod| &pod.addresses).map(String::as_str).collect();
    let pings = format!("while :; do for to in {}; do ping -c 1 -W 1 $to; done; done", addresses.join(" "));
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": EARLY},
        "spec": {
            "nodeName": on.node, "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false, "dnsPolicy": "Default",
            "containers": [{
                "name": EARLY, "image": "kubeveil.test/tools:1", "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", pings],
            }],
        },
    })
}

impl Pod {
    /// Of its node's pods.
    fn ranges(&self, cluster: &Cluster) -> Result<Vec<String>> {
        let query = "jsonpath={.spec.podCIDRs[*]}";
        let said = processes::output(&mut cluster.kubectl(&["get", "node", &self.node, "-o", query]))?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }
}

/// Is a frame's source within a range of whole bytes, or of whole groups (`10.244.1.0/24`, `fd00:10:244:1::/64`)?
fn comes_from(frame: &str, range: &str) -> bool {
    let source = frame.split(" > ").next().and_then(|before| before.rsplit(' ').next()).unwrap_or_default();
    let whole = range.split('/').next().unwrap_or_default();
    let start = whole
        .strip_suffix("::")
        .map_or_else(|| whole.strip_suffix('0').unwrap_or(whole).to_owned(), |groups| format!("{groups}:"));
    !start.is_empty() && source.starts_with(&start)
}

/// When a frame passed, by the guest's clock, in seconds since 1970.
fn moment(frame: &str) -> Option<f64> {
    frame.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_a_moment_and_a_source() {
        let v4 = "1796089048.714945 IP 10.244.1.3.45678 > 10.244.2.3.8080: Flags [S]";
        let v6 = "1796089048.9 IP6 fd00:10:244:1::3 > fd00:10:244:2::3: ICMP6, echo request";
        assert_eq!(moment(v4), Some(1_796_089_048.714_945));
        assert!(comes_from(v4, "10.244.1.0/24") && !comes_from(v4, "10.244.2.0/24"));
        assert!(!comes_from(v4, "10.244.10.0/24") && !comes_from(v4, "fd00:10:244:1::/64"));
        assert!(comes_from(v6, "fd00:10:244:1::/64") && !comes_from(v6, "fd00:10:244:2::/64"));
        let other = v6.replace(":1::3 >", ":12::3 >");
        assert!(!comes_from(&other, "fd00:10:244:1::/64") && comes_from(&other, "fd00:10:244:12::/64"));
    }
}
