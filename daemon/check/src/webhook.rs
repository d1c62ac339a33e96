//! Webhooks of an API server, as far as one can keep kubeveil from its work.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::admissionregistration::v1::{
        MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

/// A webhook without whose answer a request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// `validatingwebhookconfiguration` or `mutatingwebhookconfiguration`.
    pub kind: &'static str,
    /// Name of the configuration.
    pub configuration: String,
    /// Its place there.
    pub at: usize,
    /// It is asked about Nodes.
    pub nodes: bool,
    /// It is asked about Pods.
    pub pods: bool,
    /// Of which namespaces' objects.
    pub namespaces: Selector,
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

/// A label selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<(String, Operator)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    fn read(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Self::default() };
        let equal = selector.match_labels.iter().flatten();
        let equal = equal.map(|(key, value)| (key.clone(), Operator::In(vec![value.clone()])));
        let expressions = selector.match_expressions.iter().flatten().filter_map(|expression| {
            let values = expression.values.clone().unwrap_or_default();
            let operator = match expression.operator.as_str() {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            Some((expression.key.clone(), operator))
        });
        Self(equal.chain(expressions).collect())
    }

    /// Whether it selects what has these labels.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, operator)| {
            let value = labels.get(key);
            match operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// Of a configuration those that must answer and are asked about Nodes or Pods. What they ask for beyond that (objectSelector,
/// matchConditions) is not looked at: they may be asked.
pub(crate) fn validating(configuration: &ValidatingWebhookConfiguration) -> Vec<Webhook> {
    let name = configuration.metadata.name.clone().unwrap_or_default();
    let all = configuration.webhooks.iter().flatten().enumerate();
    all.filter_map(|(at, webhook)| {
        read(
            ("validatingwebhookconfiguration", &name, at),
            webhook.failure_policy.as_deref(),
            webhook.rules.as_deref(),
            webhook.namespace_selector.as_ref(),
            &webhook.client_config,
        )
    })
    .collect()
}

/// The same of a configuration of the other kind.
pub(crate) fn mutating(configuration: &MutatingWebhookConfiguration) -> Vec<Webhook> {
    let name = configuration.metadata.name.clone().unwrap_or_default();
    let all = configuration.webhooks.iter().flatten().enumerate();
    all.filter_map(|(at, webhook)| {
        read(
            ("mutatingwebhookconfiguration", &name, at),
            webhook.failure_policy.as_deref(),
            webhook.rules.as_deref(),
            webhook.namespace_selector.as_ref(),
            &webhook.client_config,
        )
    })
    .collect()
}

fn read(
    (kind, configuration, at): (&'static str, &str, usize),
    policy: Option<&str>,
    rules: Option<&[RuleWithOperations]>,
    namespaces: Option<&LabelSelector>,
    client: &WebhookClientConfig,
) -> Option<Webhook> {
    // Fail is the default.
    if policy == Some("Ignore") {
        return None;
    }
    let rules = rules.unwrap_or_default();
    let nodes = rules.iter().any(|rule| is_about(rule, "nodes"));
    let pods = rules.iter().any(|rule| is_about(rule, "pods"));
    let service = client.service.as_ref().map(|service| Service {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        selector: BTreeMap::new(),
    });
    (nodes || pods).then(|| Webhook {
        kind,
        configuration: configuration.to_owned(),
        at,
        nodes,
        pods,
        namespaces: Selector::read(namespaces),
        service,
    })
}

/// Creations, or patches of what is there: both are what agents and their pods need.
fn is_about(rule: &RuleWithOperations, resource: &str) -> bool {
    let has = |list: Option<&Vec<String>>, words: &[&str]| {
        list.into_iter().flatten().any(|word| words.contains(&word.as_str()))
    };
    has(rule.api_groups.as_ref(), &["", "*"])
        && has(rule.resources.as_ref(), &[resource, "*", "*/*"])
        && has(rule.operations.as_ref(), &["CREATE", "UPDATE", "*"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn webhooks(webhook: &Value) -> Vec<Webhook> {
        let configuration = json!({"metadata": {"name": "w"}, "webhooks": [webhook]});
        validating(&serde_json::from_value(configuration).expect("a configuration"))
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
    fn a_selector_selects() {
        let labels: BTreeMap<String, String> = [("a".to_owned(), "1".to_owned())].into();
        let selects = |selector: Value| {
            let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
            Selector::read(Some(&selector)).selects(&labels)
        };
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        assert!(Selector::read(None).selects(&labels));
        assert!(selects(json!({"matchLabels": {"a": "1"}})) && !selects(json!({"matchLabels": {"a": "2"}})));
        assert!(selects(expression("a", "In", &["1", "2"])) && !selects(expression("b", "In", &["1"])));
        assert!(selects(expression("a", "NotIn", &["2"])) && !selects(expression("a", "NotIn", &["1"])));
        assert!(selects(expression("b", "NotIn", &["1"])));
        assert!(selects(expression("a", "Exists", &[])) && !selects(expression("a", "DoesNotExist", &[])));
    }
}
