//! `kubeveild`: the node daemon. Start reading at [`run`]; the loop is in [`node`].

mod args;
mod events;
mod http;
mod keeper;
mod kept;
mod lock;
mod metrics;
mod node;
mod run;
mod status;
mod totals;
mod uninstall;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
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
