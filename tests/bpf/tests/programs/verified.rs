//! What the verifier looks at: growth is seen before it hurts.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramInfo;
use kubeveil_abi::{Mode, names};
use kubeveil_core::backstop::Backstop;
use kubeveil_verdict::testing::Scene;

use crate::{
    cell::{path_of_program, within},
    kernel::Kernel,
};

/// Instructions that the verifier may look at, for each program: about twice what it does on Linux 6.18, for older
/// kernels look at more. A program that grows beyond is a slow start of every node, and at a million none at all.
const MOST: [(&str, u32); 6] = [
    (names::STEER, 45_000),
    (names::REPLACE, 45_000),
    (names::GUARD, 20_000),
    (names::DELIVER, 20_000),
    (names::ORIGIN, 20),
    (names::BACKSTOP, 45_000),
];

/// What it looked at when somebody last agreed to it, and on which kernel. Another kernel counts otherwise.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verified.golden");
/// The part of a count, in percent, by which it may differ from the golden one: a compiler's whim, no change of ours.
const TOLERANCE: u32 = 2;

/// No program is looked at more than it may be, and on the golden counts' kernel none has grown or shrunk unseen.
pub(crate) fn verified() -> Result<()> {
    let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
    let mut counts = kernel.verified()?;
    counts.insert(names::BACKSTOP, verified_backstop()?);
    for (name, most) in MOST {
        let count = counts.get(name).with_context(|| format!("no count for {name}"))?;
        println!("{name}: {count} instructions verified, {most} at most");
        ensure!(*count <= most, "{name}: the verifier looked at {count} instructions, more than {most}");
    }
    let (release, golden) = golden()?;
    let here = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if !here.starts_with(&format!("{release}.")) {
        println!("the golden counts are of Linux {release}, this is {}: not compared", here.trim());
        return Ok(());
    }
    let changed: Vec<String> = counts.iter().filter_map(|(name, now)| change(name, *now, &golden)).collect();
    ensure!(changed.is_empty(), "{}; if that is meant, write it into {GOLDEN}", changed.join("; "));
    Ok(())
}

/// The backstop is loaded apart from the others, by the daemon's own hand.
fn verified_backstop() -> Result<u32> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        let program = ProgramInfo::from_pin(path_of_program(cell)?)?;
        program.verified_instruction_count().context("an old kernel")
    })
}

/// How a count differs from the golden one, if it does by more than it may.
fn change(name: &str, now: u32, golden: &BTreeMap<String, u32>) -> Option<String> {
    let Some(was) = golden.get(name).copied() else {
        return Some(format!("{name}: {now} instructions verified, and no golden count"));
    };
    let differs = u64::from(now.abs_diff(was)) * 100 > u64::from(was) * u64::from(TOLERANCE);
    let percent = (f64::from(now) / f64::from(was) - 1.0) * 100.0;
    differs.then(|| format!("{name}: {now} instructions verified, {was} before ({percent:+.1} %)"))
}

/// The kernel of the golden counts, `MAJOR.MINOR`, and the counts.
fn golden() -> Result<(String, BTreeMap<String, u32>)> {
    let text = fs::read_to_string(GOLDEN).with_context(|| format!("read {GOLDEN}"))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut pairs: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
    let release = pairs.remove("kernel").context("the golden counts name no kernel")?;
    let count = |(name, count): (&str, &str)| Ok((name.to_owned(), count.parse().context("a count")?));
    Ok((release.to_owned(), pairs.into_iter().map(count).collect::<Result<_>>()?))
}
