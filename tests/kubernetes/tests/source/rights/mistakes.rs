//! Somebody gave an account of ours every right, by mistake: what RBAC would not let through, the policies still hold.

use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    server::Server,
    world::until,
};
use serde_json::json;

use super::{
    Stage,
    attack::{NODES, OTHER, OWN, Outcome, delete, get, merge, ours, post},
    judge,
};
use crate::OnServer;

const AGENT: &str = "an agent writes an announcement and the status of its VeilNode, and nothing else";
pub(crate) const CONTROLLER: &str = "the controller writes no Node, no policy, and of the mesh nothing but its status and, where spec.rotation.every is set, the next generation";
/// What replaces a Node as a whole takes the taints off that the API server gave it.
const SPEC: &str = "an agent writes nothing into a Node's spec";

/// Messages that an attack here meets.
pub(crate) fn messages() -> impl Iterator<Item = &'static str> {
    [AGENT, CONTROLLER, SPEC].into_iter()
}

/// With every right.
pub(crate) const ALL: &[(&str, OnServer)] = &[
    ("rights::mistake::an_agent_with_every_right", |server| {
        let mut cases = on_nodes(AGENT);
        cases.extend(on_mesh(AGENT));
        let label = r#"{"metadata":{"name":"node-1","labels":{"pool":"b"}}}"#;
        cases.push((Request::new(http::Method::PUT, OWN, label), SPEC));
        let node = r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"VeilNode","metadata":{"name":"node-9"}}"#;
        cases.push((post(&ours("veilnodes"), node), AGENT));
        cases.push((merge(&ours("veilnodes/node-1"), r#"{"metadata":{"labels":{"a":"b"}}}"#), AGENT));
        cases.push((delete(&ours("veilnodes/node-1")), AGENT));
        cases.push((delete(&ours("veilnodes")), AGENT));
        let lie = r#"{"status":{"observedGeneration":9}}"#;
        cases.push((merge(&ours("encryptionmeshes/default/status"), lie), AGENT));
        cases.extend(on_policies(AGENT));
        let slice =
            r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"VeilPodSlice","metadata":{"name":"node-2"}}"#;
        cases.push((post(&ours("veilpodslices"), slice), AGENT));
        cases.push((delete(&ours("veilpeerslices/peers-0")), AGENT));
        cases.push((super::objects::event("default"), AGENT));
        with_every_right(server, 0, &cases);
    }),
    ("rights::mistake::a_controller_with_every_right", |server| {
        let mut cases = on_nodes(CONTROLLER);
        cases.extend(on_mesh(CONTROLLER));
        cases.extend(on_policies(CONTROLLER));
        cases.push((merge(OWN, &super::announcement(8)), CONTROLLER));
        cases.push((merge(OTHER, r#"{"metadata":{"labels":{"pool":"b"}}}"#), CONTROLLER));
        with_every_right(server, 2, &cases);
    }),
];

type Cases = Vec<(Request, &'static str)>;

fn on_nodes(message: &'static str) -> Cases {
    let status = r#"{"status":{"addresses":[{"type":"InternalIP","address":"8.8.8.8"}]}}"#;
    [
        post(NODES, r#"{"metadata":{"name":"node-9"}}"#),
        delete(OWN),
        delete(OTHER),
        delete(NODES),
        merge(&format!("{OWN}/status"), status),
    ]
    .map(|request| (request, message))
    .into()
}

fn on_mesh(message: &'static str) -> Cases {
    let another = r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"EncryptionMesh","metadata":{"name":"default"},
        "spec":{"mode":"observe","podCIDRs":["10.244.0.0/16"],"nodeCIDRs":[]}}"#;
    [
        merge(&ours("encryptionmeshes/default"), r#"{"spec":{"mode":"observe"}}"#),
        delete(&ours("encryptionmeshes/default")),
        delete(&ours("encryptionmeshes")),
        post(&ours("encryptionmeshes"), another),
    ]
    .map(|request| (request, message))
    .into()
}

fn on_policies(message: &'static str) -> Cases {
    let exempts = r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"ClusterEncryptionPolicy","metadata":{"name":"free"},
        "spec":{"namespaceSelector":{},"podSelector":{"matchLabels":{"a":"b"}},"mode":"exempt","reason":"none"}}"#;
    let requires = r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"EncryptionPolicy","metadata":{"name":"all","namespace":"default"},
        "spec":{"podSelector":{},"mode":"require"}}"#;
    let of_default = "/apis/kubeveil.io/v1alpha1/namespaces/default/encryptionpolicies";
    [post(&ours("clusterencryptionpolicies"), exempts), post(of_default, requires)]
        .map(|request| (request, message))
        .into()
}

fn with_every_right(server: &mut Server, thief: usize, cases: &[(Request, &'static str)]) {
    let stage = Stage::new(server);
    let account = format!("kubeveil-{}", super::CREDENTIALS[thief]);
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let binding = json!({
        "metadata": {"name": "mistake"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "kubeveil"}],
    });
    stage.makes(bindings, &binding);
    let thief = &stage.thieves[thief];
    until("it has every right", || ask(server, thief, &get("/api/v1/secrets")).is_ok());
    let before = stage.nodes_and_ours();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(request, message)| {
            let answer = ask(server, thief, request);
            judge(Outcome::Policy(message), &answer).err().map(|why| format!("{request:?}: {why}"))
        })
        .collect();
    let after = stage.nodes_and_ours();
    stage.does(&delete(&format!("{bindings}/mistake")));
    until("it has no right any more", || ask(server, thief, &get("/api/v1/secrets")).is_err());
    assert!(wrong.is_empty() && before == after, "{}", wrong.join("\n"));
}
