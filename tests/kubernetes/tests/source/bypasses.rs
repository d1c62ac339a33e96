//! Two nodes are bypassed by a person's own credentials, on a real API server.

use http::Method;
use kubeveil_core::{agent::why_not_ready, control::Control};
use kubeveil_kubernetes::{KubernetesControl, Origin};
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    cluster::{InApiServer, pace, veil_node_kind},
    server::{Server, Who},
    world::{World as _, until},
};
use serde_json::{Value, json};

use crate::{
    controller::{agent, namespace, says},
    suite::mesh,
};

/// The policy's messages.
pub(crate) const WROTE: &str =
    "spec.bypasses tells who wrote what, so an entry that is added must name the user who writes it (by)";
pub(crate) const WHAT: &str = "what stands in spec.bypasses may end sooner (until), and changes in nothing else; for more time write another entry";

fn entry(by: &str, at: usize, minutes: usize) -> Value {
    json!({
        "nodes": ["node-1", "node-2"], "by": by, "reason": "INC-1",
        "at": format!("2026-11-28T10:00:{at:02}Z"), "until": format!("2026-11-28T10:{minutes:02}:59Z"),
    })
}

/// The chart's policy: nobody bypasses in another's name, and what stands ends no later than it says.
pub(crate) fn nobody_writes_in_anothers_name(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    let admin = server.client(Who::Admin).unwrap();
    let path = crate::rights::mesh_path();
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let may = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "alice"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
    });
    ask(server, &admin, &Request::new(Method::POST, bindings, &may.to_string())).unwrap();
    let writes = |user: Option<&'static str>, entries: &[Value]| {
        let body = json!({"spec": {"bypasses": entries}}).to_string();
        let mut request = Request::patch("merge", &path, &body);
        request.impersonates = user;
        let done = ask(server, &admin, &request);
        done.map(|mesh| mesh["spec"]["bypasses"].clone()).map_err(|error| error.to_string())
    };
    let is_refused = |user: Option<&'static str>, entries: &[Value], why: &str| {
        let refused = writes(user, entries).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    };
    until("alice may write", || writes(Some("alice"), &[]).is_ok());
    let hers = entry("alice", 0, 10);
    assert_eq!(
        writes(Some("alice"), std::slice::from_ref(&hers)).unwrap(),
        json!([hers]),
        "all of it is kept"
    );
    // Another adds his own behind hers, in his own name only.
    is_refused(None, &[hers.clone(), entry("alice", 1, 10)], WROTE);
    is_refused(Some("alice"), &[hers.clone(), entry("admin", 1, 10)], WROTE);
    // Nobody puts off what stands, not even who wrote it, or gives it another writer or reason …
    let other = |field: &str, value: Value| {
        let mut entry = hers.clone();
        entry[field] = value;
        [entry]
    };
    for user in [None, Some("alice")] {
        is_refused(user, &[entry("alice", 0, 11)], WHAT);
        is_refused(user, &other("reason", json!("another")), WHAT);
        is_refused(user, &other("by", json!("admin")), WHAT);
    }
    // … but everybody who may write the mesh may end it, and leave it on record.
    let ended = entry("alice", 0, 5);
    assert_eq!(writes(None, std::slice::from_ref(&ended)).unwrap(), json!([ended]));
    is_refused(Some("alice"), &[hers], WHAT);
    // As many as there may be cost the API server no more than it gives a policy.
    let mut all = vec![ended];
    for at in 1..20 {
        let by = ["alice", "admin"][at % 2];
        all.push(entry(by, at, 10));
        writes((by == "alice").then_some("alice"), &all).unwrap();
    }
    let many = writes(None, &[&all[..], &[entry("admin", 20, 10)]].concat()).unwrap_err();
    assert!(many.contains("must have at most 20 items"), "{many}");
    writes(None, &[&all[1..], &[entry("admin", 20, 10)]].concat()).unwrap();
    // Who comes later and speaks of something else is not asked about it.
    let mut other = Request::patch("merge", &path, &json!({"spec": {"mode": "prefer"}}).to_string());
    other.impersonates = Some("alice");
    ask(server, &admin, &other).unwrap();
    ask(server, &admin, &Request::new(Method::DELETE, &format!("{bindings}/alice"), "")).unwrap();
}

/// Which agents would not carry one out, by what the controller goes by too; and who may not look is told what he may not.
pub(crate) fn an_agent_that_is_gone_is_known(server: &mut Server) {
    let world = InApiServer::new(server).unwrap();
    namespace(server);
    let mut control = world.control().unwrap();
    let mut why = || {
        let agent = control.agent("node-3").unwrap();
        why_not_ready(agent.life, agent.said.as_ref()).unwrap_or_default()
    };
    assert_eq!(why(), "no agent");
    agent(server, "node-3", false);
    assert_eq!(why(), "its agent's pod is not ready");
    agent(server, "node-3", true);
    assert_eq!(why(), "its agent has said nothing yet");
    world.put(&veil_node_kind(), &json!({"metadata": {"name": "node-3"}})).unwrap();
    assert_eq!(why(), "its agent has said nothing yet");
    let status = |ready: &str| {
        let mut status = serde_json::to_value(says(2, &[])).unwrap();
        (status["conditions"][0]["status"], status["conditions"][0]["message"]) =
            (json!(ready), json!("waits"));
        world.put_status(&veil_node_kind(), "node-3", &status).unwrap();
    };
    status("False");
    assert_eq!(why(), "waits");
    status("True");
    assert_eq!(why(), "");
    let pod = "/api/v1/namespaces/kubeveil/pods/agent-on-node-3";
    let gone = Request::new(Method::DELETE, pod, r#"{"gracePeriodSeconds": 0}"#);
    ask(server, &server.client(Who::Admin).unwrap(), &gone).unwrap();
    assert_eq!(why(), "no agent");

    let nobody = Origin::Kubeconfig(server.kubeconfig(Who::Nobody).unwrap());
    let mut control = KubernetesControl::new(nobody, pace(), server.runtime.handle());
    let told = control.agent("node-3").unwrap_err().to_string();
    assert!(told.contains("veilnodes"), "{told}");
}
