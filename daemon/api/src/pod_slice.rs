//! `VeilPodSlice`: the pods of one node of which something else is asked for than of all, written by the controller for the other nodes'
//! agents. What agents watch of other nodes' pods follows the exceptions by that, and not the cluster.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    object::{Metadata, TypeMeta},
    policy::PolicyMode,
};

/// `kubeveil.io/v1alpha1` VeilPodSlice, called as its Node is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct VeilPodSlice {
    /// `kubeveil.io/v1alpha1`, `VeilPodSlice`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Its name is the Node's.
    pub metadata: Metadata,
    /// The pods, by namespace and name.
    #[serde(default)]
    pub pods: Vec<SlicedPod>,
}

/// A pod, and what policies ask for of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SlicedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>", extend("maxItems" = 16)))]
    pub addresses: Vec<IpAddr>,
    /// What happens to its flows without a proven tunnel.
    pub mode: PolicyMode,
    /// When that ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", extend("format" = "date-time")))]
    pub until: Option<Timestamp>,
}
