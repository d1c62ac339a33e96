//! What is believed of lists and watches.

use kubeveil_api::selector::Labels;
use kubeveil_core::lingering::SETTLE;
use serde_json::json;

use super::*;
use crate::object::{MeshObject, NamespaceObject, PolicyObject, SliceObject};

const ME: &str = "me";

/// A node as of `version`, which says `said`.
fn node(name: &str, version: u64, said: &str) -> Read<Arc<NodeFacts>> {
    let facts = NodeFacts {
        uid: format!("uid-{name}"),
        announcement: (!said.is_empty()).then(|| said.to_owned()),
        ..NodeFacts::default()
    };
    let (name, uid, problems) = (name.to_owned(), facts.uid.clone(), Vec::new());
    Read { name, uid, version, value: Arc::new(facts), problems }
}

/// Two nodes, listed at version 10, and nothing unread.
fn store() -> Store {
    let mut store = Store::new(ME);
    store.list_nodes(vec![node(ME, 3, ""), node("b", 4, "said")], 10).expect("believed");
    store.list_mesh(vec![], 10).expect("believed");
    store.list_pods(vec![], 10).expect("believed");
    store.list_namespaces(vec![], 10).expect("believed");
    store.list_slices(vec![], 10).expect("believed");
    for scope in [Scope::Namespace, Scope::Cluster] {
        store.list_policies(scope, vec![], 10).expect("believed");
    }
    store.take_changes();
    store
}

fn known(store: &mut Store) -> Knowledge {
    store.knowledge(SETTLE, Duration::ZERO).0
}

fn names(store: &mut Store) -> Vec<String> {
    known(store).snapshot().nodes.keys().cloned().collect()
}

fn only(name: &str, said: &str) -> Changes {
    Changes::Announcements([(name.to_owned(), Some(said.to_owned()))].into())
}

#[test]
fn all_lists_make_it_whole() {
    let mut store = Store::new(ME);
    assert_eq!(store.list_nodes(vec![node(ME, 3, "")], 10), Ok(true));
    assert!(known(&mut store).synced().is_none());
    assert_eq!(store.list_mesh(vec![], 9), Ok(true), "that there is none is news");
    assert!(known(&mut store).synced().is_none());
    assert_eq!(store.list_pods(vec![], 9), Ok(true), "that there is none is news");
    assert_eq!(store.list_namespaces(vec![], 9), Ok(true), "that there is none is news");
    assert_eq!(store.list_policies(Scope::Namespace, vec![], 9), Ok(true), "that there is none is news");
    assert!(known(&mut store).synced().is_none());
    assert_eq!(store.list_policies(Scope::Cluster, vec![], 9), Ok(true), "that there is none is news");
    assert!(known(&mut store).synced().is_none());
    assert_eq!(store.list_slices(vec![], 9), Ok(true), "that there is none is news");
    assert!(known(&mut store).synced().is_some());
    assert_eq!(store.take_changes(), Changes::Any);
}

/// What a mesh that observes comes to is for policies to say; one that does more is not waited for.
#[test]
fn a_mesh_that_observes_is_told_with_the_policies() {
    for (mode, is_told_alone) in [("observe", false), ("prefer", true), ("require", true)] {
        let mut store = Store::new(ME);
        let mesh: MeshObject = serde_json::from_value(json!({
            "metadata": {"name": "default", "uid": "u", "resourceVersion": "9"},
            "spec": {"mode": mode, "podCIDRs": ["10.244.0.0/16"], "nodeCIDRs": ["192.0.2.0/24"]},
        }))
        .expect("a mesh");
        store.list_mesh(vec![mesh.read(None)], 9).expect("believed");
        let is_told = |store: &mut Store| known(store).snapshot().mesh.is_some();
        assert_eq!(is_told(&mut store), is_told_alone, "{mode}");
        store.list_policies(Scope::Namespace, vec![], 9).expect("believed");
        assert_eq!(is_told(&mut store), is_told_alone, "{mode}");
        store.list_policies(Scope::Cluster, vec![], 9).expect("believed");
        assert!(is_told(&mut store), "{mode}");
    }
}

