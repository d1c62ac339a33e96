//! What a person does to a daemon, and what it must not do unasked.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeveil_keys::test_support::spellings;
use kubeveil_keys::{KeyStore, ListedKey, PrivateKey};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::node_manifest;
use kubeveil_tests::namespace;
use kubeveil_tests::process;
use kubeveil_tests::stage::{Stage, encrypted, none_lost};
use kubeveil_tests::status::{said_in, wireguard_devices};

use crate::Scenario;
use crate::support::{DEVICE, files_with, kernel_writes};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("an_unchanged_cluster_costs_no_kernel_write", unchanged).shared(),
    Scenario::new("a_second_daemon_is_refused", second_daemon).shared(),
    Scenario::new("metrics_stay_within_their_budget", budget).shared(),
    Scenario::new("no_private_key_is_ever_written_elsewhere", secrecy),
    Scenario::new("uninstall_takes_all_away", uninstall),
];

fn unchanged(stage: &mut Stage) -> Result<()> {
    let nodes: Vec<_> = stage.lab.nodes().collect();
    let before: Vec<_> = nodes.iter().map(|&node| kernel_writes(stage, node)).collect::<Result<_>>()?;
    // The same objects again, seen as a change by whoever watches the folder.
    for node in &nodes {
        let path = stage.manifest(&format!("{}.yaml", node.name()));
        let text = fs::read(&path)?;
        fs::write(&path, &text)?;
    }
    let (tally, census) = stage.send(stage.load("1a", "2a", 100), 400)?;
    encrypted(&tally, &census)?;
    let after: Vec<_> = nodes.iter().map(|&node| kernel_writes(stage, node)).collect::<Result<_>>()?;
    ensure!(before == after, "kernel writes went from {before:?} to {after:?}");
    Ok(())
}

fn second_daemon(stage: &mut Stage) -> Result<()> {
    let node = Node(1);
    let daemon = stage.lab.daemon(node);
    let log = daemon.log().len();
    let start = Instant::now();
    let mut second = namespace::spawn(&node.name(), &mut daemon.command(&[])?)?;
    let ended = process::wait_until(Duration::from_secs(10), Duration::from_millis(50), || {
        Ok(second.try_wait()?.is_some())
    })?;
    if !ended {
        second.kill()?;
    }
    let status = second.wait()?;
    ensure!(ended, "the second daemon runs on");
    ensure!(!status.success(), "the second daemon says that all is well");
    let said = daemon.log()[log..].to_lowercase();
    ensure!(said.contains("another"), "it does not say why: {said}");
    eprintln!("  refused after {} ms", start.elapsed().as_millis());
    ensure!(daemon.get("/readyz")?.status == 200, "the first daemon is not ready any more");
    let (tally, census) = stage.send(stage.load("1a", "2a", 100), 40)?;
    encrypted(&tally, &census)
}

fn budget(stage: &mut Stage) -> Result<()> {
    let metrics = stage.metrics(Node(1))?;
    let series = metrics.len();
    ensure!((20..=150).contains(&series), "{series} series");
    ensure!(metrics.count("kubeveil_build_info", &[]) == 1, "no kubeveil_build_info");
    Ok(())
}

