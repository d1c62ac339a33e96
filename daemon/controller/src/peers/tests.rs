use ipnet::IpNet;
use kubeveil_api::mesh::Mode;

use super::*;
use crate::seen::Node;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn mesh() -> MeshSpec {
    let spec =
        serde_json::json!({"mode": Mode::Require, "podCIDRs": ["10.0.0.0/8"], "nodeCIDRs": ["192.0.2.0/24"]});
    serde_json::from_value(spec).expect("a mesh")
}

/// `n` nodes, each with a prefix.
fn seen(n: usize) -> Seen {
    let mut seen = Seen::default();
    for n in 0..n {
        seen.nodes.insert(format!("node-{n:03}"), node(n));
    }
    seen
}

fn node(n: usize) -> Node {
    let pods = net(&format!("10.{}.{}.0/24", n / 256, n % 256));
    let announcement = Some(format!("says {n}"));
    Node { uid: format!("uid-{n}"), pod_cidrs: vec![pods], announcement, ..Node::default() }
}

/// What the slices are, once they are written.
fn written(seen: &Seen, standing: &Standing, tells_all: bool) -> Standing {
    let gone = vanished(seen, standing).map(|peer| peer.name.clone()).collect();
    let before = u32::try_from(standing.len()).ok().filter(|count| *count > 0);
    let wanted = slices(standing, before, peers(seen, standing, &gone, &mesh(), tells_all));
    (0..).zip(wanted).map(|(number, peers)| (number, stands(peers, tells_all))).collect()
}

fn stands(peers: Vec<SlicedPeer>, tells_all: bool) -> Stands {
    Stands { uid: "u".to_owned(), version: "1".to_owned(), tells_all, peers: Some(peers) }
}

/// How many nodes are in each.
fn sizes(standing: &Standing) -> Vec<usize> {
    standing.values().map(|slice| slice.peers.iter().flatten().count()).collect()
}

fn names(standing: &Standing, number: u32) -> Vec<&str> {
    standing[&number].peers.iter().flatten().map(|peer| peer.name.as_str()).collect()
}

fn peer<'a>(standing: &'a Standing, name: &str) -> &'a SlicedPeer {
    all(standing).find(|peer| peer.name == name).expect("the node")
}

#[test]
fn nodes_stay_in_their_slice_and_newcomers_take_free_places() {
    let first = written(&seen(250), &Standing::new(), true);
    assert_eq!(sizes(&first), [100, 100, 50]);
    let mut fewer = seen(251);
    for gone in ["node-007", "node-108", "node-109"] {
        fewer.nodes.remove(gone);
    }
    let second = written(&fewer, &first, true);
    assert!(names(&second, 0).contains(&"node-250"), "the first free place");
    assert_eq!(names(&second, 1).len(), 98);
    assert_eq!(second[&2], first[&2], "what does not change is the same");

    // The last goes when nobody is in it, and no other does.
    let second = written(&seen(200), &first, true);
    assert_eq!(second.keys().collect::<Vec<_>>(), [&0, &1]);
    let mut only_last = seen(250);
    only_last.nodes.retain(|name, _| name.as_str() >= "node-200");
    let third = written(&only_last, &first, true);
    assert_eq!(sizes(&third), [0, 0, 50]);
}

/// Of those who stood in a slice that is gone, or can't be read, none goes elsewhere as long as there is room in that one; whatever room is
/// in others.
#[test]
fn a_slice_that_is_missing_is_filled_first() {
    let mut fewer = seen(250);
    fewer.nodes.remove("node-007");
    let right = written(&fewer, &written(&seen(250), &Standing::new(), true), true);
    assert_eq!(sizes(&right), [99, 100, 50]);
    for missing in 0..3 {
        let mut gone = right.clone();
        gone.remove(&missing);
        let of = |standing: &Standing| {
            let all = peers(&fewer, standing, &BTreeSet::new(), &mesh(), true);
            let wanted = slices(standing, Some(3), all);
            (0..).zip(wanted).map(|(number, peers)| (number, stands(peers, true))).collect::<Standing>()
        };
        assert_eq!(of(&gone), right, "{missing} is gone");
        gone.insert(
            missing,
            Stands { uid: "u".to_owned(), version: "1".to_owned(), tells_all: true, peers: None },
        );
        assert_eq!(of(&gone), right, "{missing} can't be read");
    }
}

/// One that is not ours, too many in one.
#[test]
fn what_others_wrote_is_put_right() {
    let right = written(&seen(150), &Standing::new(), true);
    let mut foreign = right.clone();
    foreign.insert(4_000_000_000, stands(vec![], true));
    assert_eq!(written(&seen(150), &foreign, true), right);
    let both: Vec<SlicedPeer> = all(&right).cloned().collect();
    assert_eq!(written(&seen(150), &Standing::from([(0, stands(both, true))]), true), right);
}

