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
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=MAX_NODES))]
    nodes: u8,
    /// What the mesh does; off starts no daemon
    #[arg(long, value_enum, default_value_t = Mode::Require)]
    mode: Mode,
    /// The address families of the lab
    #[arg(long, value_enum, default_value_t = Family::Dual)]
    family: Family,
    /// How pods' packets get from node to node: as they are, or in an overlay's envelopes
    #[arg(long, value_enum, default_value_t = Overlay::None)]
    overlay: Overlay,
    #[command(flatten)]
    place: Place,
    /// The command; an interactive shell if none
    #[arg(last = true)]
    command: Vec<String>,
    /// Seconds that the daemons may take to get ready, and again that their tunnels may take
    #[arg(long, value_name = "SECONDS")]
    ready_timeout: Option<u64>,
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
    /// host, 6.12, 6.1 or canary; the machine's own where that has WireGuard, else 6.12 in a VM
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Dual,
    Ipv4,
    Ipv6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Overlay {
    None,
    Vxlan,
    Geneve,
    Ipip,
    Gre,
}

/// As the lab has it (`MAX_NODES` in tests/src/address.rs): refused before anything is built.
const MAX_NODES: i64 = 32;

/// What laying the lab and taking it down may take beyond the command's own time limit.
const LAB_MARGIN: u64 = 120;

/// Runs a command in the lab.
pub(crate) fn run(workspace: &Workspace, mut arguments: Arguments) -> Result<ExitCode> {
    let command = lab_command(&arguments);
    if arguments.mode != Mode::Off {
        machine::refuse_without_wireguard(arguments.place.kernel.as_ref())?;
    }
    // The lab keeps the limit itself, so that it is taken down in order; this is the net below.
    arguments.place.timeout = arguments.place.timeout.map(|seconds| seconds.saturating_add(LAB_MARGIN));
    arguments.place.run(workspace, None, command)
}

/// Runs a command beside our programs, where no lab is laid.
pub(crate) fn run_vm(workspace: &Workspace, arguments: VmArguments) -> Result<ExitCode> {
    let default = Kernel::Guest(machine::DEFAULT_VERSION.to_owned());
    let shell = || vec!["bash".to_owned()];
    let command = if arguments.command.is_empty() { shell() } else { arguments.command };
    arguments.place.run(workspace, Some(default), command)
}

/// The words of `kubeveil-lab` (its contract: tests/README.md).
fn lab_command(arguments: &Arguments) -> Vec<String> {
    let name_of = |value: Option<clap::builder::PossibleValue>| {
        value.map(|v| v.get_name().to_owned()).unwrap_or_default()
    };
    let mut words = vec!["kubeveil-lab".to_owned()];
    words.extend(["--nodes".to_owned(), arguments.nodes.to_string()]);
    words.extend(["--mode".to_owned(), name_of(arguments.mode.to_possible_value())]);
    words.extend(["--family".to_owned(), name_of(arguments.family.to_possible_value())]);
    words.extend(["--overlay".to_owned(), name_of(arguments.overlay.to_possible_value())]);
    if let Some(seconds) = arguments.place.timeout {
        words.extend(["--timeout".to_owned(), seconds.to_string()]);
    }
    if let Some(seconds) = arguments.ready_timeout {
        words.extend(["--ready-timeout".to_owned(), seconds.to_string()]);
    }
    if !arguments.command.is_empty() {
        words.push("--".to_owned());
        words.extend(arguments.command.iter().cloned());
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
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn words(line: &[&str]) -> String {
        let line = Line::parse_from(["lab"].iter().chain(line));
        lab_command(&line.arguments).join(" ")
    }

    #[test]
    fn the_lab_program_gets_what_the_person_said() {
        assert_eq!(words(&[]), "kubeveil-lab --nodes 3 --mode require --family dual --overlay none");
        assert_eq!(
            words(&["--nodes", "2", "--mode", "off", "--timeout", "9", "--", "ping", "-c1", "--mode"]),
            "kubeveil-lab --nodes 2 --mode off --family dual --overlay none --timeout 9 -- ping -c1 --mode"
        );
        assert_eq!(
            words(&["--ready-timeout", "300"]),
            "kubeveil-lab --nodes 3 --mode require --family dual --overlay none --ready-timeout 300"
        );
    }

    #[test]
    fn the_range_is_the_labs_own() {
        let theirs = include_str!("../../tests/src/address.rs");
        assert!(theirs.contains(&format!("pub const MAX_NODES: u8 = {MAX_NODES};")));
        for refused in ["0", "33", "1000"] {
            let said = Line::try_parse_from(["lab", "--nodes", refused]).err().expect("refused").to_string();
            assert!(said.contains("1..=32"), "{said}");
        }
    }
}
