//! Who a pod is ends with its device: whoever has its address then is somebody else, though nobody is there to tell, and the source
//! still tells of the first. Only the first node has a daemon, so there is no tunnel.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kubeveil_tests::address::{Family, Node};
use kubeveil_tests::lab::{Manifest, Mode, batch};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, conclusive, encrypted, none_arrived, none_plain, pod};
use kubeveil_tests::traffic::{Load, flows};
use serde_json::{Value, json};

use crate::Scenario;
use crate::policies::{is_held_back, is_plain, payments, wait_for, with_pod, write};
use crate::support::{NO_TUNNEL, is_proven_unnoticed, rises_by, told};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("an_exemption_ends_with_its_pod", exemption).nodes(2).takes(60),
    Scenario::new("so_does_a_routed_pods", routed).nodes(2),
    Scenario::new("an_address_that_is_given_on_is_nobodys", given_on).mode(Mode::Observe).nodes(2),
];

/// Whose packets may pass though the mesh requires encryption.
fn scrapes() -> Manifest {
    of_shop(json!({ "mode": "exempt", "reason": "metrics are public" }))
}

/// What is asked for of shop's pods.
fn of_shop(asked: Value) -> Manifest {
    let mut object = json!({
        "apiVersion": "kubeveil.io/v1alpha1",
        "kind": "ClusterEncryptionPolicy",
        "metadata": { "name": "scrapes" },
        "spec": {
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "shop" } },
            "podSelector": {},
        },
    });
    if let (Some(spec), Value::Object(asked)) = (object["spec"].as_object_mut(), asked) {
        spec.extend(asked);
    }
    Manifest { file: "scrapes-policy.yaml".to_owned(), object }
}

/// Both of a namespace may speak in plain, and nobody else.
fn exemption(stage: &mut Stage) -> Result<()> {
    write(stage, &scrapes())?;
    stage.lab.daemon(Node(1)).start()?;
    wait_for(stage, "1a", "2a", true)?;
    is_plain(stage, "1a", "2a")?;
    is_plain(stage, "2a", "1a")?;
    for (from, to) in [("1b", "2b"), ("1a", "2b"), ("1b", "2a")] {
        is_held_back(stage, from, to)?;
    }
    is_no_others(stage).context("of the same bridge")?;
    ends_with_its_pod(stage, |_| Ok(()))?;
    ends_by_its_time(stage)?;
    prefers(stage)
}

/// The programs end it, with nobody else there to do so: what passes is the first part of each flow, and nothing comes behind it.
fn ends_by_its_time(stage: &mut Stage) -> Result<()> {
    let until = Timestamp::now().checked_add(Duration::from_secs(8))?;
    write(
        stage,
        &of_shop(json!({ "mode": "exempt", "reason": "metrics are public", "until": until.to_string() })),
    )?;
    let told = wait_until(Duration::from_secs(5), Duration::from_millis(50), || {
        let metrics = stage.metrics(Node(1))?;
        Ok(metrics.count("kubeveil_exemption_expires_timestamp_seconds", &[]) > 0)
    })?;
    ensure!(told, "the exemption's end is not told");
    // It is told of what was decided, and then carried out.
    sleep(Duration::from_millis(500));
    stage.lab.daemon(Node(1)).kill()?;
    let left = || until.duration_since(Timestamp::now());
    is_plain(stage, "1a", "2a").context("before its end, without a daemon")?;
    ensure!(left().is_positive(), "it was over before the daemon was killed");
    let families = stage.lab.spec().families;
    let both = [flows(pod("1a"), pod("2a"), families), flows(pod("2a"), pod("1a"), families)].concat();
    let count = both.len() as u64;
    let (tally, _) = stage.send_while(Load::new(both, 200), |_| {
        sleep(Duration::try_from(left()).unwrap_or_default() + Duration::from_secs(2));
        Ok(())
    })?;
    conclusive(&tally)?;
    let is_one_each = tally.stretches == count && tally.lost() > 0;
    ensure!(
        is_one_each,
        "not plain up to its end and held back from then on: {tally}, {} stretches",
        tally.stretches
    );
    is_held_back(stage, "1a", "2a").context("after its end")?;
    stage.lab.daemon(Node(1)).start()?;
    is_held_back(stage, "1a", "2a").context("after its end, with another daemon")
}

