//! `kubeveild`: the node daemon. Start reading at [`run`]; the loop is in [`node`].
//!
//! A library beside its program, so that benches can drive the way round itself.

mod args;
mod controller;
mod events;
mod http;
mod keeper;
mod kept;
mod lock;
mod metrics;
pub mod node;
mod probe;
mod run;
mod status;
mod totals;
mod uninstall;
mod veil_node;
mod watch;

use std::{ffi::OsStr, path::Path, process::ExitCode};

use clap::Parser as _;

/// Names by which the program is the command for people, in an image that holds it once.
const FOR_PEOPLE: [&str; 2] = ["kubeveil", "kubectl-veil"];

/// The program.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().and_then(OsStr::to_str).is_some_and(|name| FOR_PEOPLE.contains(&name)) {
        return kubeveil_cli::main();
    }
    let args = args::Args::parse();
    let done = match &args.command {
        None => run::run(&args),
        Some(args::Command::Uninstall(options)) => uninstall::uninstall(&args, options),
        Some(args::Command::Controller(options)) => controller::run(&args, options),
        Some(args::Command::Hook(hook)) => controller::hook(&args, hook),
        Some(args::Command::Probe(options)) => probe::probe(&args, options),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("kubeveild: {e:#}");
            ExitCode::FAILURE
        }
    }
}
