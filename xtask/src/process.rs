//! Other programs: found, run, and their failure said in full.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::report::Step;

/// What `cargo run` sets for us and what must not reach the builds below: they would be
/// rebuilt whenever they are started another way.
const OF_CARGO_RUN: [&str; 3] = ["LD_LIBRARY_PATH", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"];

/// A command whose environment is the caller's, without what `cargo run` added.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in OF_CARGO_RUN {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The compiler that cargo takes.
pub(crate) fn rustc() -> OsString {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// The path of a program, also of one that only root has on PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// `program` as root: as it is, or through sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(command(program));
    }
    let sudo = find("sudo").context("this needs root, and there is no sudo: run it as root")?;
    let mut command = command(sudo);
    command.arg(program);
    Ok(command)
}

/// How a command is named in messages.
pub(crate) fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs a command that speaks for itself (its output is the caller's).
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", name_of(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", name_of(command));
    }
    Ok(())
}

/// Runs a quiet command and gives its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("start {}", name_of(command)))?;
    if !status.success() {
        bail!("{} failed ({status}): {}", name_of(command), String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8(stdout)?)
}

/// Whether a quiet command succeeds. One that can't be started does not.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a long command as a step of the set-up: what it says (on standard error) is shown
/// beside the spinner, and in full where it fails. Gives its standard output.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<String> {
    const KEPT_LINES: usize = 60;
    let mut step = Step::begin(what);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", name_of(command)))?;
    let stdout = child.stdout.take().context("no pipe")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(stdout));
    let mut said = Vec::new();
    let stderr = child.stderr.take().context("no pipe")?;
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        step.detail(&line);
        said.push(line);
    }
    let status = child.wait()?;
    let stdout = reader.join().map_err(|_| anyhow::anyhow!("the reader of {what} panicked"))??;
    if !status.success() {
        let said = said.split_off(said.len().saturating_sub(KEPT_LINES));
        bail!("{what}: {} failed ({status}):\n{}{stdout}", name_of(command), said.join("\n"));
    }
    step.end();
    Ok(stdout)
}
