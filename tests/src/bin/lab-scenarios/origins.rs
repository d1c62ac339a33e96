//! Who a pod is ends with its device: whoever has its address then is somebody else, though nobody is there to tell, and the source
//! still tells of the first. Only the first node has a daemon, so there is no tunnel.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{Manifest, Mode};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, none_arrived, pod};
use serde_json::{Value, json};

use crate::Scenario;
use crate::policies::{is_held_back, is_plain, payments, wait_for, with_pod, write};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("an_exemption_ends_with_its_pod", exemption).nodes(2),
    Scenario::new("so_does_a_routed_pods", routed).nodes(2),
    Scenario::new("an_address_that_is_given_on_is_nobodys", given_on).mode(Mode::Observe).nodes(2),
];

/// Whose packets may pass though the mesh requires encryption.
fn scrapes() -> Manifest {
    let object = json!({
        "apiVersion": "kubeveil.io/v1alpha1",
        "kind": "ClusterEncryptionPolicy",
        "metadata": { "name": "scrapes" },
        "spec": {
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "shop" } },
            "podSelector": {},
            "mode": "exempt",
            "reason": "metrics are public",
        },
    });
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
    ends_with_its_pod(stage, |_| Ok(()))
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
    ends_with_its_pod(stage, by_route)
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
