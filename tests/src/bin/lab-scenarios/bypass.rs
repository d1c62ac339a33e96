//! Two nodes are bypassed for a while: by whom nothing is lost, who is not concerned, and that it ends with nobody there to end it.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{READY, nft, program_path};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_lost, none_plain, pod};
use kubeveil_tests::traffic::{Load, flows};

use crate::Scenario;
use crate::policies::{payments, write};
use crate::support::Clock;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("a_bypass_ends_by_itself", ends).takes(110),
    Scenario::new("a_bypass_lets_pass_where_no_tunnel_is", without_tunnel).nodes(2).takes(60),
    Scenario::new("no_clock_makes_a_bypass_longer", by_no_clock).nodes(2).takes(45).sets_clock(),
];

const BOTH: [Node; 2] = [Node(1), Node(2)];
/// How long a node may take to begin: it waits five seconds for the other one.
const BEGINS: Duration = Duration::from_secs(15);
/// From its end until nobody is heard in plain any more, and a little.
const GRACE: Duration = Duration::from_secs(12);
/// Packets of an act.
const PACKETS: u64 = 60;

/// Between the first two nodes, by the command; says when it ends.
fn begin(stage: &Stage, seconds: u64) -> Result<Instant> {
    let done = Command::new("kubeveil")
        .args(["bypass", "--node", "node-1", "--peer", "node-2", "--reason", "is it the encryption?"])
        .args(["--for", &format!("{seconds}s")])
        .args(["--source", &format!("dir:{}", stage.lab.manifests().display())])
        .env("PATH", program_path())
        .output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(0) && said.contains("travel in plain until"), "{done:?}");
    Ok(Instant::now() + Duration::from_secs(seconds))
}

/// Waits until both nodes say that packets to the other go this way.
fn wait_way(stage: &Stage, way: &str) -> Result<()> {
    for (node, other) in [(Node(1), "node-2"), (Node(2), "node-1")] {
        let mut last = serde_json::Value::Null;
        let goes = wait_until(BEGINS, Duration::from_millis(100), || {
            last = stage.status(node)?;
            let peers = last["peers"].as_array().context("status.peers")?;
            Ok(peers.iter().any(|peer| peer["node"] == other && peer["way"] == way))
        })?;
        ensure!(
            goes,
            "{} does not go {way} to {other}: {:#} {:#}",
            node.name(),
            last["bypasses"],
            last["peers"]
        );
    }
    Ok(())
}

/// Between the pods that are concerned, both ways.
fn concerned(stage: &Stage, rate: u32) -> Load {
    let families = stage.lab.spec().families;
    Load::new([flows(pod("1a"), pod("2a"), families), flows(pod("2a"), pod("1a"), families)].concat(), rate)
}

fn sleep_until(moment: Instant) {
    sleep(moment.saturating_duration_since(Instant::now()));
}

fn is_plain(stage: &mut Stage) -> Result<()> {
    let (tally, census) = stage.send(concerned(stage, 200), PACKETS)?;
    none_lost(&tally)?;
    ensure!(census.markers >= tally.sent, "nobody on the wire could read it: {census}");
    Ok(())
}

