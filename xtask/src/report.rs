//! What a person reads while xtask works. All of it goes to standard error: standard output
//! belongs to the command that is run.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// One line about what is going on.
pub(crate) fn say(line: impl AsRef<str>) {
    eprintln!("xtask: {}", line.as_ref());
}

/// An error with everything that led to it.
pub(crate) fn failure(error: &anyhow::Error) {
    eprintln!("xtask: error: {error:#}");
}

/// A line of data, on standard output. That nobody reads it is no error.
pub(crate) fn print(line: impl AsRef<str>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{}", line.as_ref()).and_then(|()| out.flush());
}

/// A step that takes a while: a spinner on a terminal, plain lines elsewhere.
pub(crate) struct Step {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
    said: bool,
}

impl Step {
    /// Says that `what` has begun.
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("xtask: {spinner} {msg} ({elapsed})");
            let bar = ProgressBar::new_spinner().with_message(what.clone());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { what, started: Instant::now(), bar, said: false }
    }

    /// What the step is at now. A step that has nothing to do says nothing, so without a
    /// spinner its beginning is told here, once.
    pub(crate) fn detail(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {}", self.what, line.trim())),
            None if !self.said => say(format!("{} …", self.what)),
            None => {}
        }
        self.said = true;
    }

    /// Says that the step is done, and how long it took where that was felt.
    pub(crate) fn end(self) {
        let seconds = self.started.elapsed().as_secs_f32();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if seconds >= 1.0 {
            say(format!("{}: {seconds:.1} s", self.what));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
