//! `kubeveild`: the node daemon. Start reading at [`run`]; the loop is in [`node`].
//!
//! A library beside its program, so that benches can drive the way round itself.

mod args;
mod events;
mod http;
mod keeper;
mod kept;
mod lock;
mod metrics;
pub mod node;
mod run;
mod status;
mod totals;
mod uninstall;

use std::process::ExitCode;

use clap::Parser as _;

/// The program.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    let done = match &args.command {
        None => run::run(&args),
        Some(args::Command::Uninstall(options)) => uninstall::uninstall(&args, options),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("kubeveild: {e:#}");
            ExitCode::FAILURE
        }
    }
}
