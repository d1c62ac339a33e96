//! Conditions, as the Kubernetes API conventions have them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::words::words;

/// The cluster goes from one key generation to the next.
pub const ROTATING: &str = "Rotating";
/// Why that one is not as it should be: it has taken longer than it may.
pub const ROTATION_LATE: &str = "RotationLate";

/// A condition, as the Kubernetes API conventions have it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Condition {
    /// Its name, unique within the object.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word in CamelCase.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` changed last.
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "date-time")))]
    pub last_transition_time: Timestamp,
}

impl Condition {
    /// Whether it does.
    pub fn holds(&self) -> bool {
        self.status == ConditionStatus::True
    }

    /// One that holds since `at`, or that does not.
    pub fn new(kind: &str, holds: bool, reason: &str, message: String, at: Timestamp) -> Self {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        Self { kind: kind.to_owned(), status, reason: reason.to_owned(), message, last_transition_time: at }
    }
}

words! {
    /// Whether a condition holds.
    pub enum ConditionStatus {
        /// It does.
        True = "True",
        /// It does not.
        False = "False",
        /// Nobody knows.
        Unknown = "Unknown",
    }
}

/// Two nodes speak in plain for a while, since somebody said so.
pub const BYPASSED: &str = "Bypassed";
/// Of a node or of all: what is known is carried out, and enforced.
pub const READY: &str = "Ready";
/// Of a node: something is wrong.
pub const DEGRADED: &str = "Degraded";

/// The condition of this name, if it is among them.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// A condition whose status is as it was has been so since then.
pub fn keep_transitions(conditions: &mut [Condition], before: &[Condition]) {
    for now in conditions {
        let was = before.iter().find(|was| was.kind == now.kind && was.status == now.status);
        if let Some(was) = was {
            now.last_transition_time = was.last_transition_time;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_it_was_has_been_so_since_then() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let condition = |kind, holds, second| Condition::new(kind, holds, "R", String::new(), at(second));
        let before = [condition("A", true, 1), condition("B", true, 1)];
        let mut now = [condition("A", true, 9), condition("B", false, 9), condition("C", true, 9)];
        keep_transitions(&mut now, &before);
        assert_eq!(now.map(|condition| condition.last_transition_time), [at(1), at(9), at(9)]);
    }
}
