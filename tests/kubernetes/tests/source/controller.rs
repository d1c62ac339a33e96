//! The controller on a real API server, beside agents' sources.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use kubeveil_api::{
    condition::Condition,
    policy::PolicyMode,
    status::Way,
    veil_node::{Unencrypted, VeilNodeStatus},
};
use kubeveil_controller::{Options, control};
use kubeveil_core::{policy::FlowMode, source::SourceState};
use kubeveil_kubernetes::Origin;
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    cluster::{InApiServer, PAYMENTS, mesh_kind, node_kind, veil_node_kind},
    server::{Server, Who},
    world::{World, until},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{rights::attack::get, suite::put};

const NAMESPACE: &str = "kubeveil";

/// Ends with its test.
pub(crate) struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) fn controller(server: &Server) -> Running {
    controller_by(server, server.kubeconfig(Who::Controller).unwrap())
}

pub(crate) fn controller_by(server: &Server, kubeconfig: PathBuf) -> Running {
    let options = Options {
        origin: Origin::Kubeconfig(kubeconfig),
        namespace: NAMESPACE.to_owned(),
        identity: "one".to_owned(),
        health_address: ([127, 0, 0, 1], 0).into(),
    };
    Running(server.runtime.spawn(async move { control(&options).await }))
}

/// Where its lease is; what no controller manager makes here.
pub(crate) fn namespace(server: &Server) {
    let client = server.client(Who::Admin).unwrap();
    server.runtime.block_on(async {
        let params = PostParams::default();
        let spaces: Api<Namespace> = Api::all(client.clone());
        if spaces.get_opt(NAMESPACE).await.unwrap().is_none() {
            let space = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).unwrap();
            spaces.create(&params, &space).await.unwrap();
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
        if accounts.get_opt("default").await.unwrap().is_none() {
            let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
            accounts.create(&params, &account).await.unwrap();
        }
    });
}

/// `node` has an agent whose pod is ready, or not.
pub(crate) fn agent(server: &Server, node: &str, is_ready: bool) {
    let client = server.client(Who::Admin).unwrap();
    let name = format!("agent-on-{node}");
    server.runtime.block_on(async {
        let params = PostParams::default();
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        if pods.get_opt(&name).await.unwrap().is_none() {
            let labels =
                json!({"app.kubernetes.io/name": "kubeveil", "app.kubernetes.io/component": "agent"});
            let pod = json!({
                "metadata": {"name": name, "labels": labels},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
            });
            pods.create(&params, &serde_json::from_value(pod).unwrap()).await.unwrap();
        }
        let status = if is_ready { "True" } else { "False" };
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    });
}

pub(crate) fn says(peers: u32, not_encrypted: &[&str]) -> VeilNodeStatus {
    let ready = Condition::new("Ready", true, "Enforcing", String::new(), jiff::Timestamp::UNIX_EPOCH);
    let others = not_encrypted.iter().map(|node| Unencrypted {
        node: (*node).to_owned(),
        way: Way::Dropped,
        reason: "no handshake yet".to_owned(),
    });
    VeilNodeStatus {
        generation: Some(0),
        peers,
        encrypted: peers - u32::try_from(not_encrypted.len()).unwrap(),
        not_encrypted: others.collect(),
        conditions: vec![ready],
        ..VeilNodeStatus::default()
    }
}

/// Status and message of a condition of an object.
fn condition<'a>(object: &'a Value, kind: &str) -> [&'a str; 2] {
    let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    ["status", "message"].map(|field| found.and_then(|found| found[field].as_str()).unwrap_or_default())
}

/// What the controller told by events, in all tests.
pub(crate) fn events(server: &Server) -> Vec<Value> {
    let kind = kube::core::GroupVersionKind::gvk("events.k8s.io", "v1", "Event");
    let kind = kube::core::ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::namespaced_with(server.client(Who::Admin).unwrap(), "default", &kind);
    let listed = server.runtime.block_on(api.list(&ListParams::default())).unwrap();
    listed.items.into_iter().map(|event| event.data).collect()
}