/// A node that writes much into its own Node makes no slice larger than it may be, and none of it counts.
#[test]
fn nobody_fills_the_slice_of_others() {
    let mut seen = seen(2);
    let greedy = seen.nodes.get_mut("node-001").expect("it");
    greedy.internal_ips = (0..200).map(|n| format!("192.0.2.{n}").parse().expect("an address")).collect();
    greedy.pod_cidrs = (0..30).map(|n| net(&format!("10.9.{n}.0/24"))).collect();
    greedy.announcement = Some("é".repeat(MAX_BYTES));
    let first = written(&seen, &Standing::new(), true);
    let peer = peer(&first, "node-001");
    assert_eq!(
        (peer.pod_cidrs.len(), peer.internal_ips.len(), peer.refused.len()),
        (MOST_CLAIMS, MOST_CLAIMS, 2 * MOST_CLAIMS)
    );
    let announced = peer.announcement.as_ref().expect("cut").len();
    assert!((MAX_BYTES + 1..MAX_BYTES + 5).contains(&announced), "{announced}");
}

/// Those of who announces nothing; as many as have room, and those first by which nodes are excluded.
#[test]
fn labels_are_told_of_whom_they_may_exclude() {
    let mut seen = seen(2);
    let silent = seen.nodes.get_mut("node-001").expect("it");
    silent.announcement = None;
    let many = (0..200).map(|n| (format!("a-label-{n:03}"), "x".repeat(63)));
    silent.labels = many.chain([("os".to_owned(), "x".to_owned())]).collect();
    let told = |mesh: &MeshSpec, tells_all| {
        peers(&seen, &Standing::new(), &BTreeSet::new(), mesh, tells_all)["node-001"].labels.clone()
    };
    let usually = told(&mesh(), true);
    assert!(usually.contains_key("a-label-000") && !usually.contains_key("os"), "{}", usually.len());
    assert_eq!(usually.len(), MAX_BYTES / 74);
    let excluded = serde_json::json!({"selector": {"matchExpressions": [{"key": "os", "operator": "DoesNotExist"}]}, "traffic": "drop"});
    let excluding =
        MeshSpec { excluded_nodes: serde_json::from_value(excluded).expect("a selector"), ..mesh() };
    let told_first = told(&excluding, true);
    assert!(told_first.contains_key("os") && told_first.contains_key("a-label-000"));
    assert!(told(&excluding, false).is_empty());
}

/// What agents miss comes last, and not before whoever may have stood in it stands elsewhere; no slice waits for what it was not written for.
#[test]
fn a_missing_slice_is_written_after_those_who_come_elsewhere() {
    let (pace, now) = (Duration::from_secs(5), Instant::now() + Duration::from_secs(100));
    let at = |seconds| now - Duration::from_secs(seconds);
    // 101 come, who may all have stood in the second one.
    let right = written(&seen(301), &Standing::new(), true);
    let mut standing = right.clone();
    standing.remove(&1);
    standing.get_mut(&3).expect("the last").peers.as_mut().expect("read").clear();
    let all = peers(&seen(301), &standing, &BTreeSet::new(), &mesh(), true);
    let wanted = slices(&standing, Some(4), all);
    assert_eq!(wanted.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 100, 1]);
    let of = |written: &[(u32, Instant)]| {
        order(&wanted, &standing, (true, Some(4)), &written.iter().copied().collect(), (pace, now))
    };
    let usual = Order { gaining: vec![3], gaps: vec![1], ..Order::default() };
    assert_eq!(of(&[]), usual);
    assert_eq!(of(&[(1, at(5)), (3, at(9))]), usual);
    let again = Some(Duration::from_secs(2));
    assert_eq!(of(&[(3, at(3))]), Order { again, ..Order::default() }, "it waits for the other");
    assert_eq!(of(&[(1, at(3))]), Order { gaining: vec![3], again, ..Order::default() });
    // Of one that nobody comes into it is independent.
    let mut otherwise = wanted.clone();
    otherwise[0][0].announcement = None;
    let written = [(0, at(3))].into();
    let paced = order(&otherwise, &standing, (true, Some(4)), &written, (pace, now));
    assert_eq!(paced, Order { again, ..usual });
    // Nobody misses what agents have not been told of.
    let first = order(&wanted, &Standing::new(), (true, None), &BTreeMap::new(), (pace, now));
    assert_eq!(first, Order { gaining: vec![0, 1, 2, 3], ..Order::default() });
}