#[test]
fn only_a_list_that_is_believed_removes() {
    let mut store = store();
    for (listed, version, why) in [
        (vec![node(ME, 3, "")], 9, Disbelief::Older { seen: 10, listed: 9 }),
        (vec![node(ME, 3, "")], 0, Disbelief::Older { seen: 10, listed: 0 }),
        (vec![], 11, Disbelief::LacksOwn(ME.to_owned())),
        (vec![node("b", 4, "said")], 11, Disbelief::LacksOwn(ME.to_owned())),
    ] {
        assert_eq!(store.list_nodes(listed, version), Err(why));
        assert_eq!(names(&mut store), ["b", ME]);
    }
    assert_eq!(store.list_nodes(vec![node(ME, 3, "")], 10), Ok(true));
    assert_eq!(names(&mut store), [ME]);
}

/// The same list once more, a heartbeat, a bookmark.
#[test]
fn what_says_nothing_new_is_no_news() {
    let mut store = store();
    assert_eq!(store.list_nodes(vec![node(ME, 3, ""), node("b", 4, "said")], 12), Ok(false));
    assert_eq!(store.node(node("b", 13, "said"), false), Ok(false));
    store.nodes.bookmark(20);
    assert_eq!(store.take_changes(), no_changes());
    assert_eq!(store.nodes.newest(), 20);
    store.nodes.bookmark(1);
    assert_eq!(store.nodes.newest(), 20);
}

#[test]
fn an_announcement_is_told_by_name_and_anything_else_as_a_whole() {
    let mut store = store();
    assert_eq!(store.node(node("b", 11, "other"), false), Ok(true));
    assert_eq!(store.take_changes(), only("b", "other"));
    let mut moved = node("b", 12, "other");
    Arc::make_mut(&mut moved.value).internal_ips.push([192, 0, 2, 7].into());
    assert_eq!(store.node(moved, false), Ok(true));
    assert_eq!(store.take_changes(), Changes::Any);
    assert_eq!(store.node(node("c", 13, ""), false), Ok(true));
    assert_eq!(store.take_changes(), Changes::Any, "nobody knows it yet");
    assert_eq!(store.node(node("c", 14, ""), true), Ok(true));
    assert_eq!(store.take_changes(), Changes::Any);
}

/// Pods come and go; only one whose address is not its node's is news, until it is gone or the Node says so.
#[test]
fn a_pod_with_an_address_of_nobody_is_found() {
    let pod = |version, address: &str| Read {
        name: "n/p".to_owned(),
        uid: "u".to_owned(),
        version,
        value: Pod { addresses: [address.parse().expect("address")].into(), ..Pod::default() },
        problems: vec![],
    };
    let mut store = store();
    let strangers = |store: &mut Store| known(store).snapshot().strangers.iter().cloned().collect::<Vec<_>>();
    let mut own = node(ME, 11, "");
    Arc::make_mut(&mut own.value).pod_cidrs.push("10.1.0.0/24".parse().expect("net"));
    store.node(own.clone(), false).expect("followed");
    store.take_changes();
    assert_eq!(store.pod(pod(12, "10.1.0.7"), false), Ok(false));
    assert_eq!(store.pod(pod(13, "10.9.0.7"), false), Ok(true));
    assert_eq!(strangers(&mut store), ["Pod n/p has the address 10.9.0.7"]);
    assert_eq!(store.take_changes(), Changes::Any);
    assert_eq!(store.pod(pod(14, "10.9.0.7"), false), Ok(false), "told before");
    own.version = 15;
    Arc::make_mut(&mut own.value).pod_cidrs.push("10.9.0.0/24".parse().expect("net"));
    assert_eq!(store.node(own, false), Ok(true));
    assert!(strangers(&mut store).is_empty());
    assert_eq!(store.pod(pod(16, "10.8.0.7"), false), Ok(true));
    assert_eq!(store.pod(pod(17, "10.8.0.7"), true), Ok(true));
    assert!(strangers(&mut store).is_empty());
}

