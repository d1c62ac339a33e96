//! From one version of the pinned maps to another, and back.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::{READY, program_path};
use kubeveil_tests::namespace;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted};
use kubeveil_tests::status::said_in;

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("another_abi_takes_over_under_traffic", takes_over).nodes(2),
    Scenario::new("another_abi_is_killed_while_it_takes_over", killed).nodes(2),
];

/// What a build of another ABI version would be told apart by, and our own.
const OTHER: &str = "2";
const OWN: &str = "1";

fn arguments(abi: &str) -> Vec<String> {
    vec!["--abi".to_owned(), abi.to_owned()]
}

fn takes_over(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    for (from, to) in [(OWN, OTHER), (OTHER, OWN)] {
        let answered = Answered::start()?;
        let load = stage.load("1a", "2a", 400);
        let (tally, census) = stage.send_while(load, |stage| {
            for node in stage.lab.nodes() {
                // Once in order, and once not.
                if to == OTHER {
                    stage.lab.daemon(node).stop()?
                } else {
                    stage.lab.daemon(node).kill()?
                }
                stage.lab.daemon(node).spawn(&arguments(to))?;
                stage.lab.daemon(node).wait_ready(READY)?;
                alone(stage, node, to, from)?;
            }
            sleep(Duration::from_secs(1));
            Ok(())
        })?;
        encrypted(&tally, &census).with_context(|| format!("from version {from} to {to}"))?;
        no_others(stage).with_context(|| format!("from version {from} to {to}"))?;
        answered.end().with_context(|| format!("answers of a host process, from version {from} to {to}"))?;
    }
    Ok(())
}

/// Dies at many moments of taking over; whoever comes next goes on, whichever version it is.
fn killed(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let load = stage.load("1a", "2a", 400);
    let (tally, census) = stage.send_while(load, |stage| {
        let daemon = stage.lab.daemon(Node(1));
        for turn in 0..12_u64 {
            daemon.kill()?;
            daemon.spawn(&arguments(if turn % 2 == 0 { OTHER } else { OWN }))?;
            sleep(Duration::from_millis(100 + turn * 97 % 700));
        }
        daemon.kill()?;
        daemon.spawn(&arguments(OTHER))?;
        daemon.wait_ready(READY)?;
        alone(stage, Node(1), OTHER, OWN)
    })?;
    encrypted(&tally, &census)
}

/// Of two versions' pins one is there, and the other goes.
fn alone(stage: &Stage, node: Node, stays: &str, goes: &str) -> Result<()> {
    let pins = |version: &str| stage.lab.daemon(node).file("bpf/kubeveil").join(format!("v{version}"));
    let gone = wait_until(Duration::from_secs(20), Duration::from_millis(100), || Ok(!pins(goes).exists()))?;
    ensure!(gone, "{}: the pins of version {goes} stay", node.name());
    ensure!(pins(stays).join("links").exists(), "{}: no links of version {stays}", node.name());
    Ok(())
}

/// One program of each kind for each node, in the whole kernel.
fn no_others(stage: &Stage) -> Result<()> {
    let wanted = stage.lab.nodes().count();
    let mut found = 0;
    let none = wait_until(Duration::from_secs(10), Duration::from_millis(100), || {
        found = said_in(Node(1), "bpftool", &["prog", "show"])?.matches("name steer ").count();
        Ok(found == wanted)
    })?;
    ensure!(none, "{found} programs called steer, for {wanted} nodes");
    Ok(())
}

/// A pod that asks another node's host all the time: the answers are encrypted by what is remembered of the requests.
struct Answered {
    pings: Vec<Child>,
}

impl Answered {
    fn start() -> Result<Self> {
        let ping = |family: Family| {
            let option = if family == Family::V6 { "-6" } else { "-4" };
            let to = Node(2).address(family).to_string();
            let mut command = Command::new("ping");
            command.args([option, "-q", "-i", "0.05", "-W", "2", &to]).env("PATH", program_path());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            namespace::spawn("pod-1b", &mut command)
        };
        Ok(Self { pings: Families::Dual.all().iter().map(|family| ping(*family)).collect::<Result<_>>()? })
    }

    /// An error unless each was answered. (The last may be on its way.)
    fn end(self) -> Result<()> {
        for child in self.pings {
            let id = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(id, rustix::process::Signal::INT)?;
            let said = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            let counts = text.lines().find(|line| line.contains("transmitted")).context(text.clone())?;
            let mut numbers = counts.split(' ').filter_map(|word| word.parse::<u64>().ok());
            let (sent, back) = (numbers.next().context("sent")?, numbers.next().context("received")?);
            ensure!(sent > 20 && back + 1 >= sent, "{counts}");
        }
        Ok(())
    }
}
