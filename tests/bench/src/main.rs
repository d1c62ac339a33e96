//! What `cargo xtask bench` measures with: each part prints its rows as lines of JSON on standard output, and what it
//! is at on standard error. Nothing here passes or fails.
#![expect(clippy::print_stdout, reason = "what was measured is the point of it")]

mod daemon;
mod datapath;
mod look;
mod policies;
mod programs;
mod raw;
mod row;
mod traffic;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::{
    daemon::{cluster, latency, memory, reconcile, rotation, scale, window},
    row::Row,
};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// What to measure
    part: Part,
    /// How often
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Of the parts that others call: what, or where
    #[arg(long, hide = true, default_value = "")]
    of: String,
    #[arg(long, hide = true, default_value_t = 0)]
    nodes: u16,
    #[arg(long, hide = true)]
    below: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Packets a second through `steer` into a stand-in for the tunnel's device
    Datapath,
    /// The programs under BPF_PROG_TEST_RUN
    Programs,
    /// What policies cost, a packet and a decision
    Policies,
    /// What is looked at twice a second
    Look,
    /// From nothing to 5,000 peers, one change, no change
    Reconcile,
    /// What the daemon keeps in memory
    Memory,
    /// From an announcement to the kernel
    Latency,
    /// What one node has to do in a rotation
    Rotation,
    /// From a pod at the API server to other nodes' kernels
    Window,
    /// One agent among 5,000 Nodes of an API server
    Scale,
    /// Pod to pod through WireGuard, also while keys are rotated
    Traffic,
    /// In a lab, of `traffic`: measures when it is told to
    #[value(hide = true)]
    Serve,
    /// In a pod: answers requests
    #[value(hide = true)]
    Answer,
    /// In a pod: asks
    #[value(hide = true)]
    Ask,
    /// One measurement of the memory of this process
    #[value(hide = true)]
    MemoryOf,
    /// Writes a cluster into a folder
    #[value(hide = true)]
    Folder,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubeveil-bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let rounds = arguments.rounds;
    let rows = match arguments.part {
        Part::Datapath => datapath::measure(rounds)?,
        Part::Programs => programs::measure(rounds)?,
        Part::Policies => policies::measure(rounds)?,
        Part::Look => look::measure(rounds)?,
        Part::Reconcile => with_wireguard("reconcile", || reconcile::measure(rounds))?,
        Part::Memory => with_wireguard("memory", || memory::measure(rounds))?,
        Part::Latency => with_wireguard("latency", || latency::measure(rounds))?,
        Part::Rotation => rotation::measure(rounds)?,
        Part::Window => window::measure(rounds)?,
        Part::Scale => scale::measure(rounds)?,
        Part::Traffic => with_wireguard("traffic", || traffic::measure(rounds))?,
        Part::Serve => return traffic::serve(),
        Part::Answer => return traffic::answer(),
        Part::Ask => return traffic::ask(),
        Part::MemoryOf => {
            let sizes = memory::of(&arguments.of)?;
            return Ok(serde_json::to_writer(std::io::stdout(), &sizes)?);
        }
        Part::Folder => {
            let key = arguments.below.as_deref().context("--below is missing")?.parse()?;
            let others = cluster::below(arguments.nodes, &key)?;
            return cluster::folder::write(Path::new(&arguments.of), &others);
        }
    };
    rows.iter().try_for_each(Row::tell)
}

/// A part, or that it is left out and why.
fn with_wireguard(name: &str, measure: impl FnOnce() -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    match daemon::missing() {
        Some(why) => Ok(vec![Row::skipped(name, "", why)]),
        None => measure(),
    }
}

/// What we are at.
fn say(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}
