//! Policies as people write them.

use kubeveil_api::policy::{ClusterEncryptionPolicy, EncryptionPolicy, PolicyMode};

use super::{Namespaces, Policy, PolicyId};

/// The field that is wrong, and why.
pub type Refusal = (&'static str, &'static str);

impl Policy {
    /// A namespace's own.
    pub fn of_namespace(given: EncryptionPolicy) -> Result<(PolicyId, Self), Refusal> {
        let Some(namespace) = given.metadata.namespace else {
            return Err((
                "metadata.namespace",
                "is missing; a ClusterEncryptionPolicy is of the whole cluster",
            ));
        };
        if given.spec.mode != PolicyMode::Require {
            return Err((
                "spec.mode",
                "may only be require: a namespace may ask for more than the mesh does. A ClusterEncryptionPolicy may ask for less",
            ));
        }
        let policy = Self {
            namespaces: Namespaces::One(namespace.clone()),
            pods: given.spec.pod_selector,
            mode: given.spec.mode,
            until: None,
            max_key_age: given.spec.max_key_age,
        };
        Ok((PolicyId { namespace: Some(namespace), name: given.metadata.name }, policy))
    }

    /// The cluster's.
    pub fn of_cluster(given: ClusterEncryptionPolicy) -> Result<(PolicyId, Self), Refusal> {
        let spec = given.spec;
        let is_exempt = spec.mode == PolicyMode::Exempt;
        if is_exempt && spec.reason.is_none_or(|reason| reason.trim().is_empty()) {
            return Err(("spec.reason", "is missing; who is exempt needs a reason that an auditor can read"));
        }
        let may_loosen = spec.mode != PolicyMode::Require;
        if may_loosen && spec.namespace_selector.is_empty() && spec.pod_selector.is_empty() {
            return Err((
                "spec.podSelector",
                "selects all pods, as spec.namespaceSelector does all namespaces (an API server takes a misspelt field for none): say whom less is asked of, or set the mesh's mode",
            ));
        }
        if !is_exempt && spec.until.is_some() {
            return Err((
                "spec.until",
                "ends an exemption, and nothing else; take it away, or set mode to exempt",
            ));
        }
        let policy = Self {
            namespaces: Namespaces::Labelled(spec.namespace_selector),
            pods: spec.pod_selector,
            mode: spec.mode,
            until: spec.until,
            max_key_age: spec.max_key_age,
        };
        Ok((PolicyId { namespace: None, name: given.metadata.name }, policy))
    }
}
