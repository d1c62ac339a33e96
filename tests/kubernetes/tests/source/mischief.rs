//! An API server that fails and lies: nobody is removed by it, it is not asked without end, and what was missed is caught up
//! with.

use std::time::{Duration, Instant};

use kubeveil_core::{policy::FlowMode, problem::Problem, source::SourceState};
use kubeveil_tests_kubernetes::{
    ask::ask,
    cluster::{InApiServer, PAYMENTS, pace},
    proxy::{Mischief, Proxy},
    server::{Server, Who},
    world::{Watching, World, until},
};

use serde_json::{Value, json};

use crate::{
    OnServer, controller,
    rights::attack::get,
    suite::{knows, put, settle},
};

/// How long it lasts.
const LASTS: Duration = Duration::from_secs(4);
/// Of one task, in that time: waits of 0.1, 0.2, 0.4, 0.8 and 1.6 s, and what chance adds only makes them longer; each try is
/// a list of one page and a watch at the most.
const MOST_TRIES: u64 = 6;
/// Kinds that are followed: Nodes, the mesh, pods, namespaces, slices of nodes and of pods, and two of policies.
const FOLLOWED: u64 = 8;
/// A task for each of them, each try of which may ask for this node as well, and one that writes.
const MOST_REQUESTS: u64 = FOLLOWED * MOST_TRIES * 3 + MOST_TRIES;

struct Stage<'a> {
    world: InApiServer<'a>,
    proxy: Proxy,
    watching: Watching,
    dir: tempfile::TempDir,
}

/// A policy of each kind, a pod of this node that one of them selects, and what is asked of another node's.
pub(crate) fn policies() -> [Value; 5] {
    let ours = |kind: &str, metadata: Value| json!({"apiVersion": "kubeveil.io/v1alpha1", "kind": kind, "metadata": metadata});
    let mut of_namespace = ours("EncryptionPolicy", json!({"name": "all", "namespace": PAYMENTS}));
    of_namespace["spec"] = json!({"podSelector": {}, "mode": "require"});
    let mut of_cluster = ours("ClusterEncryptionPolicy", json!({"name": "all"}));
    of_cluster["spec"] = json!({"namespaceSelector": {}, "podSelector": {}, "mode": "require"});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "ledger", "namespace": PAYMENTS, "labels": {}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
        "status": {"phase": "Running", "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}]},
    });
    let mut slice = ours("VeilPodSlice", json!({"name": "node-2"}));
    slice["pods"] =
        json!([{"namespace": PAYMENTS, "name": "theirs", "addresses": ["10.244.2.7"], "mode": "require"}]);
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PAYMENTS}});
    [space, pod, slice, of_namespace, of_cluster]
}

/// All of those stand.
fn are_asked(state: &SourceState) -> bool {
    let snapshot = state.knowledge.snapshot();
    let asked = snapshot.workloads.asked(&snapshot.policies, FlowMode::Require, "", |_| None);
    let elsewhere = snapshot.workloads.elsewhere.get("node-2").map_or(0, |of| of.len());
    (snapshot.policies.iter().count(), asked.len(), elsewhere) == (2, 1, 1)
}

/// Three nodes are known, by way of the proxy, and what policies ask for; the third came after the first list.
fn stage(server: &Server) -> Stage<'_> {
    let mut world = InApiServer::new(server).unwrap();
    settle(&mut world, 2);
    policies().iter().for_each(|object| world.put_object(object).unwrap());
    let proxy = Proxy::start(server).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ca, kubeconfig) = (dir.path().join("ca.pem"), dir.path().join("kubeconfig"));
    std::fs::write(&ca, server.authority.pem()).unwrap();
    server.write_kubeconfig(&kubeconfig, &proxy.url(), Who::Agent, &ca).unwrap();
    let mut watching = world.open_by("node-1", &kubeconfig);
    watching.until("two are known", |state| knows(state, &["node-1", "node-2"]));
    put(&mut world, 3);
    watching.until("all is known", |state| knows(state, &["node-1", "node-2", "node-3"]) && are_asked(state));
    Stage { world, proxy, watching, dir }
}

fn has(state: &SourceState, node: &str) -> bool {
    state.knowledge.snapshot().nodes.contains_key(node)
}

