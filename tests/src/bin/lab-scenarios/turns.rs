//! An observing mesh that steers since a policy requires it, and ceases to.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{Mode, READY};
use kubeveil_tests::stage::{Stage, encrypted, none_lost, pod};
use kubeveil_tests::traffic::{Load, flows};
use rustix::process::Signal;

use crate::Scenario;
use crate::policies::{is_plain, payments, write};
use crate::stopped::signal;

pub(crate) const ALL: &[Scenario] =
    &[Scenario::new("a_policy_goes_that_one_node_hears_of_late", turns).mode(Mode::Observe).nodes(2)];

/// The node that hears of it late, and by how much: longer than a policy that is gone stands (`lingering::SETTLE`), and shorter than what
/// was steered goes on being steered (`EBB`).
const LATE: (Node, Duration) = (Node(2), Duration::from_secs(3));
/// Until nothing is steered any more: that, from when the other has heard of it.
const OVER: Duration = Duration::from_secs(9);

/// Between all pods of both nodes.
fn all(stage: &Stage) -> Load {
    let families = stage.lab.spec().families;
    let pairs = [("1a", "2a"), ("1a", "2b"), ("1b", "2a"), ("1b", "2b")];
    let both = pairs.into_iter().flat_map(|(one, other)| [(one, other), (other, one)]);
    Load::new(both.flat_map(|(from, to)| flows(pod(from), pod(to), families)).collect(), 50)
}

fn turns(stage: &mut Stage) -> Result<()> {
    stage.lab.start_daemons(READY)?;
    is_plain(stage, "1b", "2b")?;
    let shop = stage.load("1a", "2a", 200);
    let (tally, _) = stage.send_while(shop, |stage| {
        write(stage, &payments())?;
        stage.wait_proven()
    })?;
    none_lost(&tally).context("the shop's, as the policy comes")?;
    let (tally, census) = stage.send(all(stage), 60)?;
    encrypted(&tally, &census).context("while it stands")?;
    let load = all(stage);
    let (tally, _) = stage.send_while(load, |stage| {
        signal(stage, LATE.0, Signal::STOP)?;
        let policy = stage.manifest(&payments().file);
        fs::remove_file(&policy).with_context(|| format!("remove {}", policy.display()))?;
        sleep(LATE.1);
        signal(stage, LATE.0, Signal::CONT)?;
        sleep(OVER);
        Ok(())
    })?;
    none_lost(&tally).context("as it goes")?;
    is_plain(stage, "1b", "2b").context("nothing is steered any more")
}
