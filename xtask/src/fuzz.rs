//! `cargo xtask fuzz`: any input, led by what it makes the code do (libFuzzer).
//!
//! The compiler's own coverage counters do for it: these flags are stable ones, so neither another toolchain nor
//! cargo-fuzz is needed, but a C++ compiler for libFuzzer itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{build, process, report, setup, test::Tally, workspace::Workspace};

/// What cargo-fuzz gives the compiler, but for the address sanitizer, which is not stable and has nothing to look for.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// How long each runs among the tests, seconds.
const BRIEFLY: u64 = 5;
/// An input that takes longer than this, in seconds, is as bad as one that crashes.
const SLOW: u64 = 10;

#[derive(Args)]
pub(crate) struct Arguments {
    /// What is given any input
    #[arg(value_enum)]
    target: Target,
    /// For so long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this input: a file that an earlier run has left
    #[arg(long, conflicts_with = "seconds")]
    input: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Reading what a node says of itself
    Announcement,
    /// Reading a folder of manifests, and whose prefixes they make
    Manifests,
    /// What becomes of a packet, by each program
    Packet,
}

impl Target {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Runs one; fails if an input is found that breaks it.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let programs = programs(workspace)?;
    let name = arguments.target.name();
    let holds = match &arguments.input {
        Some(input) => process::command(programs.join(&name)).arg(input).status()?.success(),
        None => search(workspace, &programs, &name, arguments.seconds)?,
    };
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All of them for a moment: that they still run, and that what they once found stays mended.
pub(crate) fn briefly(workspace: &Workspace, filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    let names = Target::value_variants().iter().map(|target| target.name());
    let wanted: Vec<_> =
        names.filter(|name| filter.is_none_or(|f| format!("fuzz::{name}").contains(f))).collect();
    if wanted.is_empty() {
        return Ok(tally);
    }
    let programs = programs(workspace)?;
    for name in wanted {
        let holds = search(workspace, &programs, &name, BRIEFLY)?;
        report::print(format!("test fuzz::{name} ... {}", if holds { "ok" } else { "FAILED" }));
        if holds {
            tally.passed += 1;
        } else {
            tally.failed += 1;
            tally.failures.push(format!("fuzz::{name}"));
        }
    }
    Ok(tally)
}

/// Builds them; gives their folder.
fn programs(workspace: &Workspace) -> Result<PathBuf> {
    setup::ensure(workspace, &[setup::COMPILER, setup::FUZZER])?;
    let (triple, target) = (build::host_triple()?, workspace.target.join("fuzz"));
    let mut cargo = process::cargo();
    // With a target named, build scripts and macros are built without the flags.
    cargo.args(["build", "--release", "--target", &triple]);
    cargo.args(Target::value_variants().iter().flat_map(|target| ["--bin".to_owned(), target.name()]));
    cargo
        .current_dir(workspace.root.join("tests/fuzz"))
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    process::run(&mut cargo).context("build the fuzz targets (tests/fuzz)")?;
    Ok(target.join(triple).join("release"))
}

/// Looks for an input that breaks `name`; says whether it holds.
fn search(workspace: &Workspace, programs: &Path, name: &str, seconds: u64) -> Result<bool> {
    let found = workspace.target.join("fuzz/found").join(name);
    let corpus = workspace.target.join("fuzz/corpus").join(name);
    let seeds = workspace.root.join("tests/fuzz/corpus").join(name);
    for folder in [&found, &corpus] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    if fs::read_dir(&seeds).map_or(0, Iterator::count) == 0 {
        bail!("{} holds no seed", seeds.display());
    }
    let began = SystemTime::now();
    let mut fuzzer = process::command(programs.join(name));
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={SLOW}"));
    fuzzer.arg(format!("-artifact_prefix={}/", found.display()));
    // The same way through it each time, as far as it comes.
    fuzzer.args(["-seed=1", "-print_final_stats=1", "-verbosity=0"]);
    // What is learnt goes into the first, the others are read.
    fuzzer.args([&corpus, &seeds]);
    report::say(format!("fuzz {name}, {seconds} s"));
    let output = output_of(&mut fuzzer)?;
    if output.status.success() {
        let runs =
            output.stderr.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        report::print(format!("{name}: {} inputs, and it holds", runs.unwrap_or("?").trim()));
        return Ok(true);
    }
    report::print(&output.stderr);
    for path in newer(&found, began)? {
        let path = path.display();
        report::print(format!(
            "see it again: cargo xtask fuzz {name} --input {path}\nwhen it is mended, keep it: cp {path} tests/fuzz/corpus/{name}/"
        ));
    }
    Ok(false)
}

struct Output {
    status: std::process::ExitStatus,
    stderr: String,
}

fn output_of(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("start {}", process::name_of(command)))?;
    Ok(Output { status: output.status, stderr: String::from_utf8_lossy(&output.stderr).into_owned() })
}

/// What was left in `folder` since `began`.
fn newer(folder: &Path, began: SystemTime) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.metadata()?.modified()? >= began {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}