/// While `mischief` lasts, a node comes, one goes, and this one has something to say. It is told with these words.
fn plays(server: &mut Server, mischief: Mischief, told: &str) {
    let mut stage = stage(server);
    stage.proxy.play(mischief);
    stage.world.delete_node("node-3").unwrap();
    put(&mut stage.world, 4);
    let uid = stage.watching.read().knowledge.snapshot().nodes["node-1"].uid.clone();
    stage.watching.source.announce("node-1", &uid, Some("said")).ok();
    // Where lists go through, the cluster is known as it is.
    let is_told_the_truth = mischief == Mischief::Expire;
    let start = Instant::now();
    let mut problems = Vec::new();
    while start.elapsed() < LASTS {
        let state = stage.watching.read();
        assert!(has(&state, "node-1") && has(&state, "node-2"), "{mischief:?}: {state:#?}");
        assert!(is_told_the_truth || has(&state, "node-3"), "{mischief:?}: {state:#?}");
        assert!(are_asked(&state), "{mischief:?}: {state:#?}");
        problems.extend(state.problems);
        stage.watching.woken.recv_timeout(Duration::from_millis(50)).ok();
    }
    let all = knows(&stage.watching.read(), &["node-1", "node-2", "node-4"]);
    assert_eq!(all, is_told_the_truth, "{mischief:?}");
    let requests = stage.proxy.requests();
    assert!((1..=MOST_REQUESTS).contains(&requests), "{mischief:?}: {requests} requests");
    let is_told = problems.iter().any(|problem: &Problem| problem.to_string().contains(told));
    assert!(is_told, "{mischief:?} is not told: {problems:#?}");

    stage.proxy.play(Mischief::Nothing);
    let start = Instant::now();
    stage.watching.until("all is as it is", |state| {
        knows(state, &["node-1", "node-2", "node-4"]) && state.problems.is_empty()
    });
    stage.watching.until("it has spoken", |state| {
        state.knowledge.snapshot().nodes["node-1"].announcement.as_deref() == Some("said")
    });
    // The longest wait with what chance adds, twice (it may fail once more), and a watch that has to prove itself.
    let most = 4 * pace().longest_wait + pace().answer + pace().steady;
    assert!(start.elapsed() < most, "{mischief:?}: {:?} until it was caught up with", start.elapsed());
    println!("{mischief:?}: {requests} requests, caught up within {:?}", start.elapsed());
}

/// A connection that is open and says nothing is not waited for.
fn a_watch_that_drips_is_begun_anew(server: &mut Server) {
    let mut stage = stage(server);
    stage.proxy.play(Mischief::DripWatches);
    until("all are begun", || stage.proxy.requests() >= FOLLOWED);
    until("all are begun anew", || stage.proxy.requests() >= 2 * FOLLOWED);
    assert!(knows(&stage.watching.read(), &["node-1", "node-2", "node-3"]));
}

/// Once the API server tells the truth again, what is gone is gone.
fn the_last_policy_goes_by_a_list(server: &mut Server) {
    let mut stage = stage(server);
    stage.proxy.play(Mischief::EmptyLists);
    let [_, _, _, of_namespace, of_cluster] = policies();
    for policy in [of_namespace, of_cluster] {
        stage.world.delete_object(&policy).unwrap();
    }
    std::thread::sleep(LASTS);
    assert!(are_asked(&stage.watching.read()));
    stage.proxy.play(Mischief::Nothing);
    stage.watching.until("nothing is asked", |state| state.knowledge.snapshot().policies.is_empty());
}

/// A controller, by way of a proxy of its own.
fn controller_by_proxy(server: &Server, stage: &Stage<'_>) -> (Proxy, controller::Running) {
    controller::namespace(server);
    let (ca, kubeconfig) = (stage.dir.path().join("ca.pem"), stage.dir.path().join("controller"));
    let proxy = Proxy::start_as(server, Who::Controller).unwrap();
    server.write_kubeconfig(&kubeconfig, &proxy.url(), Who::Controller, &ca).unwrap();
    (proxy, controller::controller_by(server, kubeconfig))
}

