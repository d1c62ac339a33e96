//! A timed bypass: two nodes speak in plain for a while, since people want to know whether the encryption is what is wrong.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::rotation::MOST_WORDS;

/// Bypasses that the mesh holds, the newest last: those that are on, and as history the last that were.
pub const MOST_BYPASSES: usize = 20;
/// Seconds that one lasts at most: a day.
pub const LONGEST_BYPASS: i64 = 24 * 3600;

/// One entry of `spec.bypasses`: from when it is written until `until`, packets between two nodes travel in plain, but for flows of which
/// policies require encryption.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-validations" = crate::crd::bypass())))]
pub struct Bypass {
    /// Names of both Nodes.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::two_nodes"))]
    pub nodes: [String; 2],
    /// When it was written.
    #[serde(deserialize_with = "crate::moment::time")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time"))]
    pub at: Timestamp,
    /// When it ends by itself, at most a day later. It may be brought forward, and never put off: write another one.
    #[serde(deserialize_with = "crate::moment::time")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time"))]
    pub until: Timestamp,
    /// Who wrote it; on Kubernetes the user as the API server knows him.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub by: String,
    /// Why.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::why"))]
    pub reason: String,
}

impl Bypass {
    /// The other one of both, if `node` is one.
    pub fn peer_of(&self, node: &str) -> Option<&str> {
        let [one, other] = &self.nodes;
        match node {
            node if node == one => Some(other),
            node if node == other => Some(one),
            _ => None,
        }
    }

    /// Whether it is between these two.
    pub fn joins(&self, one: &str, other: &str) -> bool {
        self.peer_of(one) == Some(other)
    }

    /// Whether it has not ended, by a clock that shows `now`.
    pub fn is_on(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// The field that stands against it, and why. The API server says the same.
    pub fn refusal(&self) -> Option<(&'static str, &'static str)> {
        let names_two = self.nodes[0] != self.nodes[1] && self.nodes.iter().all(|node| !node.is_empty());
        let is_short = |text: &str| text.chars().count() <= MOST_WORDS;
        let says_why = self.reason.chars().any(|c| c != ' ') && is_short(&self.reason);
        let longest = SignedDuration::from_secs(LONGEST_BYPASS);
        [
            (names_two, "nodes", TWO_NODES),
            (
                self.until > self.at,
                "until",
                "must be after at; to end it, bring it forward to now, or take the entry out",
            ),
            (self.until.duration_since(self.at) <= longest, "until", "must be at most 24 hours after at"),
            (
                !self.by.is_empty() && is_short(&self.by),
                "by",
                "must say who wrote it, in at most 256 characters",
            ),
            (
                says_why,
                "reason",
                "must say why, in at most 256 characters: an auditor has to be able to read it",
            ),
        ]
        .into_iter()
        .find(|(holds, ..)| !holds)
        .map(|(_, field, why)| (field, why))
    }
}

pub(crate) const TWO_NODES: &str = "must be two different Nodes, by their names";

/// `bypasses` and one more. Of too many the oldest go that are over at `now`; `None`: none is.
pub fn bypasses_and(bypasses: &[Bypass], one: Bypass, now: Timestamp) -> Option<Vec<Bypass>> {
    let mut surplus = (bypasses.len() + 1).saturating_sub(MOST_BYPASSES);
    let stays = |bypass: &&Bypass| {
        let goes = surplus > 0 && !bypass.is_on(now);
        surplus -= usize::from(goes);
        !goes
    };
    let mut kept: Vec<Bypass> = bypasses.iter().filter(stays).cloned().collect();
    kept.push(one);
    (kept.len() <= MOST_BYPASSES).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn bypass(since: i64, until: i64) -> Bypass {
        Bypass {
            nodes: ["a".to_owned(), "b".to_owned()],
            at: at(since),
            until: at(until),
            by: "alice".to_owned(),
            reason: "INC-1".to_owned(),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = bypass(0, 600);
        assert_eq!(good.refusal(), None);
        assert_eq!(bypass(0, LONGEST_BYPASS).refusal(), None);
        let wrong = [
            ("nodes", Bypass { nodes: ["a".to_owned(), "a".to_owned()], ..good.clone() }),
            ("nodes", Bypass { nodes: ["a".to_owned(), String::new()], ..good.clone() }),
            ("until", bypass(600, 600)),
            ("until", bypass(0, LONGEST_BYPASS + 1)),
            ("by", Bypass { by: String::new(), ..good.clone() }),
            ("reason", Bypass { reason: "  ".to_owned(), ..good.clone() }),
            ("reason", Bypass { reason: "x".repeat(257), ..good }),
        ];
        for (field, bypass) in wrong {
            assert_eq!(bypass.refusal().map(|(field, _)| field), Some(field), "{bypass:?}");
        }
    }

    #[test]
    fn the_last_are_kept_and_those_that_are_on_in_any_case() {
        let now = at(1_000);
        // The oldest of all is on.
        let mut all = vec![bypass(0, 2_000)];
        for n in 1..=25 {
            all = bypasses_and(&all, bypass(n, n + 1), now).expect("room");
        }
        assert_eq!(all.len(), MOST_BYPASSES);
        assert_eq!((all[0].at, all[1].at, all[19].at), (at(0), at(7), at(25)));
        let on = vec![bypass(0, 2_000); MOST_BYPASSES];
        assert_eq!(bypasses_and(&on, bypass(1, 2_000), now), None);
        assert_eq!(bypasses_and(&on, bypass(1, 2_000), at(2_000)).map(|all| all.len()), Some(MOST_BYPASSES));
    }

    #[test]
    fn it_is_between_two() {
        let bypass = bypass(0, 600);
        assert_eq!(
            (bypass.peer_of("a"), bypass.peer_of("b"), bypass.peer_of("c")),
            (Some("b"), Some("a"), None)
        );
        assert!(bypass.joins("b", "a") && !bypass.joins("a", "a") && !bypass.joins("a", "c"));
        assert_eq!([599, 600].map(|now| bypass.is_on(at(now))), [true, false]);
    }
}
