//! What is yet to come when a daemon has just started is waited for before it is complained of.

use std::{collections::BTreeSet, time::Duration};

use kubeveil_core::problem::{Problem, ProblemKind};

/// How long after the start: a controller needs some seconds to find ranges and make VeilNodes, people as much to apply a mesh.
const PATIENCE: Duration = Duration::from_secs(30);

/// What has been told quietly.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// When patience ends, monotonic.
    until: Option<Duration>,
    awaited: BTreeSet<Problem>,
}

impl Quiet {
    /// Which of `problems` are to be warned of now: those that were not `told` before, and those that were waited for in vain. Both
    /// are in order. What is waited for from now on is said as that.
    pub(super) fn warnings<'a>(
        &mut self,
        problems: &'a [Problem],
        told: &[Problem],
        now: Duration,
    ) -> Vec<&'a Problem> {
        let is_early = now < *self.until.get_or_insert(now + PATIENCE);
        self.awaited.retain(|awaited| problems.binary_search(awaited).is_ok());
        let mut due = Vec::new();
        for problem in problems {
            let is_new = told.binary_search(problem).is_err();
            if is_new && is_early && may_come(problem) {
                tracing::info!(kind = problem.kind.name(), "waiting: {problem}");
                self.awaited.insert(problem.clone());
            } else if is_new || (!is_early && self.awaited.remove(problem)) {
                due.push(problem);
            }
        }
        due
    }
}

/// It may be over by itself: something is not there yet, or can't be asked yet, or no controller has found ranges yet.
fn may_come(problem: &Problem) -> bool {
    match problem.kind {
        ProblemKind::Missing | ProblemKind::Source => true,
        ProblemKind::Manifest => problem.field == "spec.podCIDRs",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: ProblemKind, object: &str, field: &str) -> Problem {
        let text = String::new();
        let (object, field) = (object.to_owned(), field.to_owned());
        Problem { kind, object, field, message: text.clone(), advice: text }
    }

    #[test]
    fn what_is_yet_to_come_is_warned_of_when_it_lasts() {
        let mut quiet = Quiet::default();
        let start = Duration::from_secs(1_000);
        let mesh = problem(ProblemKind::Missing, "EncryptionMesh default", "");
        let ranges = problem(ProblemKind::Manifest, "EncryptionMesh default", "spec.podCIDRs");
        let kernel = problem(ProblemKind::Kernel, "eth0", "");
        let mut all = vec![mesh.clone(), ranges.clone(), kernel.clone()];
        all.sort();
        assert_eq!(quiet.warnings(&all, &[], start), [&kernel]);
        assert!(quiet.warnings(&all, &all, start + PATIENCE / 2).is_empty());
        // One of them came.
        let left: Vec<Problem> = all.iter().filter(|one| **one != ranges).cloned().collect();
        assert!(quiet.warnings(&left, &all, start + PATIENCE / 2).is_empty());
        assert_eq!(quiet.warnings(&left, &left, start + PATIENCE), [&mesh]);
        assert!(quiet.warnings(&left, &left, start + 2 * PATIENCE).is_empty(), "once");
        // Whoever has started long ago says at once what goes.
        assert_eq!(quiet.warnings(&all, &left, start + 2 * PATIENCE), [&ranges]);
    }

    #[test]
    fn a_manifest_that_is_wrong_is_warned_of_at_once() {
        let wrong = [problem(ProblemKind::Manifest, "EncryptionMesh default", "spec.mode")];
        assert_eq!(Quiet::default().warnings(&wrong, &[], Duration::ZERO), [&wrong[0]]);
    }
}
