//! What policies ask for of some pods, where the mesh asks for less of all: namespaces and labels decide. Shop's pods (`a`) and those
//! of payments (`b`) share their nodes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Node, Pod};
use kubeveil_tests::lab::{Manifest, Mode, pods_manifest as pods};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_lost, none_plain, pod};
use serde_json::{Value, json};

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("payments_never_speak_in_plain", staged).mode(Mode::Observe).nodes(2),
    Scenario::new("a_policy_comes_and_goes", comes_and_goes).mode(Mode::Prefer).nodes(2),
    Scenario::new("a_pod_is_held_to_who_it_is", identity).mode(Mode::Prefer).nodes(2),
];

/// Packets a flow and act.
const PACKETS: u64 = 60;
/// How long a change of the folder may take until packets meet it.
const TAKES_EFFECT: Duration = Duration::from_secs(5);

/// What the payments' people ask for of their pods.
pub(crate) fn payments() -> Manifest {
    let object = json!({
        "apiVersion": "kubeveil.io/v1alpha1",
        "kind": "EncryptionPolicy",
        "metadata": { "name": "cardholder-data", "namespace": "payments" },
        "spec": { "podSelector": { "matchLabels": { "app": "ledger" } }, "mode": "require" },
    });
    Manifest { file: "payments-policy.yaml".to_owned(), object }
}

/// What an auditor asks for of all pods with a label.
fn labelled() -> Manifest {
    let object = json!({
        "apiVersion": "kubeveil.io/v1alpha1",
        "kind": "ClusterEncryptionPolicy",
        "metadata": { "name": "pci" },
        "spec": {
            "namespaceSelector": {},
            "podSelector": { "matchExpressions": [{ "key": "pci", "operator": "Exists" }] },
            "mode": "require",
        },
    });
    Manifest { file: "pci-policy.yaml".to_owned(), object }
}

pub(crate) fn write(stage: &Stage, manifest: &Manifest) -> Result<()> {
    manifest.write(&stage.lab.manifests())
}

/// What he asks for of all pods of namespaces with another.
fn of_namespaces() -> Manifest {
    let object = json!({
        "apiVersion": "kubeveil.io/v1alpha1",
        "kind": "ClusterEncryptionPolicy",
        "metadata": { "name": "audited" },
        "spec": {
            "namespaceSelector": { "matchLabels": { "audited": "yes" } },
            "podSelector": {},
            "mode": "require",
        },
    });
    Manifest { file: "audited-policy.yaml".to_owned(), object }
}

/// The pods, after `change` of the object of one of them.
pub(crate) fn with_pod(
    stage: &Stage,
    pod: Pod,
    change: impl FnOnce(&mut Vec<Value>, usize),
) -> Result<Manifest> {
    let spec = stage.lab.spec();
    let mut manifest = pods(spec.nodes, spec.families);
    let items = manifest.object["items"].as_array_mut().context("a list")?;
    let is_it = |item: &Value| item["metadata"]["name"] == pod.name();
    let at = items.iter().position(is_it).with_context(|| format!("no pod {}", pod.name()))?;
    change(items, at);
    Ok(manifest)
}

/// Nothing of it arrives, and nothing of it is seen on the wire.
pub(crate) fn is_held_back(stage: &mut Stage, from: &str, to: &str) -> Result<()> {
    let (tally, census) = stage.send(stage.load(from, to, 200), PACKETS)?;
    none_arrived(&tally).and_then(|()| none_plain(&census)).with_context(|| format!("{from} -> {to}"))
}

/// All of it arrives, in plain.
pub(crate) fn is_plain(stage: &mut Stage, from: &str, to: &str) -> Result<()> {
    let (tally, census) = stage.send(stage.load(from, to, 200), PACKETS)?;
    none_lost(&tally).with_context(|| format!("{from} -> {to}"))?;
    ensure!(census.markers >= tally.sent, "{from} -> {to} is not plain: {census}");
    Ok(())
}

/// Waits until what `from` sends to `to` arrives, or does not any more.
pub(crate) fn wait_for(stage: &mut Stage, from: &str, to: &str, arrives: bool) -> Result<()> {
    let changed = wait_until(TAKES_EFFECT, Duration::from_millis(20), || {
        let tally = stage.load(from, to, 200).run(4)?;
        Ok(if arrives { tally.lost() == 0 } else { tally.received == 0 })
    })?;
    ensure!(changed, "{from} -> {to}: a change of the policy has had no effect for {TAKES_EFFECT:?}");
    Ok(())
}

