//! Devices that come, go, and turn into others under a node's feet: what is new is found and guarded, and until then,
//! and while the daemon is dead, the backstop holds.
//!
//! ```text
//!  pod-1a        node-1 --eth0--------- wire0 ------- eth0-- node-2        pod-2a
//!    +--- cni0 ---+  bond0, br0, eth0.100, mv0, eth1            +--- cni0 ---+
//! ```

mod changes;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Node};
use kubeveil_tests::lab::wait_link_local;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{PROVEN, Stage, conclusive, encrypted, none_arrived, none_plain, pod};
use kubeveil_tests::traffic::{Load, Tally, flows};

use crate::Scenario;
use changes::{Act, CHANGES, Change};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("devices_that_come_and_go_are_guarded", alive).nodes(2),
    Scenario::new("devices_that_come_while_the_daemon_is_dead_are_closed", dead).nodes(2),
];

/// Whose devices change.
const NEAR: Node = Node(1);
/// Packets of both families together.
const PACKETS: u64 = 40;

/// Each change, and its undoing, under the eyes of a daemon and under traffic.
fn alive(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    for change in &CHANGES {
        let before = drops(stage)?;
        let tally = changed(stage, change.make, change.guarded).context(change.what)?;
        let counted = drops(stage)? - before;
        eprintln!("  {}: {tally}; {counted} dropped", change.what);
        if change.unbroken {
            conclusive(&tally)?;
            let unseen = tally.lost().saturating_sub(counted);
            ensure!(unseen == 0, "{}: {unseen} packets ended without a reason", change.what);
        }
        if let Some(undo) = change.undo {
            changed(stage, undo, &["eth0"]).with_context(|| format!("{}, undone", change.what))?;
        }
    }
    Ok(())
}

fn changed(stage: &mut Stage, act: Act, guarded: &[&str]) -> Result<Tally> {
    let (tally, census) = stage.send_while(stage.load("1a", "2a", 200), |stage| {
        act()?;
        is_guarded(stage, guarded)
    })?;
    none_plain(&census)?;
    flows_again(stage)?;
    Ok(tally)
}

/// Each change while no daemon runs, which is then started.
fn dead(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let sees_programs = stage.status(NEAR)?["backstop"]["form"] == "bpf";
    for change in CHANGES.iter().filter(|change| sees_programs || !change.old_index) {
        unseen(stage, change).context(change.what)?;
    }
    Ok(())
}

fn unseen(stage: &mut Stage, change: &Change) -> Result<()> {
    let before = closed(stage)?;
    stage.lab.daemon(NEAR).kill()?;
    (change.make)()?;
    change.guarded.iter().try_for_each(|device| wait_link_local(NEAR, device))?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), PACKETS)?;
    none_plain(&census)?;
    let held = if change.is_new {
        none_arrived(&tally)?;
        tally.sent
    } else {
        encrypted(&tally, &census).context("by programs that stand")?;
        0
    };
    // What comes by the tunnel is let in all the time.
    let (tally, census) = stage.send(stage.load("2a", "1a", 200), PACKETS)?;
    encrypted(&tally, &census).context("the other way")?;
    stage.lab.daemon(NEAR).start()?;
    let counted = closed(stage)? - before;
    ensure!(counted == held, "{counted} drops by the backstop are counted of {held}");
    is_guarded(stage, change.guarded)?;
    flows_again(stage)?;
    if let Some(undo) = change.undo {
        undo()?;
        is_guarded(stage, &["eth0"])?;
    }
    Ok(())
}

/// Waits until the status says that programs stand at these devices.
fn is_guarded(stage: &Stage, devices: &[&str]) -> Result<()> {
    let mut last = serde_json::Value::Null;
    let guarded = wait_until(PROVEN, Duration::from_millis(100), || {
        last = stage.status(NEAR)?["programs"].take();
        let programs = last.as_array().context("status.programs")?;
        let stands = |device: &str, program: &str| {
            programs.iter().any(|p| p["device"] == device && p["program"] == program && p["attached"] == true)
        };
        Ok(devices.iter().all(|device| stands(device, "steer") && stands(device, "guard")))
    })?;
    ensure!(guarded, "{devices:?} are not told to be guarded: {last}");
    Ok(())
}

/// Both ways, once packets travel again: a switch learns, and neighbours ask anew.
fn flows_again(stage: &mut Stage) -> Result<()> {
    let both = || {
        let way = |from, to| flows(pod(from), pod(to), Families::Dual);
        Load::new([way("1a", "2a"), way("2a", "1a")].concat(), 200)
    };
    let mut last = None;
    wait_until(PROVEN, Duration::ZERO, || {
        let (tally, census) = stage.send(both(), PACKETS)?;
        none_plain(&census)?;
        let travels = tally.lost() == 0;
        last = Some((tally, census));
        Ok(travels)
    })?;
    let (tally, census) = last.context("nothing was sent")?;
    encrypted(&tally, &census)
}

/// All that a node has dropped.
fn drops(stage: &Stage) -> Result<u64> {
    Ok(stage.metrics(NEAR)?.all_drops().values().sum())
}

/// What its backstop has dropped for want of programs.
fn closed(stage: &Stage) -> Result<u64> {
    let labels = [("direction", "backstop"), ("reason", "unguarded_device")];
    Ok(stage.metrics(NEAR)?.count("kubeveil_drops_total", &labels))
}
