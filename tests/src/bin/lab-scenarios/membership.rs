//! Who belongs to the cluster: nobody known yet, one who comes, one who goes, one who comes back.

use std::fs;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::node_manifest;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_lost, none_plain, pod};
use kubeveil_tests::traffic::{Load, flows};

use crate::Scenario;
use crate::support::{delete_device, dropped_since, public_key};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("before_the_first_peer_is_known_nothing_is_plain", nobody_known),
    Scenario::new("from_the_first_ready_on_nothing_is_plain", starting_under_traffic),
    Scenario::new("a_node_joins", joins),
    Scenario::new("a_node_leaves", leaves),
    Scenario::new("a_node_comes_back_with_a_new_key", new_key),
    Scenario::new("a_mesh_that_is_lost_opens_nothing", lost_mesh),
];

/// Only the mesh and the own node are known: the cluster's range is enough to know what must not pass.
fn nobody_known(stage: &mut Stage) -> Result<()> {
    for file in ["node-2.yaml", "node-3.yaml"] {
        fs::remove_file(stage.manifest(file))?;
    }
    let node = Node(1);
    stage.lab.daemon(node).start()?;
    stage.close()?;
    let families = stage.lab.spec().families;
    let both = [flows(pod("1a"), pod("2a"), families), flows(pod("1b"), pod("3b"), families)].concat();
    let (tally, census) = stage.send(Load::new(both.clone(), 200), 200)?;
    none_arrived(&tally)?;
    none_plain(&census)?;
    dropped_since(stage, node, "no_owner", 0, tally.sent)?;
    // Nor while the daemon is dead, nor while it starts with even less than that to read.
    stage.lab.daemon(node).kill()?;
    fs::rename(stage.lab.manifests(), stage.lab.folder().join("away"))?;
    fs::create_dir(stage.lab.manifests())?;
    let (tally, census) = stage.send_while(Load::new(both, 200), |stage| {
        stage.lab.daemon(node).spawn(&[])?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        Ok(())
    })?;
    none_arrived(&tally)?;
    none_plain(&census)
}

fn starting_under_traffic(stage: &mut Stage) -> Result<()> {
    let load = stage.load("1a", "2a", 200);
    let (tally, _) = stage.send_while(load, |stage| stage.start())?;
    ensure!(tally.received > 0, "nothing arrives though all tunnels are proven: {tally}");
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census)
}

fn joins(stage: &mut Stage) -> Result<()> {
    let newcomer = Node(3);
    fs::remove_file(stage.manifest("node-3.yaml"))?;
    for node in [Node(1), Node(2)] {
        stage.lab.daemon(node).start()?;
    }
    stage.close()?;
    for node in [Node(1), Node(2)] {
        stage.wait_peers(node, 1)?;
    }
    let (tally, _) = stage.send(stage.load("1a", "3a", 100), 40)?;
    none_arrived(&tally)?;
    let load = stage.load("1b", "2b", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        node_manifest(newcomer, stage.lab.spec().families).write(&stage.lab.manifests())?;
        stage.lab.daemon(newcomer).start()?;
        stage.wait_proven()
    })?;
    encrypted(&tally, &census).context("those who were there before")?;
    let (tally, census) = stage.send(stage.load("1a", "3a", 100), 40)?;
    encrypted(&tally, &census).context("to the newcomer")
}

fn leaves(stage: &mut Stage) -> Result<()> {
    let gone = Node(3);
    stage.start()?;
    let (tally, census) = stage.send(stage.load("1a", "3a", 100), 40)?;
    encrypted(&tally, &census)?;
    let load = stage.load("1b", "2b", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(gone).stop()?;
        fs::remove_file(stage.manifest("node-3.yaml"))?;
        // A Node's annotation goes with the Node.
        let _ = fs::remove_file(stage.manifest("announcements/node-3.yaml"));
        [Node(1), Node(2)].into_iter().try_for_each(|node| stage.wait_peers(node, 1))
    })?;
    encrypted(&tally, &census).context("those who stay")?;
    let before = stage.metrics(Node(1))?.drops("no_owner");
    let (tally, _) = stage.send(stage.load("1a", "3a", 100), 40)?;
    none_arrived(&tally)?;
    dropped_since(stage, Node(1), "no_owner", before, tally.sent)
}

/// The mesh is deleted, then what the daemon remembers of it: what is in the kernel stands.
fn lost_mesh(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let daemon = stage.lab.daemon(Node(1));
    fs::remove_file(stage.manifest("mesh.yaml"))?;
    daemon.kill()?;
    fs::remove_file(daemon.file("state").join("known.json"))?;
    daemon.spawn(&[])?;
    let load = stage.load("1a", "2a", 100);
    let (tally, census) = stage.send(load, 400)?;
    encrypted(&tally, &census)
}

/// Once with its device still there, under the old key; once as after a new installation.
fn new_key(stage: &mut Stage) -> Result<()> {
    let node = Node(3);
    stage.start()?;
    for reinstalled in [false, true] {
        let old = public_key(stage, node)?;
        let load = stage.load("1a", "3a", 200);
        let (tally, census) = stage.send_while(load, |stage| {
            stage.lab.daemon(node).stop()?;
            if reinstalled {
                delete_device(node)?;
            }
            let state = stage.lab.daemon(node).file("state");
            for entry in fs::read_dir(&state)? {
                let path = entry?.path();
                if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
            stage.lab.daemon(node).start()?;
            stage.wait_proven()
        })?;
        none_plain(&census)?;
        ensure!(tally.received > 0, "{tally}");
        ensure!(public_key(stage, node)? != old, "the key is the old one");
        let (tally, census) = stage.send(stage.load("3a", "2b", 200), 100)?;
        encrypted(&tally, &census)?;
        let (tally, census) = stage.send(stage.load("1a", "3a", 200), 100)?;
        encrypted(&tally, &census)?;
        none_lost(&tally)?;
    }
    Ok(())
}