/// From nothing to a cluster that is encrypted, and a pair that fails.
pub(crate) fn it_tells_how_far_the_cluster_has_got(server: &mut Server) {
    let world = InApiServer::new(server).unwrap();
    let mesh = || world.get(&mesh_kind(), "default").unwrap();
    world.put(&mesh_kind(), &json!({"metadata": {"name": "default"}, "spec": {"mode": "require"}})).unwrap();
    namespace(server);
    // One of a control plane that is no Node's; the one of these tests is on loopback, and tells of none.
    let mut world_too = InApiServer::resumed(server).unwrap();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "endpoints": [{"addresses": ["192.0.2.100"]}], "ports": [],
    });
    world_too.put_object(&slice).unwrap();
    let _controller = controller(server);
    (1..=2).for_each(|n| put(&mut world_too, n));

    // Ranges that people gave none of reach the agents.
    let mut watching = [world.open("node-1").unwrap(), world.open("node-2").unwrap()];
    // A Node is there before its addresses are, so one range may be found before the other.
    let state = watching[0].until("ranges", |state| {
        state.knowledge.snapshot().mesh.as_ref().is_some_and(|mesh| !mesh.node_cidrs.is_empty())
    });
    let found = state.knowledge.snapshot().mesh.clone().unwrap();
    let ranges = |nets: &[_]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ranges(&found.pod_cidrs), ["10.244.0.0/16", "fd00:244::/48"]);
    assert_eq!(ranges(&found.node_cidrs), ["192.0.0.0/16"]);
    assert_eq!(state.knowledge.snapshot().found.pod_cidrs, found.pod_cidrs);
    assert_eq!(ranges(&state.knowledge.snapshot().found.api_servers), ["192.0.2.100/32"]);

    // Each Node has its VeilNode, which goes with it.
    for name in ["node-1", "node-2"] {
        until("its VeilNode is there", || world.get(&veil_node_kind(), name).is_ok());
        let veil_node = world.get(&veil_node_kind(), name).unwrap();
        let owner = &veil_node["metadata"]["ownerReferences"][0];
        assert_eq!(owner["uid"], world.get(&node_kind(), name).unwrap()["metadata"]["uid"]);
    }
    until("nobody is ready", || condition(&mesh(), "Ready")[1].contains("node-2 (no agent)"));

    // Agents come, and say that all is well.
    for (watching, name) in watching.iter_mut().zip(["node-1", "node-2"]) {
        agent(server, name, true);
        watching.source.report(name, says(1, &[])).unwrap();
    }
    until("all is encrypted", || condition(&mesh(), "FullyConnected")[0] == "True");
    until("all are ready", || condition(&mesh(), "Ready")[0] == "True");
    let well = mesh();
    assert_eq!(well["status"]["encryptedPairs"], "2/2");
    assert_eq!(well["status"]["observedGeneration"], well["metadata"]["generation"]);

    // At rest nobody writes, though kubelets do.
    let versions = || {
        let objects = [mesh(), world.get(&veil_node_kind(), "node-1").unwrap()];
        objects.map(|object| object["metadata"]["resourceVersion"].clone())
    };
    let before = versions();
    for beat in 0..6 {
        world.beat("node-1", beat).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(versions(), before);

    // One way fails: it is named, in the status and by an event. Since when the others are well stays.
    watching[1].source.report("node-2", says(1, &["node-1"])).unwrap();
    until("it is not", || condition(&mesh(), "FullyConnected")[0] == "False");
    let told = mesh();
    let [_, message] = condition(&told, "FullyConnected");
    assert!(message.ends_with("node-2 to node-1: dropped, no handshake yet"), "{message}");
    let since = |mesh: &Value| mesh["status"]["conditions"][0]["lastTransitionTime"].clone();
    assert_eq!(since(&told), since(&well));
    until("an event tells", || events(server).iter().any(|event| event["note"] == message));

    // An agent's pod that is not ready: what it said last counts no more.
    agent(server, "node-1", false);
    until("it is not ready", || {
        condition(&mesh(), "Ready")[1].contains("node-1 (its agent's pod is not ready)")
    });
}

