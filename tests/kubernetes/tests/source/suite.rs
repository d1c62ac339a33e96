//! What every source is held to.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubeveil_api::{names, policy::PolicyMode};
use kubeveil_core::{
    policy::{
        FlowMode, Policies,
        diff::diff,
        explain::{Course, Desk, Who},
        services::ServiceId,
    },
    snapshot::NodeFacts,
    source::{Changes, SourceState},
};
use kubeveil_tests_kubernetes::{
    cluster::PAYMENTS,
    world::{Watching, World, until},
};
use serde_json::{Value, json};

/// A case, on a cluster that is empty.
pub(crate) type Case = fn(&mut dyn World);

pub(crate) const CASES: &[(&str, Case)] = &[
    ("everything_is_read", everything_is_read),
    ("nothing_is_whole_without_this_node", nothing_is_whole_without_this_node),
    ("an_annotation_alone_is_told_by_name", an_annotation_alone_is_told_by_name),
    ("a_node_that_is_deleted_is_gone", a_node_that_is_deleted_is_gone),
    ("a_node_made_again_has_another_uid", a_node_made_again_has_another_uid),
    ("a_node_that_is_half_there_grows", a_node_that_is_half_there_grows),
    ("the_own_announcement_is_published_and_healed", the_own_announcement_is_published_and_healed),
    ("a_mesh_that_is_deleted_is_gone_and_comes_back", a_mesh_that_is_deleted_is_gone_and_comes_back),
    ("what_is_asked_of_pods_follows_their_labels", what_is_asked_of_pods_follows_their_labels),
    ("a_person_is_told_what_decides", a_person_is_told_what_decides),
];

pub(crate) fn mesh() -> Value {
    json!({"mode": "require", "podCIDRs": ["10.244.0.0/16", "fd00:244::/48"], "nodeCIDRs": ["192.0.2.0/24"]})
}

/// Nodes `node-1` to `node-{count}`, and the mesh.
pub(crate) fn settle(world: &mut dyn World, count: u8) {
    world.put_mesh(&mesh()).unwrap();
    for n in 1..=count {
        put(world, n);
    }
}

pub(crate) fn put(world: &mut dyn World, n: u8) {
    let cidrs = [format!("10.244.{n}.0/24"), format!("fd00:244:0:{n}::/64")];
    let address = format!("192.0.2.{n}");
    world.put_node(&format!("node-{n}"), &[&cidrs[0], &cidrs[1]], &[&address]).unwrap();
}

/// Everything is known: these nodes, each with its prefixes and address.
pub(crate) fn knows(state: &SourceState, nodes: &[&str]) -> bool {
    let Some(_) = state.knowledge.synced() else { return false };
    let known = &state.knowledge.snapshot().nodes;
    known.keys().map(String::as_str).eq(nodes.iter().copied())
        && known.values().all(|n| n.pod_cidrs.len() == 2 && n.internal_ips.len() == 1)
}

pub(crate) fn opened(world: &dyn World, nodes: &[&str]) -> Watching {
    let mut watching = world.open("node-1").unwrap();
    watching.until("all is known", |state| knows(state, nodes));
    watching
}

fn facts<'a>(state: &'a SourceState, node: &str) -> &'a NodeFacts {
    &state.knowledge.snapshot().nodes[node]
}

fn everything_is_read(world: &mut dyn World) {
    settle(world, 3);
    let mut watching = opened(world, &["node-1", "node-2", "node-3"]);
    let state = watching.read();
    assert_eq!(state.problems, []);
    let spec = state.knowledge.snapshot().mesh.as_ref().unwrap();
    assert_eq!((spec.pod_cidrs.len(), spec.key_generation), (2, 0));
    let two = facts(&state, "node-2");
    assert_eq!(two.pod_cidrs[0].to_string(), "10.244.2.0/24");
    assert_eq!(two.internal_ips[0].to_string(), "192.0.2.2");
    assert!(!two.uid.is_empty() && two.announcement.is_none());
}

