//! What must be encrypted, said of who pods are.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    condition::Condition,
    object::{Metadata, TypeMeta},
    schedule::Period,
    selector::LabelSelector,
    words::words,
};

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
    /// What happens to a flow without a tunnel, from the loosest.
    pub enum FlowMode {
        /// Nothing is steered; what would be dropped is counted.
        Observe = "observe",
        /// It passes.
        Exempt = "exempt",
        /// It passes, and is counted.
        Prefer = "prefer",
        /// It is dropped.
        Require = "require",
    }
}

impl From<PolicyMode> for FlowMode {
    fn from(mode: PolicyMode) -> Self {
        match mode {
            PolicyMode::Exempt => Self::Exempt,
            PolicyMode::Prefer => Self::Prefer,
            PolicyMode::Require => Self::Require,
        }
    }
}

/// `kubeveil.io/v1alpha1` EncryptionPolicy: of one namespace, whose people may only ask for more than the mesh does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EncryptionPolicy {
    /// `kubeveil.io/v1alpha1`, `EncryptionPolicy`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Name and namespace.
    pub metadata: Metadata,
    /// What people want.
    pub spec: EncryptionPolicySpec,
}

/// `spec` of an [`EncryptionPolicy`]. A folder refuses an unknown field.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-validations" = crate::crd::only_tightens())))]
pub struct EncryptionPolicySpec {
    /// Which pods of the namespace; `{}` selects all of them. To be given: an API server takes a misspelt field for none.
    pub pod_selector: LabelSelector,
    /// What happens to their flows without a proven tunnel: `require`.
    pub mode: PolicyMode,
    /// Keys that are older are told of, by this policy's condition KeysCurrent and on the nodes: all nodes', since these pods speak to any. Nothing
    /// ends a key that is in use. Such as 30d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::period"))]
    pub max_key_age: Option<Period>,
}

/// `kubeveil.io/v1alpha1` ClusterEncryptionPolicy: of the cluster, whose people may ask for less as well.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ClusterEncryptionPolicy {
    /// `kubeveil.io/v1alpha1`, `ClusterEncryptionPolicy`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Its name.
    pub metadata: Metadata,
    /// What people want.
    pub spec: ClusterEncryptionPolicySpec,
}

/// `spec` of a [`ClusterEncryptionPolicy`]. A folder refuses an unknown field.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-validations" = crate::crd::exemption())))]
pub struct ClusterEncryptionPolicySpec {
    /// Pods of which namespaces, by their labels; `{}` selects all. To be given: an API server takes a misspelt field for none.
    pub namespace_selector: LabelSelector,
    /// Which of their pods; `{}` selects all of them. To be given, likewise.
    pub pod_selector: LabelSelector,
    /// What happens to their flows without a proven tunnel.
    pub mode: PolicyMode,
    /// Why somebody is exempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::reason"))]
    pub reason: Option<String>,
    /// When an exemption ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::moment::some_time")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time"))]
    pub until: Option<Timestamp>,
    /// Keys that are older are told of, by this policy's condition KeysCurrent and on the nodes: all nodes', since these pods speak to any. Nothing
    /// ends a key that is in use. Such as 30d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::period"))]
    pub max_key_age: Option<Period>,
}

/// `status` of either, written by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyStatus {
    /// The `metadata.generation` that the rest is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Pods that it selects.
    #[serde(default)]
    pub pods: u32,
    /// InForce says since when all nodes hold pods to it, Selecting whether it selects any, KeysCurrent whether any key is older than it allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
}
