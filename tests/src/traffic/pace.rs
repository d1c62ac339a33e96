//! When to send. Pure.

use std::time::{Duration, Instant};

/// A steady pace. Whoever wakes late makes up for at most a few packets, and goes on from there: what a
/// long pause has missed is not sent in a burst, which would overrun buffers that a steady stream
/// never fills.
#[derive(Clone, Debug)]
pub struct Pace {
    interval: Duration,
    next: Instant,
}

/// A sleep lasts up to some milliseconds too long where a busy machine is emulated.
const CREDIT: u32 = 4;

impl Pace {
    /// So many a second, from `now` on.
    pub fn new(rate: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), next: now }
    }

    /// How long to wait before the next one, asked right after the last.
    pub fn wait(&mut self, now: Instant) -> Duration {
        let earliest = now.checked_sub(self.interval * CREDIT).unwrap_or(now);
        self.next = (self.next + self.interval).max(earliest);
        self.next.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_while_in_time_and_no_burst_after_a_pause() {
        let start = Instant::now() + Duration::from_secs(9);
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(100, start);
        assert_eq!(pace.wait(at(0)), Duration::from_millis(10));
        // Woken 3 ms late: the next is due as if it had been in time.
        assert_eq!(pace.wait(at(13)), Duration::from_millis(7));
        // Stood still for a second: a few at once, not a hundred.
        let at_once = (0..100).take_while(|_| pace.wait(at(1020)).is_zero()).count();
        assert_eq!(at_once, CREDIT as usize + 1);
        assert_eq!(pace.wait(at(1030)), Duration::from_millis(10));
    }
}
