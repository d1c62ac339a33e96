//! How long is waited, for what.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Time-outs, and how often what failed is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For one answer, to its last byte: a page of a list, a patch, the head of a watch.
    pub answer: Duration,
    /// Without a word on a watch. The API server sends a bookmark a minute (`defaultBookmarkFrequency` in k8s.io/apiserver
    /// `pkg/storage/cacher/cacher.go`).
    pub silence: Duration,
    /// After which the API server is asked to end a watch, so that watches spread over its instances again.
    pub watch: Duration,
    /// A watch that lasted as long as this was a good one.
    pub steady: Duration,
    /// Before what failed is tried for the second time; twice that before the third, and so on …
    pub first_wait: Duration,
    /// … up to this; up to as much again is added by chance, so that thousands of agents don't come at once.
    pub longest_wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(120),
            watch: Duration::from_secs(290),
            steady: Duration::from_secs(5),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(15),
        }
    }
}

/// Waits that grow as long as things fail.
pub(crate) struct Waits {
    pace: Pace,
    next: ExponentialBackoff,
}

impl Waits {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, next: grow(&pace) }
    }

    /// It works again.
    pub(crate) fn reset(&mut self) {
        self.next = grow(&self.pace);
    }

    /// How long to wait now, at least `asked` (what the API server wants), but within what is bearable.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let longest = self.pace.longest_wait;
        let own = self.next.next().unwrap_or(longest);
        own.max(asked.unwrap_or_default().min(2 * longest))
    }
}

fn grow(pace: &Pace) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(pace.first_wait)
        .with_max_delay(pace.longest_wait)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded() {
        let pace = Pace::default();
        let mut waits = Waits::new(pace);
        let first = waits.next(None);
        assert!((pace.first_wait..=2 * pace.first_wait).contains(&first), "{first:?}");
        for _ in 0..20 {
            waits.next(None);
        }
        for asked in [None, Some(Duration::from_secs(3600))] {
            let late = waits.next(asked);
            assert!((pace.longest_wait..=2 * pace.longest_wait).contains(&late), "{late:?}");
        }
        waits.reset();
        assert!(waits.next(Some(Duration::from_secs(3))) >= Duration::from_secs(3));
        assert!(waits.next(None) <= 4 * pace.first_wait);
    }
}
