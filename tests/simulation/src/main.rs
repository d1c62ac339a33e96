//! Plays schedules on all processors, or one again, and says what did not hold.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser;
use kubeveil_tests_simulation::{
    Failure, Rules, Schedule,
    model::{Bounds, check},
    play_all,
    scale::rotate,
};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// How many schedules
    #[arg(long, default_value_t = 100_000)]
    schedules: u64,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes begin; without it two to eight, by the seed. More than eight rotate once, and nothing goes wrong
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=5000))]
    nodes: Option<u16>,
    /// What the nodes go by
    #[arg(long, value_enum, default_value_t = Rules::Ours)]
    rules: Rules,
    /// Look at all states of two or three nodes instead, within the bounds below
    #[arg(long)]
    model: bool,
    /// How many of the nodes do at once what they can do
    #[arg(long, default_value_t = 0)]
    prompt: u8,
    /// How often the mesh wants another generation
    #[arg(long, default_value_t = 1)]
    rotations: u8,
    /// How often a daemon dies
    #[arg(long, default_value_t = 1)]
    crashes: u8,
    /// How often a node ceases to hear from another
    #[arg(long, default_value_t = 1)]
    silences: u8,
    /// Show all that happens in the schedule of --seed
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.model {
        return look_at_all(&arguments);
    }
    if let Some(nodes) = arguments.nodes.filter(|nodes| *nodes > 8) {
        let began = Instant::now();
        let cost = rotate(nodes.into(), arguments.seed.unwrap_or(0));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{cost}, in {:.1} s", began.elapsed().as_secs_f64())?;
        let is_done = cost.took < Duration::MAX;
        return Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let schedule = |seed| Schedule { seed, nodes: arguments.nodes.map(usize::from), rules: arguments.rules };
    if let (Some(seed), true) = (arguments.seed, arguments.trace) {
        let mut out = std::io::stdout().lock();
        let played = schedule(seed).play(true);
        for line in &played.trace {
            writeln!(out, "{line}")?;
        }
        return Ok(if played.failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let first = arguments.seed.unwrap_or(0);
    let began = Instant::now();
    // At once: a run may take hours, and be ended before.
    let tell = |schedule: &Schedule, failure: &Failure| {
        let line = format!("seed {}: {failure}\n  again: {}\n", schedule.seed, schedule.replay());
        drop(std::io::stdout().write_all(line.as_bytes()));
    };
    let all = play_all((first..first + arguments.schedules).map(schedule), usize::MAX, tell);
    let mut out = std::io::stdout().lock();
    let took = began.elapsed().as_secs_f64();
    writeln!(out, "{} schedules, {} broken, in {took:.1} s", arguments.schedules, all.failures.len())?;
    writeln!(out, "{}", all.figures)?;
    Ok(if all.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn look_at_all(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { prompt, rotations, crashes, silences, rules, .. } = *arguments;
    let nodes = if arguments.nodes == Some(2) { 2 } else { 3 };
    let bounds = Bounds { nodes, prompt, rotations, crashes, silences };
    let began = Instant::now();
    let checked = check(bounds, rules);
    let mut out = std::io::stdout().lock();
    let took = began.elapsed().as_secs_f64();
    writeln!(out, "{bounds:?}: {} states, {} steps, in {took:.1} s", checked.states, checked.steps)?;
    let Some(broken) = checked.broken else { return Ok(ExitCode::SUCCESS) };
    writeln!(out, "{broken}")?;
    Ok(ExitCode::FAILURE)
}
