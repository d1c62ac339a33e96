//! `lab-node start|stop|kill N`: the daemon of one node, from inside a lab.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{Daemon, READY};

/// Handles the daemon of a node of the lab. Nothing restarts by itself.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start it and wait until it is ready. KUBEVEILD_ARGS is appended to its arguments.
    Start {
        /// The node's number.
        node: u8,
        /// Do not wait until it is ready.
        #[arg(long)]
        no_wait: bool,
    },
    /// SIGTERM, and wait until it has ended.
    Stop {
        /// The node's number.
        node: u8,
    },
    /// SIGKILL.
    Kill {
        /// The node's number.
        node: u8,
    },
}

fn main() -> ExitCode {
    match act(&Arguments::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: &Action) -> Result<()> {
    match *action {
        Action::Start { node, no_wait } => {
            let daemon = daemon(node)?;
            daemon.spawn(&[])?;
            if no_wait { Ok(()) } else { daemon.wait_ready(READY) }
        }
        Action::Stop { node } => daemon(node)?.stop(),
        Action::Kill { node } => daemon(node)?.kill(),
    }
}

fn daemon(node: u8) -> Result<Daemon> {
    let folder =
        std::env::var_os("KUBEVEIL_LAB").context("KUBEVEIL_LAB is not set: this runs inside a lab")?;
    let folder = PathBuf::from(folder);
    let own = folder.join(Node(node).name());
    anyhow::ensure!(own.is_dir(), "the lab has no node {node}: {} is absent", own.display());
    Ok(Daemon::new(Node(node), &folder))
}
