//! Processes: to run one and be told what it said, and to end one that somebody else may have started.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

/// Runs a program with `input` on its standard input; its standard output, or an error that shows what
/// it said.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let name = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it read everything says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {name}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}: {}", output.status, stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process that may be nobody's child: by its descriptor, so that its number can't come to mean another.
pub struct Handle {
    pid: Pid,
    descriptor: OwnedFd,
}

impl Handle {
    /// The process `pid`, unless it is gone.
    pub fn open(pid: i32) -> Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) else {
            bail!("{pid} is no process id");
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Some(Self { pid, descriptor })),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("open process {}", pid.as_raw_nonzero())),
        }
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal; a process that is gone takes it too.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("send {signal:?} to process {}", self.id())),
        }
    }

    /// Waits until it has ended, and reaps it where it is a child of this process.
    pub fn ended_within(&self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).context("a time-out")?;
            match poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for a process"),
            }
        }
        match waitpid(Some(self.pid), WaitOptions::NOHANG) {
            Ok(_) | Err(Errno::CHILD) => Ok(true),
            Err(error) => Err(error).context("reap a process"),
        }
    }

    /// Asks it to end, then makes it.
    pub fn end(&self, patience: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        if self.ended_within(patience)? {
            return Ok(());
        }
        self.kill()
    }

    /// Ends it at once.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        ensure!(self.ended_within(Duration::from_secs(10))?, "process {} outlives SIGKILL", self.id());
        Ok(())
    }
}

/// The processes below this one, deepest last.
pub fn descendants() -> Vec<i32> {
    let mut found = children(std::process::id().cast_signed());
    let mut next = 0;
    while next < found.len() {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Calls `done` every `pause` until it says so; false when `limit` is over.
pub fn wait_until(limit: Duration, pause: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(pause);
    }
}
