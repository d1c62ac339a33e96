//! What all Kubernetes objects have in common, as far as we read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::selector::Labels;

/// `apiVersion` and `kind`: enough to know what a document is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeMeta {
    /// Group and version, for example `v1`.
    pub api_version: String,
    /// For example `Node`.
    pub kind: String,
}

/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique among objects of the kind at any one time.
    pub name: String,
    /// Whose it is; absent where it is the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Unique for ever: an object made again under its old name has another.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// When it was made; absent until it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<jiff::Timestamp>,
    /// Since when it is being deleted; absent unless it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<jiff::Timestamp>,
    /// What it is selected by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