/// The controller takes no node out of its slice by a list that is of before it came, nor by none at all.
fn no_list_takes_a_node_out_of_its_slice(server: &mut Server) {
    let mut stage = stage(server);
    let (proxy, _controller) = controller_by_proxy(server, &stage);
    let nodes = || {
        let path = "/apis/kubeveil.io/v1alpha1/veilpeerslices";
        let listed = ask(server, &server.client(Who::Admin).unwrap(), &get(path)).unwrap();
        let peers =
            listed["items"].as_array().unwrap().iter().flat_map(|slice| slice["peers"].as_array().unwrap());
        peers.map(|peer| peer["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    until("three are in a slice", || nodes() == ["node-1", "node-2", "node-3"]);
    put(&mut stage.world, 4);
    let four = ["node-1", "node-2", "node-3", "node-4"];
    until("four are", || nodes() == four);
    for mischief in [
        Mischief::OldLists,
        Mischief::EmptyListsBut(&["/veilpeerslices", "/encryptionmeshes"]),
        Mischief::EmptyListsBut(&["/nodes", "/encryptionmeshes"]),
    ] {
        proxy.play(mischief);
        let start = Instant::now();
        while start.elapsed() < LASTS * 2 {
            assert_eq!(nodes(), four, "{mischief:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    proxy.play(Mischief::Nothing);
    stage.world.delete_node("node-3").unwrap();
    put(&mut stage.world, 5);
    until("it goes on", || nodes() == ["node-1", "node-2", "node-4", "node-5"]);
}

/// The controller takes nobody's exceptions away.
fn slices_outlive_empty_lists(server: &mut Server) {
    let mut stage = stage(server);
    let (proxy, _controller) = controller_by_proxy(server, &stage);
    let slices = || {
        let path = "/apis/kubeveil.io/v1alpha1/veilpodslices";
        let listed = ask(server, &server.client(Who::Admin).unwrap(), &get(path)).unwrap();
        let names = listed["items"].as_array().unwrap().iter().map(|slice| slice["metadata"]["name"].clone());
        names.collect::<Vec<_>>()
    };
    // The other node's pod is none, so its slice goes.
    until("it does its work", || slices() == ["node-1"]);
    proxy.play(Mischief::EmptyListsBut(&["/veilpodslices", "/encryptionmeshes"]));
    std::thread::sleep(LASTS * 3);
    assert_eq!(slices(), ["node-1"]);
    proxy.play(Mischief::Nothing);
    let [_, pod, ..] = policies();
    stage.world.delete_object(&pod).unwrap();
    until("it goes on", || slices().is_empty());
}

/// Each of them, by the name of its test.
pub(crate) const ALL: &[(&str, OnServer)] = &[
    ("mischief::refused_429", |server| plays(server, Mischief::Refuse(429), "(429)")),
    ("mischief::refused_503", |server| plays(server, Mischief::Refuse(503), "(503)")),
    ("mischief::hang", |server| plays(server, Mischief::Hang, "no answer within 3 s")),
    ("mischief::half_a_response", |server| {
        plays(server, Mischief::Half, "can't be asked to list nodes since")
    }),
    ("mischief::slow_drip", |server| plays(server, Mischief::Drip, "no answer within 3 s")),
    ("mischief::a_watch_that_drips_is_begun_anew", a_watch_that_drips_is_begun_anew),
    ("mischief::reset", |server| plays(server, Mischief::Reset, "reset")),
    ("mischief::wrong_certificate", |server| {
        plays(server, Mischief::WrongCertificate, "its certificate is refused")
    }),
    ("mischief::expired_watches", |server| plays(server, Mischief::Expire, "(410)")),
    ("mischief::watches_that_end", |server| plays(server, Mischief::EndWatches, "a watch ended at once")),
    ("mischief::empty_lists", |server| {
        plays(server, Mischief::EmptyLists, "Node node-1: does not exist, though kubeveild runs on it")
    }),
    ("mischief::the_last_policy_goes_by_a_list", the_last_policy_goes_by_a_list),
    ("mischief::slices_outlive_empty_lists", slices_outlive_empty_lists),
    ("mischief::no_list_takes_a_node_out_of_its_slice", no_list_takes_a_node_out_of_its_slice),
    ("mischief::old_lists", |server| {
        plays(server, Mischief::OldLists, "its list of nodes is of resourceVersion")
    }),
];
