//! Our selectors select what the API server's own do.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use kubeveil_api::selector::{LabelSelector, Labels, Operator, Requirement};
use kubeveil_tests_kubernetes::server::{Server, Who};
use serde_json::json;

/// What tells these objects from all others.
const MARK: &str = "selectors.kubeveil.io/test";
const KEYS: [&str; 2] = ["pci", "example.com/tier"];
const VALUES: [&str; 3] = ["", "a", "b"];

/// Each value of two labels, and each of them absent.
fn all_labels() -> Vec<Labels> {
    let values = || VALUES.map(Some).into_iter().chain([None]);
    let label = |key: &str, value: Option<&str>| value.map(|value| (key.to_owned(), value.to_owned()));
    let both =
        values().flat_map(|one| values().map(move |other| [label(KEYS[0], one), label(KEYS[1], other)]));
    both.map(|labels| labels.into_iter().flatten().collect()).collect()
}

/// Every operator over one key, alone and together with a label of another.
fn selectors() -> Vec<LabelSelector> {
    let mut requirements = Vec::new();
    for key in KEYS {
        for values in [&["a"][..], &["a", "b"], &["", "b"]] {
            let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
            for operator in [Operator::In, Operator::NotIn] {
                requirements.push(Requirement { key: key.to_owned(), operator, values: values.clone() });
            }
        }
        for operator in [Operator::Exists, Operator::DoesNotExist] {
            requirements.push(Requirement { key: key.to_owned(), operator, values: Vec::new() });
        }
    }
    let labels = [
        Labels::new(),
        [(KEYS[1].to_owned(), "a".to_owned())].into(),
        [(KEYS[0].to_owned(), String::new())].into(),
    ];
    let alone = labels
        .iter()
        .map(|labels| LabelSelector { match_labels: labels.clone(), match_expressions: Vec::new() });
    let together = requirements.iter().flat_map(|one| {
        labels.iter().map(|labels| LabelSelector {
            match_labels: labels.clone(),
            match_expressions: vec![one.clone()],
        })
    });
    alone.chain(together).collect()
}

pub(crate) fn they_select_what_the_api_servers_do(server: &mut Server) {
    let client = server.client(Who::Admin).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let objects: Vec<(String, Labels)> =
        all_labels().into_iter().enumerate().map(|(n, labels)| (format!("selected-{n}"), labels)).collect();
    let selectors = selectors();
    assert!(objects.len() == 16 && selectors.len() == 51);
    server.runtime.block_on(async {
        for (name, labels) in &objects {
            let mut marked = labels.clone();
            marked.insert(MARK.to_owned(), String::new());
            let object =
                serde_json::from_value(json!({"metadata": {"name": name, "labels": marked}})).unwrap();
            api.create(&PostParams::default(), &object).await.unwrap();
        }
        for selector in &selectors {
            let text = [selector.to_string(), MARK.to_owned()].into_iter().filter(|part| !part.is_empty());
            let params = ListParams::default().labels(&text.collect::<Vec<_>>().join(","));
            let listed = api.list(&params).await.unwrap();
            let mut theirs: Vec<String> =
                listed.into_iter().filter_map(|object| object.metadata.name).collect();
            theirs.sort();
            let ours =
                objects.iter().filter(|(_, labels)| selector.selects(labels)).map(|(name, _)| name.clone());
            let mut ours: Vec<String> = ours.collect();
            ours.sort();
            assert_eq!(ours, theirs, "{selector}");
        }
        let marked = ListParams::default().labels(MARK);
        api.delete_collection(&DeleteParams::default(), &marked).await.unwrap();
    });
}
