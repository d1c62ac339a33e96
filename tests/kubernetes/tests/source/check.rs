//! `kubeveil check` on a real API server: what it finds there, and that it leaves nothing behind.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    apps::v1::DaemonSet,
    core::v1::{Namespace, Pod, Service},
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use kubeveil_api::check::{Finding, Severity};
use kubeveil_check::{
    approve::approve,
    facts::Facts,
    gather,
    judge::judge,
    probes::{Set, left_behind},
};
use kubeveil_tests_kubernetes::{
    cluster::{self, InApiServer, mesh_kind},
    server::{Server, Who},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{controller, suite::put};

const NAMESPACE: &str = "kubeveil";
const WEBHOOK: &str = "somebodys";

fn facts(server: &Server, who: Who, pre: bool) -> Facts {
    let client = server.client(who).unwrap();
    server.runtime.block_on(gather::facts(&client, NAMESPACE, pre))
}

fn of<'a>(findings: &'a [Finding], check: &str) -> Vec<&'a Finding> {
    findings.iter().filter(|finding| finding.check == check).collect()
}

/// The one finding of a check, and that it says this.
fn says(findings: &[Finding], check: &str, severity: Severity, words: &str) {
    let found = of(findings, check);
    let is_said =
        found.iter().any(|f| f.severity == severity && format!("{}: {}", f.object, f.found).contains(words));
    assert!(is_said, "{check}: not {severity} with {words:?}: {found:#?}");
}

fn apply<K>(server: &Server, api: &Api<K>, name: &str, object: &Value)
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let params = PatchParams::apply("a-hand").force();
    server.runtime.block_on(api.patch(name, &params, &Patch::Apply(object))).unwrap();
}

/// A pod with an address, as a kubelet and a network plugin would leave it.
fn runs(server: &Server, namespace: &str, name: &str, node: &str, address: &str, labels: &Value) {
    let api: Api<Pod> = Api::namespaced(server.client(Who::Admin).unwrap(), namespace);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    });
    apply(server, &api, name, &pod);
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
    server.runtime.block_on(api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))).unwrap();
}

/// From a cluster that is fit to one with much against it.
pub(crate) fn it_finds_what_stands_against_us(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    controller::namespace(server);
    let client = server.client(Who::Admin).unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    runs(server, NAMESPACE, "own", "node-1", "10.244.1.7", &json!({"app": "hook"}));
    let before = judge(&facts(server, Who::Admin, true));
    says(&before, "version", Severity::Ok, "Kubernetes v1.");
    says(&before, "policies", Severity::Ok, "serves");
    says(&before, "addresses", Severity::Ok, "1 pods have addresses");
    says(&before, "webhooks", Severity::Ok, "none");
    says(&before, "ports", Severity::Unknown, "Nodes node-1, node-2");
    assert!(of(&before, "definitions").is_empty(), "there is nothing to install yet");

    // An address of somebody else's pool, and a webhook in pods without which no agent's pod comes about.
    runs(server, NAMESPACE, "strange", "node-2", "172.31.7.7", &json!({}));
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "hook"}, "ports": [{"port": 443}]},
    });
    apply(server, &services, "hook", &service);
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": WEBHOOK},
        "webhooks": [{
            "name": "w.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1,
            "clientConfig": {"service": {"namespace": NAMESPACE, "name": "hook"}},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }],
    });
    apply(server, &hooks, WEBHOOK, &hook);
    let found = judge(&facts(server, Who::Admin, true));
    says(&found, "addresses", Severity::Failed, "Node node-2: pods have addresses outside");
    says(&found, "webhooks", Severity::Warning, "it is behind Service kubeveil/hook");
    // What is said to mend it does.
    let mend = of(&found, "webhooks")[0].mend.clone();
    let patch = mend.split('\'').nth(1).unwrap();
    let patch: Patch<()> = Patch::Json(serde_json::from_str(patch).unwrap());
    server.runtime.block_on(hooks.patch(WEBHOOK, &PatchParams::default(), &patch)).unwrap();
    says(&judge(&facts(server, Who::Admin, true)), "webhooks", Severity::Ok, "none");
    server.runtime.block_on(async {
        hooks.delete(WEBHOOK, &DeleteParams::default()).await.unwrap();
        services.delete("hook", &DeleteParams::default()).await.unwrap();
        for name in ["own", "strange"] {
            pods.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
        }
    });
}

