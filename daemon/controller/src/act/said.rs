//! A status that was written, and has not come back by the watch.

use jiff::{SignedDuration, Timestamp};
use kubeveil_api::{
    condition::{Condition, keep_transitions},
    mesh::MeshStatus,
    policy::PolicyStatus,
};

/// Within which a write comes back by the watch.
const ON_ITS_WAY: SignedDuration = SignedDuration::from_secs(30);

/// A status with conditions, which hold the moments of their transitions.
pub(super) trait Status: Clone + PartialEq {
    fn conditions(&self) -> &[Condition];
    fn conditions_mut(&mut self) -> &mut Vec<Condition>;

    /// But for the moments of transitions.
    fn is_same(&self, other: &Self) -> bool {
        let mut copy = self.clone();
        keep_transitions(copy.conditions_mut(), other.conditions());
        copy == *other
    }
}

/// What was written, and when.
#[derive(Clone, Debug)]
pub(super) struct Said<S> {
    status: S,
    at: Timestamp,
}

impl<S: Status> Said<S> {
    pub(super) const fn new(status: S, at: Timestamp) -> Self {
        Self { status, at }
    }

    /// Is it on its way still, where this `stands`? What has come back, or should have, is not: it may be another's by now.
    pub(super) fn waits(&self, stands: &S, now: Timestamp) -> bool {
        !self.status.is_same(stands) && now.duration_since(self.at) < ON_ITS_WAY
    }

    pub(super) fn says(&self, status: &S) -> bool {
        self.status.is_same(status)
    }
}

impl Status for MeshStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    fn conditions_mut(&mut self) -> &mut Vec<Condition> {
        &mut self.conditions
    }
}

impl Status for PolicyStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    fn conditions_mut(&mut self) -> &mut Vec<Condition> {
        &mut self.conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn status(pods: u32, second: i64) -> PolicyStatus {
        let condition = Condition::new("InForce", true, "R", "a".to_owned(), at(second));
        PolicyStatus { observed_generation: 1, pods, conditions: vec![condition] }
    }

    /// What was written is not written again before it has had time to come back; what was overwritten by somebody else is.
    #[test]
    fn what_is_on_its_way_is_waited_for_as_long_as_that_takes() {
        let (said, before) = (Said::new(status(7, 0), at(100)), status(3, 0));
        assert!(said.says(&status(7, 50)), "whenever its conditions turned");
        assert!(!said.says(&before));
        assert!(said.waits(&before, at(129)));
        assert!(!said.waits(&before, at(130)));
        assert!(!said.waits(&status(7, 50), at(101)), "it is there");
    }
}
