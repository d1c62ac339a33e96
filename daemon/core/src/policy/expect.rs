//! What people expect of their policies, held to what these come to.

use std::borrow::Cow;

use jiff::Timestamp;
use kubeveil_api::{policy_test::Subject as Given, selector::Labels};

use super::{
    Namespaces,
    census::{Census, PodId},
    ruling::{FlowRuling, Law, Ruling, Subject},
};

/// The label by which an API server names each namespace (`kubernetes/pkg/registry/core/namespace`).
const NAME: &str = "kubernetes.io/metadata.name";

/// The field that is wrong, and why.
type Refusal = (String, String);

/// What a flow between both comes to at `now`; or the field of the expectation that is wrong, and why.
pub fn found(
    census: &Census,
    law: &Law,
    ends: [&Given; 2],
    now: Timestamp,
) -> Result<FlowRuling, (String, String)> {
    let held = |name: &str, given: &Given| {
        ruling(census, law, given, now).map_err(|(field, why)| (format!("{name}{field}"), why))
    };
    let (from, to) = (held("from", ends[0])?, held("to", ends[1])?);
    Ok(law.on_flow([&from, &to], now))
}

fn refused<T>(field: &str, why: impl Into<String>) -> Result<T, Refusal> {
    Err((field.to_owned(), why.into()))
}

fn ruling(census: &Census, law: &Law, given: &Given, now: Timestamp) -> Result<Ruling, Refusal> {
    match (&given.pod, &given.namespace) {
        (Some(_), Some(_)) => {
            refused(".namespace", "goes with labels; a pod that is named has a namespace already")
        }
        (Some(_), None) if !given.labels.is_empty() || given.namespace_labels.is_some() => {
            refused(".pod", "names a pod, which has labels already; say namespace and labels instead of it")
        }
        (Some(pod), None) => of_pod(census, law, pod, now),
        (None, Some(namespace)) => {
            let namespace_labels = labels_of(census, law, namespace, given.namespace_labels.as_ref())?;
            let subject = Subject { namespace, namespace_labels: &namespace_labels, labels: &given.labels };
            Ok(law.on_pod(subject, now))
        }
        (None, None) => refused("", "names nobody: say pod: NAMESPACE/NAME, or namespace and labels"),
    }
}

fn of_pod(census: &Census, law: &Law, pod: &str, now: Timestamp) -> Result<Ruling, Refusal> {
    let id: PodId = pod.parse().map_err(|why| (".pod".to_owned(), why))?;
    let Some(resident) = census.pods.get(&id) else {
        return refused(".pod", format!("there is no pod {id} among the manifests; {}", census.near(&id)));
    };
    if resident.host_network {
        return refused(".pod", format!("{id} is of its node's network, and no policy holds it"));
    }
    let namespace_labels =
        labels_of(census, law, &id.namespace, None).map_err(|(_, why)| (".pod".to_owned(), why))?;
    let subject = Subject {
        namespace: &id.namespace,
        namespace_labels: &namespace_labels,
        labels: &resident.pod.labels,
    };
    Ok(law.on_pod(subject, now))
}

/// Those given, else the Namespace's. Where nobody knows them, and a policy asks for some, nobody knows what it selects.
fn labels_of<'a>(
    census: &'a Census,
    law: &Law,
    namespace: &str,
    given: Option<&'a Labels>,
) -> Result<Cow<'a, Labels>, Refusal> {
    if let Some(labels) = given.or_else(|| census.namespaces.get(namespace)) {
        let mut labels = Cow::Borrowed(labels);
        if !labels.contains_key(NAME) {
            labels.to_mut().insert(NAME.to_owned(), namespace.to_owned());
        }
        return Ok(labels);
    }
    let asking = law.policies.iter().find(|(_, policy)| match &policy.namespaces {
        Namespaces::One(_) => false,
        Namespaces::Labelled(selector) => asks_beside_name(selector),
    });
    match asking {
        None => Ok(Cow::Owned([(NAME.to_owned(), namespace.to_owned())].into())),
        Some((id, _)) => refused(
            ".namespace",
            format!(
                "labels of {namespace} are not known, and {id} asks for some; add its Namespace to the files, or say namespaceLabels"
            ),
        ),
    }
}

fn asks_beside_name(selector: &kubeveil_api::selector::LabelSelector) -> bool {
    let more = selector.match_expressions.iter().map(|requirement| &requirement.key);
    selector.match_labels.keys().chain(more).any(|key| key != NAME)
}
