//! The cluster's processes on this machine: each with a log, all ended with the cluster.

use std::{
    fs::File,
    io::Read,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::process;

/// What a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(10);
/// Between two looks at whether something has come about.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// Whether a person, or another process, wants us to stop.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on, Ctrl-C and SIGTERM are noted instead of ending us, so that all is taken down in order. Once more is no other.
pub(super) fn note_interrupts() -> Result<()> {
    static NOTED: AtomicBool = AtomicBool::new(false);
    if NOTED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("handle Ctrl-C")
}

pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs a quiet command and gives its standard output; it is ended where we are interrupted meanwhile.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let what = process::name_of(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {what}"))?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupted() {
            end(&mut child);
            bail!("interrupted");
        }
        thread::sleep(PAUSE / 8);
    };
    let text = |reader: Reader| reader.join().unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    if !status.success() {
        bail!("{what} failed ({status}): {}", stderr.trim());
    }
    Ok(stdout)
}

type Reader = thread::JoinHandle<String>;

/// Reads what comes, so that the writer need not wait. What can't be read is missing in a message, no more.
fn collect(stream: Option<impl Read + Send + 'static>) -> Reader {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Processes in the order of their start.
pub(super) struct Processes {
    logs: PathBuf,
    running: Vec<(String, Child)>,
}

impl Processes {
    pub(super) fn new(logs: PathBuf) -> Self {
        Self { logs, running: Vec::new() }
    }

    /// Starts a command apart from the terminal's signals. It ends with us, even where we are killed.
    pub(super) fn start(&mut self, name: &str, command: &Command) -> Result<()> {
        let log = self.logs.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut child = process::command("setpriv");
        child.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => child.env(variable, value),
                None => child.env_remove(variable),
            };
        }
        child.current_dir(&self.logs).process_group(0);
        child.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = child.spawn().with_context(|| format!("start {}", process::name_of(command)))?;
        self.running.push((name.to_owned(), child));
        Ok(())
    }

    /// Has a process wait, or go on: whoever asks it meanwhile gets no answer.
    pub(super) fn pause(&self, name: &str, waits: bool) -> Result<()> {
        let found = self.running.iter().find(|(other, _)| other == name);
        let (_, child) = found.with_context(|| format!("no {name} runs"))?;
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process without an id")?;
        kill_process(pid, if waits { Signal::STOP } else { Signal::CONT })
            .with_context(|| format!("pause {name}"))
    }

    /// Waits until `done`; an error if a process ends meanwhile, we are interrupted, or the time is over.
    pub(super) fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        while !done() {
            self.check()?;
            if start.elapsed() > limit {
                bail!("{what}: not within {} s; the logs are in {}", limit.as_secs(), self.logs.display());
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        if interrupted() {
            bail!("interrupted");
        }
        for (name, child) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                let log = self.logs.join(format!("{name}.log"));
                bail!("{name} of the cluster has ended ({status}): see {}", log.display());
            }
        }
        Ok(())
    }
}

impl Drop for Processes {
    /// The last started ends first. That one does not end is no reason to leave the others.
    fn drop(&mut self) {
        for (_, child) in self.running.iter_mut().rev() {
            end(child);
        }
    }
}

/// Asks a child to end, and makes it.
pub(super) fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        && matches!(child.try_wait(), Ok(None))
    {
        let _ = kill_process(pid, Signal::TERM);
    }
    let start = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if start.elapsed() > GRACE {
            let _ = child.kill();
        }
        thread::sleep(PAUSE / 4);
    }
}
