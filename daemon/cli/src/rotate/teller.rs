//! When something is told of a rotation that goes on.

use std::time::Duration;

use kubeveil_core::rotation::progress::Progress;

/// After standing still for so long it is told who is waited for, by name: what takes its course needs no names.
const STANDS: Duration = Duration::from_secs(5);

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tells {
    /// How far it is.
    Step,
    /// Who is not done, and why.
    Stragglers,
}

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Teller {
    told: Option<Progress>,
    /// Since when it is so.
    since: Duration,
    has_named: bool,
}

impl Teller {
    /// So far it is, `after` this time.
    pub(super) fn tells(&mut self, progress: &Progress, after: Duration) -> Option<Tells> {
        if self.told.as_ref() != Some(progress) {
            *self = Self { told: Some(progress.clone()), since: after, has_named: false };
            return Some(Tells::Step);
        }
        let is_due = !self.has_named && !progress.stragglers.is_empty() && after >= self.since + STANDS;
        self.has_named |= is_due;
        is_due.then_some(Tells::Stragglers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotate::show::tests::halfway;

    #[test]
    fn who_is_waited_for_is_told_once_it_stands_still() {
        let mut teller = Teller::default();
        let mut tells =
            |progress: &Progress, second: u64| teller.tells(progress, Duration::from_secs(second));
        let mut at = halfway();
        assert_eq!(tells(&at, 0), Some(Tells::Step));
        assert_eq!(tells(&at, 4), None);
        at.flipped += 1;
        assert_eq!(tells(&at, 5), Some(Tells::Step));
        assert_eq!(tells(&at, 9), None, "it has only just moved");
        assert_eq!(tells(&at, 10), Some(Tells::Stragglers));
        assert_eq!(tells(&at, 99), None, "once");
        at.stragglers.clear();
        assert_eq!(tells(&at, 100), Some(Tells::Step));
        assert_eq!(tells(&at, 200), None, "nobody is waited for");
    }
}
