//! `kubeveil explain --watch`: packets of one flow as the kernel's programs saw them, on either node; and nothing of it stays behind.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Family, Node};
use kubeveil_tests::lab::{Mode, program_path};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, none_lost};
use serde_json::Value;

use crate::Scenario;
use crate::policies::{payments, write};

pub(crate) const ALL: &[Scenario] =
    &[Scenario::new("packets_of_a_flow_are_shown", shown).mode(Mode::Observe).nodes(2)];

/// How long they are watched.
const WATCH: &str = "6s";
/// Packets of the flow that is watched, of each family.
const PACKETS: u64 = 120;

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

/// What was seen one way: direction, verdict and reason, and packets of all of it, by family.
fn seen(document: &Value, way: &str, is_v6: bool) -> Result<(Vec<String>, u64)> {
    let seen = document["seen"][way].as_array().with_context(|| format!("{document:#}"))?;
    let of = seen.iter().filter(|one| one["source"].as_str().is_some_and(|s| s.contains(':') == is_v6));
    let what = |one: &Value| format!("{} {} {}", one["direction"], one["verdict"], one["reason"]).replace('"', "");
    let of: Vec<&Value> = of.collect();
    let packets = of.iter().filter_map(|one| one["packets"].as_u64()).sum();
    Ok((of.into_iter().map(what).collect(), packets))
}

/// What is sent from `from` to `to` while it is watched on a node is seen there, all of it, as `verdicts` there and back.
fn is_seen(stage: &mut Stage, on: Node, (from, to): (&str, &str), there: &[&str]) -> Result<()> {
    let names = [from, to].map(name);
    let watching = watch(stage, on, &names[0], &names[1], WATCH)?;
    // Until it is armed; that is not told before the end.
    std::thread::sleep(Duration::from_secs(1));
    let (tally, _) = stage.send(stage.load(from, to, 100), PACKETS)?;
    let document = document(watching)?;
    let families = stage.lab.spec().families.all().to_vec();
    for &family in &families {
        let (what, packets) = seen(&document, "there", family == Family::V6)?;
        ensure!(what == there, "{} sees {what:?} of {from} -> {to}, not {there:?}", on.name());
        let sent = tally.sent / families.len() as u64;
        ensure!(packets == sent, "{} sees {packets} of {sent} packets {from} -> {to}", on.name());
    }
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
    is_seen(stage, Node(1), ("1b", "2b"), &["egress drop no_tunnel"])?;
    is_seen(stage, Node(1), ("2a", "1b"), &["ingress drop plain_from_pod"])?;
    stage.lab.daemon(Node(2)).start()?;
    stage.wait_proven()?;
    is_seen(stage, Node(1), ("1b", "2b"), &["egress tunnel tunnelled"])?;
    is_seen(stage, Node(2), ("1b", "2b"), &["tunnel pass delivered"])?;
    let other = watch(stage, Node(1), &name("1a"), &name("2a"), "2s")?;
    let (tally, _) = stage.send(stage.load("1b", "2b", 100), PACKETS)?;
    none_lost(&tally)?;
    let (what, _) = seen(&document(other)?, "there", false)?;
    ensure!(what.is_empty(), "another flow's packets are seen: {what:?}");
    goes_with_who_asked(stage)
}

/// Whoever watched is killed, and the next one need not wait for the end of that time.
fn goes_with_who_asked(stage: &Stage) -> Result<()> {
    let (one, other) = (name("1b"), name("2b"));
    let mut long = watch(stage, Node(1), &one, &other, "10m")?;
    std::thread::sleep(Duration::from_secs(1));
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