/// Everything that a daemon writes, at its most talkative, against the key in every usual spelling.
fn secrecy(stage: &mut Stage) -> Result<()> {
    let node = Node(1);
    for node in stage.lab.nodes() {
        stage.lab.daemon(node).spawn(&["--log".to_owned(), "trace".to_owned()])?;
    }
    stage.settle()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census)?;
    let said = [
        stage.lab.daemon(node).get("/metrics")?.body,
        stage.status(node)?.to_string(),
        said_in(node, "kubeveil", &["status", "--socket", &socket(stage, node)])?,
    ]
    .concat();
    // Again with a file that is no key, and one that was cut: what is complained of must not be quoted.
    let store = key_store(stage, node)?;
    let keys = store.list()?;
    ensure!(!keys.is_empty(), "no key file in {}", stage.lab.daemon(node).file("state").display());
    let secrets: Vec<_> = keys.iter().map(|key| private_key(&store, key)).collect::<Result<_>>()?;
    stage.lab.daemon(node).stop()?;
    let path = store.path(keys[0].generation);
    let text = fs::read_to_string(&path)?;
    fs::write(&path, text.replacen("kubeveil key", "kubeveil  key", 1))?;
    stage.lab.daemon(node).start()?;
    for secret in secrets {
        let spellings = secret.expose(spellings);
        for spelling in &spellings {
            let found = files_with(&stage.lab.manifests(), spelling)?;
            ensure!(found.is_empty(), "the private key is in {found:?}");
            let log = fs::read(stage.lab.daemon(node).file("kubeveild.log"))?;
            ensure!(!holds(&log, spelling), "the private key is in the log");
            ensure!(!holds(said.as_bytes(), spelling), "the private key is in metrics or status");
        }
        // The search itself finds what is there.
        let state = stage.lab.daemon(node).file("state");
        let found = spellings.iter().try_fold(0, |n, s| files_with(&state, s).map(|f| n + f.len()))?;
        ensure!(found > 0, "the search does not find the key in its own file");
    }
    Ok(())
}

fn socket(stage: &Stage, node: Node) -> String {
    stage.lab.daemon(node).file("kubeveild.sock").display().to_string()
}

/// The keys of a node, as its daemon finds them.
fn key_store(stage: &Stage, node: Node) -> Result<KeyStore> {
    let object = node_manifest(node, stage.lab.spec().families).object;
    let uid = object["metadata"]["uid"].as_str().context("metadata.uid")?;
    Ok(KeyStore::open(stage.lab.daemon(node).file("state").join("keys"), uid)?)
}

fn private_key(store: &KeyStore, listed: &ListedKey) -> Result<PrivateKey> {
    let generation = listed.generation;
    let (private, _) = store.load(generation)?.with_context(|| format!("generation {generation}"))?;
    Ok(private)
}

fn holds(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

fn uninstall(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let nodes: Vec<_> = stage.lab.nodes().collect();
    // Not while the daemon runs, and not without the operator's word.
    ensure!(kubeveild_uninstall(stage, nodes[0], &["--accept-plaintext"]).is_err(), "the daemon runs");
    for &node in &nodes {
        stage.lab.daemon(node).stop()?;
        ensure!(kubeveild_uninstall(stage, node, &[]).is_err(), "nobody accepted plaintext");
    }
    let (tally, census) = stage.send(stage.load("1a", "2a", 100), 40)?;
    encrypted(&tally, &census).context("after two refusals")?;
    stage.open()?;
    for &node in &nodes {
        let said = kubeveild_uninstall(stage, node, &["--accept-plaintext", "--remove-keys"])?;
        ensure!(
            said.contains(DEVICE) && said.contains("keys") && said.contains("backstop"),
            "it does not report: {said}"
        );
        ensure!(wireguard_devices(node)?.is_empty(), "a WireGuard device is left");
        let programs = said_in(node, "bpftool", &["net", "show"])?;
        ensure!(!programs.contains("tcx"), "programs are left: {programs}");
        let daemon = stage.lab.daemon(node);
        ensure!(!daemon.file("bpf/kubeveil").exists(), "pins are left");
        let keys = files_with(&daemon.file("state"), b"private-key: ")?;
        ensure!(keys.is_empty(), "keys are left: {keys:?}");
    }
    // As the operator asked: plain again.
    let (tally, census) = stage.send(stage.load("1a", "2a", 100), 40)?;
    none_lost(&tally)?;
    ensure!(census.plaintext >= tally.sent, "{census}");
    Ok(())
}

fn kubeveild_uninstall(stage: &Stage, node: Node, more: &[&str]) -> Result<String> {
    let mut arguments = vec!["uninstall".to_owned()];
    arguments.extend(stage.lab.daemon(node).places());
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    said_in(node, "kubeveild", &arguments)
}
