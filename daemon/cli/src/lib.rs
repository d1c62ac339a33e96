//! `kubeveil`: the command for people. Data goes to standard output, everything else to standard error.
//!
//! Exit codes: 0 all is well, 1 a finding, 2 usage, 3 unreachable or incomplete, 4 not within the time given.

mod ask;
mod bypass;
mod check;
mod explain;
mod policy;
mod ranges;
mod rotate;
mod server;
mod source;
mod status;
mod stop;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
pub use source::SourceArg;

/// Sees to the encryption of pod traffic between nodes.
#[derive(Debug, Parser)]
#[command(name = "kubeveil", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have two nodes speak in plain for a while, when the encryption is suspected of something. It is on record, and ends by itself. What
    /// policies require encryption of stays encrypted.
    Bypass(bypass::Arguments),
    /// Whether a cluster is fit for kubeveil (--pre), and whether what is installed does its work: each finding with a command that
    /// mends it.
    Check(check::Options),
    /// What becomes of packets from one pod to another, and why: policies, mode, tunnel. Exit code 1: they could be in plain; 2: somebody
    /// of both does not exist.
    Explain(explain::Options),
    /// What policies come to before a cluster has them: held to what is expected (test), or to those that there are (diff).
    Policy(policy::Policy),
    /// Ranges that pods and nodes may have addresses of, and what agents refuse since it lies outside; `approve` takes one more in.
    Ranges(ranges::Options),
    /// How this node is: mode, key, peers, programs, drops and their reasons, what is wrong and what to do.
    Status {
        /// The daemon's socket; only root may open it.
        #[arg(long, default_value = SOCKET, env = "KUBEVEIL_SOCKET")]
        socket: PathBuf,
        /// A table for people or JSON for programs.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Have all nodes take new keys, without losing a packet, and show how far they are. Exit code 1: nodes were cut off, or another
    /// rotation goes on; 4: not done within the deadline, and it goes on.
    Rotate(rotate::Rotate),
}

/// Where a daemon answers.
const SOCKET: &str = "/run/kubeveil/kubeveild.sock";

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
/// Nobody answers, or not to all that was asked.
const UNREACHABLE: u8 = 3;
/// Not within the time that was given.
const TIMED_OUT: u8 = 4;

/// The program.
pub fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Bypass(arguments) => bypass::run(&arguments),
        Command::Check(options) => check::check(&options).map(|(report, output)| {
            show(output, || check::table(&report), &report);
            check::exit_code(&report)
        }),
        Command::Explain(options) => explain::run(&options),
        Command::Policy(arguments) => policy::run(&arguments),
        Command::Rotate(arguments) => rotate::run(&arguments),
        Command::Ranges(options) => ranges::ranges(&options).map(|document| {
            show(options.output, || ranges::table(&document), &document);
            if document.has_refused() { FINDING } else { 0 }
        }),
        Command::Status { socket, output } => ask::status(&socket).map(|status| {
            show(output, || status::table(&status, is_colourful()), &status);
            if status.ready && status.problems.is_empty() { 0 } else { FINDING }
        }),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("kubeveil: {e:#}");
            ExitCode::from(UNREACHABLE)
        }
    }
}

/// Whether somebody looks who sees colours (<https://no-color.org>).
fn is_colourful() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[expect(clippy::print_stdout, reason = "standard output is where data goes")]
fn show(output: Output, table: impl FnOnce() -> String, document: &impl Serialize) {
    match output {
        Output::Table => print!("{}", table()),
        Output::Json => match serde_json::to_string_pretty(document) {
            Ok(text) => println!("{text}"),
            Err(e) => eprintln!("kubeveil: {e}"),
        },
    }
}

/// A time in words, such as `2m` or `1m 30s`.
pub fn patience(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    Duration::try_from(span).map_err(|_| "must not be negative".to_owned())
}
