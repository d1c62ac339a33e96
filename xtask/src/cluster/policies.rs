//! README's example of policies, as an operator would go by it: from a mesh that observes to one that requires.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Cluster,
    guest::Watch,
    life, processes,
    smoke::{GET, Pods},
    traffic::{between_pods, frames},
};

/// Where it stands in README.
const CHAPTER: &str = "## Require encryption of some pods";
/// What agents and the controller may take under emulation until a policy is in force, and a node until a pod runs.
const PATIENCE: Duration = Duration::from_secs(600);
const PAYMENTS: &str = "payments";

/// README's manifests, in its order.
fn manifests() -> Result<Vec<Value>> {
    let readme = include_str!("../../../README.md");
    let (_, chapter) = readme.split_once(CHAPTER).context("README has no such chapter")?;
    let chapter = chapter.split("\n## ").next().unwrap_or_default();
    let blocks = chapter.split("```yaml\n").skip(1);
    blocks
        .map(|block| {
            let text = block.split("```").next().unwrap_or_default();
            serde_saphyr::from_str(text).with_context(|| format!("README's manifest is none:\n{text}"))
        })
        .collect()
}

impl Cluster {
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let file = self.plan.file("applied.json");
        fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        processes::output(self.kubectl(&["apply", "-f"]).arg(file)).map(|_| ())
    }

    /// Until an object, of a namespace if it is of one, has the condition.
    fn wait_for(&mut self, condition: &str, object: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
        let name = format!("{kind}/{}", text(&metadata["name"]));
        let condition = format!("--for=condition={condition}");
        let namespace = metadata["namespace"].as_str().map(|namespace| format!("--namespace={namespace}"));
        let words: Vec<&str> =
            [&condition, &name].into_iter().chain(&namespace).map(String::as_str).collect();
        self.kubectl_waits(PATIENCE, &words)
    }

    /// The chart's way to another mode.
    fn becomes(&mut self, values: &str, mode: &str) -> Result<()> {
        life::upgraded(self, values)?;
        let mut get = self.kubectl(&["get", "encryptionmesh", "default", "-o", "jsonpath={.spec.mode}"]);
        let is = processes::output(&mut get)?;
        ensure!(is == mode, "the mesh's mode is {is}");
        Ok(())
    }
}

/// A pod that speaks to the others from the moment at which it is started, as often as it can.
fn ledger(pods: &Pods) -> Value {
    let others = pods.0[1..].iter().flat_map(|pod| &pod.addresses);
    let asks: String = others.map(|address| format!("{GET} | nc -w 2 {address} 8080; ")).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "ledger", "namespace": PAYMENTS, "labels": {"app": "ledger"}},
        "spec": {
            "nodeName": pods.0[0].node, "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false, "dnsPolicy": "Default",
            "containers": [{
                "name": "ledger", "image": "kubeveil.test/tools:1", "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", format!("while :; do {asks} done")],
            }],
        },
    })
}

/// All of it, step by step.
pub(super) fn staged(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let manifests = manifests()?;
    let [cardholder_data, pci, streams] = &manifests[..] else {
        anyhow::bail!("README has {} manifests there", manifests.len())
    };
    cluster.becomes("encryption.enabled=false", "observe")?;
    // What is captured below would be found.
    pods.plain_pings(cluster).context("while the mesh observes")?;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PAYMENTS, "labels": {"team": PAYMENTS}}});
    cluster.apply(&[space.clone(), cardholder_data.clone(), pci.clone()])?;
    cluster.wait_for("InForce", cardholder_data)?;
    cluster.wait_for("InForce", pci)?;
    let watch = Watch::start(cluster.plan.guest, &between_pods())?;
    cluster.apply(&[ledger(pods)])?;
    cluster.wait_for("Selecting", cardholder_data)?;
    let mut logs = cluster.kubectl(&["logs", "ledger", "--namespace", PAYMENTS]);
    cluster.processes.wait_until("the new pod is answered by all", PATIENCE, || {
        let said = processes::output(&mut logs).unwrap_or_default();
        pods.0[1..].iter().all(|pod| said.contains(pod.name()))
    })?;
    let mut get = cluster.kubectl(&["get", "pod", "ledger", "--namespace", PAYMENTS]);
    let addresses = processes::output(get.args(["-o", "jsonpath={.status.podIPs[*].ip}"]))?;
    let plain = frames(&watch.stop()?);
    let of_it: Vec<_> =
        plain.iter().filter(|frame| addresses.split(' ').any(|address| is_of(frame, address))).collect();
    ensure!(
        of_it.is_empty(),
        "the wire has seen {} frames of {addresses}, the first: {}",
        of_it.len(),
        of_it[0]
    );

    for mode in ["prefer", "require"] {
        cluster.becomes(&format!("encryption.enabled=true,encryption.mode={mode}"), mode)?;
        pods.hidden_pings(cluster).with_context(|| format!("in a mesh of mode {mode}"))?;
    }
    cluster.apply(std::slice::from_ref(streams))?;
    cluster.wait_for("InForce", streams)?;
    // As long as nobody is a public stream, nobody is in plain.
    pods.hidden_pings(cluster).context("with an exemption of others")?;
    for object in [streams, pci, &space] {
        let (kind, name) = (object["kind"].as_str(), object["metadata"]["name"].as_str());
        let words = ["delete", kind.unwrap_or_default(), name.unwrap_or_default(), "--timeout=300s"];
        processes::output(&mut cluster.kubectl(&words))?;
    }
    Ok(())
}

/// Is it of a packet from or to this address? (`IP 10.244.0.2.45678 > 10.244.1.3.8080: …`)
fn is_of(frame: &str, address: &str) -> bool {
    frame.split([' ', ':']).chain(frame.split(' ')).any(|word| {
        let word = word.trim_end_matches(':');
        word == address || word.rsplit_once('.').is_some_and(|(host, _)| host == address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readmes_manifests_are_read() {
        let kinds: Vec<_> =
            manifests().expect("manifests").into_iter().map(|one| one["kind"].clone()).collect();
        assert_eq!(kinds, ["EncryptionPolicy", "ClusterEncryptionPolicy", "ClusterEncryptionPolicy"]);
    }

    #[test]
    fn a_frame_is_known_by_its_addresses() {
        let v4 = "1.5 IP 10.244.0.2.45678 > 10.244.1.3.8080: Flags [S]";
        let v6 = "1.5 IP6 fd00:10:244::2.45678 > fd00:10:244:1::3.8080: Flags [S]";
        let ping = "1.5 IP 10.244.0.2 > 10.244.1.3: ICMP echo request";
        assert!(is_of(v4, "10.244.0.2") && is_of(v4, "10.244.1.3") && !is_of(v4, "10.244.0.20"));
        assert!(is_of(v6, "fd00:10:244::2") && is_of(v6, "fd00:10:244:1::3") && !is_of(v6, "fd00:10:244::3"));
        assert!(is_of(ping, "10.244.1.3"));
    }
}
