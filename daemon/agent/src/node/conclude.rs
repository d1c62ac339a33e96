//! What a way round came to, told once.

use kubeveil_core::problem::Problem;
use kubeveil_linux::Kernel;

use super::{Node, Now, Outcome, changes, problems};
use crate::{status, veil_node};

impl<K: Kernel> Node<K> {
    /// The way round is over; `problems` is what it met with.
    pub(super) fn conclude(&mut self, outcome: Outcome, problems: Vec<Problem>, now: Now) {
        for change in changes::changes(&self.last, &outcome) {
            tracing::info!("{change}");
        }
        let told = std::mem::take(&mut self.last.problems);
        self.last = Outcome { problems: told, ..outcome };
        self.met = problems;
        self.tell(now);
        self.tell_bypasses(now);
        let report = veil_node::report(self, now);
        self.report(report);
    }

    /// Tells what is wrong now and was not before, and what is over.
    pub(super) fn tell(&mut self, now: Now) {
        let mut problems = self.met.clone();
        problems.extend(self.last.desired.problems.iter().cloned());
        problems.extend(self.announced.problems());
        problems.extend(self.keeper.problems().cloned());
        problems.extend(self.standing.iter().cloned());
        problems.extend(self.beside.values().cloned());
        problems.extend(problems::ahead(&self.last.observed));
        problems.extend(problems::route_checks(&self.last.observed));
        problems.extend(self.other_generation());
        problems.extend(self.is_late(now));
        problems.extend(self.is_too_old(now));
        problems.extend(self.undone.problems(now.monotonic));
        problems.sort();
        problems.dedup();
        for problem in self.quiet.warnings(&problems, &self.last.problems, now.monotonic) {
            tracing::warn!(kind = problem.kind.name(), "{problem}");
            *self.errors.entry(problem.kind.name()).or_default() += 1;
        }
        for problem in self.last.problems.iter().filter(|p| problems.binary_search(p).is_err()) {
            tracing::info!(kind = problem.kind.name(), "over: {problem}");
        }
        self.last.problems = problems;
        self.tell_readiness();
    }

    fn tell_readiness(&mut self) {
        let waiting_for = status::waiting_for(self);
        let ready = waiting_for.is_empty();
        if ready && !self.ready {
            tracing::info!("ready");
        } else if self.ready && !ready {
            tracing::warn!("not ready any more; waits for {}", waiting_for.join("; "));
        }
        self.ready = ready;
    }

    fn other_generation(&self) -> Option<Problem> {
        let ours = self.keeper.info()?.generation.number();
        let wanted = self.mesh()?.key_generation;
        (ours > wanted).then(|| problems::other_generation(ours, wanted))
    }
}
