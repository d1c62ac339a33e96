//! From nothing to 5,000 peers, and what a change and no change cost then, against `wg`.

use kubeveil_linux::Kernel as _;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kubeveil_core::announced::Announced;
use kubeveil_tests_bpf::cell::{self, Cell, run};

use super::{
    NODES,
    cluster::{self, Memory, Other, Own},
    hear, path,
    profile::Spent,
    settle, start,
};
use crate::{
    row::{Row, Series},
    say,
};

/// The daemon's device, and that which `wg` configures.
const OURS: &str = "kubeveil0";
const THEIRS: &str = "bench0";
/// Changes, and calls of `wg syncconf`, in a round.
const CHANGES: usize = 5;

/// Round by round, seconds.
#[derive(Default)]
struct Times {
    signatures: Series,
    cold: Series,
    setconf: Series,
    changed: Series,
    syncconf: Series,
    /// Writes of a look at a kernel that is as it should be.
    idle: Series,
    /// Where the time of the last round went.
    cold_spent: Spent,
    changed_spent: Spent,
}

/// Measures all of it in each round.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    cell::within(move |cell| {
        say(format!("reconcile: {NODES} keys and announcements"));
        let own = Own::make()?;
        let mut others = cluster::others(NODES, &own)?;
        let mut times = Times::default();
        for number in 1..=rounds {
            say(format!("reconcile: round {number} of {rounds}"));
            round(cell, &own, &mut others, &mut times)?;
        }
        Ok(times.rows())
    })
}

fn round(cell: &mut Cell, own: &Own, others: &mut [Other], times: &mut Times) -> Result<()> {
    own.forget()?;
    let source = Memory::of(others);
    source.change(|snapshot| {
        let took = Instant::now();
        Announced::default().update(&snapshot.nodes);
        times.signatures.push(took.elapsed().as_secs_f64());
    });
    let (mut node, profile) = start(cell, own, source.clone())?;
    // A daemon that runs, has loaded its programs and believes what was announced; the mesh is not there yet.
    node.pass(super::NOW);
    let (mesh, facts) = (cluster::mesh()?, cluster::own()?);
    source.change(|snapshot| {
        snapshot.mesh = Some(mesh);
        snapshot.nodes.insert(cluster::OWN.to_owned(), facts.into());
    });
    profile.take();
    times.cold.push(timed(|| settle(&mut node))?);
    times.cold_spent = profile.take();
    ensure!(times.cold_spent.writes > 4 * u32::from(NODES), "only {} writes", times.cold_spent.writes);
    // What remains, such as to read its own announcement back.
    settle(&mut node)?;

    profile.take();
    settle(&mut node)?;
    times.idle.push(profile.take().writes.into());

    let folder = tempfile::tempdir()?;
    let (before, after) = (folder.path().join("before"), folder.path().join("after"));
    configuration(&before)?;
    let mut changes = Series::new();
    for change in 0..CHANGES {
        let other = &mut others[100 + change];
        other.announce(40_000 + u16::try_from(times.cold.len() * CHANGES + change)?)?;
        source.hear(other);
        profile.take();
        changes.push(timed(|| hear(&mut node))?);
        times.changed_spent = profile.take();
        ensure!(times.changed_spent.writes == 1, "{} writes for one change", times.changed_spent.writes);
    }
    times.changed.push(changes.median());
    // The two differ by the nodes that changed, and `wg syncconf` is told of one at a time.
    one_endpoint_else(&before, &after)?;
    drop(node);
    let (_, errors) = cell.kernel.remove_everything();
    ensure!(errors.is_empty(), "{errors:?}");
    theirs(&before, &after, times)
}

/// The same by `wg`, on a device of its own.
fn theirs(before: &Path, after: &Path, times: &mut Times) -> Result<()> {
    run("ip", &["link", "add", THEIRS, "type", "wireguard"])?;
    times.setconf.push(timed(|| run("wg", &["setconf", THEIRS, &path(before)]))?);
    run("ip", &["link", "set", THEIRS, "up"])?;
    let mut syncs = Series::new();
    for change in 0..CHANGES {
        let file = if change % 2 == 0 { after } else { before };
        syncs.push(timed(|| run("wg", &["syncconf", THEIRS, &path(file)]))?);
    }
    times.syncconf.push(syncs.median());
    run("ip", &["link", "del", THEIRS])
}

fn timed(what: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    what()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Our device as `wg` would make it.
fn configuration(file: &Path) -> Result<()> {
    let told = Command::new("wg").args(["showconf", OURS]).output().context("wg showconf")?;
    ensure!(told.status.success(), "wg showconf: {}", String::from_utf8_lossy(&told.stderr));
    let peers = String::from_utf8_lossy(&told.stdout).matches("[Peer]").count();
    ensure!(peers == usize::from(NODES), "{OURS} has {peers} peers");
    Ok(fs::write(file, told.stdout)?)
}

fn one_endpoint_else(before: &Path, after: &Path) -> Result<()> {
    let text = fs::read_to_string(before)?;
    let changed = text.replacen(":51871\n", ":51999\n", 1);
    ensure!(changed != text, "no endpoint in what wg showconf told");
    Ok(fs::write(after, changed)?)
}

impl Times {
    fn rows(&self) -> Vec<Row> {
        let spent = |all: &Series, spent: &Spent| {
            let rest = all.last() - spent.looking.as_secs_f64() - spent.writing.as_secs_f64();
            let Spent { looks, looking, writes, writing, .. } = spent;
            format!(
                "in the last round {looks} looks at the kernel took {}, {writes} writes {}, the rest {}",
                milliseconds(*looking),
                milliseconds(*writing),
                milliseconds(Duration::from_secs_f64(rest.max(0.0)))
            )
        };
        let against = |ours: &Series, wg: &Series, tool| {
            format!("{} against {} of wg {tool}", seconds(ours), seconds(wg))
        };
        let cold = against(&self.cold, &self.setconf, "setconf");
        let changed = against(&self.changed, &self.syncconf, "syncconf");
        vec![
            Row::of(
                "cold reconcile of 5,000 peers with maps / wg setconf",
                "ratio",
                &self.cold.over(&self.setconf),
            )
            .at_most(1.2)
            .note(format!("{cold}; {}", spent(&self.cold, &self.cold_spent))),
            Row::of(
                "one node changed among 5,000 / wg syncconf",
                "ratio",
                &self.changed.over(&self.syncconf),
            )
            .at_most(1.0 / 50.0)
            .note(format!("{changed}; {}", spent(&self.changed, &self.changed_spent))),
            Row::of("kernel writes of a resync with nothing to do", "writes", &self.idle).at_most(0.0),
            Row::of("signatures of 5,000 announcements, beside the cold reconcile", "s", &self.signatures),
        ]
    }
}

fn seconds(series: &Series) -> String {
    format!("{:.3} s", series.median())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
