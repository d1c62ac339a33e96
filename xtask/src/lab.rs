//! `cargo xtask lab`: a command in the lab. The lab itself is the program `kubeveil-lab` (in
//! tests/); here is where it runs.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    build,
    machine::{self, Kernel, Machine, Request},
    workspace::Workspace,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// What the mesh does; off starts no daemon
    #[arg(long, value_enum, default_value_t = Mode::Require)]
    mode: Mode,
    #[command(flatten)]
    place: Place,
    /// The command; an interactive shell if none
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct VmArguments {
    #[command(flatten)]
    place: Place,
    /// The command; an interactive shell if none
    #[arg(last = true)]
    command: Vec<String>,
}

/// Where a command runs, and what goes in and comes out.
#[derive(Args)]
struct Place {
    /// host, 6.12 or 6.1; the machine's own where that has WireGuard, else 6.12 in a VM
    #[arg(long)]
    kernel: Option<Kernel>,
    /// The command's working folder
    #[arg(long, value_name = "DIR")]
    payload: Option<PathBuf>,
    /// What the command leaves in /out comes here
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seconds after which the command is ended, with exit status 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// A variable of the command's environment
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Take the programs as they were last built
    #[arg(long)]
    no_build: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Off,
    Observe,
    Prefer,
    Require,
}

/// Runs a command in the lab.
pub(crate) fn run(workspace: &Workspace, arguments: Arguments) -> Result<ExitCode> {
    let command = lab_command(arguments.nodes, arguments.mode, arguments.command);
    arguments.place.run(workspace, None, command)
}

/// Runs a command beside our programs, where no lab is laid.
pub(crate) fn run_vm(workspace: &Workspace, arguments: VmArguments) -> Result<ExitCode> {
    let default = Kernel::Guest(machine::DEFAULT_VERSION.to_owned());
    let shell = || vec!["bash".to_owned()];
    let command = if arguments.command.is_empty() { shell() } else { arguments.command };
    arguments.place.run(workspace, Some(default), command)
}

fn lab_command(nodes: u8, mode: Mode, command: Vec<String>) -> Vec<String> {
    let mode = mode.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut words = vec!["kubeveil-lab".to_owned(), "--nodes".into(), nodes.to_string(), "--mode".into(), mode];
    if !command.is_empty() {
        words.push("--".to_owned());
        words.extend(command);
    }
    words
}

impl Place {
    fn run(self, workspace: &Workspace, default: Option<Kernel>, command: Vec<String>) -> Result<ExitCode> {
        let programs = if self.no_build { workspace.lab_programs()? } else { build::programs(workspace)? };
        let machine = Machine::ensure(workspace, self.kernel.or(default).as_ref())?;
        let mut environment = machine::terminal_environment();
        environment.extend(self.env.iter().map(|pair| split(pair)));
        machine.become_request(&Request {
            command,
            programs,
            payload: self.payload,
            out: self.out,
            timeout: self.timeout,
            environment,
            terminal: machine::is_interactive(),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn split(pair: &str) -> (String, String) {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_program_gets_what_the_person_said() {
        let words = lab_command(2, Mode::Off, vec!["ping".into(), "-c1".into()]);
        assert_eq!(words, ["kubeveil-lab", "--nodes", "2", "--mode", "off", "--", "ping", "-c1"]);
        assert_eq!(lab_command(3, Mode::Require, vec![]).last().map(String::as_str), Some("require"));
    }
}