/// Whoever wrote the status, the controller lives.
#[test]
fn a_count_that_cannot_be_is_not_gone_by() {
    let all = peers(&seen(2), &Standing::new(), &BTreeSet::new(), &mesh(), true);
    assert_eq!(slices(&Standing::new(), Some(u32::MAX), all).len(), 1);
}

#[test]
fn who_is_on_record_keeps_its_prefix() {
    let mut seen = seen(2);
    let first = written(&seen, &Standing::new(), false);
    assert!(all(&first).all(|peer| peer.refused.is_empty() && peer.announcement.is_none()));
    // One that comes before it by name, and one of the same prefix in part.
    seen.nodes.insert("a-thief".to_owned(), Node { uid: "other".to_owned(), ..node(1) });
    let part = Node { uid: "part".to_owned(), pod_cidrs: vec![net("10.0.1.128/25")], ..Node::default() };
    seen.nodes.insert("b-thief".to_owned(), part);
    let second = written(&seen, &first, false);
    assert_eq!(peer(&second, "a-thief").refused, [net("10.0.1.0/24")]);
    assert_eq!(peer(&second, "b-thief").refused, [net("10.0.1.128/25")]);
    assert!(peer(&second, "node-001").refused.is_empty());
    // As long as it is there, whatever is read of it for a moment …
    seen.nodes.get_mut("node-001").expect("it").pod_cidrs.clear();
    let third = written(&seen, &second, false);
    assert_eq!(third, second);
    // … and no longer. Of those that are left nobody was first.
    seen.nodes.remove("node-001");
    let fourth = written(&seen, &third, false);
    assert_eq!(peer(&fourth, "a-thief").refused, [net("10.0.1.0/24")]);
    seen.nodes.remove("b-thief");
    assert!(peer(&written(&seen, &fourth, false), "a-thief").refused.is_empty());
}

#[test]
fn a_node_is_gone_only_where_it_is_known_to_be() {
    let (two, one) = (seen(2), seen(1));
    let first = written(&two, &Standing::new(), true);
    assert_eq!(vanished(&one, &first).map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["node-001"]);
    let still = peers(&one, &first, &BTreeSet::new(), &mesh(), true);
    assert_eq!(still["node-001"], *peer(&first, "node-001"));
    // Made anew, it is another, which has said nothing.
    let mut anew = seen(2);
    anew.nodes.insert("node-001".to_owned(), Node { uid: "new".to_owned(), announcement: None, ..node(1) });
    let second = written(&anew, &first, true);
    let peer = peer(&second, "node-001");
    assert_eq!((peer.uid.as_str(), &peer.announcement, peer.refused.len()), ("new", &None, 0));
}

#[test]
fn agents_are_told_of_slices_that_stand() {
    let wanted: Vec<_> =
        written(&seen(250), &Standing::new(), true).into_values().filter_map(|slice| slice.peers).collect();
    let all: Standing = (0..).zip(wanted.iter().cloned().map(|peers| stands(peers, true))).collect();
    assert_eq!(count(&wanted, &all, None), Some(3));
    let records = written(&seen(250), &Standing::new(), false);
    assert_eq!(count(&wanted, &records, None), None, "without what nodes announce");
    let mut otherwise = wanted.clone();
    (otherwise[0][0].announcement, otherwise[0][0].labels) =
        (None, [("os".to_owned(), "x".to_owned())].into());
    let mut without = otherwise.clone();
    without[0][0].labels.clear();
    let without: Standing = (0..).zip(without.into_iter().map(|peers| stands(peers, true))).collect();
    assert_eq!(count(&otherwise, &without, None), None, "without the labels of who announces nothing");
    let mut fewer = all.clone();
    fewer.remove(&1);
    assert_eq!(count(&wanted, &fewer, None), None);
    assert_eq!(count(&wanted, &fewer, Some(3)), Some(3), "it comes back, and is missed until then");
    assert_eq!(count(&wanted, &fewer, Some(1)), Some(1));
    assert_eq!(count(&wanted[..2], &all, Some(3)), Some(2), "the last one goes");
    assert_eq!(count(&[], &all, Some(3)), None);
}

#[test]
fn slices_are_for_large_clusters_or_as_people_say() {
    for (asked, nodes, so_far, are) in [
        (None, 499, false, false),
        (None, 500, false, true),
        (Some(PeerSlices::Auto), 400, true, true),
        (Some(PeerSlices::Auto), 399, true, false),
        (Some(PeerSlices::Always), 1, false, true),
        (Some(PeerSlices::Never), 5000, true, false),
    ] {
        let spec = MeshSpec { peer_slices: asked, ..mesh() };
        assert_eq!(tell_all(&spec, nodes, so_far), are, "{asked:?} {nodes} {so_far}");
    }
}
