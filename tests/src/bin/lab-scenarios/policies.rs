//! What policies ask for of some pods, where the mesh asks for less of all: namespaces and labels decide. Shop's pods (`a`) and those
//! of payments (`b`) share their nodes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Node, Pod};
use kubeveil_tests::lab::{Manifest, Mode, pods_manifest as pods};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, conclusive, encrypted, none_arrived, none_lost, none_plain, pod};
use kubeveil_tests::traffic::Running;
use serde_json::{Value, json};

use crate::Scenario;
use crate::support::is_proven_unnoticed;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("payments_never_speak_in_plain", staged).mode(Mode::Observe).nodes(2),
    Scenario::new("a_policy_comes_and_goes", comes_and_goes).mode(Mode::Prefer).nodes(2),
    Scenario::new("a_pod_is_held_to_who_it_is", identity).mode(Mode::Prefer).nodes(2).takes(40),
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
    is_proven_unnoticed(stage)?;
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

/// Changes the object of one of the pods, or of its namespace.
type Change = fn(&mut Vec<Value>, usize);

fn as_it_was(_: &mut Vec<Value>, _: usize) {}

fn removed(items: &mut Vec<Value>, at: usize) {
    items.remove(at);
}

fn with_label(items: &mut [Value], at: usize) {
    items[at]["metadata"]["labels"]["pci"] = json!("yes");
}

/// It has the label, and is to end.
fn dying(items: &mut [Value], at: usize) {
    with_label(items, at);
    items[at]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
}

fn of_labelled_namespace(items: &mut [Value], at: usize) {
    let namespace = items[at]["metadata"]["namespace"].clone();
    let it =
        items.iter_mut().find(|item| item["kind"] == "Namespace" && item["metadata"]["name"] == namespace);
    it.expect("pods have their namespaces")["metadata"]["labels"]["audited"] = json!("yes");
}

fn ended(items: &mut [Value], at: usize) {
    items[at]["status"]["phase"] = json!("Succeeded");
}

/// A pod that has the policies' label, and its node's network.
fn with_host_network(stage: &Stage, manifest: &mut Manifest) -> Result<()> {
    let (families, node) = (stage.lab.spec().families, Node(1));
    let items = manifest.object["items"].as_array_mut().context("a list")?;
    items.push(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "exporter", "namespace": "payments", "uid": "of-the-hosts-network", "labels": { "pci": "yes" },
        },
        "spec": { "nodeName": node.name(), "hostNetwork": true, "containers": [{ "name": "exporter", "image": "exporter" }] },
        "status": {
            "phase": "Running",
            "podIP": families.first(|family| node.address(family).to_string()),
            "podIPs": families.map(|family| json!({ "ip": node.address(family).to_string() })),
        },
    }));
    Ok(())
}

/// A pod that nobody has told of yet is held to the strictest there is, and from its first packet on; a label makes a pod another, its own
/// or its namespace's, also while it is to end; one that has ended, or of which nobody tells any more, gives its address back. What it sends
/// and is sent turns each time at once, and no node is held to what is asked of a pod that shares its network.
fn identity(stage: &mut Stage) -> Result<()> {
    let shop = pod("1a");
    let steps: [(&str, Change, bool); 12] = [
        ("nobody has told of the pod", removed, false),
        ("the pod is known", as_it_was, true),
        ("the pod has the label", |items, at| with_label(items, at), false),
        ("the label is gone", as_it_was, true),
        ("the pod has the label, and is to end", |items, at| dying(items, at), false),
        ("it was another one", as_it_was, true),
        ("its namespace has the label", |items, at| of_labelled_namespace(items, at), false),
        ("its namespace has it no more", as_it_was, true),
        ("the pod is deleted, and goes on", removed, false),
        ("it is there again", as_it_was, true),
        ("the pod has ended", |items, at| ended(items, at), false),
        ("another one has begun", as_it_was, true),
    ];
    let become_so = |stage: &Stage, change: Change| {
        let mut manifest = with_pod(stage, shop, change)?;
        with_host_network(stage, &mut manifest)?;
        write(stage, &manifest)
    };
    write(stage, &labelled())?;
    write(stage, &of_namespaces())?;
    become_so(stage, removed)?;
    stage.lab.daemon(Node(1)).start()?;
    is_held_back(stage, "1a", "2a").context("before anybody has told of the pod")?;
    is_plain(stage, "1b", "2b")?;
    let node = Between::nodes(stage)?;
    let rest = stage.load("1b", "2b", 100);
    let (tally, _) = stage.send_while(rest, |stage| {
        let talk = Between::pods(stage, "1a", "2a")?;
        for (what, change, passes) in steps {
            become_so(stage, change)?;
            talk.turns(stage, passes).context(what)?;
        }
        talk.turned(steps.iter().filter(|(.., passes)| *passes).count() as u64)
    })?;
    none_lost(&tally).context("another pod's, meanwhile")?;
    node.not_concerned().context("the nodes' own, meanwhile")
}

