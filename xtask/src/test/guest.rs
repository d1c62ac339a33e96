//! The parts that need WireGuard: on this machine's kernel where that has it, else in VMs.

use std::path::{Path, PathBuf};

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

/// Every scenario, on one kernel.
pub(super) fn lab(workspace: &Workspace, arguments: &Arguments) -> Result<Tally> {
    let mut command = vec![SCENARIOS.to_owned()];
    command.extend(arguments.filter.clone());
    run(workspace, &built(workspace)?, SCENARIOS, arguments.kernel.as_ref(), command, vec![])
}

/// All of the matrix on the kernel that was asked for, or where the lab is no VM; else a half of it on each kernel.
pub(super) fn matrix(workspace: &Workspace, arguments: &Arguments) -> Result<Tally> {
    let programs = built(workspace)?;
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let shell = |line: String| vec!["sh".to_owned(), "-c".to_owned(), line];
    // What a kernel has no WireGuard for, the part `bpf` has done.
    let whole = format!("{MATRIX} {filter}");
    let with_conditions = format!("{CONDITIONS}; first=$?; {whole} && exit $first");
    let Some(kernel) = &arguments.kernel else {
        if machine::Facts::of_host().can_run_lab() {
            return run(workspace, &programs, MATRIX, None, shell(whole), vec![]);
        }
        let mut tally = Tally::default();
        for (version, half) in [(machine::DEFAULT_VERSION, "first"), (machine::OLD_VERSION, "second")] {
            let kernel = Kernel::Guest(version.to_owned());
            let half = vec![(HALF.to_owned(), half.to_owned())];
            let name = format!("{MATRIX} on {version}");
            tally.add(run(workspace, &programs, &name, Some(&kernel), shell(with_conditions.clone()), half)?);
        }
        return Ok(tally);
    };
    let line = if *kernel == Kernel::Host { whole } else { with_conditions };
    run(workspace, &programs, MATRIX, Some(kernel), shell(line), vec![])
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

fn run(
    workspace: &Workspace,
    programs: &Path,
    name: &str,
    kernel: Option<&Kernel>,
    command: Vec<String>,
    mut environment: Vec<(String, String)>,
) -> Result<Tally> {
    let machine = Machine::ensure(workspace, kernel)?;
    // The folder that the command starts in has the object there.
    let object = workspace.ebpf_object();
    let folder = object.parent().map(ToOwned::to_owned);
    let file = object.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    environment.push((build::EBPF_OBJECT.to_owned(), file));
    environment.extend(is_ci().then(|| ("CI".to_owned(), "true".to_owned())));
    let out = workspace.fresh_folder("lab-logs")?;
    let request = Request {
        command,
        programs: programs.to_owned(),
        payload: folder,
        out: Some(out.clone()),
        timeout: Some(LIMIT),
        environment,
        ..Request::default()
    };
    let tally = stream::run(name, &mut machine.child(&request)?)?;
    if tally.failed > 0 {
        report::say(format!("what is called /out there is {}", out.display()));
    }
    Ok(tally)
}