fn ends(stage: &mut Stage) -> Result<()> {
    write(stage, &payments())?;
    stage.start()?;
    let (tally, census) = stage.send(concerned(stage, 200), PACKETS)?;
    encrypted(&tally, &census).context("before")?;

    // From before its begin until after its end, with daemons that live.
    stage.open()?;
    let (tally, census) = stage.send_while(concerned(stage, 100), |stage| {
        let end = begin(stage, 15)?;
        wait_way(stage, "plain")?;
        let counted = |stage: &Stage| {
            let labels = [("direction", "egress"), ("reason", "bypassed")];
            anyhow::Ok(stage.metrics(Node(1))?.count("kubeveil_plain_packets_total", &labels))
        };
        let passes = wait_until(BEGINS, Duration::from_millis(100), || Ok(counted(stage)? > 0))?;
        ensure!(passes, "what passes by it is not counted");
        sleep_until(end);
        wait_way(stage, "tunnel")
    })?;
    none_lost(&tally).context("from before it began until after its end")?;
    ensure!(census.markers > 0 && census.ciphertext > 0, "it was never bypassed, or always: {census}");
    sleep(GRACE);
    stage.close()?;
    let (tally, census) = stage.send(concerned(stage, 200), PACKETS)?;
    encrypted(&tally, &census).context("after its end")?;

    // Whom it does not concern; then all daemons die, and it ends all the same.
    stage.open()?;
    let end = begin(stage, 45)?;
    wait_way(stage, "plain")?;
    is_plain(stage).context("the pair")?;
    for (from, to) in [("1a", "3a"), ("3a", "2a"), ("1b", "2b"), ("2b", "1b"), ("1a", "2b"), ("2b", "1a")] {
        let (tally, census) = stage.send(stage.load(from, to, 200), PACKETS)?;
        encrypted(&tally, &census).with_context(|| format!("{from} -> {to}, which it does not concern"))?;
    }
    let (tally, census) = stage.send_while(concerned(stage, 100), |stage| {
        BOTH.into_iter().try_for_each(|node| stage.lab.daemon(node).kill())?;
        ensure!(Instant::now() + Duration::from_secs(2) < end, "it was over before the daemons were killed");
        sleep_until(end + Duration::from_secs(3));
        Ok(())
    })?;
    none_lost(&tally).context("over its end, without daemons")?;
    ensure!(census.markers > 0 && census.ciphertext > 0, "{census}");
    stage.close()?;
    let (tally, census) = stage.send(concerned(stage, 200), PACKETS)?;
    encrypted(&tally, &census).context("after its end, without daemons")?;
    sleep_until(end + GRACE);
    // Another daemon does not begin it again.
    for node in BOTH {
        stage.lab.daemon(node).start()?;
    }
    stage.wait_proven()?;
    let (tally, census) = stage.send(concerned(stage, 200), PACKETS)?;
    encrypted(&tally, &census).context("with other daemons")
}

/// WireGuard's port is blocked, so that nothing passes.
fn block_tunnel(stage: &mut Stage) -> Result<()> {
    for node in BOTH {
        nft(
            &node.name(),
            "table inet blocks { chain in { type filter hook input priority 0; udp dport 51871-51872 drop; }; }",
        )?;
        stage.lab.daemon(node).spawn(&[])?;
    }
    BOTH.into_iter().try_for_each(|node| stage.lab.daemon(node).wait_ready(READY))?;
    stage.close()?;
    is_held_back(stage).context("before")
}

fn is_held_back(stage: &mut Stage) -> Result<()> {
    let (tally, census) = stage.send(concerned(stage, 200), PACKETS)?;
    none_arrived(&tally).and_then(|()| none_plain(&census))
}

/// By the bypass packets pass, and afterwards no more.
fn without_tunnel(stage: &mut Stage) -> Result<()> {
    write(stage, &payments())?;
    block_tunnel(stage)?;
    stage.open()?;
    let end = begin(stage, 30)?;
    wait_way(stage, "plain")?;
    is_plain(stage)?;
    let (tally, census) = stage.send(stage.load("1b", "2b", 200), PACKETS)?;
    none_arrived(&tally).and_then(|()| none_plain(&census)).context("who has to be encrypted")?;
    BOTH.into_iter().try_for_each(|node| stage.lab.daemon(node).kill())?;
    ensure!(Instant::now() < end, "it was over before the daemons were killed");
    is_plain(stage).context("without daemons")?;
    sleep_until(end + Duration::from_secs(1));
    stage.close()?;
    is_held_back(stage).context("after its end")
}

/// The clock goes an hour back and forth, with daemons and without: it ends when it would have.
fn by_no_clock(stage: &mut Stage) -> Result<()> {
    const HOUR: i64 = 3600;
    block_tunnel(stage)?;
    stage.open()?;
    let end = begin(stage, 25)?;
    wait_way(stage, "plain")?;
    let mut clock = Clock::default();
    clock.set(-HOUR)?;
    is_plain(stage).context("an hour back")?;
    // Another daemon begins nothing anew by that clock.
    stage.lab.daemon(Node(1)).kill()?;
    stage.lab.daemon(Node(1)).start()?;
    is_plain(stage).context("an hour back, with another daemon")?;
    BOTH.into_iter().try_for_each(|node| stage.lab.daemon(node).kill())?;
    // Daemons that live take a clock that is ahead for the end.
    clock.set(HOUR)?;
    is_plain(stage).context("an hour ahead, without daemons")?;
    ensure!(Instant::now() < end, "it was over before all of that was tried");
    clock.set(-HOUR)?;
    sleep_until(end + Duration::from_secs(1));
    stage.close()?;
    is_held_back(stage).context("after its end, an hour back")?;
    for node in BOTH {
        stage.lab.daemon(node).start()?;
    }
    is_held_back(stage).context("an hour back, with other daemons after its end")
}
