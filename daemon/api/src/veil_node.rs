//! `VeilNode`: what one node's agent says of itself to people; nothing is decided by it.

use serde::{Deserialize, Serialize};

use crate::{
    condition::Condition,
    object::{Metadata, TypeMeta},
    status::Way,
};

/// Most nodes that [`VeilNodeStatus::not_encrypted`] names: as many as an announcement names.
pub const MOST_NAMED: usize = 32;

/// The condition of a node on which nothing of kubeveil is left, since the mesh says so.
pub const UNINSTALLED: &str = "Uninstalled";

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
    /// When that key was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "date-time")))]
    pub key_created_at: Option<jiff::Timestamp>,
    /// Other nodes that are known.
    #[serde(default)]
    pub peers: u32,
    /// Those of them to which packets go encrypted.
    #[serde(default)]
    pub encrypted: u32,
    /// Nodes to which they do not, in order of their names, up to 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = MOST_NAMED)))]
    pub not_encrypted: Vec<Unencrypted>,
    /// Which policies were carried out last, as a digest of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<String>,
    /// Ready says whether enforcement stands and everything that is known has been carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
}

/// A node to which packets do not go encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Unencrypted {
    /// Its name.
    pub node: String,
    /// How they go instead: plain or dropped.
    pub way: Way,
    /// Why.
    pub reason: String,
}
