//! One node's daemon, as a process: known by the files of its folder, so that any process of the lab
//! can handle it.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::address::Node;
use crate::http;
use crate::namespace;
use crate::process::Handle;

/// How long a daemon may take to get ready: under emulation, beside other work, on a machine that is slow. It is no
/// wait where all is well.
pub const READY: Duration = Duration::from_secs(120);
/// How long it may take to end after SIGTERM.
const END: Duration = Duration::from_secs(10);
/// How many lines of its log an error shows.
const TAIL: usize = 25;
/// More arguments for it, for a test.
const EXTRA: &str = "KUBEVEILD_ARGS";

/// The daemon of a node, running or not.
#[derive(Clone, Debug)]
pub struct Daemon {
    node: Node,
    lab: PathBuf,
}

impl Daemon {
    /// That of `node` in the lab whose folder is `lab`.
    pub fn new(node: Node, lab: &Path) -> Self {
        Self { node, lab: lab.to_owned() }
    }

    /// A file of the node's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.lab.join(self.node.name()).join(name)
    }

    /// Its arguments, without the log's level and those of a test.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--source".to_owned(),
            format!("dir:{}", self.lab.join("manifests").display()),
            "--node".to_owned(),
            self.node.name(),
            "--metrics-address".to_owned(),
            http::METRICS.to_string(),
        ];
        arguments.extend(self.places());
        arguments
    }

    /// Of its arguments, those that say where on the node its things are.
    pub fn places(&self) -> Vec<String> {
        let path = |name| self.file(name).display().to_string();
        vec![
            "--state-dir".to_owned(),
            path("state"),
            "--bpf-dir".to_owned(),
            path("bpf/kubeveil"),
            "--socket".to_owned(),
            path("kubeveild.sock"),
        ]
    }

    /// The command that runs it; `more` is appended, as is what `KUBEVEILD_ARGS` holds.
    pub fn command(&self, more: &[String]) -> Result<Command> {
        let path = self.file("kubeveild.log");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let extra = std::env::var(EXTRA).unwrap_or_default();
        let extra: Vec<_> = more.iter().map(String::as_str).chain(extra.split_whitespace()).collect();
        let level: &[&str] = if extra.contains(&"--log") { &[] } else { &["--log", "debug"] };
        let mut command = Command::new("kubeveild");
        command
            .args(self.arguments())
            .args(level)
            .args(extra)
            .env("PATH", super::program_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: ^C is meant for the command that the lab runs.
            .process_group(0);
        Ok(command)
    }

    /// Starts it, unless it runs, and does not wait until it is ready.
    pub fn spawn(&self, more: &[String]) -> Result<()> {
        if let Some(running) = self.running()? {
            bail!("the daemon of {} runs already, as process {}", self.node.name(), running.id());
        }
        let child = namespace::spawn(&self.node.name(), &mut self.command(more)?)?;
        let path = self.file("kubeveild.pid");
        fs::write(&path, format!("{}\n", child.id())).with_context(|| format!("write {}", path.display()))
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self) -> Result<()> {
        self.spawn(&[])?;
        self.wait_ready(READY)
    }

    /// The process, if it runs.
    pub fn running(&self) -> Result<Option<Handle>> {
        let Ok(text) = fs::read_to_string(self.file("kubeveild.pid")) else {
            return Ok(None);
        };
        let pid = text.trim().parse().with_context(|| format!("{}: no process id", self.node.name()))?;
        let Some(handle) = Handle::open(pid)? else {
            return Ok(None);
        };
        // Of a process that ended and that nobody waited for, only the number is left.
        Ok(if handle.ended_within(Duration::ZERO)? { None } else { Some(handle) })
    }

    fn must_run(&self) -> Result<Handle> {
        let running = self.running()?;
        running.with_context(|| format!("the daemon of {} does not run", self.node.name()))
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        self.wait_ready_while(limit, || Ok(()))
    }

    /// The same, for as long as `go_on`, asked again and again, does not err.
    pub fn wait_ready_while(&self, limit: Duration, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
        let end = Instant::now() + limit;
        let name = self.node.name();
        let Some(process) = self.running()? else {
            bail!("the daemon of {name} ended before it was ready; {}", self.tail());
        };
        loop {
            let said = match http::get(&name, "/readyz") {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => format!("/readyz says {}: {}", answer.status, answer.body.trim()),
                Err(error) => format!("{error:#}"),
            };
            go_on()?;
            if process.ended_within(Duration::from_millis(30))? {
                bail!("the daemon of {name} ended before it was ready; {}", self.tail());
            }
            ensure!(
                Instant::now() < end,
                "the daemon of {name} is not ready after {} s: {said}; {}",
                limit.as_secs(),
                self.tail()
            );
        }
    }

    /// SIGTERM, and waits until it has ended.
    pub fn stop(&self) -> Result<()> {
        self.must_run()?.signal(rustix::process::Signal::TERM)?;
        self.ended(END)
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.must_run()?.kill()?;
        self.ended(END)
    }

    /// Ends it somehow, if it runs.
    pub(super) fn end(&self) -> Result<()> {
        match self.running()? {
            Some(process) => {
                process.end(END).with_context(|| format!("end the daemon of {}", self.node.name()))
            }
            None => Ok(()),
        }
    }

    fn ended(&self, limit: Duration) -> Result<()> {
        if let Some(process) = self.running()? {
            let name = self.node.name();
            ensure!(process.ended_within(limit)?, "the daemon of {name} does not end; {}", self.tail());
        }
        let path = self.file("kubeveild.pid");
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.file("kubeveild.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        if lines.is_empty() {
            return "its log is empty".to_owned();
        }
        let last = lines[lines.len().saturating_sub(TAIL)..].join("\n  ");
        format!("its log ends:\n  {last}")
    }

    /// Asks it for `path` over HTTP.
    pub fn get(&self, path: &str) -> Result<http::Answer> {
        http::get(&self.node.name(), path)
    }
}