fn nothing_is_whole_without_this_node(world: &mut dyn World) {
    world.put_mesh(&mesh()).unwrap();
    put(world, 2);
    let mut watching = world.open("node-1").unwrap();
    watching.until("something is said", |state| {
        !state.knowledge.snapshot().nodes.is_empty() || !state.problems.is_empty()
    });
    assert!(watching.read().knowledge.as_seen_by("node-1").synced().is_none());
    put(world, 1);
    watching.until("it is there", |state| knows(state, &["node-1", "node-2"]));
}

/// Nothing else of the node changes, and it is known without reading everything.
fn an_annotation_alone_is_told_by_name(world: &mut dyn World) {
    settle(world, 3);
    world.annotate("node-2", Some("first")).unwrap();
    let mut watching = opened(world, &["node-1", "node-2", "node-3"]);
    watching.until("the first", |state| facts(state, "node-2").announcement.as_deref() == Some("first"));
    // The source may tell of what was before; then nothing has changed any more.
    while watching.woken.recv_timeout(std::time::Duration::from_millis(500)).is_ok() {
        watching.read();
    }
    for said in [Some("second"), Some("third"), None] {
        world.annotate("node-2", said).unwrap();
        let wanted = said.map(str::to_owned);
        let mut told = BTreeMap::new();
        let mut is_any = false;
        until("it is told", || {
            match watching.source.changes() {
                Changes::Announcements(more) => told.extend(more),
                Changes::Any | Changes::Pods(_) => is_any = true,
            }
            match is_any {
                true => watching.read_announcement("node-2") == wanted,
                false => told.get("node-2") == Some(&wanted),
            }
        });
        // A file that is gone may have been anything.
        assert!(!is_any || said.is_none(), "{said:?}");
        assert!(told.keys().all(|node| node == "node-2"), "{told:?}");
    }
}

fn a_node_that_is_deleted_is_gone(world: &mut dyn World) {
    settle(world, 3);
    let mut watching = opened(world, &["node-1", "node-2", "node-3"]);
    world.delete_node("node-3").unwrap();
    watching.until("it is gone", |state| knows(state, &["node-1", "node-2"]));
    put(world, 3);
    watching.until("it is back", |state| knows(state, &["node-1", "node-2", "node-3"]));
}

fn a_node_made_again_has_another_uid(world: &mut dyn World) {
    settle(world, 2);
    world.annotate("node-2", Some("said")).unwrap();
    let mut watching = opened(world, &["node-1", "node-2"]);
    let before = facts(&watching.read(), "node-2").uid.clone();
    world.delete_node("node-2").unwrap();
    put(world, 2);
    let state = watching.until("another", |state| {
        knows(state, &["node-1", "node-2"]) && facts(state, "node-2").uid != before
    });
    assert_eq!(facts(&state, "node-2").announcement, None, "what another Node of the name said");
}

/// As a kubelet registers it, before it has addresses and prefixes.
fn a_node_that_is_half_there_grows(world: &mut dyn World) {
    settle(world, 2);
    let mut watching = opened(world, &["node-1", "node-2"]);
    world.put_node("node-3", &[], &[]).unwrap();
    let state =
        watching.until("it is there", |state| state.knowledge.snapshot().nodes.contains_key("node-3"));
    assert!(state.knowledge.synced().is_some(), "it keeps nobody from knowing the rest");
    assert_eq!(facts(&state, "node-3").pod_cidrs, []);
    put(world, 3);
    watching.until("it has all", |state| knows(state, &["node-1", "node-2", "node-3"]));
}

fn the_own_announcement_is_published_and_healed(world: &mut dyn World) {
    settle(world, 2);
    let mut watching = opened(world, &["node-1", "node-2"]);
    let uid = facts(&watching.read(), "node-1").uid.clone();
    let mut stands = |world: &dyn World, said: &str| {
        until(said, || {
            watching.read();
            // As the daemon does in each way round.
            watching.source.announce("node-1", &uid, Some(said)).unwrap();
            world.announced("node-1").unwrap().as_deref() == Some(said)
        });
        watching.until(said, |state| facts(state, "node-1").announcement.as_deref() == Some(said));
    };
    stands(world, "first");
    stands(world, "second");
    world.annotate("node-1", Some("forged")).unwrap();
    stands(world, "second");
    world.annotate("node-1", None).unwrap();
    stands(world, "second");
}

