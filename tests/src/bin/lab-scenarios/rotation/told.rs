//! What programs are told of a rotation: the command's objects, and the daemons' metrics.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::metrics::Metrics;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::Stage;
use serde_json::{Value, json};

use super::{LIMIT, PAUSE, program};

const PHASES: [&str; 5] = ["silent", "behind", "announced", "flipped", "done"];

fn in_phase(metrics: &Metrics, phase: &str) -> u64 {
    metrics.count("kubeveil_rotation_phase_nodes", &[("phase", phase)])
}

/// `kubeveil rotate -o json` from begin to end, while a daemon's metrics tell of the middle.
pub(super) fn to_programs(stage: &Stage, generation: u32, reason: &str) -> Result<()> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let mut command = program(stage, &["--reason", reason, "-o", "json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("run kubeveil")?;
    let mut last = Metrics::default();
    let amid = wait_until(LIMIT, PAUSE, || {
        last = stage.metrics(Node(1))?;
        let is_wanted = last.count("kubeveil_key_desired_generation", &[]) == u64::from(generation);
        Ok(is_wanted && in_phase(&last, "announced") + in_phase(&last, "flipped") > 0)
    });
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    ensure!(amid?, "no metric tells of the middle: {last:?}");
    let nodes: u64 = PHASES.iter().map(|phase| in_phase(&last, phase)).sum();
    ensure!(nodes == 3, "{nodes} nodes are in one phase or another: {last:?}");
    ensure!(
        last.count("kubeveil_rotations_total", &[]) + 1 == u64::from(generation),
        "it is counted amid: {last:?}"
    );
    steps(&said, generation).with_context(|| said.clone())?;
    let created = stage.metrics(Node(1))?.sum("kubeveil_key_created_timestamp_seconds", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    // In whole seconds.
    ensure!(
        (began.floor()..=now).contains(&created),
        "the new key was made at {created}, not in {began}..{now}"
    );
    Ok(())
}

/// One object a line: that it began, how far it is, with counts that never fall, and that it is done.
fn steps(said: &str, generation: u32) -> Result<()> {
    let objects: Vec<Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(objects.iter().all(Value::is_object), "not each line is an object");
    let [begun, steps @ ..] = &objects[..] else { anyhow::bail!("nothing is said") };
    let wanted = json!({"event": "begun", "generation": generation, "nodes": 3, "renewed": 3});
    ensure!(*begun == wanted, "it begins with {begun}");
    let [progress @ .., done] = steps else { anyhow::bail!("it ends as it begins") };
    ensure!(!progress.is_empty() && progress.iter().all(|step| step["event"] == "progress"), "no progress");
    ensure!(done["event"] == "done" && done["phases"]["done"] == 3, "it ends with {done}");
    ensure!(done["flippedWays"] == 6 && done["ways"] == 6 && done["stragglers"] == json!({}), "{done}");
    let counts = |step: &Value| {
        let so_far =
            |phases: &[&str]| phases.iter().map(|phase| step["phases"][phase].as_u64()).sum::<Option<u64>>();
        let counts = [
            so_far(&PHASES[2..]),
            so_far(&PHASES[4..]),
            step["flippedWays"].as_u64(),
            step["seconds"].as_u64(),
        ];
        counts.into_iter().collect::<Option<Vec<_>>>().with_context(|| format!("no counts in {step}"))
    };
    let counts: Vec<Vec<u64>> = steps.iter().map(counts).collect::<Result<_>>()?;
    let never_falls = counts.windows(2).all(|pair| pair[0].iter().zip(&pair[1]).all(|(was, now)| was <= now));
    ensure!(never_falls, "with the new key, done, ways, seconds: {counts:?}");
    // That it began is told before any node has a key of it, or soon after.
    ensure!(counts[0] != counts[counts.len() - 1], "nothing is seen of it: {counts:?}");
    Ok(())
}

/// What a node's metrics come to when it has given its older key up: rotations by their results (all moved, by force), and nodes by
/// how far they are.
pub(super) fn by_metrics(
    stage: &Stage,
    node: Node,
    generation: u32,
    results: [u64; 2],
    phases: &[(&str, u64)],
) -> Result<()> {
    let mut last = Metrics::default();
    // The last that another node says may be on its way.
    let told = wait_until(Duration::from_secs(10), PAUSE, || {
        last = stage.metrics(node)?;
        let generations = ["key_generation", "key_desired_generation"];
        let generations = generations.map(|name| last.count(&format!("kubeveil_{name}"), &[]));
        let result = |result| last.count("kubeveil_rotations_total", &[("result", result)]);
        let of = |phase: &str| phases.iter().find(|(of, _)| *of == phase).map_or(0, |(_, nodes)| *nodes);
        Ok(generations == [u64::from(generation); 2]
            && [result("done"), result("forced")] == results
            && PHASES.iter().all(|phase| in_phase(&last, phase) == of(phase)))
    })?;
    ensure!(
        told,
        "{} does not tell of generation {generation}, {results:?}, {phases:?}: {last:?}",
        node.name()
    );
    // It took some time, and less than it may take.
    let took = last.sum("kubeveil_rotation_duration_seconds", &[]);
    ensure!(took > 0.0 && took < 2.0 * LIMIT.as_secs_f64(), "it took {took} s");
    Ok(())
}
