//! Waits for a rotation, and shows how it goes: bars on a terminal, plain lines elsewhere, an object a step for programs.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kubeveil_core::rotation::progress::{Phase, Progress};

use super::{Desk, End, Look, Stop, show};

/// How often it is looked.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// An API server that does not answer for so long in a row is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Until it ends as `ends` says, or the deadline; then the rotation goes on without us.
pub(super) fn until(
    desk: &mut Desk,
    deadline: Duration,
    ends: impl Fn(&Look) -> Option<End>,
) -> Result<End, Stop> {
    // Who is told twice would be told by the signal's own way too.
    let _ = ctrlc::set_handler(|| {
        eprintln!(
            "\nkubeveil: the rotation goes on; `kubeveil rotate status` tells how far it is, `kubeveil rotate pause` has it wait"
        );
        std::process::exit(130);
    });
    let began = Instant::now();
    let bars = (!desk.json && stderr().is_terminal()).then(Bars::new);
    let mut told: Option<Progress> = None;
    loop {
        let look = look(desk)?;
        if told.as_ref() != Some(&look.progress) {
            match &bars {
                Some(bars) => bars.show(&look.progress),
                None => show::step(desk.json, &look.progress, began.elapsed()),
            }
            told = Some(look.progress.clone());
        }
        let is_late = began.elapsed() >= deadline;
        if let Some(end) = ends(&look).or(is_late.then_some(End::TimedOut)) {
            drop(bars);
            desk.keep_history(&look);
            show::ended(desk.json, &look.progress, end != End::TimedOut, began.elapsed());
            return Ok(end);
        }
        std::thread::sleep(LOOK);
    }
}

/// Looks until somebody answers, for as long as our patience lasts.
pub(super) fn look(desk: &mut Desk) -> Result<Look, Stop> {
    let began = Instant::now();
    loop {
        match desk.look() {
            Ok(look) => return Ok(look),
            Err(problem) if began.elapsed() >= PATIENCE => return Err(Stop::Unreachable(problem)),
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Three things that fill up.
struct Bars {
    all: MultiProgress,
    announced: ProgressBar,
    moved: ProgressBar,
    done: ProgressBar,
    note: ProgressBar,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        // The templates are our own.
        let style = ProgressStyle::with_template("{msg:26} {bar:30} {pos}/{len}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |message: &'static str| {
            all.add(ProgressBar::new(0).with_style(style.clone()).with_message(message))
        };
        let (announced, moved, done) =
            (bar("nodes with the new key"), bar("ways moved to it"), bar("nodes without an old one"));
        let line = ProgressStyle::with_template("{spinner} {wide_msg}");
        let note = all.add(
            ProgressBar::new_spinner().with_style(line.unwrap_or_else(|_| ProgressStyle::default_spinner())),
        );
        note.enable_steady_tick(Duration::from_millis(120));
        Self { all, announced, moved, done, note }
    }

    fn show(&self, progress: &Progress) {
        let all = progress.speaking();
        for (bar, at, of) in [
            (&self.announced, progress.at_least(Phase::Announced), all),
            (&self.moved, progress.flipped, progress.ways),
            (&self.done, progress.count(Phase::Done), all),
        ] {
            bar.set_length(of as u64);
            bar.set_position(at as u64);
        }
        let first = progress.stragglers.first_key_value();
        self.note.set_message(first.map(|(node, why)| format!("{node} {why}")).unwrap_or_default());
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.note.finish_and_clear();
        // What is left on the screen is no matter.
        let _ = self.all.clear();
    }
}