/// Who only prefers it passes in plain without a tunnel, and is encrypted with one, though the mesh requires it.
fn prefers(stage: &mut Stage) -> Result<()> {
    write(stage, &of_shop(json!({ "mode": "prefer" })))?;
    wait_for(stage, "1a", "2a", true)?;
    is_plain(stage, "1a", "2a")?;
    is_plain(stage, "2a", "1a")?;
    for (from, to) in [("1b", "2b"), ("1a", "2b")] {
        is_held_back(stage, from, to)?;
    }
    is_proven_unnoticed(stage)?;
    for (from, to) in [("1a", "2a"), ("2a", "1a"), ("1b", "2b")] {
        let (tally, census) = stage.send(stage.load(from, to, 200), 60)?;
        encrypted(&tally, &census).with_context(|| format!("{from} -> {to}"))?;
    }
    Ok(())
}

/// The same where a plugin routes to each pod, and no bridge is between the pod's device and the node.
fn routed(stage: &mut Stage) -> Result<()> {
    let by_route = |stage: &Stage| stage.lab.route_pod(pod("1a"));
    by_route(stage)?;
    write(stage, &scrapes())?;
    stage.lab.daemon(Node(1)).start()?;
    wait_for(stage, "1a", "2a", true)?;
    is_plain(stage, "1a", "2a")?;
    is_plain(stage, "2a", "1a")?;
    is_held_back(stage, "1a", "2b")?;
    is_no_others(stage)?;
    ends_with_its_pod(stage, by_route)
}

/// Another pod of the node takes the exempt one's addresses too, on its own.
fn is_no_others(stage: &mut Stage) -> Result<()> {
    takes_it(stage, "add")?;
    let before = told(stage, Node(1), NO_TUNNEL)?;
    let load = stage.load("1a", "2a", 200).by("pod-1b").disguised(exempt_address);
    let (tally, census) = stage.send(load, 60)?;
    none_arrived(&tally).and_then(|()| none_plain(&census)).context("1b as 1a -> 2a")?;
    rises_by(stage, Node(1), NO_TUNNEL, before, tally.sent).context("1b as 1a -> 2a")?;
    takes_it(stage, "del")?;
    is_plain(stage, "1a", "2a").context("1a, meanwhile")
}

/// Has pod 1b take them, or give them back.
fn takes_it(stage: &Stage, word: &str) -> Result<()> {
    let line = |family| format!("address {word} {} dev lo", exempt_address(family));
    batch(Some("pod-1b"), &stage.lab.spec().families.map(line))
}

fn exempt_address(family: Family) -> IpAddr {
    pod("1a").address(family)
}

/// One namespace requires encryption, and shop's pods are known to be none of it.
fn given_on(stage: &mut Stage) -> Result<()> {
    write(stage, &payments())?;
    stage.lab.daemon(Node(1)).start()?;
    is_plain(stage, "1a", "2a")?;
    wait_for_device(stage)?;
    ends_with_its_pod(stage, |_| Ok(()))
}

/// What may pass does so before the device is found, too; so that has to be waited for by itself. Nobody else of the node has spoken.
fn wait_for_device(stage: &mut Stage) -> Result<()> {
    let found = wait_until(Duration::from_secs(20), Duration::from_millis(100), || Ok(devices(stage)? >= 2))?;
    ensure!(found, "the device of 1a is not found");
    Ok(())
}

/// Addresses of the first node's pods whose device is known.
fn devices(stage: &Stage) -> Result<u64> {
    let status = stage.status(Node(1))?;
    status["policies"]["knownByDevice"].as_u64().context("status.policies.knownByDevice")
}

/// `connect` is what the plugin does with a pod beyond what the lab does.
fn ends_with_its_pod(stage: &mut Stage, connect: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
    let before = devices(stage)?;
    stage.lab.daemon(Node(1)).kill()?;
    is_plain(stage, "1a", "2a").context("while no daemon is there")?;
    stage.lab.replace_pod(pod("1a"))?;
    connect(stage)?;
    another_has_its_address(stage).context("while no daemon is there")?;
    stage.lab.daemon(Node(1)).start()?;
    another_has_its_address(stage).context("the source tells of the old pod")?;
    let after = devices(stage)?;
    ensure!(
        after + 2 == before,
        "{before} addresses were known by their device, and {after} are without both of 1a's"
    );
    let other = |items: &mut Vec<Value>, at: usize| items[at]["metadata"]["uid"] = json!("another");
    write(stage, &with_pod(stage, pod("1a"), other)?)?;
    wait_for(stage, "1a", "2a", true).context("the source tells of the new pod")?;
    is_plain(stage, "1a", "2a")
}

fn another_has_its_address(stage: &mut Stage) -> Result<()> {
    is_held_back(stage, "1a", "2a")?;
    let (tally, _) = stage.send(stage.load("2a", "1a", 200), 60)?;
    none_arrived(&tally).context("2a -> 1a")
}
