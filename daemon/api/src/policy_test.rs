//! What people expect of their policies, beside these in a folder: a document of ours that no cluster is ever given.

use serde::{Deserialize, Serialize};

use crate::{
    object::{Metadata, TypeMeta},
    policy::FlowMode,
    selector::Labels,
};

/// `kubeveil.io/v1alpha1` PolicyTest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PolicyTest {
    /// `kubeveil.io/v1alpha1`, `PolicyTest`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Its name, for people; may be left out.
    #[serde(default)]
    pub metadata: Metadata,
    /// What people expect.
    pub spec: PolicyTestSpec,
}

/// `spec` of a [`PolicyTest`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTestSpec {
    /// Of which flow what; some.
    pub expect: Vec<Expectation>,
}

/// What one flow is to be held to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// One end; which of both is `from` makes no difference.
    pub from: Subject,
    /// The other.
    pub to: Subject,
    /// What happens without a proven tunnel.
    pub mode: FlowMode,
}

/// A pod: one that is among the manifests, or one that is only spoken of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Subject {
    /// `NAMESPACE/NAME` of a Pod among the manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Else its namespace …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// … and its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Labels of that namespace; if not given, those of the Namespace among the manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_labels: Option<Labels>,
}
