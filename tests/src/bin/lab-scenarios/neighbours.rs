//! Somebody else's programs at the devices where ours stand, and somebody else's firewall.

pub(crate) mod foreign;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::tc::TcAttachType;
use aya::sys::{Stats, enable_stats};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::batch;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_plain, pod};
use kubeveil_tests::status::said_in;
use kubeveil_tests::traffic::{Load, flows};
use serde_json::Value;

use crate::Scenario;
use crate::support::{DEVICE, dropped_since, index, look_round};
use foreign::{Answer, Foreign, NAME, Place, has_tcx};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("others_programs_keep_working_and_so_do_ours", beside).shared(),
    Scenario::new("somebody_ahead_who_takes_packets_away_is_told", takers).shared(),
    Scenario::new("a_filter_that_leaves_no_place_before_it_is_told", no_place).nodes(2),
];

/// Where others come.
const NEAR: Node = Node(1);
const FAR: Node = Node(2);
/// Packets of both families together.
const PACKETS: u64 = 40;
/// The daemon's regular look at everything, and some more.
const RESYNC: Duration = Duration::from_secs(25);

/// Where ours stand: the device, its side, and which of ours.
const HOOKS: [(&str, TcAttachType, &str); 3] = [
    ("eth0", TcAttachType::Egress, "steer"),
    ("eth0", TcAttachType::Ingress, "guard"),
    (DEVICE, TcAttachType::Ingress, "deliver"),
];

/// Before ours or behind, by tcx or as a filter, they see the packets and ours see them too.
fn beside(stage: &mut Stage) -> Result<()> {
    let _counting = enable_stats(Stats::RunTime)?;
    for (place, answer) in [
        (Place::Ahead, Answer::Next),
        (Place::Behind, Answer::Next),
        (Place::Behind, Answer::Pass),
        (Place::Filter, Answer::Pass),
    ] {
        stands_beside(stage, place, answer).with_context(|| format!("{place:?}, {answer:?}"))?;
    }
    clean(stage)
}

fn stands_beside(stage: &mut Stage, place: Place, answer: Answer) -> Result<()> {
    let all: Vec<_> = HOOKS
        .iter()
        .map(|(device, side, _)| Foreign::attach(NEAR, device, *side, place, answer))
        .collect::<Result<_>>()?;
    let before: Vec<_> = all.iter().map(Foreign::runs).collect::<Result<_>>()?;
    let way = |from, to| flows(pod(from), pod(to), stage.lab.spec().families);
    let load = Load::new([way("1a", "2a"), way("2a", "1a")].concat(), 200);
    let (tally, census) = stage.send(load, PACKETS)?;
    encrypted(&tally, &census)?;
    for ((foreign, before), (device, side, _)) in all.iter().zip(before).zip(HOOKS) {
        let runs = foreign.runs()? - before;
        ensure!(runs >= PACKETS / 2, "that at {device}, {side:?}, saw {runs} packets of {PACKETS}");
    }
    for (foreign, (device, _, ours)) in all.iter().zip(HOOKS) {
        if place == Place::Ahead {
            told(stage, device, ours, foreign)?;
        }
    }
    if place != Place::Ahead {
        look_round(stage, NEAR)?;
        ensure!(positions(stage)?.is_empty(), "told to be ahead: {:?}", positions(stage)?);
    }
    Ok(())
}

/// Takes what others have left, and waits until it is told of no more.
fn clean(stage: &Stage) -> Result<()> {
    if has_tcx() {
        for device in ["eth0", DEVICE] {
            let _ = said_in(NEAR, "tc", &["qdisc", "del", "dev", device, "clsact"]);
        }
    }
    over(stage)
}

