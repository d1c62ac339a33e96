//! What the mesh's mode decides.

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{Mode, READY, mesh};
use kubeveil_tests::stage::{Stage, encrypted, none_lost};

use crate::Scenario;
use crate::support::is_proven_unnoticed;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("observe_steers_nothing_and_counts", observe).mode(Mode::Observe).nodes(2),
    Scenario::new("prefer_is_plain_until_a_tunnel_is_proven", prefer).mode(Mode::Prefer).nodes(2),
];

fn observe(stage: &mut Stage) -> Result<()> {
    stage.lab.start_daemons(READY)?;
    let count = |stage: &Stage| {
        let metrics = stage.metrics(Node(1))?;
        let would = |verdict| metrics.count("kubeveil_packets_total", &[("verdict", verdict)]);
        anyhow::Ok(would("would_tunnel") + would("would_drop"))
    };
    let before = count(stage)?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    none_lost(&tally)?;
    ensure!(census.markers >= tally.sent, "observe encrypts: {census}");
    let counted = count(stage)? - before;
    ensure!(counted >= tally.sent, "{counted} of {} packets are counted", tally.sent);
    // And the day it is switched on.
    mesh(Mode::Require, stage.lab.spec().families).write(&stage.lab.manifests())?;
    stage.wait_proven()?;
    stage.close()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census).context("after the mode became require")
}

fn prefer(stage: &mut Stage) -> Result<()> {
    stage.lab.daemon(Node(1)).start()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    none_lost(&tally)?;
    ensure!(census.markers >= tally.sent, "{census}");
    is_proven_unnoticed(stage)?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census)
}
