//! From the moment in which an announcement lies in the folder to that in which the kernel has it.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kubeveil_manifests::Folder;
use kubeveil_tests_bpf::cell::{self, Cell};

use super::{
    NODES,
    cluster::{self, Own, folder},
    settle, start,
};
use crate::{
    row::{Row, Series},
    say,
};

/// As the daemon's loop has it (`daemon/agent/src/run.rs`): it waits for the rest of a burst.
const BURST: Duration = Duration::from_millis(20);

/// Measures `rounds` announcements, one after the other.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    let times = cell::within(move |cell| changes(cell, rounds))?;
    let note = format!(
        "median {:.0} ms; of these, {} ms are the daemon's wait for the rest of a burst",
        times.median(),
        BURST.as_millis()
    );
    Ok(vec![
        Row::of_quantile("announcement seen to kernel configured at 5,000 nodes, p99", "ms", &times, 0.99)
            .at_most(50.0)
            .note(note),
    ])
}

fn changes(cell: &mut Cell, rounds: usize) -> Result<Series> {
    say(format!("latency: {NODES} nodes"));
    let own = Own::make()?;
    let mut others = cluster::others(NODES, &own)?;
    let manifests = tempfile::tempdir()?;
    folder::write(manifests.path(), &others)?;
    let (wake, woken) = mpsc::channel();
    let source = Folder::open(manifests.path(), move || {
        let _ = wake.send(());
    });
    let (mut node, profile) = start(cell, &own, source)?;
    settle(&mut node)?;
    settle(&mut node)?;
    let mut times = Series::new();
    for number in 0..rounds {
        say(format!("latency: announcement {} of {rounds}", number + 1));
        while woken.try_recv().is_ok() {}
        profile.take();
        let other = &mut others[number * 7 % usize::from(NODES)];
        other.announce(40_000 + u16::try_from(number)?)?;
        folder::announce(manifests.path(), other)?;
        let start = Instant::now();
        woken.recv_timeout(Duration::from_secs(10)).context("the folder's change was not seen")?;
        thread::sleep(BURST);
        settle(&mut node)?;
        let spent = profile.take();
        ensure!(spent.writes == 1, "{} writes for one announcement", spent.writes);
        let written = spent.written.context("no write")?;
        times.push(written.duration_since(start).as_secs_f64() * 1e3);
    }
    Ok(times)
}
