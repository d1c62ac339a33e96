//! `kubeveil`: the command for people. Data goes to standard output, everything else to standard error.
//!
//! Exit codes: 0 all is well, 1 a finding, 2 usage, 3 unreachable, 4 not within the time given.

mod ask;
mod rotate;
mod source;
mod status;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

/// Sees to the encryption of pod traffic between nodes.
#[derive(Debug, Parser)]
#[command(name = "kubeveil", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How this node is: mode, key, peers, programs, drops and their reasons, what is wrong and what to do.
    Status {
        /// The daemon's socket; only root may open it.
        #[arg(long, default_value = "/run/kubeveil/kubeveild.sock", env = "KUBEVEIL_SOCKET")]
        socket: PathBuf,
        /// A table for people or JSON for programs.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Have all nodes take new keys, without losing a packet, and show how far they are. Exit code 1: nodes were cut off, or another
    /// rotation goes on; 4: not done within the deadline, and it goes on.
    Rotate(rotate::Rotate),
}

/// The value of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// The versioned document.
    Json,
}

/// Something was found that a person should look at.
const FINDING: u8 = 1;
/// What was asked for makes no sense.
const USAGE: u8 = 2;
/// Nobody answers.
const UNREACHABLE: u8 = 3;
/// Not within the time that was given.
const TIMED_OUT: u8 = 4;

/// The program.
pub fn main() -> ExitCode {
    match Args::parse().command {
        Command::Status { socket, output } => tell_status(&socket, output),
        Command::Rotate(arguments) => rotate::run(&arguments),
    }
}

#[expect(clippy::print_stdout, reason = "standard output is where data goes")]
fn tell_status(socket: &Path, output: Output) -> ExitCode {
    let status = match ask::status(socket) {
        Ok(status) => status,
        Err(e) => {
            eprintln!("kubeveil: {e:#}");
            return ExitCode::from(UNREACHABLE);
        }
    };
    match output {
        Output::Table => print!("{}", status::table(&status)),
        Output::Json => match serde_json::to_string_pretty(&status) {
            Ok(text) => println!("{text}"),
            Err(e) => eprintln!("kubeveil: {e}"),
        },
    }
    if status.ready && status.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDING) }
}
