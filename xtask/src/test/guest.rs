//! The parts that need WireGuard: on this machine's kernel where that has it, else in VMs.

use std::{
    path::{Path, PathBuf},
    thread::available_parallelism,
};

use anyhow::{Result, bail};

use super::{Arguments, Tally, skips::is_ci, stream};
use crate::{
    build,
    machine::{self, Kernel, Machine, Request},
    report,
    workspace::Workspace,
};

/// Seconds that one run may take.
const LIMIT: u64 = 4500;
const SCENARIOS: &str = "lab-scenarios";
const MATRIX: &str = "lab-matrix";
/// The programs of `tests/bpf`, and the test of theirs that tries every condition.
const CONDITIONS: &str = "bpf-programs every_condition";
/// Which half of the matrix: between them they hold each ground on each kernel, and each state of the tunnels.
const HALF: &str = "LAB_MATRIX_HALF";

/// Which share of the scenarios: `K/N`.
const SHARE: &str = "LAB_SHARE";
/// VMs at once, at most: each has one CPU, and a share has to be worth its boot.
const MOST_AT_ONCE: usize = 4;

/// Every scenario, on one kernel: in VMs, as many at once as the machine has cores.
pub(super) fn lab(workspace: &Workspace, arguments: &Arguments) -> Result<Tally> {
    let programs = built(workspace)?;
    let machine = Machine::ensure(workspace, arguments.kernel.as_ref())?;
    let mut command = vec![SCENARIOS.to_owned()];
    command.extend(arguments.filter.clone());
    let cores = available_parallelism().map_or(1, usize::from);
    let shares = if machine.is_guest() && arguments.filter.is_none() { cores.min(MOST_AT_ONCE) } else { 1 };
    let share = |number: usize| Run {
        name: if shares == 1 { SCENARIOS.to_owned() } else { format!("lab {number}/{shares}") },
        machine: &machine,
        command: command.clone(),
        environment: vec![(SHARE.to_owned(), format!("{number}/{shares}"))],
    };
    at_once(workspace, &programs, (1..=shares).map(share).collect())
}

/// All of the matrix on the kernel that was asked for, or where the lab is no VM; else a half of it on each kernel.
pub(super) fn matrix(workspace: &Workspace, arguments: &Arguments) -> Result<Tally> {
    let programs = built(workspace)?;
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let shell = |line: String| vec!["sh".to_owned(), "-c".to_owned(), line];
    // What a kernel has no WireGuard for, the part `bpf` has done.
    let whole = format!("{MATRIX} {filter}");
    // Programs that don't load would fail each of the matrix, after a long while.
    let with_conditions = format!("{CONDITIONS} && {whole}");
    if arguments.kernel.is_some() || machine::Facts::of_host().can_run_lab() {
        let machine = Machine::ensure(workspace, arguments.kernel.as_ref())?;
        let command = shell(if machine.is_guest() { with_conditions } else { whole });
        let run = Run { name: MATRIX.to_owned(), machine: &machine, command, environment: vec![] };
        return at_once(workspace, &programs, vec![run]);
    }
    let on = |version: &str| Machine::ensure(workspace, Some(&Kernel::Guest(version.to_owned())));
    let (new, old) = (on(machine::DEFAULT_VERSION)?, on(machine::OLD_VERSION)?);
    let half = |machine, version: &str, half: &str| Run {
        name: format!("matrix on {version}"),
        machine,
        command: shell(with_conditions.clone()),
        environment: vec![(HALF.to_owned(), half.to_owned())],
    };
    let halves =
        vec![half(&new, machine::DEFAULT_VERSION, "first"), half(&old, machine::OLD_VERSION, "second")];
    at_once(workspace, &programs, halves)
}

/// The programs, with those that are to run among them.
fn built(workspace: &Workspace) -> Result<PathBuf> {
    let programs = build::programs(workspace)?;
    for program in [SCENARIOS, MATRIX] {
        if !programs.join(program).exists() {
            bail!("{} holds no {program}: kubeveil-tests should build it", programs.display());
        }
    }
    Ok(programs)
}

/// A command on a machine.
struct Run<'a> {
    name: String,
    machine: &'a Machine,
    command: Vec<String>,
    environment: Vec<(String, String)>,
}

fn at_once(workspace: &Workspace, programs: &Path, runs: Vec<Run<'_>>) -> Result<Tally> {
    // The folder that the command starts in has the object there.
    let object = workspace.ebpf_object();
    let folder = object.parent().map(ToOwned::to_owned);
    let file = object.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let out = workspace.fresh_folder("lab-logs")?;
    let mut runners = Vec::new();
    for (number, mut run) in runs.into_iter().enumerate() {
        run.environment.push((build::EBPF_OBJECT.to_owned(), file.clone()));
        run.environment.extend(is_ci().then(|| ("CI".to_owned(), "true".to_owned())));
        let request = Request {
            command: run.command,
            programs: programs.to_owned(),
            payload: folder.clone(),
            out: Some(out.join((number + 1).to_string())),
            timeout: Some(LIMIT),
            environment: run.environment,
            ..Request::default()
        };
        runners.push((run.name, run.machine.child(&request)?));
    }
    let tally = stream::run_at_once(runners);
    if tally.failed > 0 {
        report::say(format!("what is called /out there is below {}", out.display()));
    }
    Ok(tally)
}