/// After an installation; what can't be read is unknown, and never well.
pub(crate) fn it_looks_at_what_is_installed(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    let found = judge(&facts(server, Who::Admin, false));
    says(&found, "mesh", Severity::Failed, "there is none");
    says(&found, "agents", Severity::Failed, "Nodes node-1, node-2: no agent runs there");
    says(&found, "definitions", Severity::Ok, "installed");
    let spec = json!({"mode": "require", "podCIDRs": ["10.244.0.0/16", "fd00:244::/32"], "nodeCIDRs": ["192.0.2.1/32"]});
    world.put(&mesh_kind(), &json!({"metadata": {"name": "default"}, "spec": spec})).unwrap();
    let found = judge(&facts(server, Who::Admin, false));
    says(&found, "mesh", Severity::Unknown, "it has no status");
    says(&found, "pairs", Severity::Unknown, "Node node-1: its agent has said nothing yet");
    says(&found, "ranges", Severity::Failed, "Node node-2: outside of the mesh's nodeCIDRs: 192.0.2.2/32");

    cluster::remove_definition(server, "veilnodes.kubeveil.io").unwrap();
    let found = judge(&facts(server, Who::Admin, false));
    says(&found, "definitions", Severity::Failed, "no CustomResourceDefinition veilnodes.kubeveil.io");
    cluster::install_definitions(server).unwrap();

    let found = judge(&facts(server, Who::Nobody, false));
    for check in ["nodes", "webhooks", "definitions", "mesh"] {
        says(&found, check, Severity::Unknown, "is forbidden");
    }
    let well: Vec<&Finding> = found.iter().filter(|finding| finding.severity == Severity::Ok).collect();
    assert!(
        well.iter().all(|finding| ["version", "policies"].contains(&finding.check.as_str())),
        "{well:#?}"
    );
}

/// What runs on the nodes is taken as it is, and is gone again. (No controller makes pods of it here.)
pub(crate) fn its_probes_come_and_go(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    let client = server.client(Who::Admin).unwrap();
    let nodes = facts(server, Who::Admin, true).nodes.unwrap();
    let wanted: BTreeSet<String> = nodes.keys().cloned().collect();
    let (set, probes) = server.runtime.block_on(async {
        let set = Set::make(&client, "kubeveil.io/kubeveil:x", &nodes).await.unwrap();
        let end = tokio::time::Instant::now() + Duration::from_millis(100);
        let probes = set.read(&wanted, end).await;
        (set, probes)
    });
    assert!(probes.timed_out && probes.by_node.is_empty(), "{probes:?}");
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), set.namespace());
    let made = server.runtime.block_on(sets.list(&ListParams::default())).unwrap();
    let spec = made.items[0].spec.clone().unwrap().template.spec.unwrap();
    let args = spec.containers[0].args.clone().unwrap().join(" ");
    assert!(args.contains("--peer=node-1=192.0.2.1") && args.contains("--peer=node-2=192.0.2.2"), "{args}");
    assert_eq!(spec.host_network, Some(true));
    assert_eq!(server.runtime.block_on(left_behind(&client)), [set.namespace()]);
    server.runtime.block_on(set.remove()).unwrap();
    server.runtime.block_on(set.remove()).unwrap();
    assert_eq!(server.runtime.block_on(left_behind(&client)), [""; 0]);
    let spaces: Api<Namespace> = Api::all(client);
    let space = server.runtime.block_on(spaces.get_opt(set.namespace())).unwrap();
    assert!(space.is_none_or(|space| space.metadata.deletion_timestamp.is_some()));
}

/// By one command, and never over what somebody else writes or is something else.
pub(crate) fn a_range_is_approved_by_one_command(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    let spec = json!({"mode": "require", "nodeCIDRs": ["192.0.2.1/32"]});
    world.put(&mesh_kind(), &json!({"metadata": {"name": "default"}, "spec": spec})).unwrap();
    let client = server.client(Who::Admin).unwrap();
    let found = json!({"status": {"ranges": {"podCIDRs": ["10.244.0.0/16"]}}});
    server.runtime.block_on(world_status(&client, &found));
    let approve = |range: &str, is_pods, force| {
        server.runtime.block_on(approve(&client, range.parse().unwrap(), is_pods, force))
    };
    let ranges = || {
        let spec = world.get(&mesh_kind(), "default").unwrap()["spec"].clone();
        (spec["podCIDRs"].clone(), spec["nodeCIDRs"].clone())
    };
    // What the controller found stays in force, and is given from now on.
    approve("fd00:244::/32", true, false).unwrap();
    assert_eq!(ranges().0, json!(["10.244.0.0/16", "fd00:244::/32"]));
    let text = approve("192.0.2.0/24", false, false).unwrap_err().to_string();
    assert!(text.contains("conflict") && text.contains("encryption.nodeCIDRs"), "{text}");
    approve("192.0.2.0/24", false, true).unwrap();
    assert_eq!(ranges().1, json!(["192.0.2.1/32", "192.0.2.0/24"]));
    for (range, why) in [("192.0.2.2/32", "a range of nodes"), ("10.96.7.0/24", "a range of Services")] {
        let refused = approve(range, true, true).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    assert_eq!(ranges().0, json!(["10.244.0.0/16", "fd00:244::/32"]));
    let found = judge(&facts(server, Who::Admin, false));
    says(&found, "ranges", Severity::Ok, "within the mesh's ranges");
}

async fn world_status(client: &kube::Client, status: &Value) {
    let api: Api<kube::core::DynamicObject> = Api::all_with(client.clone(), &mesh_kind());
    api.patch_status("default", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}
