//! When to send. Pure.

use std::time::{Duration, Instant};

/// A steady pace. Who is late goes on from there: what was missed is not sent in a burst, which would
/// overrun buffers that a steady stream never fills.
#[derive(Clone, Debug)]
pub struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    /// So many a second, from `now` on.
    pub fn new(rate: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), next: now }
    }

    /// How long to wait before the next one, asked right after the last.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.next = (self.next + self.interval).max(now);
        self.next - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_while_in_time_and_no_burst_after_a_pause() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(100, start);
        assert_eq!(pace.wait(at(0)), Duration::from_millis(10));
        // Woken 3 ms late: the next is due as if it had been in time.
        assert_eq!(pace.wait(at(13)), Duration::from_millis(7));
        // Stood still for a second: one at once, then the interval again.
        assert_eq!(pace.wait(at(1020)), Duration::ZERO);
        assert_eq!(pace.wait(at(1020)), Duration::from_millis(10));
    }
}
