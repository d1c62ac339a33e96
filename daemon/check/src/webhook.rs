//! Webhooks of an API server, as far as one can keep kubeveil from its work.

use std::collections::BTreeMap;

use kube::{
    ResourceExt as _,
    core::{ApiResource, DynamicObject},
};
use kubeveil_api::selector::LabelSelector;
use kubeveil_kubernetes::entries;
use serde_json::Value;

use crate::gather::text;

/// Kinds of configurations, and what they are called in the plural.
pub(crate) const KINDS: [(&str, &str); 2] = [
    ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
];

/// A webhook without whose answer a request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// `validatingwebhookconfiguration` or `mutatingwebhookconfiguration`.
    pub kind: String,
    /// Name of the configuration.
    pub configuration: String,
    /// Its place there.
    pub at: usize,
    /// It is asked about Nodes.
    pub nodes: bool,
    /// It is asked about Pods.
    pub pods: bool,
    /// Of which namespaces' objects; one that can't be read is taken for all.
    pub namespaces: LabelSelector,
    /// Its Service's pods, or why they are not known; `None` where it is no Service.
    pub service: Option<Service>,
}

/// A Service that a webhook is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// By which it finds its pods; empty where that is not known.
    pub selector: BTreeMap<String, String>,
}

/// Of a configuration those that must answer and are asked about Nodes or Pods. What they ask for beyond that (objectSelector,
/// matchConditions) is not looked at: they may be asked.
pub(crate) fn webhooks_of(kind: &ApiResource, configuration: &DynamicObject) -> Vec<Webhook> {
    let all = entries(&configuration.data["webhooks"]).enumerate();
    let must_answer = all.filter_map(|(at, webhook)| {
        // Fail is the default.
        if webhook["failurePolicy"] == "Ignore" {
            return None;
        }
        let is_about = |resource| entries(&webhook["rules"]).any(|rule| is_about(rule, resource));
        let (nodes, pods) = (is_about("nodes"), is_about("pods"));
        let service = &webhook["clientConfig"]["service"];
        let service = text(&service["namespace"]).zip(text(&service["name"]));
        (nodes || pods).then(|| Webhook {
            kind: kind.kind.to_lowercase(),
            configuration: configuration.name_any(),
            at,
            nodes,
            pods,
            namespaces: serde_json::from_value(webhook["namespaceSelector"].clone()).unwrap_or_default(),
            service: service.map(|(namespace, name)| Service { namespace, name, selector: BTreeMap::new() }),
        })
    });
    must_answer.collect()
}

/// Creations, or patches of what is there: both are what agents and their pods need.
fn is_about(rule: &Value, resource: &str) -> bool {
    let has = |list: &str, words: &[&str]| {
        entries(&rule[list]).any(|word| word.as_str().is_some_and(|word| words.contains(&word)))
    };
    has("apiGroups", &["", "*"])
        && has("resources", &[resource, "*", "*/*"])
        && has("operations", &["CREATE", "UPDATE", "*"])
}

#[cfg(test)]
pub(crate) mod tests {
    use kubeveil_kubernetes::theirs;
    use serde_json::json;

    use super::*;

    /// Webhooks of a configuration that has this one.
    pub(crate) fn webhooks(webhook: &Value) -> Vec<Webhook> {
        let configuration = json!({"metadata": {"name": "w"}, "webhooks": [webhook]});
        let (kind, plural) = KINDS[0];
        let kind = theirs("admissionregistration.k8s.io", kind, plural);
        webhooks_of(&kind, &serde_json::from_value(configuration).expect("a configuration"))
    }

    fn webhook(policy: Option<&str>, resources: &[&str], operations: &[&str]) -> Value {
        json!({
            "name": "w.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": policy,
            "clientConfig": {"service": {"namespace": "n", "name": "s"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": operations, "resources": resources}],
        })
    }

    #[test]
    fn who_must_answer_about_nodes_or_pods_is_found() {
        let is_found = |policy, resources: &[&str], operations: &[&str]| {
            webhooks(&webhook(policy, resources, operations)).first().map(|w| (w.nodes, w.pods))
        };
        assert_eq!(is_found(Some("Fail"), &["nodes"], &["UPDATE"]), Some((true, false)));
        assert_eq!(is_found(None, &["pods"], &["CREATE"]), Some((false, true)));
        assert_eq!(is_found(Some("Fail"), &["*"], &["*"]), Some((true, true)));
        assert_eq!(is_found(Some("Ignore"), &["*"], &["*"]), None);
        assert_eq!(is_found(Some("Fail"), &["configmaps"], &["CREATE"]), None);
        assert_eq!(is_found(Some("Fail"), &["pods"], &["DELETE"]), None);
    }

    #[test]
    fn a_selector_that_nobody_can_read_is_one_for_all() {
        let of = |selector: Value| {
            let mut webhook = webhook(None, &["pods"], &["*"]);
            webhook["namespaceSelector"] = selector;
            webhooks(&webhook).remove(0).namespaces
        };
        let labels = BTreeMap::new();
        assert!(of(Value::Null).selects(&labels) && of(json!({})).selects(&labels));
        assert!(of(json!({"matchExpressions": [{"key": "a", "operator": "Near"}]})).selects(&labels));
        assert!(!of(json!({"matchLabels": {"a": "1"}})).selects(&labels));
    }
}