/// A watch that repeats itself changes nothing; one that leaps back can't be followed.
#[test]
fn events_out_of_order_undo_nothing() {
    let mut store = store();
    store.node(node("b", 12, "new"), false).expect("followed");
    for late in [node("b", 12, "new"), node("b", 11, "old")] {
        assert_eq!(store.node(late, false), Ok(false));
    }
    assert_eq!(store.node(node("b", 11, "old"), true), Ok(false), "it was made again since");
    assert_eq!(known(&mut store).snapshot().nodes["b"].announcement.as_deref(), Some("new"));
    store.node(node("b", 13, "new"), true).expect("followed");
    assert_eq!(store.node(node("b", 13, "new"), true), Ok(false), "told twice");
    assert_eq!(store.node(node("b", 12, "new"), false), Err(OutOfOrder), "it would come back to life");
    assert_eq!(store.node(node("c", 5, ""), false), Err(OutOfOrder));
    assert_eq!(store.node(node("d", 0, ""), false), Err(OutOfOrder), "a version that is no number");
    assert_eq!(names(&mut store), [ME]);
}

/// That pods come and go is news where something is asked for of somebody; what is wrong with a policy leaves its last good state.
#[test]
fn pods_are_news_where_something_is_asked_for() {
    let pod = |version, app: &str| Read {
        name: "n/p".to_owned(),
        uid: "u".to_owned(),
        version,
        value: Pod {
            node: ME.to_owned(),
            namespace: "n".to_owned(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            addresses: [[10, 1, 0, 7].into()].into(),
            network_since: None,
        },
        problems: vec![],
    };
    let policy = |version: &str, mode: &str| {
        let metadata = json!({"name": "p", "namespace": "n", "resourceVersion": version});
        let object = json!({"metadata": metadata, "spec": {"podSelector": {}, "mode": mode}});
        serde_json::from_value::<PolicyObject>(object).expect("an object")
    };
    let mut store = store();
    let mut own = node(ME, 11, "");
    Arc::make_mut(&mut own.value).pod_cidrs.push("10.1.0.0/24".parse().expect("net"));
    store.node(own, false).expect("followed");
    store.take_changes();
    assert_eq!(store.pod(pod(11, "web"), false), Ok(false));
    assert!(known(&mut store).snapshot().workloads.pods.is_empty());

    let first = policy("12", "require").read(None);
    assert_eq!(store.policy(Scope::Namespace, first, false), Ok(true));
    assert_eq!(store.take_changes(), Changes::Any);
    let before_it = known(&mut store);
    let snapshot = before_it.snapshot();
    assert_eq!((snapshot.policies.iter().count(), snapshot.workloads.pods.len()), (1, 1));
    assert_eq!(store.pod(pod(13, "ledger"), false), Ok(true));
    let labels = |app: &str| Labels::from([("app".to_owned(), app.to_owned())]);
    let labelled =
        |app| Changes::Pods(OfPods { labels: [("u".to_owned(), labels(app))].into(), ..OfPods::default() });
    assert_eq!(store.take_changes(), labelled("ledger"));
    assert_eq!(store.pod(pod(14, "ledger"), false), Ok(false), "a heartbeat");
    // Another pod by that name, anything else of it, and that it goes.
    let other = Read { uid: "v".to_owned(), ..pod(15, "web") };
    let moved = Pod { addresses: [[10, 1, 0, 8].into()].into(), ..pod(0, "ledger").value };
    let moved = Read { value: moved, version: 16, ..other.clone() };
    for (pod, is_gone) in [(other, false), (moved.clone(), false), (Read { version: 17, ..moved }, true)] {
        assert_eq!(store.pod(pod, is_gone), Ok(true));
        assert_eq!(store.take_changes(), Changes::Any);
    }

    let before = store.policies[0].get("n/p").and_then(|read| read.value.clone());
    let wrong = policy("15", "prefer").read(before.as_ref());
    // The same to who has seen it before; to who has not, what was kept on disk may be in force.
    let mut anew = Store { policies: Default::default(), ..self::store() };
    anew.list_policies(Scope::Cluster, vec![], 15).expect("believed");
    anew.list_policies(Scope::Namespace, vec![policy("15", "prefer").read(None)], 15).expect("believed");
    assert!(known(&mut anew).synced().is_none());
    store.policy(Scope::Namespace, wrong, false).expect("followed");
    assert!(known(&mut store).synced().is_some());
    let told: Vec<String> = store.problems().map(ToString::to_string).collect();
    assert!(
        told.len() == 1 && told[0].contains("EncryptionPolicy n/p spec.mode: may only be require"),
        "{told:?}"
    );
    assert_eq!(known(&mut store).snapshot().policies, before_it.snapshot().policies);

    let gone = policy("16", "require").read(None);
    assert_eq!(store.policy(Scope::Namespace, gone, true), Ok(true));
    assert!(store.knowledge(SETTLE, SETTLE).1, "it stands for a moment");
    assert!(store.knowledge(SETTLE, SETTLE * 2).0.snapshot().policies.is_empty());
}

/// As of pods, of which it says what they are; not of one that begins to end.
#[test]
fn labels_of_a_namespace_are_told_by_its_name() {
    let space = |version: u32, team: &str, deleted: Option<&str>| {
        let metadata = json!({
            "name": "n", "resourceVersion": version.to_string(), "labels": {"team": team}, "deletionTimestamp": deleted,
        });
        serde_json::from_value::<NamespaceObject>(json!({"metadata": metadata})).expect("an object").read()
    };
    let mut store = store();
    assert_eq!(store.namespace(space(11, "a", None), false), Ok(false), "there is no policy");
    let policy = json!({
        "metadata": {"name": "p", "namespace": "n", "resourceVersion": "12"},
        "spec": {"podSelector": {}, "mode": "require"},
    });
    let policy = serde_json::from_value::<PolicyObject>(policy).expect("an object").read(None);
    store.policy(Scope::Namespace, policy, false).expect("followed");
    store.take_changes();
    assert_eq!(store.namespace(space(13, "b", None), false), Ok(true));
    let Changes::Pods(said) = store.take_changes() else { panic!("told as a whole") };
    assert_eq!(said.namespaces["n"]["team"], "b");
    assert_eq!(said.len(), 1);
    assert_eq!(store.namespace(space(14, "c", Some("2026-11-30T00:00:00Z")), false), Ok(true));
    assert_eq!(store.take_changes(), Changes::Any);
    assert_eq!(store.namespace(space(15, "d", Some("2026-11-30T00:00:00Z")), true), Ok(true));
    assert_eq!(store.take_changes(), Changes::Any);
}

/// That a policy goes since its namespace does is told by two watches, in any order; and who pods are is told as long as one may be held.
#[test]
fn a_policy_stands_until_it_is_known_whether_its_namespace_ends() {
    let object = |name: &str, version: &str, deleted: Option<&str>| json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": version, "deletionTimestamp": deleted}});
    let space = |version: &str, deleted: Option<&str>| {
        let mut object = object("n", version, deleted);
        object["metadata"]["namespace"] = json!("");
        serde_json::from_value::<NamespaceObject>(object).expect("an object").read()
    };
    let policy = |version: &str| {
        let mut object = object("p", version, None);
        object["spec"] = json!({"podSelector": {}, "mode": "require"});
        serde_json::from_value::<PolicyObject>(object).expect("an object").read(None)
    };
    let mut store = store();
    store.namespace(space("11", None), false).expect("followed");
    store.policy(Scope::Namespace, policy("12"), false).expect("followed");
    let is = |store: &mut Store, at: Duration| {
        let (known, waits) = store.knowledge(SETTLE, at);
        let now = known.snapshot();
        (now.policies.iter().count(), now.ending.len(), now.workloads.namespaces.len(), waits)
    };
    assert_eq!(is(&mut store, Duration::ZERO), (1, 0, 1, false));
    assert_eq!(store.policy(Scope::Namespace, policy("14"), true), Ok(true));
    assert_eq!(is(&mut store, SETTLE), (1, 0, 1, true));
    assert_eq!(store.namespace(space("13", Some("2026-11-30T00:00:00Z")), false), Ok(true), "heard of later");
    assert_eq!(is(&mut store, SETTLE + SETTLE / 2), (1, 1, 1, true));
    // From here on what was known before is kept (`Knowledge::or_before`).
    assert_eq!(is(&mut store, SETTLE * 2), (0, 1, 1, false));
    assert_eq!(store.namespace(space("15", Some("2026-11-30T00:00:00Z")), true), Ok(true));
    assert_eq!(is(&mut store, SETTLE * 3), (0, 0, 0, false));
}

/// Of other nodes' pods, where a policy is there, and of no own pod, of which we know better; without a first list nobody knows of whom
/// nothing is asked.
#[test]
fn what_is_asked_elsewhere_is_news_where_it_counts() {
    let slice = |node: &str, version: u32, pods: serde_json::Value| {
        let metadata = json!({"name": node, "resourceVersion": version.to_string()});
        serde_json::from_value::<SliceObject>(json!({"metadata": metadata, "pods": pods})).expect("an object")
    };
    let ledger =
        json!([{"namespace": "n", "name": "p", "addresses": ["10.2.0.7", "fd00:2::7"], "mode": "require"}]);
    let mut store = store();
    store.slices = Default::default();
    assert!(known(&mut store).synced().is_none(), "they were never listed");
    store.list_slices(vec![], 10).expect("believed");
    assert!(known(&mut store).synced().is_some());
    store.take_changes();
    let elsewhere = |store: &mut Store| {
        let elsewhere = known(store).snapshot().workloads.elsewhere.clone();
        elsewhere.into_iter().map(|(node, of)| (node, of.len())).collect::<Vec<_>>()
    };
    let b = || vec![("b".to_owned(), 2)];

    assert_eq!(store.slice(slice("b", 11, ledger.clone()).read(), false), Ok(false), "there is no policy");
    assert_eq!(elsewhere(&mut store), []);
    let policy = json!({
        "metadata": {"name": "p", "namespace": "n", "resourceVersion": "12"},
        "spec": {"podSelector": {}, "mode": "require"},
    });
    let policy = serde_json::from_value::<PolicyObject>(policy).expect("an object").read(None);
    assert_eq!(store.policy(Scope::Namespace, policy, false), Ok(true));
    assert_eq!(elsewhere(&mut store), b());
    assert!(known(&mut store).snapshot().workloads.knows_elsewhere);
    let mut unheard = Store { slices: Default::default(), ..self::store() };
    let again = store.policies[0].get("n/p").cloned().expect("a policy");
    unheard.policy(Scope::Namespace, again, false).expect("followed");
    assert!(!known(&mut unheard).snapshot().workloads.knows_elsewhere);
    assert_eq!(store.slice(slice(ME, 13, ledger.clone()).read(), false), Ok(false));
    assert_eq!(elsewhere(&mut store), b(), "of our own");
    assert_eq!(store.slice(slice("b", 14, ledger.clone()).read(), false), Ok(false), "the same");

    // That alone is told by the node's name; with anything else all has to be seen.
    store.take_changes();
    let other = json!([{"namespace": "n", "name": "p", "addresses": ["10.2.0.8"], "mode": "require"}]);
    let is_news = |store: &mut Store, slice: SliceObject, is_gone| {
        assert_eq!(store.slice(slice.read(), is_gone), Ok(true));
    };
    let told = |store: &mut Store| match store.take_changes() {
        Changes::Pods(said) => {
            said.elsewhere.into_iter().map(|(node, of)| (node, of.map(|of| of.len()))).collect()
        }
        _ => vec![],
    };
    is_news(&mut store, slice("b", 15, other.clone()), false);
    is_news(&mut store, slice("c", 16, ledger.clone()), false);
    is_news(&mut store, slice("c", 17, json!(null)), true);
    assert_eq!(told(&mut store), [("b".to_owned(), Some(1)), ("c".to_owned(), None)]);
    for node_first in [true, false] {
        let (at, says) = if node_first { (18, "one") } else { (20, "two") };
        let heard = node("b", at, says);
        if node_first {
            store.node(heard, false).expect("followed");
            is_news(&mut store, slice("b", 19, ledger.clone()), false);
        } else {
            is_news(&mut store, slice("b", 21, other.clone()), false);
            store.node(heard, false).expect("followed");
        }
        assert_eq!(store.take_changes(), Changes::Any);
    }

    // Of whom nobody can read what is asked the most is.
    let wrong = json!([{"namespace": "n", "name": "p", "addresses": ["10.2.0.7", "x"], "mode": "insist"}]);
    assert_eq!(store.slice(slice("b", 25, wrong).read(), false), Ok(true));
    assert_eq!(store.take_changes(), Changes::Any, "somebody has to be told");
    assert_eq!(elsewhere(&mut store), vec![("b".to_owned(), 1)]);
    let told: Vec<String> = store.problems().map(ToString::to_string).collect();
    assert!(
        told.len() == 1 && told[0].starts_with("VeilPodSlice b pods[0].addresses[1]: invalid IP address"),
        "{told:?}"
    );
    let gone = slice("b", 26, json!(null)).read();
    assert_eq!(store.slice(gone, true), Ok(true));
    assert_eq!(elsewhere(&mut store), []);
}
