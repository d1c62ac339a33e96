//! Waits for a rotation, and shows how it goes: bars on a terminal, plain lines elsewhere, an object a step for programs.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kubeveil_core::rotation::progress::{Phase, Progress};

use super::{
    Desk, End, Look, Stop, show,
    teller::{Teller, Tells},
};

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
    let began = Instant::now();
    let mut bars = (!desk.json && stderr().is_terminal()).then(|| Bars::new(ProgressDrawTarget::stderr()));
    let mut teller = Teller::default();
    loop {
        let look = look(desk)?;
        match (&mut bars, teller.tells(&look.progress, began.elapsed())) {
            (_, None) => {}
            (Some(bars), Some(_)) => bars.show(&look.progress),
            (None, Some(Tells::Step)) => show::step(desk.json, &look.progress, began.elapsed()),
            (None, Some(Tells::Stragglers)) => show::waits(desk.json, &look.progress),
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

/// Three things that fill up, and who is waited for.
struct Bars {
    all: MultiProgress,
    announced: ProgressBar,
    moved: ProgressBar,
    done: ProgressBar,
    waits: ProgressBar,
    /// A line for each of those, as many as there is room for.
    stragglers: Vec<ProgressBar>,
}

/// Most stragglers that a terminal shows, each with its reason.
const MOST_LINES: usize = 8;

fn style(template: &str) -> ProgressStyle {
    // The templates are our own.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bars {
    fn new(target: ProgressDrawTarget) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let bar = |message: &'static str| {
            all.add(
                ProgressBar::new(0).with_style(style("{msg:26} {bar:30} {pos}/{len}")).with_message(message),
            )
        };
        let (announced, moved, done) =
            (bar("nodes with the new key"), bar("ways moved to it"), bar("nodes without an old one"));
        let waits = all.add(ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg}")));
        waits.enable_steady_tick(Duration::from_millis(120));
        Self { all, announced, moved, done, waits, stragglers: Vec::new() }
    }

    fn show(&mut self, progress: &Progress) {
        let all = progress.speaking();
        for (bar, at, of) in [
            (&self.announced, progress.at_least(Phase::Announced), all),
            (&self.moved, progress.flipped, progress.ways),
            (&self.done, progress.count(Phase::Done), all),
        ] {
            bar.set_length(of as u64);
            bar.set_position(at as u64);
            bar.tick();
        }
        let lines = show::named(progress, MOST_LINES);
        self.waits.set_message(if lines.is_empty() { "" } else { "not done:" });
        while self.stragglers.len() > lines.len() {
            let Some(gone) = self.stragglers.pop() else { break };
            gone.finish_and_clear();
            self.all.remove(&gone);
        }
        while self.stragglers.len() < lines.len() {
            self.stragglers.push(self.all.add(ProgressBar::new_spinner().with_style(style("{wide_msg}"))));
        }
        for (bar, line) in self.stragglers.iter().zip(lines) {
            bar.set_message(line);
            bar.tick();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.waits.finish_and_clear();
        // What is left on the screen is no matter.
        let _ = self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;
    use crate::rotate::show::tests::halfway;

    /// What somebody at a terminal sees: how far it is, and each node that is not done, with its reason.
    #[test]
    fn a_terminal_shows_how_far_it_is_and_who_is_waited_for() {
        let terminal = InMemoryTerm::new(20, 80);
        let mut bars = Bars::new(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
        bars.show(&halfway());
        let seen = terminal.contents();
        let lines: Vec<&str> = seen.lines().map(str::trim_end).collect();
        assert!(lines[0].starts_with("nodes with the new key") && lines[0].ends_with(" 2/3"), "{seen}");
        assert!(lines[1].starts_with("ways moved to it") && lines[1].ends_with(" 2/6"), "{seen}");
        assert!(lines[2].starts_with("nodes without an old one") && lines[2].ends_with(" 1/3"), "{seen}");
        assert!(lines[3].ends_with("not done:"), "{seen}");
        assert_eq!(
            lines[4..],
            ["  b keeps its key of generation 3 for c", "  c has no key of generation 4, its newest is of 3"]
        );
        // Who is done by then is not there any more.
        let mut later = halfway();
        later.stragglers.remove("b");
        bars.show(&later);
        let seen = terminal.contents();
        assert!(seen.contains("c has no key") && !seen.contains("keeps its key"), "{seen}");
        later.stragglers = (0..20).map(|n| (format!("node-{n:02}"), "waits".to_owned())).collect();
        bars.show(&later);
        let seen = terminal.contents();
        assert!(
            seen.contains("node-07 waits") && seen.contains("and 12 more") && !seen.contains("node-08"),
            "{seen}"
        );
        drop(bars);
    }
}
