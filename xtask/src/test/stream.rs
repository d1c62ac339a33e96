//! A runner's output: passed on line by line as it comes, and read on the way.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result};

use super::tally::{Reader, Tally};
use crate::{process, report};

/// Runs a runner, and counts what it says.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<Tally> {
    labelled(name, "", command)
}

/// Runs several at once; each of their lines begins with whose it is.
pub(crate) fn run_at_once(runners: Vec<(String, Command)>) -> Tally {
    let alone = runners.len() == 1;
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let run = |(name, mut command): (String, Command)| {
            let label = if alone { String::new() } else { format!("[{name}] ") };
            let ended = labelled(&name, &label, &mut command);
            ended.unwrap_or_else(|error| Tally::broken(format!("{name}: {error:#}")))
        };
        let running: Vec<_> = runners.into_iter().map(|runner| scope.spawn(move || run(runner))).collect();
        for one in running {
            tally.add(one.join().unwrap_or_else(|_| Tally::broken("a runner's reader panicked".to_owned())));
        }
    });
    tally
}

fn labelled(name: &str, label: &str, command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}: {}", process::name_of(command)))?;
    let mut reader = Reader::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("read what {name} prints"))?;
            let line = String::from_utf8_lossy(&line);
            if !is_of_nothing(&line) {
                report::print(format!("{label}{line}"));
            }
            reader.line(&line);
        }
    }
    let status = child.wait()?;
    Ok(reader.end(name, status.success(), &status.to_string()))
}

/// Whether a line only tells that there was nothing to run: many binaries hold no test.
fn is_of_nothing(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || line == "running 0 tests"
        || line.starts_with("test result: ok. 0 passed; 0 failed; 0 ignored")
}
