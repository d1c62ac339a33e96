//! A daemon that stands still while the cluster goes on.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::node_manifest;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{PROVEN, Stage, encrypted, none_arrived, none_plain};
use rustix::process::Signal;

use crate::Scenario;

pub(crate) const ALL: &[Scenario] =
    &[Scenario::new("nodes_join_and_leave_while_a_daemon_is_stopped", stopped).nodes(4)];

const STOPPED: Node = Node(2);
const LEAVES: Node = Node(3);
const JOINS: Node = Node(4);

pub(crate) fn signal(stage: &Stage, node: Node, signal: Signal) -> Result<()> {
    stage.lab.daemon(node).running()?.context("the daemon runs")?.signal(signal)
}

/// Those who run have `peers` peers, of whom `proven` are proven.
fn wait_at(stage: &Stage, node: Node, peers: u64, proven: u64) -> Result<()> {
    let mut last = (0, 0);
    let is_so = wait_until(PROVEN, Duration::from_millis(100), || {
        let metrics = stage.metrics(node)?;
        last = (metrics.count("kubeveil_peers_desired", &[]), metrics.proven());
        Ok(last == (peers, proven))
    })?;
    ensure!(is_so, "{}: {} peers, {} proven; not {peers}, {proven}", node.name(), last.0, last.1);
    Ok(())
}

fn stopped(stage: &mut Stage) -> Result<()> {
    fs::remove_file(stage.manifest("node-4.yaml"))?;
    for node in [Node(1), STOPPED, LEAVES] {
        stage.lab.daemon(node).start()?;
    }
    stage.close()?;
    [Node(1), STOPPED, LEAVES].iter().try_for_each(|&node| stage.wait_peers(node, 2))?;
    signal(stage, STOPPED, Signal::STOP)?;

    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        node_manifest(JOINS, stage.lab.spec().families).write(&stage.lab.manifests())?;
        stage.lab.daemon(JOINS).start()?;
        // All but the one that stands still.
        wait_at(stage, Node(1), 3, 3)?;
        wait_at(stage, JOINS, 3, 2)
    })?;
    encrypted(&tally, &census).context("with the one that stands still, while another joins")?;
    let (tally, census) = stage.send(stage.load("1a", "4a", 200), 40)?;
    encrypted(&tally, &census).context("with the newcomer")?;
    // To the one that stands still the newcomer's pods are nobody's, and the newcomer has no tunnel to it.
    for (from, to) in [("2a", "4a"), ("4a", "2a")] {
        let (tally, census) = stage.send(stage.load(from, to, 200), 40)?;
        none_arrived(&tally).with_context(|| format!("{from} to {to}"))?;
        none_plain(&census)?;
    }

    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(LEAVES).stop()?;
        fs::remove_file(stage.manifest("node-3.yaml"))?;
        let _ = fs::remove_file(stage.manifest("announcements/node-3.yaml"));
        wait_at(stage, Node(1), 2, 2)
    })?;
    encrypted(&tally, &census).context("while a node leaves")?;

    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        signal(stage, STOPPED, Signal::CONT)?;
        [Node(1), STOPPED, JOINS].iter().try_for_each(|&node| stage.wait_peers(node, 2))
    })?;
    encrypted(&tally, &census).context("while it catches up")?;
    let (tally, census) = stage.send(stage.load("2a", "4a", 200), 40)?;
    encrypted(&tally, &census).context("when it has caught up")
}
