//! `kubeveil explain --watch`: packets of one flow as the kernel's programs saw them, on either node; and nothing of it stays behind.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use kubeveil_abi::ABI_VERSION;
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{Mode, program_path};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, none_lost};
use serde_json::Value;

use crate::Scenario;
use crate::policies::{payments, write};

pub(crate) const ALL: &[Scenario] =
    &[Scenario::new("packets_of_a_flow_are_shown", shown).mode(Mode::Observe).nodes(2).takes(70)];

/// How long they are watched: also on a busy machine longer than it takes to send them.
const WATCH: &str = "7s";
/// Packets of the flow that is watched.
const PACKETS: u64 = 120;
/// How long a daemon may take to begin.
const ARMED: Duration = Duration::from_secs(8);

/// Begins to watch on a node; its document comes from [`document`].
fn watch(stage: &Stage, on: Node, from: &str, to: &str, time: &str) -> Result<Child> {
    let source = format!("dir:{}", stage.lab.manifests().display());
    let socket = stage.lab.daemon(on).file("kubeveild.sock");
    Command::new("kubeveil")
        .args(["explain", from, to, "--watch", time, "-o", "json", "--source", &source, "--socket"])
        .arg(socket)
        .env("PATH", program_path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("kubeveil explain")
}

fn document(watching: Child) -> Result<Value> {
    let done = watching.wait_with_output()?;
    serde_json::from_slice(&done.stdout).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())
}

/// What was seen one way: family, direction, verdict and reason; and packets of all of it.
fn seen(document: &Value, way: &str) -> Result<(Vec<String>, u64)> {
    let seen = document["seen"][way].as_array().with_context(|| format!("{document:#}"))?;
    let what = |one: &Value| {
        let family = if one["source"].as_str().is_some_and(|source| source.contains(':')) { 6 } else { 4 };
        format!("{family} {} {} {}", one["direction"], one["verdict"], one["reason"]).replace('"', "")
    };
    Ok((seen.iter().map(what).collect(), seen.iter().filter_map(|one| one["packets"].as_u64()).sum()))
}

/// Waits until the programs of a node look for packets.
fn wait_armed(stage: &Stage, on: Node) -> Result<()> {
    let path = stage.lab.daemon(on).file("bpf/kubeveil").join(format!("v{ABI_VERSION}/maps/WATCH"));
    let armed = wait_until(ARMED, Duration::from_millis(20), || {
        let words: Array<_, u32> = Map::Array(MapData::from_pin(&path)?).try_into()?;
        Ok(words.get(&0, 0)? != 0)
    })?;
    ensure!(armed, "{} watches nothing", on.name());
    Ok(())
}

/// What is sent from `from` to `to` while it is watched on a node is seen there, all of it and as this.
fn is_seen(stage: &mut Stage, on: Node, (from, to): (&str, &str), seen_as: &str) -> Result<()> {
    is_seen_asking(stage, on, (from, to), (from, to), ["there", "back"], seen_as)
}

/// The same, where somebody asks for what goes from `ask.0` to `ask.1`: then it went `way`, and nothing the other one.
fn is_seen_asking(
    stage: &mut Stage,
    on: Node,
    (from, to): (&str, &str),
    ask: (&str, &str),
    [way, other]: [&str; 2],
    seen_as: &str,
) -> Result<()> {
    let watching = watch(stage, on, &name(ask.0), &name(ask.1), WATCH)?;
    wait_armed(stage, on)?;
    let (tally, _) = stage.send(stage.load(from, to, 100), PACKETS)?;
    let document = document(watching)?;
    let (what, packets) = seen(&document, way)?;
    let families = [4, 6].map(|family| format!("{family} {seen_as}"));
    ensure!(what == families, "{} sees {what:?} of {from} -> {to}, not {seen_as}", on.name());
    ensure!(packets == tally.sent, "{} sees {packets} of {} packets {way}", on.name(), tally.sent);
    ensure!(seen(&document, other)?.1 == 0, "nothing was sent the other way: {document:#}");
    Ok(())
}

/// A pod as the manifests name it.
fn name(pod: &str) -> String {
    let namespace = if pod.ends_with('a') { "shop" } else { "payments" };
    format!("{namespace}/pod-{pod}")
}

/// Dropped while there is no tunnel, and tunnelled when there is one; plain where no policy is.
fn shown(stage: &mut Stage) -> Result<()> {
    write(stage, &payments())?;
    stage.lab.daemon(Node(1)).start()?;
    is_seen(stage, Node(1), ("1b", "2b"), "egress drop no_tunnel")?;
    is_seen(stage, Node(1), ("2a", "1b"), "ingress drop plain_from_pod")?;
    stage.lab.daemon(Node(2)).start()?;
    stage.wait_proven()?;
    is_seen(stage, Node(1), ("1b", "2b"), "egress tunnel tunnelled")?;
    is_seen(stage, Node(2), ("1b", "2b"), "tunnel pass delivered")?;
    is_seen_asking(stage, Node(2), ("1b", "2b"), ("2b", "1b"), ["back", "there"], "tunnel pass delivered")?;
    let other = watch(stage, Node(1), &name("1a"), &name("2a"), WATCH)?;
    wait_armed(stage, Node(1))?;
    let (tally, _) = stage.send(stage.load("1b", "2b", 100), PACKETS)?;
    none_lost(&tally)?;
    let document = document(other)?;
    for way in ["there", "back"] {
        ensure!(seen(&document, way)?.0.is_empty(), "another flow's packets are seen: {document:#}");
    }
    goes_with_who_asked(stage)
}

/// Whoever watched is killed, and the next one need not wait for the end of that time.
fn goes_with_who_asked(stage: &Stage) -> Result<()> {
    let (one, other) = (name("1b"), name("2b"));
    let mut long = watch(stage, Node(1), &one, &other, "10m")?;
    wait_armed(stage, Node(1))?;
    let second = document(watch(stage, Node(1), &one, &other, "1s")?)?;
    let why = second["seen"]["why"].as_str().unwrap_or_default();
    ensure!(why.contains("one at a time"), "two watch at a time: {second:#}");
    long.kill()?;
    long.wait()?;
    let free = wait_until(Duration::from_secs(5), Duration::from_millis(100), || {
        let again = document(watch(stage, Node(1), &one, &other, "1s")?)?;
        Ok(again["seen"]["kind"] == "watched")
    })?;
    ensure!(free, "who was killed still watches");
    Ok(())
}