fn a_mesh_that_is_deleted_is_gone_and_comes_back(world: &mut dyn World) {
    settle(world, 2);
    let mut watching = opened(world, &["node-1", "node-2"]);
    world.delete_mesh().unwrap();
    watching.until("no mesh", |state| state.knowledge.snapshot().mesh.is_none());
    let mut other = mesh();
    other["mode"] = json!("prefer");
    other["keyGeneration"] = json!(3);
    world.put_mesh(&other).unwrap();
    let state = watching.until("a mesh", |state| state.knowledge.snapshot().mesh.is_some());
    assert_eq!(state.knowledge.snapshot().mesh.as_ref().unwrap().key_generation, 3);
    other["keyGeneration"] = json!(4);
    world.put_mesh(&other).unwrap();
    let at = |state: &SourceState| state.knowledge.snapshot().mesh.as_ref().map(|mesh| mesh.key_generation);
    watching.until("its change", |state| at(state) == Some(4));
}

/// A namespace's policy and the cluster's, a pod's label and its namespace's, an address that is given back.
fn what_is_asked_of_pods_follows_their_labels(world: &mut dyn World) {
    settle(world, 2);
    let namespace = |tier: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PAYMENTS, "labels": {"tier": tier}}});
    let pod = |app: &str, phase: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": PAYMENTS, "labels": {"app": app}},
            "spec": {
                "nodeName": "node-1", "containers": [{"name": "c", "image": "i"}],
                "automountServiceAccountToken": false,
            },
            "status": {"phase": phase, "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}, {"ip": "fd00:244:0:1::7"}]},
        })
    };
    let own = json!({
        "apiVersion": names::API_VERSION, "kind": "EncryptionPolicy",
        "metadata": {"name": "cardholder-data", "namespace": PAYMENTS},
        "spec": {"podSelector": {"matchLabels": {"app": "ledger"}}, "mode": "require"},
    });
    let clusters = json!({
        "apiVersion": names::API_VERSION, "kind": "ClusterEncryptionPolicy", "metadata": {"name": "tiers"},
        "spec": {"namespaceSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["one"]}]}, "podSelector": {}, "mode": "require"},
    });
    world.put_object(&namespace("two")).unwrap();
    world.put_object(&pod("ledger", "Running")).unwrap();
    let mut watching = opened(world, &["node-1", "node-2"]);
    let asked = |state: &SourceState| {
        let snapshot = state.knowledge.snapshot();
        let all = snapshot.workloads.asked(&snapshot.policies, FlowMode::Prefer, "", |_| Some("node-1"));
        let of = |address: &str| all.get(&address.parse().unwrap()).map(|standing| standing.map(|s| s.mode));
        let [v4, v6] = ["10.244.1.7", "fd00:244:0:1::7"].map(of);
        assert_eq!(v4, v6);
        v4
    };
    let (nobody, nothing, require) = (None, Some(None), Some(Some(PolicyMode::Require)));
    let mut becomes = |world: &mut dyn World, what: &str, wanted, act: &dyn Fn(&mut dyn World)| {
        act(world);
        watching.until(what, |state| state.knowledge.synced().is_some() && asked(state) == wanted);
    };
    becomes(world, "a policy", require, &|world| world.put_object(&own).unwrap());
    becomes(world, "another label", nothing, &|world| world.put_object(&pod("web", "Running")).unwrap());
    becomes(world, "the cluster's policy", nothing, &|world| world.put_object(&clusters).unwrap());
    becomes(world, "its namespace's label", require, &|world| world.put_object(&namespace("one")).unwrap());
    becomes(world, "the pod has ended", nobody, &|world| world.put_object(&pod("web", "Succeeded")).unwrap());
    becomes(world, "another of the name", nobody, &|world| world.delete_object(&pod("web", "")).unwrap());
    becomes(world, "it runs", require, &|world| world.put_object(&pod("ledger", "Running")).unwrap());
    becomes(world, "one of two policies", require, &|world| world.delete_object(&clusters).unwrap());
    world.delete_object(&own).unwrap();
    watching.until("no policy", |state| state.knowledge.snapshot().policies.is_empty());
}

