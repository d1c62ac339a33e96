//! `VeilNode`: what one node's agent says of itself to people; nothing is decided by it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    object::{Metadata, TypeMeta},
    words::words,
};

/// `kubeveil.io/v1alpha1` VeilNode, called as its Node is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct VeilNode {
    /// `kubeveil.io/v1alpha1`, `VeilNode`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Its name is the Node's.
    pub metadata: Metadata,
    /// What the agent says; absent until it has said something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<VeilNodeStatus>,
}

/// What the agent of a node says of itself, when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VeilNodeStatus {
    /// Generation of the key in use; absent until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "u32"))]
    pub generation: Option<u32>,
    /// Other nodes that are known.
    #[serde(default)]
    pub peers: u32,
    /// Those of them to which packets go encrypted.
    #[serde(default)]
    pub encrypted: u32,
    /// Ready says whether enforcement stands and everything that is known has been carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
}

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