/// What two say to each other all the while that one of them is made another, counted.
struct Between {
    there: Running,
    back: Running,
}

impl Between {
    /// Two pods; the first one's node has a daemon.
    fn pods(stage: &Stage, one: &str, other: &str) -> Result<Self> {
        let [there, back] = [(one, other), (other, one)].map(|(from, to)| stage.load(from, to, 200).start());
        Ok(Self { there: there?, back: back? })
    }

    /// The first two nodes themselves, and the first one and a pod of the second.
    fn nodes(stage: &Stage) -> Result<Self> {
        let own = |family| Node(1).address(family);
        let [there, back] = [stage.load("1b", "2b", 50).for_nodes(), stage.load("1b", "2b", 50)]
            .map(|load| load.by("node-1").disguised(own).start());
        Ok(Self { there: there?, back: back? })
    }

    fn arrived(&self) -> [u64; 2] {
        [self.there.arrived(), self.back.arrived()]
    }

    fn wait_for(&self, packets: u64) {
        self.there.wait_for(packets);
        self.back.wait_for(packets / 2);
    }

    /// Waits until all of it arrives, in plain, or none any more; from then on it is so, and nothing else is on the wire of what the first
    /// one sends.
    fn turns(&self, stage: &mut Stage, passes: bool) -> Result<()> {
        let has_turned = wait_until(TAKES_EFFECT, Duration::ZERO, || {
            let before = self.arrived();
            self.wait_for(10);
            let arrive =
                self.arrived().iter().zip(before).map(|(now, before)| *now > before).collect::<Vec<_>>();
            Ok(arrive == [passes; 2])
        })?;
        ensure!(has_turned, "a change has had no effect for {TAKES_EFFECT:?}");
        stage.phase()?;
        let before = self.arrived();
        self.wait_for(40);
        let (after, seen) = (self.arrived(), stage.phase()?.of(self.there.load()));
        if passes {
            ensure!(
                seen > 0 && after.iter().zip(before).all(|(now, before)| *now > before),
                "it passes no more"
            );
        } else {
            ensure!(seen == 0, "{seen} of its packets are plain on the wire");
            ensure!(after == before, "packets arrive: {before:?}, then {after:?}");
        }
        Ok(())
    }

    /// It came to pass so many times, and each time all at once: of each flow as many stretches have arrived, with nothing lost in them and
    /// nothing arrived between.
    fn turned(self, times: u64) -> Result<()> {
        for (what, running) in [("sent", self.there), ("received", self.back)] {
            let tally = running.finish()?;
            eprintln!("  {what} by it: {tally}, in {} stretches", tally.stretches);
            conclusive(&tally)?;
            let wanted = times * Families::Dual.all().len() as u64;
            ensure!(
                tally.stretches == wanted,
                "{what}: {} stretches, not {wanted}: {tally}",
                tally.stretches
            );
        }
        Ok(())
    }

    /// Nothing of it was lost.
    fn not_concerned(self) -> Result<()> {
        [self.there, self.back].into_iter().try_for_each(|running| none_lost(&running.finish()?))
    }
}
