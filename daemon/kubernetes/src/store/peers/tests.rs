//! When other nodes are known by slices, and what is believed of those.

use std::time::Duration;

use kubeveil_api::mesh::InForce;
use kubeveil_core::{lingering::SETTLE, snapshot::Knowledge, source::Changes};
use serde_json::{Value, json};

use super::*;
use crate::{
    object::{NodeObject, PeerSliceObject},
    store::Scope,
};

const ME: &str = "me";

fn node(name: &str) -> Read<Arc<NodeFacts>> {
    let object = json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "5"}});
    serde_json::from_value::<NodeObject>(object).expect("a Node").read(ME)
}

/// A slice as of `version`, of nodes that say something.
fn slice(number: u32, version: u64, peers: &[(&str, &str)]) -> Read<Arc<Peers>> {
    let peer = |(name, said): &(&str, &str)| json!({"name": name, "uid": format!("uid-{name}"), "announcement": said});
    of(number, version, peers.iter().map(peer).collect())
}

fn of(number: u32, version: u64, peers: Vec<Value>) -> Read<Arc<Peers>> {
    let metadata = json!({"name": peer_slice::name(number), "resourceVersion": version.to_string()});
    serde_json::from_value::<PeerSliceObject>(json!({"metadata": metadata, "tellsAll": true, "peers": peers}))
        .expect("a slice")
        .read()
}

/// By what nodes are to be known, and how many slices the controller says there are.
fn mesh(asked: Option<PeerSlices>, peer_slices: Option<u32>) -> Read<Option<InForce>> {
    let spec = json!({"mode": "require", "podCIDRs": ["10.0.0.0/8"], "nodeCIDRs": [], "peerSlices": asked});
    let spec = serde_json::from_value(spec).expect("a spec");
    let value = Some(InForce { spec, found: Default::default(), peer_slices });
    Read { name: "default".to_owned(), uid: "m".to_owned(), version: 10, value, problems: vec![] }
}

/// Nothing is unread but Nodes and slices.
fn store(asked: Option<PeerSlices>, peer_slices: Option<u32>) -> Store {
    let mut store = Store::new(ME);
    store.list_mesh(vec![mesh(asked, peer_slices)], 10).expect("believed");
    store.list_pods(vec![], 10).expect("believed");
    store.list_namespaces(vec![], 10).expect("believed");
    store.list_slices(vec![], 10).expect("believed");
    for scope in [Scope::Namespace, Scope::Cluster] {
        store.list_policies(scope, vec![], 10).expect("believed");
    }
    store
}

/// One that goes by two slices: `b` and `c` are in one, `d` in the other.
fn by_slices() -> Store {
    let mut store = store(Some(PeerSlices::Always), Some(2));
    store
        .list_peers(
            vec![slice(0, 11, &[("b", "said"), ("c", "said"), (ME, "said")]), slice(1, 12, &[("d", "said")])],
            12,
        )
        .expect("ok");
    store.list_nodes(vec![node(ME)], 12).expect("believed");
    assert!(store.turns());
    store.ask();
    store.list_nodes(vec![node(ME)], 12).expect("believed");
    assert!(!store.turns() && store.by == By::Slices);
    store.take_changes();
    store
}

fn names(store: &mut Store) -> (bool, Vec<String>) {
    let known = store.knowledge(SETTLE, Duration::ZERO).0;
    (matches!(known, Knowledge::Whole(_)), known.snapshot().nodes.keys().cloned().collect())
}

#[test]
fn nodes_are_known_by_slices_where_people_say_so() {
    let mut store = by_slices();
    assert_eq!(names(&mut store), (true, ["b", "c", "d", ME].map(str::to_owned).to_vec()));
}

/// Who has the controller's credentials can't have a small cluster go by what he says.
#[test]
fn a_small_cluster_goes_by_nodes_whatever_the_controller_says() {
    for (asked, nodes, turns) in [
        (None, 399, false),
        (Some(PeerSlices::Auto), 399, false),
        (None, 400, true),
        (Some(PeerSlices::Never), 5000, false),
        (Some(PeerSlices::Always), 2, true),
    ] {
        let mut store = store(asked, Some(1));
        let others: Vec<String> = (1..nodes).map(|n| format!("n{n}")).collect();
        let told: Vec<_> =
            others.iter().map(String::as_str).chain(["thief", ME]).map(|name| (name, "said")).collect();
        store.list_peers(vec![slice(0, 11, &told)], 11).expect("believed");
        assert!(!store.turns(), "not before all Nodes are known");
        let all: Vec<_> = others.iter().map(|name| node(name)).chain([node(ME)]).collect();
        store.list_nodes(all, 12).expect("believed");
        assert_eq!(store.turns(), turns, "{asked:?} {nodes}");
        assert_eq!(names(&mut store).1.len(), nodes, "until what was asked for is there, it is as it was");
    }
}

