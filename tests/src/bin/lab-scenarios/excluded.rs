//! Nodes that can have no agent (`spec.excludedNodes`): what becomes of packets to and from their pods.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{Mode, READY, mesh, node_manifest};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_lost, none_plain, pod};
use kubeveil_tests::traffic::{Load, flows};
use serde_json::json;

use crate::Scenario;
use crate::policies::{payments, write};

pub(crate) const ALL: &[Scenario] =
    &[Scenario::new("a_node_without_an_agent_is_spoken_to_where_the_mesh_says_so", excluded).takes(60)];

const AGENTS: [Node; 2] = [Node(1), Node(2)];
const PACKETS: u64 = 100;

/// Both agents know what becomes of packets to the third node.
fn set(stage: &Stage, traffic: &str, way: &str) -> Result<()> {
    let mut mesh = mesh(Mode::Require, stage.lab.spec().families);
    let selector = json!({"matchLabels": {"kubernetes.io/os": "windows"}});
    mesh.object["spec"]["excludedNodes"] = json!({"selector": selector, "traffic": traffic});
    write(stage, &mesh)?;
    for agent in AGENTS {
        let mut last = serde_json::Value::Null;
        let goes = wait_until(READY, Duration::from_millis(100), || {
            last = stage.status(agent)?["peers"].clone();
            let all = last.as_array().context("status.peers")?;
            Ok(all
                .iter()
                .any(|peer| peer["node"] == "node-3" && peer["way"] == way && peer["excluded"] == true))
        })?;
        ensure!(goes, "{}'s packets to node-3 are not {way}: {last:#}", agent.name());
    }
    Ok(())
}

/// From a pod of the first node to one of the third, and back.
fn both_ways(stage: &Stage, letter: char) -> Load {
    let (ours, theirs) = (pod(&format!("1{letter}")), pod(&format!("3{letter}")));
    let families = stage.lab.spec().families;
    Load::new([flows(ours, theirs, families), flows(theirs, ours, families)].concat(), 200)
}

fn excluded(stage: &mut Stage) -> Result<()> {
    let mut third = node_manifest(Node(3), stage.lab.spec().families);
    third.object["metadata"]["labels"]["kubernetes.io/os"] = json!("windows");
    write(stage, &third)?;
    write(stage, &payments())?;
    AGENTS.into_iter().try_for_each(|node| stage.lab.daemon(node).start())?;
    set(stage, "drop", "dropped")?;
    // Nobody waits for the third.
    AGENTS.into_iter().try_for_each(|node| stage.wait_tunnelled(node, 1))?;
    stage.close()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), PACKETS)?;
    encrypted(&tally, &census)?;
    let (tally, census) = stage.send(stage.load("1a", "3a", 200), PACKETS)?;
    none_arrived(&tally).and_then(|()| none_plain(&census)).context("to one that is dropped")?;

    stage.open()?;
    let (tally, _) = stage.send(stage.load("3a", "1a", 200), PACKETS)?;
    none_arrived(&tally).context("from one that is dropped")?;
    set(stage, "plain", "plain")?;
    let passes = |stage: &mut Stage| -> Result<()> {
        let (tally, census) = stage.send(both_ways(stage, 'a'), PACKETS)?;
        none_lost(&tally)?;
        ensure!(census.markers >= tally.sent, "nobody on the wire could read it: {census}");
        // What a policy asks for of a pod is asked for towards everybody.
        let (tally, census) = stage.send(stage.load("1b", "3b", 200), PACKETS)?;
        none_arrived(&tally).and_then(|()| none_plain(&census)).context("who has to be encrypted")?;
        let (tally, _) = stage.send(stage.load("3b", "1b", 200), PACKETS)?;
        none_arrived(&tally).context("to who has to be encrypted")?;
        let (tally, census) = stage.send(stage.load("1a", "2a", 200), PACKETS)?;
        encrypted(&tally, &census).context("between nodes with agents")
    };
    passes(stage)?;
    AGENTS.into_iter().try_for_each(|node| stage.lab.daemon(node).kill())?;
    passes(stage).context("without daemons")?;
    // A daemon that begins anew, and then the way back.
    AGENTS.into_iter().try_for_each(|node| stage.lab.daemon(node).start())?;
    passes(stage).context("with other daemons")?;
    set(stage, "drop", "dropped")?;
    stage.close()?;
    let (tally, census) = stage.send(stage.load("1a", "3a", 200), PACKETS)?;
    none_arrived(&tally).and_then(|()| none_plain(&census)).context("once it is dropped again")
}