/// What they take away ours never sees; that is told, with who it is and what to do.
fn takers(stage: &mut Stage) -> Result<()> {
    let before = stage.metrics(FAR)?.drops("plain_from_pod");
    batch(Some(&NEAR.name()), &["link add sink type dummy".to_owned(), "link set dev sink up".to_owned()])?;
    let sink = index(NEAR, "sink")?;
    for ((device, side, ours), answer) in [
        (HOOKS[0], Answer::Pass),
        (HOOKS[0], Answer::To(sink)),
        (HOOKS[1], Answer::Pass),
        (HOOKS[2], Answer::Pass),
    ] {
        let what = || format!("before {ours} at {device}, {answer:?}");
        // It shows that there is something to tell.
        stage.open()?;
        let foreign = Foreign::attach(NEAR, device, side, Place::Ahead, answer)?;
        told(stage, device, ours, &foreign).with_context(what)?;
        let tally = stage.load("1a", "2a", 200).run(PACKETS)?;
        // It may take the capture's probes, too.
        drop(foreign);
        let census = stage.phase()?;
        match (ours, answer) {
            ("steer", Answer::Pass) => {
                ensure!(census.plaintext >= tally.sent, "{}: it takes nothing away: {census}", what());
                none_arrived(&tally).context("past the far node's guard")?;
                dropped_since(stage, FAR, "plain_from_pod", before, tally.sent)?;
            }
            ("steer", _) => none_arrived(&tally).and(none_plain(&census)).with_context(what)?,
            _ => encrypted(&tally, &census).with_context(what)?,
        }
        over(stage).with_context(what)?;
        stage.close()?;
        let (tally, census) = stage.send(stage.load("1a", "2a", 200), PACKETS)?;
        encrypted(&tally, &census).with_context(|| format!("{}, gone again", what()))?;
    }
    batch(Some(&NEAR.name()), &["link del dev sink".to_owned()])
}

/// Where ours are filters: at the first priority there is stands one of another kind. (By tcx ours come before all.)
fn no_place(stage: &mut Stage) -> Result<()> {
    let tc = |line: &str| said_in(NEAR, "tc", &line.split(' ').collect::<Vec<_>>());
    tc("qdisc add dev eth0 clsact")?;
    tc("filter add dev eth0 egress pref 1 matchall action continue")?;
    stage.lab.nodes().try_for_each(|node| stage.lab.daemon(node).spawn(&[]))?;
    if !has_tcx() {
        let said = wait_until(RESYNC, Duration::from_millis(100), || {
            // At first nobody answers.
            let problems = stage.status(NEAR).map(|mut status| status["problems"].take());
            Ok(problems.is_ok_and(|problems| problems.to_string().contains("stands at priority 1")))
        })?;
        ensure!(said, "nobody is told; its log: {}", stage.lab.daemon(NEAR).log());
        stage.close()?;
        let raised = wait_until(RESYNC, Duration::from_millis(100), || {
            Ok(stage.status(NEAR)?["backstop"]["form"] != "none")
        })?;
        ensure!(raised, "no backstop");
        let (tally, census) = stage.send(stage.load("1a", "2a", 200), PACKETS)?;
        none_arrived(&tally)?;
        none_plain(&census)?;
        tc("filter del dev eth0 egress pref 1")?;
    }
    stage.settle()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), PACKETS)?;
    encrypted(&tally, &census)
}

/// Those of whom the status says that they run before ours.
fn positions(stage: &Stage) -> Result<Vec<Value>> {
    let status = stage.status(NEAR)?;
    let problems = status["problems"].as_array().context("status.problems")?;
    Ok(problems.iter().filter(|problem| problem["kind"] == "position").cloned().collect())
}

/// An error unless the status comes to name a program that runs before one of ours, and what to do.
fn told(stage: &Stage, device: &str, ours: &str, foreign: &Foreign) -> Result<()> {
    let who = format!("program {} ({NAME})", foreign.id()?);
    let how = if has_tcx() { "bpftool prog show" } else { "tc filter show dev" };
    let is_it = |problem: &Value| {
        let says = |field: &str, text: &str| problem[field].as_str().is_some_and(|said| said.contains(text));
        problem["object"] == format!("device {device}")
            && problem["field"] == ours
            && says("message", &who)
            && says("advice", how)
    };
    look_round(stage, NEAR)?;
    let mut last = Vec::new();
    let said = wait_until(RESYNC, Duration::from_millis(200), || {
        last = positions(stage)?;
        Ok(last.iter().any(is_it))
    })?;
    ensure!(said, "{who} before {ours} at {device} is not told: {last:?}");
    Ok(())
}

/// Waits until nobody is told to be ahead any more.
fn over(stage: &Stage) -> Result<()> {
    look_round(stage, NEAR)?;
    let over = wait_until(RESYNC, Duration::from_millis(200), || Ok(positions(stage)?.is_empty()))?;
    ensure!(over, "told though nobody is ahead any more: {:?}", positions(stage)?);
    Ok(())
}