/// Not before all that the controller speaks of is there.
#[test]
fn a_large_cluster_goes_by_slices_that_are_there() {
    let names: Vec<String> = (1..400).map(|n| format!("n{n}")).collect();
    let all: Vec<_> = names.iter().map(|name| node(name)).chain([node(ME)]).collect();
    let [one, other] = [0, 1].map(|odd| {
        let of = names.iter().enumerate().filter(|(n, _)| n % 2 == odd).map(|(_, name)| name.as_str());
        of.chain([ME]).map(|name| (name, "said")).collect::<Vec<_>>()
    });
    let mut store = store(None, Some(2));
    store.list_nodes(all, 10).expect("believed");
    assert!(!store.turns(), "none is known");
    store.list_peers(vec![slice(0, 11, &one)], 11).expect("believed");
    assert!(!store.turns(), "one is missing");
    store.peer_slice(of(1, 12, vec![json!({"name": 5})]), false).expect("in order");
    assert!(!store.turns(), "one can't be read");
    store.peer_slice(slice(1, 13, &other), false).expect("in order");
    assert!(store.turns());
    // While what was asked for comes, and when it is there.
    store.ask();
    assert!(!store.turns());
    store.list_nodes(vec![node(ME)], 14).expect("believed");
    assert!(!store.turns() && names_of(&mut store) == 400);
    // One that is gone for a moment leaves too few to count.
    store.peer_slice(slice(1, 15, &other), true).expect("in order");
    assert!(!store.turns());
    store.peer_slice(slice(1, 16, &other[..10]), false).expect("in order");
    assert!(store.turns(), "it is a small one now");
    store.peer_slice(slice(1, 17, &other), false).expect("in order");
    store.list_mesh(vec![mesh(None, Some(0))], 18).expect("believed");
    assert!(store.turns(), "the controller says of none that they serve");
}

fn names_of(store: &mut Store) -> usize {
    names(store).1.len()
}

/// What the slices say may be of before: whoever is known by a Node and is in none is no reason to forget him.
#[test]
fn slices_that_lack_a_known_node_are_not_gone_by() {
    let mut store = store(Some(PeerSlices::Always), Some(1));
    store.list_nodes(vec![node(ME), node("b"), node("c")], 10).expect("believed");
    store.list_peers(vec![slice(0, 11, &[("b", "said"), (ME, "said")])], 11).expect("believed");
    assert!(!store.turns(), "c is in none");
    let other = json!({"name": "c", "uid": "another", "announcement": "said"});
    let [b, me] = ["b", ME].map(|name| json!({"name": name, "uid": format!("uid-{name}")}));
    store.peer_slice(of(0, 12, vec![other, b, me]), false).expect("in order");
    assert!(!store.turns(), "it is another of that name");
    store.peer_slice(slice(0, 13, &[("b", "said"), ("c", "said"), (ME, "said")]), false).expect("in order");
    assert!(store.turns());
}

/// A record tells nobody anything of nodes but whose prefixes are not theirs; and one that is called otherwise is none.
#[test]
fn only_what_tells_all_is_gone_by() {
    let peers = json!([{"name": "d", "uid": "uid-d", "refused": ["10.1.0.0/24"]}]);
    let with = |name: &str, tells_all: bool, version: &str| {
        let metadata = json!({"name": name, "resourceVersion": version});
        let slice = json!({"metadata": metadata, "tellsAll": tells_all, "peers": peers});
        serde_json::from_value::<PeerSliceObject>(slice).expect("a slice").read()
    };
    let mut store = by_slices();
    store.peer_slice(with("peers-1", false, "13"), false).expect("in order");
    assert_eq!(names(&mut store), (false, ["b", "c", ME].map(str::to_owned).to_vec()));
    assert_eq!(store.refused().len(), 1);
    store.peer_slice(with("peers-1", true, "14"), false).expect("in order");
    assert_eq!(names(&mut store), (true, ["b", "c", "d", ME].map(str::to_owned).to_vec()));
    // Nor of what the controller has not spoken of.
    for (name, version) in [("x", 15), ("peers-2", 16)] {
        store.list_peers(vec![with(name, true, &version.to_string())], version).expect("believed");
        assert_eq!(names(&mut store), (false, [ME].map(str::to_owned).to_vec()), "{name}");
    }
}