/// Pods by name with all that is asked about them, both kinds of policies, the mesh, nodes.
fn a_person_is_told_what_decides(world: &mut dyn World) {
    settle(world, 2);
    let mut observing = mesh();
    observing["mode"] = json!("observe");
    world.put_mesh(&observing).unwrap();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PAYMENTS, "labels": {"tier": "one"}}});
    let pod = |name: &str, node: &str, app: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": PAYMENTS, "labels": {"app": app}},
            "spec": {
                "nodeName": node, "hostNetwork": app == "proxy", "containers": [{"name": "c", "image": "i"}],
                "automountServiceAccountToken": false,
            },
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        })
    };
    let own = json!({
        "apiVersion": names::API_VERSION, "kind": "EncryptionPolicy",
        "metadata": {"name": "cardholder-data", "namespace": PAYMENTS},
        "spec": {"podSelector": {"matchLabels": {"app": "ledger"}}, "mode": "require"},
    });
    let clusters = json!({
        "apiVersion": names::API_VERSION, "kind": "ClusterEncryptionPolicy", "metadata": {"name": "tiers"},
        "spec": {"namespaceSelector": {"matchLabels": {"tier": "one"}}, "podSelector": {}, "mode": "prefer"},
    });
    let pods = [
        pod("ledger", "node-1", "ledger", "10.244.1.7"),
        pod("web", "node-2", "web", "10.244.2.7"),
        pod("proxy", "node-2", "proxy", "192.0.2.2"),
    ];
    for object in [&namespace].into_iter().chain(&pods).chain([&own, &clusters]) {
        world.put_object(object).unwrap();
    }
    let census = world.control().unwrap().census().unwrap();
    let desk = Desk::at(&census, Timestamp::UNIX_EPOCH);
    let asked = |from: &str, to: &str| {
        let (from, to): (Who, Who) = (from.parse().unwrap(), to.parse().unwrap());
        let told = desk.explain(&from, &to).unwrap();
        let rules =
            told.flow.iter().flat_map(|flow| &flow.rules).map(ToString::to_string).collect::<Vec<_>>();
        (told.course, rules.join(", "))
    };
    let require = "EncryptionPolicy payments/cardholder-data: require".to_owned();
    let prefer = "ClusterEncryptionPolicy tiers: prefer".to_owned();
    assert_eq!(asked("payments/ledger", "payments/web"), (Course::Crosses, require.clone()));
    assert_eq!(asked("10.244.2.7", "10.244.1.7"), (Course::Crosses, require));
    assert_eq!(asked("payments/web", "node/node-1"), (Course::Crosses, prefer));
    assert_eq!(asked("payments/proxy", "192.0.2.1"), (Course::Hosts, String::new()));
    // By slices that name its pods, though its selector names others.
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "ledger", "namespace": PAYMENTS},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 443}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "ledger-x", "namespace": PAYMENTS, "labels": {"kubernetes.io/service-name": "ledger"},
        },
        "endpoints": [{"addresses": ["10.244.1.7"], "conditions": {"ready": true}}],
        "ports": [{"port": 443}],
    });
    let id = ServiceId(format!("{PAYMENTS}/ledger").parse().unwrap());
    for (object, chosen) in [(&service, "payments/web"), (&slice, "payments/ledger")] {
        world.put_object(object).unwrap();
        let services = world.control().unwrap().services().unwrap();
        assert_eq!(services.chosen(&id, &desk), Ok(vec![chosen.parse().unwrap()]));
    }
    let mut after = census.law();
    after.policies = Policies::default();
    let changes = diff(&census, &census.law(), &after, Timestamp::UNIX_EPOCH).changes;
    assert!(changes.iter().any(|change| change.before.mode == FlowMode::Require), "{changes:?}");
}
