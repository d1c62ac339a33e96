//! `cargo xtask test`: every test there is, streamed, and counted into one closing line.

mod guest;
mod promtool;
mod skips;
mod stream;
mod suites;
mod tally;

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;
use clap::{Args, ValueEnum};

pub(crate) use self::tally::Tally;
use self::{
    skips::{Abilities, is_ci},
    suites::Suite,
};
use crate::{
    build, cluster, fuzz, kubernetes, lint,
    machine::{self, Kernel},
    process, report, setup,
    workspace::Workspace,
};

/// Seconds that one binary of host tests may take.
const HOST_LIMIT: u64 = 900;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only one part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Where the lab runs: host, 6.12, 6.1 or canary; the machine's own where that has WireGuard
    #[arg(long)]
    kernel: Option<Kernel>,
}

/// What a run consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Rules of the repository: dependencies, unsafe, paths
    Rules,
    /// Unit and property tests on the host
    Unit,
    /// The eBPF programs under BPF_PROG_TEST_RUN, on this machine's kernel
    Bpf,
    /// The source, the chart and its rights on a real API server
    Kubernetes,
    /// Scenarios on real WireGuard
    Lab,
    /// Every kind of packet on every device, on two kernels; with --kernel all of it on one
    Matrix,
    /// A whole Kubernetes; only where it is asked for
    Cluster,
}

/// Runs the tests; success only if some ran and none failed.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let mut total = Tally::default();
    let mut times = Vec::new();
    let parts = [Part::Rules, Part::Unit, Part::Bpf, Part::Kubernetes, Part::Lab, Part::Matrix];
    let wanted = arguments.only.map_or(parts.to_vec(), |only| vec![only]);
    for part in wanted {
        let name = format!("{part:?}").to_lowercase();
        report::say(format!("tests: {name}"));
        let start = Instant::now();
        let tally = part.run(workspace, arguments);
        times.push(format!("{name} {} s", start.elapsed().as_secs()));
        let mut tally = tally.unwrap_or_else(|error| Tally::broken(format!("part `{name}`: {error:#}")));
        if is_ci() {
            let abilities = part.abilities(arguments)?;
            tally.refuse_avoidable_skips(&abilities);
        }
        total.add(tally);
    }
    report::say(format!("it took: {}", times.join(", ")));
    Ok(close(&total))
}

/// What failed and what was skipped once more, at the end, where it is seen.
fn close(total: &Tally) -> ExitCode {
    for skip in &total.skips {
        report::print(format!("skipped: {skip}"));
    }
    for failure in &total.failures {
        report::print(format!("failed: {failure}"));
    }
    if total.passed == 0 && total.failed == 0 {
        report::say("no test ran: does the filter name any?");
    }
    report::print(total.closing_line());
    if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Part {
    fn run(self, workspace: &Workspace, arguments: &Arguments) -> Result<Tally> {
        let filter = arguments.filter.as_deref();
        match self {
            Self::Rules => rules(workspace, filter),
            Self::Unit => unit(workspace, filter),
            Self::Bpf => bpf(workspace, arguments),
            Self::Kubernetes => on_api_server(workspace, filter),
            Self::Lab => guest::lab(workspace, arguments),
            Self::Matrix => guest::matrix(workspace, arguments),
            Self::Cluster => cluster::test(workspace, filter),
        }
    }

    /// What the kernel that the part ran on can do.
    fn abilities(self, arguments: &Arguments) -> Result<Abilities> {
        let guest = match &arguments.kernel {
            _ if !matches!(self, Self::Lab | Self::Matrix) => false,
            Some(kernel) => *kernel != Kernel::Host,
            None => !machine::Facts::of_host().can_run_lab(),
        };
        Ok(if guest { Abilities::of_guest() } else { Abilities::of_host() })
    }
}

fn rules(workspace: &Workspace, filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    for check in lint::checks(workspace)? {
        let name = format!("rules::{}", check.name);
        if filter.is_some_and(|f| !name.contains(f)) {
            continue;
        }
        let held = check.findings.is_empty();
        report::print(format!("test {name} ... {}", if held { "ok" } else { "FAILED" }));
        check.findings.iter().for_each(|finding| report::print(format!("    {finding}")));
        if held {
            tally.passed += 1;
        } else {
            tally.failed += 1;
            tally.failures.push(name);
        }
    }
    Ok(tally)
}

fn unit(workspace: &Workspace, filter: Option<&str>) -> Result<Tally> {
    let object = build::ebpf(workspace)?;
    let mut tally = Tally::default();
    // The daemon's own tests lay a small network.
    setup::ensure(workspace, &[setup::LAB])?;
    let promtool = promtool::find(workspace);
    for suite in suites::unit(workspace, &object)? {
        let mut runner = process::command("timeout");
        runner.envs(promtool.iter().map(|path| (promtool::VARIABLE, path)));
        tally.add(run_suite(&suite, runner, filter)?);
    }
    let mut doc = process::cargo();
    doc.args(["test", "--workspace", "--doc"]).current_dir(&workspace.root).env(build::EBPF_OBJECT, &object);
    doc.args(filter.map(|f| ["--", f]).into_iter().flatten());
    tally.add(stream::run("documentation tests", &mut doc)?);
    tally.add(fuzz::briefly(workspace, filter)?);
    Ok(tally)
}

fn bpf(workspace: &Workspace, arguments: &Arguments) -> Result<Tally> {
    let alone = arguments.only == Some(Part::Bpf);
    let object = build::ebpf(workspace)?;
    let mut tally = Tally::default();
    // The backstop's tests lay a small network.
    setup::ensure(workspace, &[setup::LAB])?;
    for suite in suites::bpf(workspace, &object, alone)? {
        // As root: programs are loaded. By `env`, since sudo keeps little of ours.
        let mut root = process::as_root("env")?;
        root.arg(format!("{}={}", build::EBPF_OBJECT, object.display())).arg("timeout");
        tally.add(run_suite(&suite, root, arguments.filter.as_deref())?);
    }
    Ok(tally)
}

fn on_api_server(workspace: &Workspace, filter: Option<&str>) -> Result<Tally> {
    let object = build::ebpf(workspace)?;
    let programs = kubernetes::control_plane(workspace)?;
    let promtool = promtool::find(workspace);
    let mut tally = Tally::default();
    for suite in suites::kubernetes(workspace, &object)? {
        let mut runner = process::command("timeout");
        runner.env(kubernetes::VARIABLE, &programs);
        runner.envs(promtool.iter().map(|path| (promtool::VARIABLE, path)));
        tally.add(run_suite(&suite, runner, filter)?);
    }
    Ok(tally)
}

/// A test binary on the host, by a command that ends it when its time is over.
fn run_suite(suite: &Suite, mut timeout: Command, filter: Option<&str>) -> Result<Tally> {
    timeout.args(["-k", "5", &HOST_LIMIT.to_string()]).arg(&suite.executable).args(filter);
    timeout.current_dir(&suite.folder).env("CARGO_MANIFEST_DIR", &suite.folder);
    report::say(&suite.name);
    stream::run(&suite.name, &mut timeout)
}
