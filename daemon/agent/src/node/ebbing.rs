//! What was steered goes on being steered for a moment after nobody asks for it any more.

use std::time::Duration;

use kubeveil_abi::Mode;
use kubeveil_core::policy::FlowMode;

/// How long: all agents have heard by then that nothing is required any more. Who hears of it first would else speak in plain to pods of
/// nodes that still refuse that, as bypasses would (`kubeveil_core::bypass::LEAD`).
const EBB: Duration = Duration::from_secs(5);

/// Since when nobody asks, monotonic, while the programs still steer.
#[derive(Debug, Default)]
pub(super) struct Ebbing(Option<Duration>);

impl Ebbing {
    /// `wanted` is what becomes of a flow of which no policy asks for anything, `stands` what the programs do.
    pub(super) fn look(&mut self, wanted: Option<FlowMode>, stands: Option<Mode>, now: Duration) {
        let ebbs = wanted == Some(FlowMode::Observe) && stands.is_some_and(|mode| mode != Mode::Observe);
        self.0 = ebbs.then(|| self.0.unwrap_or(now));
    }

    /// Does it steer on?
    pub(super) fn steers_on(&self, now: Duration) -> bool {
        self.0.is_some_and(|since| now.saturating_sub(since) < EBB)
    }

    /// Until it does not.
    pub(super) fn next_look(&self, now: Duration) -> Option<Duration> {
        self.0.map(|since| (since + EBB).saturating_sub(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_steered_ebbs_away() {
        let (mut ebbing, at) = (Ebbing::default(), Duration::from_secs);
        let mut look = |wanted, stands, now| {
            ebbing.look(Some(wanted), stands, at(now));
            (ebbing.steers_on(at(now)), ebbing.next_look(at(now)).map(|left| left.as_secs()))
        };
        assert_eq!(look(FlowMode::Observe, None, 0), (false, None), "no program is there yet");
        assert_eq!(look(FlowMode::Prefer, Some(Mode::Prefer), 1), (false, None));
        assert_eq!(look(FlowMode::Observe, Some(Mode::Prefer), 10), (true, Some(5)));
        assert_eq!(look(FlowMode::Observe, Some(Mode::Prefer), 14), (true, Some(1)));
        assert_eq!(look(FlowMode::Prefer, Some(Mode::Prefer), 14), (false, None), "somebody asks again");
        assert_eq!(look(FlowMode::Observe, Some(Mode::Require), 14), (true, Some(5)));
        assert_eq!(look(FlowMode::Observe, Some(Mode::Prefer), 19), (false, None));
        assert_eq!(look(FlowMode::Observe, Some(Mode::Observe), 20), (false, None));
    }
}
