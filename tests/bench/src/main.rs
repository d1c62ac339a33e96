//! What `cargo xtask bench` measures with: each part prints its rows as lines of JSON on standard output, and what it
//! is at on standard error. Nothing here passes or fails.

mod datapath;
mod programs;
mod raw;
mod row;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::row::Row;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// What to measure
    part: Part,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// How often
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Packets a second through `steer` into a stand-in for the tunnel's device
    Datapath,
    /// The programs under BPF_PROG_TEST_RUN
    Programs,
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
    let rows: Vec<Row> = match arguments.part {
        Part::Datapath => datapath::measure(arguments.rounds)?,
        Part::Programs => programs::measure(arguments.rounds)?,
    };
    rows.iter().filter(|row| row.is_called(&arguments.filter)).try_for_each(Row::tell)
}

/// What we are at.
fn say(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}
