//! Encryption is switched on in a cluster that runs, in which one node never proves a tunnel.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{Mode, READY, mesh};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_lost, none_plain, pod};
use kubeveil_tests::traffic::{Load, flows};
use serde_json::{Value, json};

use crate::Scenario;
use crate::support::dropped_since;

pub(crate) const ALL: &[Scenario] = &[Scenario::new("adoption_closes_pair_by_pair", pair_by_pair)];

/// How long a peer may be heard in plain after its tunnel was proven, and a little.
const GRACE: Duration = Duration::from_secs(12);
/// From the moment that the deadline is set until it is over.
const LEFT: Duration = Duration::from_secs(15);
const WAIT: Duration = Duration::from_secs(30);

/// The mesh, with pairs open for so long from now.
fn adopt_for(stage: &Stage, left: Duration) -> Result<String> {
    let deadline = Timestamp::now().checked_add(left)?.to_string();
    let mut mesh = mesh(Mode::Require, stage.lab.spec().families);
    mesh.object["spec"]["adoption"] = json!({ "deadline": deadline });
    mesh.write(&stage.lab.manifests())?;
    Ok(deadline)
}

/// Waits until a node's status says it.
fn told(stage: &Stage, node: Node, what: &str, says: impl Fn(&Value) -> bool) -> Result<()> {
    let mut last = Value::Null;
    let said = wait_until(WAIT, Duration::from_millis(100), || {
        last = stage.status(node)?;
        Ok(says(&last))
    })?;
    ensure!(said, "{}: {what} is not told: {:#} {:#}", node.name(), last["adoption"], last["peers"]);
    Ok(())
}

fn is_tunnelled(status: &Value, node: &str) -> bool {
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    peers.iter().any(|peer| peer["node"] == node && peer["tunnelled"] == true)
}

fn pair_by_pair(stage: &mut Stage) -> Result<()> {
    let families = stage.lab.spec().families;
    let to_second = || flows(pod("1a"), pod("2a"), families);
    let (out, back) = (|| flows(pod("1b"), pod("3b"), families), || flows(pod("3a"), pod("1b"), families));
    let to_third = || [out(), back()].concat();
    adopt_for(stage, Duration::from_secs(3600))?;

    // The third node has no daemon. Nothing is lost by switching on, to nobody and from nobody.
    let load = Load::new([to_second(), to_third()].concat(), 100);
    let (tally, _) = stage.send_while(load, |stage| {
        for node in [Node(1), Node(2)] {
            stage.lab.daemon(node).start()?;
        }
        told(stage, Node(1), "the tunnel to node-2", |status| is_tunnelled(status, "node-2"))?;
        told(stage, Node(2), "the tunnel to node-1", |status| is_tunnelled(status, "node-1"))
    })?;
    none_lost(&tally).context("while it is switched on")?;
    sleep(GRACE);
    let (tally, census) = stage.send(Load::new(to_second(), 200), 100)?;
    encrypted(&tally, &census).context("a pair that is proven")?;
    let (tally, census) = stage.send(Load::new(to_third(), 200), 100)?;
    none_lost(&tally).context("a pair that is open")?;
    ensure!(census.markers >= tally.sent, "nobody could decrypt it: {census}");
    for node in [Node(1), Node(2)] {
        told(stage, node, "the open pair", |status| status["adoption"]["open"] == json!(["node-3"]))?;
    }
    let counted =
        stage.metrics(Node(1))?.count("kubeveil_plain_packets_total", &[("reason", "plain_adopting")]);
    ensure!(counted >= tally.sent, "{counted} of {} packets are counted", tally.sent);

    // A proven pair is closed for good: its far end is gone with all it knew, and comes to nobody in plain.
    stage.lab.daemon(Node(2)).kill()?;
    crate::support::delete_device(Node(2))?;
    stage.lab.daemon(Node(1)).kill()?;
    crate::support::delete_device(Node(1))?;
    stage.lab.daemon(Node(1)).start()?;
    let (tally, census) = stage.send(Load::new(to_second(), 200), 100)?;
    none_arrived(&tally).context("a pair that was proven once")?;
    none_plain(&census)?;
    let (tally, _) = stage.send(Load::new(to_third(), 200), 100)?;
    none_lost(&tally).context("a pair that is open, after a restart")?;

    // The deadline: the daemon has told the programs, and is dead when it comes.
    let deadline = adopt_for(stage, LEFT)?;
    told(stage, Node(1), "the deadline", |status| status["adoption"]["deadline"] == *deadline)?;
    sleep(Duration::from_millis(500));
    stage.lab.daemon(Node(1)).kill()?;
    sleep(LEFT);
    // What the third node sends is on the wire, and not believed.
    let (tally, _) = stage.send(Load::new(back(), 200), 100)?;
    none_arrived(&tally).context("from the third node, after the deadline")?;
    stage.close()?;
    let (tally, census) = stage.send(Load::new(out(), 200), 100)?;
    none_arrived(&tally).context("after the deadline")?;
    none_plain(&census)?;
    // Back again, it finds it over; and a later deadline is too late.
    adopt_for(stage, Duration::from_secs(3600))?;
    stage.lab.daemon(Node(1)).start()?;
    told(stage, Node(1), "the end", |status| status["adoption"]["over"] == true)?;
    let (tally, census) = stage.send(Load::new(out(), 200), 100)?;
    none_arrived(&tally).context("after another deadline")?;
    none_plain(&census)?;
    dropped_since(stage, Node(1), "no_tunnel", 0, 1)?;

    // All of them prove themselves after all.
    for node in [Node(2), Node(3)] {
        stage.lab.daemon(node).spawn(&[])?;
    }
    stage.lab.nodes().try_for_each(|node| stage.lab.daemon(node).wait_ready(READY))?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(Load::new(to_third(), 200), 100)?;
    encrypted(&tally, &census).context("in the end")
}