/// What stands counts, not what was written last.
pub(crate) fn what_another_wrote_over_is_written_anew(server: &mut Server) {
    // The longest that what was written may take to come back to whoever wrote it.
    const ON_ITS_WAY: Duration = Duration::from_secs(30);
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&crate::suite::mesh()).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    namespace(server);
    let _controller = controller(server);
    let mesh = || world.get(&mesh_kind(), "default").unwrap();
    let nodes = || mesh()["status"]["nodes"].clone();
    until("all nodes are counted", || nodes() == 2);
    std::thread::sleep(ON_ITS_WAY);
    let before = mesh();
    world.put_status(&mesh_kind(), "default", &json!({"nodes": 7})).unwrap();
    until("all nodes are counted again", || nodes() == 2);
    assert_ne!(mesh()["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
}

/// Begun by the controller's own credential, under the chart's policies.
pub(crate) fn it_begins_what_is_scheduled(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&crate::suite::mesh()).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    // Of nodes that have keys.
    (1..=2).for_each(|n| crate::agent::announces(&mut world, n));
    namespace(server);
    let _controller = controller(server);
    let mesh = || world.get(&mesh_kind(), "default").unwrap();
    let rotation = |spec: Value| {
        let asks = Request::patch(
            "merge",
            &crate::rights::mesh_path(),
            &json!({"spec": {"rotation": spec}}).to_string(),
        );
        ask(server, &server.client(Who::Admin).unwrap(), &asks).unwrap();
    };
    let next = || mesh()["status"]["nextRotation"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());

    rotation(json!({"every": "30d"}));
    until("the next one is told", || next().is_some());
    let made: jiff::Timestamp = mesh()["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
    assert_eq!(next().unwrap().duration_since(made).as_hours(), 30 * 24);
    rotation(json!({"paused": true}));
    until("none is, while it is to wait", || next().is_none());
    // The last one is over and that is not written yet, which the API server goes by.
    let last = json!({"generation": 0, "startedAt": "2026-01-01T00:00:00Z", "result": "running"});
    world.put_status(&mesh_kind(), "default", &json!({"rotations": [last]})).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(mesh()["spec"]["keyGeneration"], 0, "it is to wait");

    rotation(json!({"paused": null}));
    until("it begins", || mesh()["spec"]["keyGeneration"] == 1);
    let asked = mesh()["spec"]["rotation"].clone();
    assert_eq!(asked["requestedBy"], "system:serviceaccount:kubeveil:kubeveil-controller");
    assert_eq!((&asked["reason"], &asked["every"]), (&json!("every 30d"), &json!("30d")));
    until("it is told", || condition(&mesh(), "Rotating")[0] == "True");
    // One goes on, so no other begins.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((&mesh()["spec"]["keyGeneration"], next()), (&json!(1), None));
}

/// Of which pods more is asked than of all: the other nodes hear of those and of no other; and people how a policy is.
pub(crate) fn it_tells_other_nodes_of_exceptions(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    let mut spec = crate::suite::mesh();
    spec["mode"] = json!("observe");
    world.put_mesh(&spec).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    namespace(server);
    let _controller = controller(server);
    let pod = |name: &str, app: &str, n: u8, host: bool| {
        let ips = [format!("10.244.2.{n}"), format!("fd00:244:0:2::{n}")];
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": PAYMENTS, "labels": {"app": app}},
            "spec": {
                "nodeName": "node-2", "hostNetwork": host, "containers": [{"name": "c", "image": "i"}],
                "automountServiceAccountToken": false,
            },
            "status": {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ips[0]}, {"ip": ips[1]}]},
        })
    };
    let policy = json!({
        "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": {"name": "cardholder-data", "namespace": PAYMENTS},
        "spec": {"podSelector": {"matchLabels": {"app": "ledger"}}, "mode": "require"},
    });
    let space =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PAYMENTS, "labels": {}}});
    world.put_object(&space).unwrap();
    world.put_object(&pod("ledger", "ledger", 7, false)).unwrap();
    world.put_object(&pod("web", "web", 8, false)).unwrap();
    let mut watching = crate::suite::opened(&world, &["node-1", "node-2"]);
    let slices = || {
        let listed = ask(
            server,
            &server.client(Who::Admin).unwrap(),
            &get("/apis/kubeveil.io/v1alpha1/veilpodslices"),
        );
        let items = listed.unwrap()["items"].as_array().unwrap().clone();
        items
            .into_iter()
            .map(|slice| (slice["metadata"]["name"].clone(), slice["pods"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(slices(), [], "without a policy nobody is an exception");

    world.put_object(&policy).unwrap();
    let asked = |state: &SourceState| {
        let snapshot = state.knowledge.snapshot();
        let all = snapshot.workloads.asked(&snapshot.policies, FlowMode::Prefer, "", |_| Some("node-2"));
        all.into_iter().map(|(at, standing)| (at.to_string(), standing.map(|s| s.mode))).collect::<Vec<_>>()
    };
    let of = |n: u8| {
        [format!("10.244.2.{n}"), format!("fd00:244:0:2::{n}")].map(|at| (at, Some(PolicyMode::Require)))
    };
    watching.until("the other node's agent hears of it", |state| asked(state) == of(7));
    let [(node, pods)] = &slices()[..] else { panic!("{:?}", slices()) };
    assert_eq!(node, "node-2");
    assert_eq!(
        pods,
        &json!([{"namespace": PAYMENTS, "name": "ledger", "addresses": ["10.244.2.7", "fd00:244:0:2::7"], "mode": "require"}])
    );

    // How it is, for people. It is in force when all agents say that they go by it.
    let stands = || {
        let path =
            format!("/apis/kubeveil.io/v1alpha1/namespaces/{PAYMENTS}/encryptionpolicies/cardholder-data");
        ask(server, &server.client(Who::Admin).unwrap(), &get(&path)).unwrap()
    };
    until("it is said how many it selects", || stands()["status"]["pods"] == 1);
    let [holds, why] = condition(&stands(), "InForce").map(str::to_owned);
    assert_eq!(
        (holds.as_str(), why.as_str()),
        ("False", "2 nodes don't hold pods to it yet: node-1; node-2")
    );
    let digest = watching.read().knowledge.snapshot().policies.digest(&Default::default());
    for node in ["node-1", "node-2"] {
        let said = VeilNodeStatus { policies: digest.clone(), ..says(1, &[]) };
        let status = serde_json::to_value(said).unwrap();
        until("its VeilNode is there", || world.put_status(&veil_node_kind(), node, &status).is_ok());
        agent(server, node, true);
    }
    until("all nodes hold", || condition(&stands(), "InForce")[0] == "True");
    assert_eq!(condition(&stands(), "Selecting")[0], "True");

    let mut both = [of(7), of(8)].concat();
    both.sort_by_key(|(at, _)| at.parse::<std::net::IpAddr>().unwrap());
    // A label, a pod on its node's network, a slice that somebody takes away, and the end.
    world.put_object(&pod("web", "ledger", 8, false)).unwrap();
    watching.until("another label", |state| asked(state) == both);
    world.delete_object(&pod("web", "", 8, false)).unwrap();
    watching.until("it is gone", |state| asked(state) == of(7));
    let slice =
        json!({"apiVersion": "kubeveil.io/v1alpha1", "kind": "VeilPodSlice", "metadata": {"name": "node-2"}});
    world.delete_object(&slice).unwrap();
    until("it is written again", || slices().len() == 1);
    world.put_object(&pod("host", "ledger", 9, true)).unwrap();
    until("it is told of", || stands()["status"]["pods"] == 2);
    until("with what can't be asked of it", || {
        condition(&stands(), "Selecting")[1].contains("share their node's addresses")
    });
    assert_eq!(slices()[0].1.as_array().unwrap().len(), 1, "nobody is told of a node's own address");
    let mut other = policy.clone();
    other["spec"]["podSelector"]["matchLabels"]["app"] = json!("nobody");
    world.put_object(&other).unwrap();
    until("it selects nobody", || condition(&stands(), "Selecting")[0] == "False");
    until("no exception is left", || slices().is_empty());
    assert_eq!(condition(&stands(), "InForce")[0], "False", "what the nodes hold pods to is another policy");
    watching.until("nothing is asked", |state| asked(state).is_empty());
}
