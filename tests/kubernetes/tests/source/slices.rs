//! What another node's agent is told of pods, by way of the controller, as they become others.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubeveil_api::{mesh::ExcludedTraffic, policy::PolicyMode};
use kubeveil_core::source::SourceState;
use kubeveil_tests_kubernetes::{
    cluster::{InApiServer, PAYMENTS, node_kind},
    server::Server,
    world::World,
};
use serde_json::{Value, json};

use crate::{controller, suite};

const UNTIL: &str = "2099-01-01T00:00:00Z";

/// A pod of node-2.
fn pod(name: &str, app: &str, n: u8, phase: &str) -> Value {
    let ips = [format!("10.244.2.{n}"), format!("fd00:244:0:2::{n}")];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": PAYMENTS, "labels": {"app": app}},
        "spec": {"nodeName": "node-2", "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
        "status": {"phase": phase, "podIP": ips[0], "podIPs": [{"ip": ips[0]}, {"ip": ips[1]}]},
    })
}

/// For pods with this label, of namespaces that are labelled open.
fn policy(app: &str, more: Value) -> Value {
    let mut spec = json!({
        "namespaceSelector": {"matchLabels": {"open": "yes"}},
        "podSelector": {"matchLabels": {"app": app}},
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (api, kind) = ("kubeveil.io/v1alpha1", "ClusterEncryptionPolicy");
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": app}, "spec": spec})
}

fn space(labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PAYMENTS, "labels": labels}})
}

type Told = BTreeMap<String, (PolicyMode, Option<Timestamp>)>;

fn told(state: &SourceState) -> Told {
    let elsewhere = state.knowledge.snapshot().workloads.elsewhere.get("node-2");
    let all = elsewhere.into_iter().flat_map(|of| of.iter());
    all.map(|(address, standing)| (address.to_string(), (standing.mode, standing.until))).collect()
}

/// An exemption with its end, a preference; a namespace's label; a pod that has ended, and who has its addresses then.
pub(crate) fn pods_become_others(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&suite::mesh()).unwrap();
    (1..=2).for_each(|n| suite::put(&mut world, n));
    controller::namespace(server);
    let _controller = controller::controller(server);
    world.put_object(&space(json!({}))).unwrap();
    world.put_object(&pod("ledger", "ledger", 7, "Running")).unwrap();
    world.put_object(&pod("web", "web", 8, "Running")).unwrap();
    let exempt = json!({"mode": "exempt", "reason": "INC-1", "until": UNTIL});
    world.put_object(&policy("web", exempt)).unwrap();
    world.put_object(&policy("ledger", json!({"mode": "prefer"}))).unwrap();
    let mut watching = suite::opened(&world, &["node-1", "node-2"]);
    watching.until("both policies, and nobody is selected", |state| {
        state.knowledge.snapshot().policies.iter().count() == 2 && told(state).is_empty()
    });

    let of = |n: u8, standing| {
        [format!("10.244.2.{n}"), format!("fd00:244:0:2::{n}")].map(|address| (address, standing))
    };
    let prefer = (PolicyMode::Prefer, None);
    let exempt = (PolicyMode::Exempt, Some(UNTIL.parse().unwrap()));
    let both = Told::from_iter([of(7, prefer), of(8, exempt)].concat());
    world.put_object(&space(json!({"open": "yes"}))).unwrap();
    watching.until("its namespace has the label", |state| told(state) == both);

    world.put_object(&pod("web", "web", 8, "Succeeded")).unwrap();
    watching.until("it has ended", |state| told(state) == Told::from(of(7, prefer)));
    world.put_object(&pod("next", "ledger", 8, "Running")).unwrap();
    let next = Told::from_iter([of(7, prefer), of(8, prefer)].concat());
    watching.until("another has its addresses", |state| told(state) == next);

    // The label is taken away, and not left as it was.
    world.put_object(&space(json!({"open": "no"}))).unwrap();
    watching.until("its namespace has another label", |state| told(state).is_empty());

    // A node that can have no agent has pods like any other.
    let mut mesh = suite::mesh();
    mesh["excludedNodes"] = json!({"selector": {"matchLabels": {"pool": "virtual"}}, "traffic": "plain"});
    world.put_mesh(&mesh).unwrap();
    world.put(&node_kind(), &json!({"metadata": {"name": "node-2", "labels": {"pool": "virtual"}}})).unwrap();
    watching.until("the node is excluded", |state| {
        state.knowledge.snapshot().excludes("node-2") == Some(ExcludedTraffic::Plain)
    });
    world.put_object(&policy("ledger", json!({"mode": "require"}))).unwrap();
    world.put_object(&space(json!({"open": "yes"}))).unwrap();
    let require = (PolicyMode::Require, None);
    let both = Told::from_iter([of(7, require), of(8, require)].concat());
    watching.until("encryption is required of its pods", |state| told(state) == both);
}
