//! Plays schedules on all processors, or one again; looks at all states of few nodes; counts what many cost. Says what did not hold.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use kubeveil_tests_simulation::{
    Failure, Rules, Schedule,
    model::{Bounds, check},
    play_all,
    scale::{Look, rotate},
};

#[derive(Parser)]
#[command(about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    play: Play,
}

#[derive(Subcommand)]
enum Command {
    /// Looks at all states of two or three nodes, within bounds
    Model(Model),
    /// Counts what one rotation of many nodes costs in which nothing goes wrong
    Scale(Scale),
}

/// Schedules, each by its seed.
#[derive(Args)]
struct Play {
    /// How many schedules
    #[arg(long, default_value_t = 100_000)]
    schedules: u64,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes begin; without it two to eight, by the seed
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    nodes: Option<u8>,
    /// What the nodes go by
    #[arg(long, value_enum, default_value_t = Rules::Ours)]
    rules: Rules,
    /// Show all that happens in the schedule of --seed
    #[arg(long, requires = "seed")]
    trace: bool,
}

#[derive(Args)]
struct Model {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    nodes: u8,
    /// How many of them do at once what they can do
    #[arg(long, default_value_t = 0)]
    prompt: u8,
    /// How often the mesh wants another generation
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    rotations: u8,
    /// How often a daemon dies
    #[arg(long, default_value_t = 1)]
    crashes: u8,
    /// How often a node ceases to hear from another
    #[arg(long, default_value_t = 1)]
    silences: u8,
    /// What the nodes go by
    #[arg(long, value_enum, default_value_t = Rules::Ours)]
    rules: Rules,
}

#[derive(Args)]
struct Scale {
    /// How many nodes
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=5000))]
    nodes: u16,
    /// What chance goes by
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What a way round lasts for each peer, microseconds
    #[arg(long, default_value_t = Look::MEASURED.each_peer)]
    each_peer: u64,
    /// And for each announcement that it takes in
    #[arg(long, default_value_t = Look::MEASURED.each_told)]
    each_told: u64,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let holds = match &arguments.command {
        Some(Command::Model(model)) => look_at_all(model)?,
        Some(Command::Scale(scale)) => count(scale)?,
        None => play(&arguments.play)?,
    };
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn play(arguments: &Play) -> Result<bool> {
    let schedule = |seed| Schedule { seed, nodes: arguments.nodes.map(usize::from), rules: arguments.rules };
    if let (Some(seed), true) = (arguments.seed, arguments.trace) {
        let mut out = std::io::stdout().lock();
        let played = schedule(seed).play(true);
        for line in &played.trace {
            writeln!(out, "{line}")?;
        }
        return Ok(played.failure.is_none());
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
    Ok(all.failures.is_empty())
}

fn count(arguments: &Scale) -> Result<bool> {
    let began = Instant::now();
    let look = Look { each_peer: arguments.each_peer, each_told: arguments.each_told };
    let cost = rotate(arguments.nodes.into(), arguments.seed, look);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{cost}, in {:.1} s", began.elapsed().as_secs_f64())?;
    if !cost.keeps_up() {
        writeln!(out, "they do not keep up with what they are told")?;
    }
    Ok(cost.took < Duration::MAX && cost.keeps_up())
}

fn look_at_all(arguments: &Model) -> Result<bool> {
    let Model { nodes, prompt, rotations, crashes, silences, rules } = *arguments;
    let bounds = Bounds { nodes, prompt, rotations, crashes, silences };
    let began = Instant::now();
    let checked = check(bounds, rules);
    let mut out = std::io::stdout().lock();
    let took = began.elapsed().as_secs_f64();
    writeln!(out, "{bounds:?}: {} states, {} steps, in {took:.1} s", checked.states, checked.steps)?;
    if let Some(broken) = &checked.broken {
        writeln!(out, "{broken}")?;
    }
    Ok(checked.broken.is_none())
}
