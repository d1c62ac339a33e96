//! `EncryptionPolicy` and `ClusterEncryptionPolicy`: what must be encrypted, said of who pods are.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{schedule::Period, selector::LabelSelector, words::words};

words! {
    /// What happens to a flow that has no proven tunnel; the stricter, the greater.
    pub enum PolicyMode {
        /// It passes: somebody has said why it may.
        Exempt = "exempt",
        /// It passes, and is counted.
        Prefer = "prefer",
        /// It is dropped, and counted.
        Require = "require",
    }
}

words! {
    /// What the owner of a namespace can ask for: nothing looser than the cluster has.
    pub enum Tightening {
        /// [`PolicyMode::Require`].
        Require = "require",
    }
}

/// `spec` of an EncryptionPolicy: pods of its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EncryptionPolicySpec {
    /// Which pods; an empty one means all of the namespace.
    pub pod_selector: LabelSelector,
    /// What happens without a tunnel; nothing said, the policy is about the age of keys only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Tightening>,
    /// Above which a key that these pods' packets go by is told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_key_age: Option<Period>,
}

/// `spec` of a ClusterEncryptionPolicy: pods of any namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterEncryptionPolicySpec {
    /// Which namespaces, by their labels; an empty one means all.
    pub namespace_selector: LabelSelector,
    /// Which pods of them; an empty one means all.
    pub pod_selector: LabelSelector,
    /// What happens without a tunnel; nothing said, the policy is about the age of keys only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PolicyMode>,
    /// Why somebody is exempt; needed there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Until when; then the policy says nothing of the mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Above which a key that these pods' packets go by is told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_key_age: Option<Period>,
}