/// A mesh that is deleted, and one that was made anew and of which no controller has said anything, change nothing.
#[test]
fn slices_serve_until_the_controller_says_otherwise() {
    let mut store = by_slices();
    store.list_mesh(vec![], 13).expect("believed");
    assert!(!store.turns() && store.has_all_peers());
    store.list_mesh(vec![mesh(Some(PeerSlices::Always), None)], 14).expect("believed");
    assert!(!store.turns() && store.has_all_peers());
    store.list_mesh(vec![mesh(Some(PeerSlices::Always), Some(0))], 15).expect("believed");
    assert!(store.turns());
}

/// The same node in two of them: which counts is not told by its name.
#[test]
fn who_stands_in_two_slices_is_looked_at_anew() {
    let mut store = by_slices();
    store.peer_slice(slice(1, 13, &[("b", "other"), ("d", "said")]), false).expect("in order");
    assert_eq!(store.take_changes(), Changes::Any);
    store.peer_slice(slice(0, 14, &[("b", "third"), ("c", "said"), (ME, "said")]), false).expect("in order");
    assert_eq!(store.take_changes(), Changes::Any);
}

#[test]
fn a_slice_that_somebody_takes_away_removes_nobody() {
    let mut store = by_slices();
    store.peer_slice(slice(1, 13, &[("d", "said")]), true).expect("in order");
    assert!(!names(&mut store).0, "it is not all");
    assert_eq!(store.take_changes(), Changes::Any);
    assert!(!store.turns(), "nor a reason to list all Nodes");
    store.peer_slice(slice(1, 14, &[("d", "said")]), false).expect("in order");
    assert!(names(&mut store).0);
    // A node of which something can't be read is not known to be gone.
    store
        .peer_slice(of(1, 15, vec![json!({"name": "d", "uid": "u", "internalIPs": ["no address"]})]), false)
        .expect("ok");
    assert!(!names(&mut store).0);
    let told: Vec<String> = store.problems().map(ToString::to_string).collect();
    assert!(
        told.iter().any(|text| text.contains("VeilPeerSlice peers-1 peers[0].internalIPs[0]")),
        "{told:?}"
    );
    // One that is taken out of its slice is gone.
    store.peer_slice(slice(1, 16, &[]), false).expect("in order");
    assert_eq!(names(&mut store), (true, ["b", "c", ME].map(str::to_owned).to_vec()));
}

#[test]
fn an_announcement_in_a_slice_is_told_by_its_node() {
    let mut store = by_slices();
    store.peer_slice(slice(0, 13, &[("b", "said"), ("c", "other"), (ME, "said")]), false).expect("in order");
    let only = Changes::Announcements([("c".to_owned(), Some("other".to_owned()))].into());
    assert_eq!(store.take_changes(), only);
    assert_eq!(
        store.peer_slice(slice(0, 14, &[("b", "said"), ("c", "other"), (ME, "said")]), false),
        Ok(false),
        "nothing new"
    );
    // Of this node its own Node speaks.
    store
        .peer_slice(slice(0, 15, &[("b", "said"), ("c", "other"), (ME, "forged")]), false)
        .expect("in order");
    assert_eq!(store.take_changes(), Changes::Announcements(BTreeMap::new()));
    assert_eq!(store.known_nodes()[ME].announcement, None);
    store.peer_slice(slice(1, 16, &[("d", "said"), ("e", "said")]), false).expect("in order");
    assert_eq!(store.take_changes(), Changes::Any);
}

/// By a list of all Nodes, and of none before that.
#[test]
fn the_way_back_is_by_a_list() {
    let mut store = by_slices();
    store.list_mesh(vec![mesh(Some(PeerSlices::Never), Some(2))], 13).expect("believed");
    assert!(store.turns());
    store.ask();
    assert_eq!(names(&mut store), (true, ["b", "c", "d", ME].map(str::to_owned).to_vec()));
    store.list_nodes(vec![node(ME), node("b")], 14).expect("believed");
    assert_eq!(names(&mut store), (true, ["b", ME].map(str::to_owned).to_vec()));
    assert_eq!(store.take_changes(), Changes::Any);
    // What slices say is no news any more, but whose prefixes are whose.
    assert_eq!(store.peer_slice(slice(0, 15, &[("b", "third")]), false), Ok(false));
    let peer = json!({"name": "b", "uid": "uid-b", "podCIDRs": ["10.1.0.0/24"], "refused": ["10.1.0.0/24"]});
    assert_eq!(store.peer_slice(of(0, 16, vec![peer]), false), Ok(true));
    let owner = Owner { name: "b".to_owned(), uid: "uid-b".to_owned() };
    let refused =
        store.knowledge(SETTLE, Duration::ZERO).0.snapshot().refused.iter().cloned().collect::<Vec<_>>();
    assert_eq!(refused, [("10.1.0.0/24".parse().expect("a prefix"), owner)]);
}