/// As the README stages it: the mesh only observes, and one namespace requires. No tunnel is there at first, since the other node has
/// no daemon yet.
fn staged(stage: &mut Stage) -> Result<()> {
    write(stage, &payments())?;
    stage.lab.daemon(Node(1)).start()?;
    for (from, to) in [("1b", "2b"), ("1b", "2a"), ("1a", "2b")] {
        is_held_back(stage, from, to)?;
    }
    is_plain(stage, "1a", "2a")?;
    // Whoever sends it: node 2 knows of no policy yet.
    for from in ["2a", "2b"] {
        let (tally, census) = stage.send(stage.load(from, "1b", 200), PACKETS)?;
        none_arrived(&tally).with_context(|| format!("{from} -> 1b"))?;
        ensure!(census.markers >= tally.sent, "{from} -> 1b was not even sent in plain: {census}");
    }
    is_plain(stage, "2a", "1a")?;
    // With a tunnel everything goes, and by it.
    let shop = stage.load("1a", "2a", 200);
    let (tally, _) = stage.send_while(shop, |stage| {
        stage.lab.daemon(Node(2)).start()?;
        stage.wait_proven()
    })?;
    none_lost(&tally).context("the shop's, while the tunnel is proven")?;
    stage.close()?;
    for (from, to) in [("1b", "2b"), ("2b", "1b"), ("1a", "2a"), ("1b", "2a")] {
        let (tally, census) = stage.send(stage.load(from, to, 200), PACKETS)?;
        encrypted(&tally, &census).with_context(|| format!("{from} -> {to}"))?;
    }
    Ok(())
}

/// A policy is put in force, and taken back, and others notice neither.
fn comes_and_goes(stage: &mut Stage) -> Result<()> {
    stage.lab.daemon(Node(1)).start()?;
    is_plain(stage, "1b", "2b")?;
    let shop = stage.load("1a", "2a", 200);
    let (tally, _) = stage.send_while(shop, |stage| {
        write(stage, &payments())?;
        wait_for(stage, "1b", "2b", false)?;
        let policy = stage.manifest(&payments().file);
        fs::remove_file(&policy).with_context(|| format!("remove {}", policy.display()))?;
        wait_for(stage, "1b", "2b", true)
    })?;
    none_lost(&tally).context("the shop's, meanwhile")?;
    is_plain(stage, "1b", "2b")
}

/// A pod that nobody has told of yet is held to the strictest there is, and from its first packet on; a label makes a pod another, its own
/// or its namespace's, also while it is to end; one that has ended gives its address back.
fn identity(stage: &mut Stage) -> Result<()> {
    let shop = pod("1a");
    write(stage, &labelled())?;
    write(stage, &of_namespaces())?;
    write(stage, &with_pod(stage, shop, |items, at| drop(items.remove(at)))?)?;
    stage.lab.daemon(Node(1)).start()?;
    is_held_back(stage, "1a", "2a").context("before anybody has told of the pod")?;
    is_plain(stage, "1b", "2b")?;
    let rest = stage.load("1b", "2b", 200);
    let (tally, _) = stage.send_while(rest, |stage| {
        write(stage, &with_pod(stage, shop, |_, _| ())?)?;
        wait_for(stage, "1a", "2a", true).context("the pod is known")?;
        let label = |items: &mut Vec<Value>, at: usize| items[at]["metadata"]["labels"]["pci"] = json!("yes");
        write(stage, &with_pod(stage, shop, label)?)?;
        wait_for(stage, "1a", "2a", false).context("the pod has the label")?;
        write(stage, &with_pod(stage, shop, |_, _| ())?)?;
        wait_for(stage, "1a", "2a", true).context("the label is gone")?;
        let dying = |items: &mut Vec<Value>, at: usize| {
            label(items, at);
            items[at]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        };
        write(stage, &with_pod(stage, shop, dying)?)?;
        wait_for(stage, "1a", "2a", false).context("the pod has the label, and is to end")?;
        write(stage, &with_pod(stage, shop, |_, _| ())?)?;
        wait_for(stage, "1a", "2a", true).context("it was another one")?;
        let audited = |items: &mut Vec<Value>, at: usize| {
            let namespace = items[at]["metadata"]["namespace"].clone();
            let it = items
                .iter_mut()
                .find(|item| item["kind"] == "Namespace" && item["metadata"]["name"] == namespace);
            it.expect("pods have their namespaces")["metadata"]["labels"]["audited"] = json!("yes");
        };
        write(stage, &with_pod(stage, shop, audited)?)?;
        wait_for(stage, "1a", "2a", false).context("its namespace has the label")?;
        write(stage, &with_pod(stage, shop, |_, _| ())?)?;
        wait_for(stage, "1a", "2a", true).context("its namespace has it no more")?;
        let ended = |items: &mut Vec<Value>, at: usize| items[at]["status"]["phase"] = json!("Succeeded");
        write(stage, &with_pod(stage, shop, ended)?)?;
        wait_for(stage, "1a", "2a", false).context("the pod has ended")
    })?;
    none_lost(&tally).context("another pod's, meanwhile")
}
