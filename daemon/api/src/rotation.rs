//! How the cluster goes from one key generation to the next: what people ask for, and what became of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    schedule::{Period, Window},
    selector::LabelSelector,
    words::words,
};

/// Rotations that the mesh's history holds, the newest last.
pub const MOST_RECORDS: usize = 20;
/// Characters of the longest reason, and of the longest name of who asked.
pub const MOST_WORDS: usize = 256;
/// Stragglers that a record names.
pub const MOST_STRAGGLERS: usize = 32;
/// Deeds that the mesh holds, the newest last.
pub const MOST_DEEDS: usize = 20;
/// Seconds after which a rotation has stragglers, where nobody said: ten minutes.
pub const DEADLINE_SECONDS: u32 = 600;

/// `spec.rotation` of an EncryptionMesh: when keys are renewed by themselves, who asked for the generation in
/// `spec.keyGeneration`, and how it is to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RotationSpec {
    /// How long after one rotation began the next one does, by itself: the controller raises `spec.keyGeneration` then. It waits until
    /// all nodes are done with the last one, and as long as rotation is paused. Such as 30d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::period"))]
    pub every: Option<Period>,
    /// Hours outside of which none begins by itself; one that was missed begins in the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Window"))]
    pub window: Option<Window>,
    /// Up to how much later than `every` says one begins by itself: each cluster has its own part of it, so that many that are made
    /// alike do not rotate all at once. Such as 6h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::period"))]
    pub jitter: Option<Period>,
    /// A key that is older is told of, by the condition KeysCurrent and a metric. Nothing ends a key that is in use. Such as 90d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::period"))]
    pub max_key_age: Option<Period>,
    /// No node makes a key and none gives one up, until this is taken away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Keys of generations before this one are given up at once, whoever still sends by them: a node that has no newer one is cut
    /// off until it has. `kubeveil rotate finish --force` sets it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retire_before: u32,
    /// The generation that who, when, why and of which nodes are asked for: they count for no other. Without it they count for the one
    /// that is wanted. Whoever raises `spec.keyGeneration` alone so takes nothing of an earlier request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "u32"))]
    pub for_generation: Option<u32>,
    /// Nodes that take a new key, by their labels; all others go on with the one that they have, on the new device too. Without it,
    /// all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "LabelSelector"))]
    pub node_selector: Option<LabelSelector>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub requested_by: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::moment::some_time")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time"))]
    pub requested_at: Option<Timestamp>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub reason: String,
    /// Seconds after which nodes that are not done are told of as stragglers; 600 where this is left out. It ends nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "u32"))]
    pub deadline_seconds: Option<u32>,
    /// What people did beside asking for new keys, at most the last 20, the newest last: who paused it or had it go on, who had older
    /// keys given up at once, and who called a node's keys stolen. The command writes it with what it changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 20)))]
    pub deeds: Vec<Deed>,
}

words! {
    /// What somebody did to a rotation, or to a node's keys.
    pub enum DeedKind {
        /// No node makes a key and none gives one up from then on.
        Paused = "paused",
        /// They do again.
        Resumed = "resumed",
        /// Every node gave its older keys up at once.
        Forced = "forced",
        /// The keys of a node are refused from then on.
        Compromised = "compromised",
    }
}

/// Something that a person did beside asking for new keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Deed {
    /// When.
    #[serde(deserialize_with = "crate::moment::time")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time"))]
    pub at: Timestamp,
    /// Who; on Kubernetes the user as the API server knows him.
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub by: String,
    /// What.
    pub what: DeedKind,
    /// The generation that was wanted then.
    pub generation: u32,
    /// Of which node; empty: of all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub node: String,
    /// Why, in the words of who did it; empty where he said nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub reason: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl RotationSpec {
    /// What was asked for of `generation`; of another one nothing was.
    pub(crate) fn of(&self, generation: u32) -> Self {
        if self.for_generation.is_none_or(|of| of == generation) {
            return self.clone();
        }
        Self {
            requested_by: String::new(),
            requested_at: None,
            reason: String::new(),
            node_selector: None,
            deadline_seconds: None,
            ..self.clone()
        }
    }

    /// Its deeds and one more; of too many the oldest go.
    pub fn deeds_and(&self, deed: Deed) -> Vec<Deed> {
        let kept = self.deeds.len().saturating_sub(MOST_DEEDS - 1);
        self.deeds.iter().skip(kept).cloned().chain([deed]).collect()
    }

    /// Seconds after which a rotation has stragglers.
    pub fn deadline(&self) -> u32 {
        self.deadline_seconds.unwrap_or(DEADLINE_SECONDS)
    }
}

/// What asks for `generation` at `now`, as a merge patch (RFC 7386) of a mesh's `spec`. What an earlier request asked for is over, but
/// for what stands: the schedule, a pause, and that nodes were cut off. `nodeSelector` and `deadlineSeconds` of `rotation` are left to be set.
pub fn request(generation: u32, who: &str, reason: &str, now: Timestamp) -> Value {
    json!({
        "keyGeneration": generation,
        "rotation": {
            "forGeneration": generation,
            "requestedBy": who,
            "requestedAt": Timestamp::from_second(now.as_second()).ok(),
            "reason": (!reason.is_empty()).then_some(reason),
            // What a patch does not speak of stays.
            "nodeSelector": null,
            "deadlineSeconds": null,
        },
    })
}

words! {
    /// What became of a rotation.
    pub enum RotationResult {
        /// It goes on.
        Running = "running",
        /// Every node has the new key, and none has an older one.
        Done = "done",
        /// The same, but for nodes that were cut off.
        Forced = "forced",
        /// Another one was asked for before it was done.
        Superseded = "superseded",
    }
}

/// One rotation, as the mesh's history has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RotationRecord {
    /// The generation that it led to.
    pub generation: u32,
    /// Who asked for it; empty where nobody said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requested_by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Of which nodes, as `kubectl --selector` has it; empty: of all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nodes: String,
    /// When it was asked for, or first seen.
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "date-time")))]
    pub started_at: Timestamp,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "date-time")))]
    pub finished_at: Option<Timestamp>,
    /// What became of it.
    pub result: RotationResult,
    /// Nodes that were not done at its deadline, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stragglers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twenty_deeds_are_kept() {
        let mut asked = RotationSpec::default();
        for generation in 1..=25 {
            let deed = Deed {
                at: Timestamp::UNIX_EPOCH,
                by: "alice".to_owned(),
                what: DeedKind::Paused,
                generation,
                node: String::new(),
                reason: String::new(),
            };
            asked.deeds = asked.deeds_and(deed);
        }
        let kept: Vec<u32> = asked.deeds.iter().map(|deed| deed.generation).collect();
        assert_eq!(kept, (6..=25).collect::<Vec<_>>());
        assert_eq!(kept.len(), MOST_DEEDS);
    }
}
