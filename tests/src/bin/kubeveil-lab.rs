//! `kubeveil-lab`: lays the lab, runs a command in it, takes the lab down.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use kubeveil_tests::address::{Families, MAX_NODES, Node};
use kubeveil_tests::lab::{self, Lab, Mode, Overlay, Spec};
use kubeveil_tests::process::{Handle, descendants};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Nodes, pods and a wire in network namespaces, with a daemon on each node; runs COMMAND in it.
///
/// tests/README.md says what COMMAND finds. The exit status is COMMAND's; 124 when the time is over,
/// 125 when the lab could not be laid or taken down.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: u8,
    /// The mesh's mode; off starts no daemon and loads nothing.
    #[arg(long, value_enum, default_value = "require")]
    mode: Mode,
    /// The address families of nodes and pods.
    #[arg(long, value_enum, default_value = "dual")]
    family: Families,
    /// How pods' packets get from node to node.
    #[arg(long, value_enum, default_value = "none")]
    overlay: Overlay,
    /// Seconds until COMMAND is ended.
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Seconds that the daemons may take to get ready, and again that their tunnels may take.
    #[arg(long, value_name = "S", default_value_t = lab::READY.as_secs())]
    ready_timeout: u64,
    /// What to run; an interactive bash if nothing.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// What to do first, for who sits before it.
const HINTS: &str = "\
  kubeveil status                         node-1's (of another: --socket $KUBEVEIL_LAB/node-2/kubeveild.sock)
  ip netns exec pod-1a ping 10.244.2.10   from a pod of node-1 to one of node-2
  ip netns exec wire tcpdump -ni wire0    what crosses from node to node
  lab-node kill 1                         ends node-1's daemon; `exit` takes the lab down";

/// There is no such command.
const NOT_FOUND: u8 = 127;
/// It is none that can be run.
const NOT_RUN: u8 = 126;
/// The lab itself failed.
const FAILED: u8 = 125;
/// The time was over.
const TIMED_OUT: u8 = 124;
/// How long COMMAND may take to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("kubeveil-lab: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8> {
    // Before the thread that waits for signals: it inherits what the first one has.
    lab::make_private()?;
    let signals = listen()?;
    let Arguments { nodes, mode, family: families, overlay, .. } = *arguments;
    let spec = Spec { nodes, mode, families, overlay };
    let lab = Lab::lay(spec)?;
    let outcome = inside(&lab, arguments, &signals);
    let left = end_descendants(&lab);
    lab.take_down()?;
    left?;
    outcome
}

fn listen() -> Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGTERM]).context("listen for signals")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || signals.forever().try_for_each(|signal| sender.send(signal)));
    Ok(receiver)
}

fn inside(lab: &Lab, arguments: &Arguments, signals: &Receiver<i32>) -> Result<u8> {
    let mut ended_by = None;
    let started = start(lab, arguments, || {
        ended_by = signals.try_iter().find(|&signal| signal != SIGCHLD);
        if ended_by.is_some() { bail!("a signal ends it") } else { Ok(()) }
    });
    if let Some(signal) = ended_by {
        return Ok(died_of(signal));
    }
    started?;
    let mut command = match arguments.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => {
            if std::io::stdin().is_terminal() {
                eprintln!("{HINTS}");
            }
            Command::new("bash")
        }
    };
    command.env("PATH", lab::program_path()).env("KUBEVEIL_LAB", lab.folder());
    command.env("KUBEVEIL_SOCKET", lab.daemon(Node(1)).file("kubeveild.sock"));
    let name = command.get_program().display().to_string();
    let child = match command.spawn() {
        Ok(child) => child,
        // As shells say it.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            eprintln!("kubeveil-lab: {name}: {error}");
            return Ok(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN });
        }
        Err(error) => return Err(error).with_context(|| format!("start {name}")),
    };
    let timeout = arguments.timeout.map(Duration::from_secs);
    attend(child.id().cast_signed(), timeout, signals)
}

/// Starts the daemons and waits for all that the mode needs.
fn start(lab: &Lab, arguments: &Arguments, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
    let limit = Duration::from_secs(arguments.ready_timeout);
    if arguments.mode != Mode::Off {
        lab.start_daemons_while(limit, &mut go_on)?;
    }
    if arguments.mode.needs_tunnels() {
        lab.wait_tunnels(limit, &mut go_on)?;
    }
    go_on()
}

/// Waits for the command and meanwhile reaps orphans; hands on the signals that ask for an end.
fn attend(pid: i32, timeout: Option<Duration>, signals: &Receiver<i32>) -> Result<u8> {
    let command = Handle::open(pid)?.context("the command is gone before it was waited for")?;
    let mut deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut asked = None;
    loop {
        if let Some(status) = reap(pid)? {
            return Ok(asked.unwrap_or_else(|| code(status)));
        }
        match next(signals, deadline)? {
            Some(SIGCHLD) => {}
            // A terminal sent it to the command too, which may well go on.
            Some(SIGINT) if std::io::stdin().is_terminal() => {}
            end if asked.is_none() => {
                if end.is_none() {
                    let limit = timeout.unwrap_or_default().as_secs();
                    eprintln!("kubeveil-lab: ended after {limit} s (--timeout)");
                }
                asked = Some(end.map_or(TIMED_OUT, died_of));
                let signal = end.and_then(Signal::from_named_raw).unwrap_or(Signal::TERM);
                command.signal(signal)?;
                deadline = Some(Instant::now() + PATIENCE);
            }
            _ => {
                command.signal(Signal::KILL)?;
                deadline = None;
            }
        }
    }
}

/// The next signal, or none at the deadline.
fn next(signals: &Receiver<i32>, deadline: Option<Instant>) -> Result<Option<i32>> {
    let Some(deadline) = deadline else {
        return Ok(Some(signals.recv()?));
    };
    match signals.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(signal) => Ok(Some(signal)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => bail!("nobody listens for signals any more"),
    }
}

/// Reaps every process that has ended; the status of `pid` if it is among them.
fn reap(pid: i32) -> Result<Option<WaitStatus>> {
    let mut found = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((ended, status))) if Pid::from_raw(pid) == Some(ended) => found = Some(status),
            Ok(Some(_)) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(found),
            Err(error) => return Err(error).context("wait for processes"),
        }
    }
}

fn code(status: WaitStatus) -> u8 {
    let status = ExitStatus::from_raw(status.as_raw());
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => died_of(signal.unwrap_or(0)),
    }
}

/// As shells say it.
fn died_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Ends what the command left running in the background. Daemons are the lab's to end.
fn end_descendants(lab: &Lab) -> Result<()> {
    let mut daemons = Vec::new();
    for node in lab.nodes() {
        daemons.extend(lab.daemon(node).running()?.map(|process| process.id()));
    }
    // Deepest first, so that nobody starts a child anew.
    for pid in descendants().into_iter().rev().filter(|pid| !daemons.contains(pid)) {
        if let Some(process) = Handle::open(pid)? {
            process.end(Duration::from_secs(1))?;
        }
    }
    Ok(())
}
