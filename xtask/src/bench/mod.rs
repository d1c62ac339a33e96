//! `cargo xtask bench`: what the project promises in numbers, measured. What measures is the program `kubeveil-bench`
//! (tests/bench); here is where it runs, and what becomes of its rows.

mod row;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::Args;

use self::row::Row;
use crate::{
    build, kubernetes,
    machine::{Kernel, Machine, Request},
    process, report, setup,
    workspace::Workspace,
};

const PROGRAM: &str = "kubeveil-bench";
/// Seconds that one part may take in a VM.
const LIMIT: u64 = 3600;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only parts whose name contains this: datapath, programs, policies, look, rotation, window, scale, reconcile, memory, latency, traffic
    filter: Option<String>,
    /// How often each thing is measured
    #[arg(long)]
    rounds: Option<u32>,
    /// Fail where a bar is missed
    #[arg(long)]
    strict: bool,
    /// Where the parts run that need WireGuard: host, 6.12, 6.1 or canary; the machine's own where that has it, else 6.12 in a VM
    #[arg(long)]
    kernel: Option<Kernel>,
}

/// What is measured together.
struct Part {
    name: &'static str,
    place: Place,
    /// Rounds where nobody says otherwise.
    rounds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On this machine's own kernel: emulation would hide what is measured.
    Here,
    /// The same, beside an API server.
    ApiServer,
    /// Where there is WireGuard.
    WireGuard,
}

const PARTS: [Part; 11] = [
    Part { name: "datapath", place: Place::Here, rounds: 9 },
    Part { name: "programs", place: Place::Here, rounds: 9 },
    Part { name: "policies", place: Place::Here, rounds: 9 },
    Part { name: "look", place: Place::Here, rounds: 9 },
    Part { name: "rotation", place: Place::Here, rounds: 3 },
    Part { name: "window", place: Place::ApiServer, rounds: 100 },
    Part { name: "scale", place: Place::ApiServer, rounds: 100 },
    Part { name: "reconcile", place: Place::WireGuard, rounds: 3 },
    Part { name: "memory", place: Place::WireGuard, rounds: 1 },
    Part { name: "latency", place: Place::WireGuard, rounds: 100 },
    Part { name: "traffic", place: Place::WireGuard, rounds: 5 },
];

/// Measures, prints the table and writes `target/bench/results.json`.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let wanted = |part: &&Part| arguments.filter.as_deref().is_none_or(|filter| part.name.contains(filter));
    let parts: Vec<&Part> = PARTS.iter().filter(wanted).collect();
    let names = PARTS.map(|part| part.name).join(", ");
    anyhow::ensure!(!parts.is_empty(), "no part is called so; there are {names}");
    let bench = Bench::prepare(workspace, arguments, &parts)?;
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for part in parts {
        match bench.measure(part) {
            Ok(more) => rows.extend(more),
            Err(error) => failures.push(format!("{}: {error:#}", part.name)),
        }
    }
    let path = workspace.target.join("bench/results.json");
    fs::write(&path, serde_json::to_vec_pretty(&rows)?)
        .with_context(|| format!("write {}", path.display()))?;
    report::print(row::table(&rows));
    report::say(format!("the same for programs: {}", path.display()));
    failures.iter().for_each(|failure| report::say(format!("error: {failure}")));
    let missed = rows.iter().filter(|row| row.misses()).count();
    if missed > 0 {
        report::say(format!("{missed} of {} bars missed", rows.iter().filter(|row| row.has_bar()).count()));
    }
    let is_well = failures.is_empty() && (missed == 0 || !arguments.strict);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything built, and the places set up.
struct Bench<'a> {
    workspace: &'a Workspace,
    arguments: &'a Arguments,
    folder: std::path::PathBuf,
    machine: Option<Machine>,
}

impl<'a> Bench<'a> {
    fn prepare(workspace: &'a Workspace, arguments: &'a Arguments, parts: &[&Part]) -> Result<Self> {
        setup::ensure(workspace, &[setup::LAB])?;
        let folder = build::bench(workspace)?;
        let machine = if parts.iter().any(|part| part.place == Place::WireGuard) {
            build::programs(workspace)?;
            Some(Machine::ensure(workspace, arguments.kernel.as_ref())?)
        } else {
            None
        };
        Ok(Self { workspace, arguments, folder, machine })
    }

    fn measure(&self, part: &Part) -> Result<Vec<Row>> {
        let rounds = self.arguments.rounds.unwrap_or(part.rounds).to_string();
        let words = [part.name, "--rounds", &rounds];
        let mut command = match &self.machine {
            Some(machine) if part.place == Place::WireGuard => {
                let mut command = vec![format!("./{PROGRAM}")];
                command.extend(words.map(str::to_owned));
                machine.child(&Request {
                    command,
                    programs: self.workspace.lab_programs()?,
                    payload: Some(self.folder.clone()),
                    timeout: Some(LIMIT),
                    // The object lies beside the program.
                    environment: vec![(build::EBPF_OBJECT.to_owned(), format!("./{}", build::BENCH_OBJECT))],
                    ..Request::default()
                })?
            }
            _ => match self.here(&self.folder.join(PROGRAM)) {
                Ok(mut command) => {
                    command.args(words);
                    if part.place == Place::ApiServer {
                        command.env(kubernetes::VARIABLE, kubernetes::control_plane(self.workspace)?);
                    }
                    command
                }
                // No privilege is no failure, and no silence.
                Err(error) => return Ok(vec![Row::skipped(part.name, &format!("{error:#}"))]),
            },
        };
        let printed = process::step(&format!("measuring: {}", part.name), &mut command)?;
        let rows = printed.lines().filter(|line| line.starts_with('{'));
        let rows = rows.map(|line| serde_json::from_str(line).with_context(|| format!("read {line}")));
        let is_guest = self.machine.as_ref().is_some_and(Machine::is_guest) && part.place == Place::WireGuard;
        rows.map(|row: Result<Row>| if is_guest { row.map(Row::emulated) } else { row }).collect()
    }

    /// As root: programs are loaded. By `env`, since sudo keeps little of ours.
    fn here(&self, program: &Path) -> Result<Command> {
        let mut command = process::as_root("env")?;
        command
            .arg(format!("{}={}", build::EBPF_OBJECT, self.workspace.ebpf_object().display()))
            .arg(program);
        Ok(command)
    }
}
