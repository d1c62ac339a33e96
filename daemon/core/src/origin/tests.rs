use std::sync::Arc;

use kubeveil_api::{mesh::Mode, policy::PolicyMode, selector::LabelSelector};

use super::*;
use crate::{
    observed::Datapath,
    policy::{Namespaces, Policies, Policy, PolicyId, pods::Pod},
    snapshot::Snapshot,
    testing::{net, node, snapshot},
};

const A: &str = "10.244.1.7";
const B: &str = "fd00:244:1::8";

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(uid: &str, node: &str, addresses: &[&str]) -> (String, Pod) {
    let addresses = addresses.iter().map(|address| at(address)).collect();
    (uid.to_owned(), Pod { node: node.to_owned(), addresses, ..Pod::default() })
}

/// A mesh with a policy, and these pods.
fn with(pods: &[(String, Pod)]) -> Snapshot {
    let mut snapshot = snapshot(&[("b", node(2)), ("me", node(1))]);
    snapshot.mesh.as_mut().expect("a mesh").mode = Mode::Observe;
    let policy = Policy {
        namespaces: Namespaces::Labelled(LabelSelector::default()),
        pods: LabelSelector::default(),
        mode: PolicyMode::Require,
        until: None,
        max_key_age: None,
    };
    snapshot.policies = Policies::new([(PolicyId { namespace: None, name: "p".to_owned() }, policy)].into());
    snapshot.workloads = Arc::new(Workloads { pods: pods.iter().cloned().collect(), ..Workloads::default() });
    snapshot
}

fn whole(snapshot: Snapshot) -> Knowledge {
    Knowledge::Whole(snapshot.attest_whole())
}

fn link(kind: &str, routes: &[&str], controller: Option<u32>) -> Link {
    let routes = routes.iter().map(|route| net(route)).collect();
    Link { kind: Some(kind.to_owned()), routes, controller, ..Link::default() }
}

/// A routing plugin's devices 10 and 11, a bridge 20 with the ports 21 and 22, and another bridge's port 31.
fn host(told: &[(&str, Origin)], alive: &[u32]) -> Observed {
    let links = [
        (2, Link { routes: vec![net("10.244.0.0/16"), net("fd00:244::/32")], ..Link::default() }),
        (10, link("veth", &["10.244.1.7/32"], None)),
        (11, link("netkit", &["fd00:244:1::7/128"], None)),
        (12, link("veth", &["10.244.1.0/25"], None)),
        (13, link("dummy", &["10.244.1.40/32"], None)),
        (20, link("bridge", &["10.244.1.0/24", "fd00:244:1::/64"], None)),
        (21, link("veth", &[], Some(20))),
        (22, link("veth", &[], Some(20))),
        (23, link("vxlan", &[], Some(20))),
        (31, link("veth", &[], Some(30))),
    ];
    let hardware = |last: u8| [2, 0, 0, 0, 0, last];
    let reached = [
        ("10.244.1.8", 21),
        ("fd00:244:1::8", 21),
        ("10.244.1.9", 22),
        ("10.244.1.10", 23),
        ("10.244.1.11", 31),
    ];
    let neighbours = Neighbours {
        hardware: reached.map(|(address, port)| ((20, at(address)), hardware(port))).into(),
        ports: [21, 22, 23, 31].map(|port| ((20, hardware(port)), u32::from(port))).into(),
    };
    let datapath = Datapath {
        origins: told.iter().map(|(address, origin)| (at(address), *origin)).collect(),
        alive: told
            .iter()
            .map(|(_, origin)| origin)
            .filter(|origin| alive.contains(&origin.device))
            .map(Origin::key)
            .collect(),
        ..Datapath::default()
    };
    Observed { links: links.into(), neighbours, datapath: Some(datapath), ..Observed::default() }
}

fn of(uid: &str, device: u32, via: u32) -> Origin {
    Origin { device, via, pod: in_few_words(uid, &Pod::default()) }
}

fn known(knowledge: &Knowledge, observed: &Observed) -> BTreeMap<IpAddr, Origin> {
    let origins = origins("me", knowledge, observed);
    assert_eq!(origins.disputed, BTreeSet::new());
    origins.known
}

/// By a route of its own, or as who was heard behind a bridge's port; and by nothing that might be somebody else's.
#[test]
fn a_pods_device_is_found_where_it_is_plain() {
    for (address, found) in [
        ("10.244.1.7", Some((10, 10))),
        ("fd00:244:1::7", Some((11, 11))),
        ("10.244.1.8", Some((21, 20))),
        ("fd00:244:1::8", Some((21, 20))),
        ("10.244.1.9", Some((22, 20))),
        // An overlay's port, another bridge's, somebody who was not heard, and a device that is no pod's.
        ("10.244.1.10", None),
        ("10.244.1.11", None),
        ("10.244.1.12", None),
        ("10.244.1.40", None),
    ] {
        let knowledge = whole(with(&[pod("uid", "me", &[address])]));
        let origins = known(&knowledge, &host(&[], &[]));
        let expected = found.map(|(device, via)| (at(address), of("uid", device, via)));
        assert_eq!(origins, expected.into_iter().collect(), "{address}");
    }
    // Nobody's but this node's.
    let theirs = whole(with(&[pod("uid", "b", &[A])]));
    assert_eq!(known(&theirs, &host(&[], &[])), BTreeMap::new());
}

/// Every port of theirs with a pod behind it, whoever that is: another pod of it could write what it likes.
#[test]
fn bridges_with_pods_behind_them_have_their_ports_told_apart() {
    let mut host = host(&[], &[]);
    let all = |origins: &[Origin], host: &Observed| {
        let known = (1_u8..).zip(origins).map(|(last, origin)| ([10, 244, 1, last].into(), *origin));
        ports(&known.collect(), &host.links).into_iter().collect::<Vec<_>>()
    };
    let [behind, routed] = [of("uid", 21, 20), of("uid", 10, 10)];
    assert_eq!(all(&[], &host), [0; 0]);
    assert_eq!(all(&[routed], &host), [0; 0]);
    assert_eq!(all(&[routed, behind], &host), [21, 22]);
    assert_eq!(all(&[behind, of("uid", 31, 30)], &host), [21, 22, 31]);
    // Of one number on one bridge; on another it says nothing of this one.
    let [twin, of_another] = [21 + u32::from(u16::MAX), 22 + u32::from(u16::MAX)];
    host.links.insert(twin, link("veth", &[], Some(20)));
    host.links.insert(of_another, link("veth", &[], Some(30)));
    assert_eq!(all(&[behind], &host), [21, 22]);
    assert_eq!(all(&[behind, of("uid", 31, 30)], &host), [21, 22, 31, of_another]);
    // Who is behind it passes for nobody: what the oldest sends would be his.
    host.neighbours.ports.insert((20, [2, 0, 0, 0, 0, 22]), twin);
    host.neighbours.ports.insert((20, [2, 0, 0, 0, 0, 21]), 22);
    let both = whole(with(&[pod("twin", "me", &["10.244.1.9"]), pod("uid", "me", &["10.244.1.8"])]));
    assert_eq!(known(&both, &host), [(at("10.244.1.8"), of("uid", 22, 20))].into());
    host.links.remove(&21);
    assert_eq!(known(&both, &host).get(&at("10.244.1.9")), Some(&of("twin", twin, 20)));
}

#[test]
fn two_devices_or_two_pods_are_none() {
    let mut host = host(&[], &[]);
    host.links.insert(14, link("veth", &["10.244.1.7/32"], None));
    let one = whole(with(&[pod("uid", "me", &[A])]));
    assert_eq!(known(&one, &host), BTreeMap::new());
    host.links.remove(&14);
    let two = whole(with(&[pod("uid", "me", &[A]), pod("another", "me", &[A])]));
    assert_eq!(known(&two, &host), BTreeMap::new());
    // One that stands stays, whichever of the two it is of.
    host.datapath.as_mut().expect("a datapath").origins.insert(at(A), of("another", 9, 9));
    assert_eq!(known(&two, &host), [(at(A), of("another", 9, 9))].into());
}

/// The heart of it: a source that still tells of a pod that is gone does not give its rights to who has its address now.
#[test]
fn a_pod_is_bound_once() {
    let told = [(A, of("uid", 5, 5)), (B, of("uid", 6, 6))];
    let here = host(&told, &[6]);
    let still = whole(with(&[pod("uid", "me", &[A, B])]));
    assert_eq!(known(&still, &here), told.map(|(address, origin)| (at(address), origin)).into());
    // It tells of another by now.
    let gone = host(&told, &[]);
    let other = whole(with(&[pod("other", "me", &[A, B])]));
    let now = [(at(A), of("other", 10, 10)), (at(B), of("other", 21, 20))];
    assert_eq!(known(&other, &gone), now.into());
    // A pod may have another address than before, and another network.
    let moved = whole(with(&[pod("uid", "me", &["10.244.1.9"])]));
    assert_eq!(known(&moved, &gone), [(at("10.244.1.9"), of("uid", 22, 20))].into());
    let (uid, mut anew) = pod("uid", "me", &[A]);
    anew.network_since = jiff::Timestamp::from_second(1_000).ok();
    let expected = Origin { pod: in_few_words("uid", &anew), ..of("uid", 10, 10) };
    let anew = whole(with(&[(uid, anew)]));
    assert_eq!(known(&anew, &gone), [(at(A), expected)].into());
    // What is there is not made anew by what is told of it.
    assert_eq!(known(&anew, &host(&told, &[5])), [(at(A), told[0].1)].into());
}

/// A source that goes back (a restored etcd, an older file) does not give a device that is there to a pod that is no more.
#[test]
fn a_device_that_is_there_is_nobody_elses() {
    let told = [(A, of("now", 10, 10)), ("10.244.1.9", of("now-too", 21, 20))];
    let host = host(&told, &[10, 21]);
    let earlier = whole(with(&[pod("then", "me", &[A]), pod("now-too", "me", &["10.244.1.9"])]));
    let origins = origins("me", &earlier, &host);
    assert_eq!(origins.known, told.map(|(address, origin)| (at(address), origin)).into());
    assert_eq!(origins.disputed, [at(A)].into());
    // Nor by another address: behind a bridge a port may be told of as somebody else's.
    let by_port = whole(with(&[pod("then", "me", &["10.244.1.8"])]));
    assert_eq!(known(&by_port, &host), BTreeMap::new());
}

#[test]
fn no_more_are_bound_than_the_map_holds() {
    let pods: Vec<_> = (0..5_000_u32)
        .map(|n| pod(&n.to_string(), "me", &[&format!("10.244.{}.{}", n / 250, n % 250)]))
        .collect();
    let links = (0..5_000_u32)
        .map(|n| (100 + n, link("veth", &[&format!("10.244.{}.{}/32", n / 250, n % 250)], None)));
    let observed =
        Observed { links: links.collect(), datapath: Some(Datapath::default()), ..Observed::default() };
    assert_eq!(known(&whole(with(&pods)), &observed).len(), MAX_ORIGINS);
}

#[test]
fn nobody_is_forgotten_on_hearsay() {
    let told = [(A, of("uid", 5, 5))];
    let host = host(&told, &[]);
    assert_eq!(known(&Knowledge::Partial(with(&[])), &host), [(at(A), told[0].1)].into());
    assert_eq!(known(&whole(with(&[])), &host), BTreeMap::new());
    let no_policy = Snapshot { policies: Policies::default(), ..with(&[pod("uid", "me", &[A])]) };
    assert_eq!(known(&whole(no_policy), &host), BTreeMap::new());
}

/// Bridges are asked as long as somebody behind one is not found, and only where policies are.
#[test]
fn bridges_are_asked_for_who_is_behind_one() {
    let looks =
        |snapshot: Snapshot, host: &Observed| !origins("me", &whole(snapshot), host).unfound.is_empty();
    let mut host = host(&[], &[]);
    assert!(!looks(with(&[pod("uid", "me", &[A, B])]), &host));
    assert!(looks(with(&[pod("uid", "me", &["10.244.1.99"])]), &host));
    assert!(!looks(with(&[pod("uid", "me", &["10.9.9.9"]), pod("theirs", "b", &["10.244.1.99"])]), &host));
    host.neighbours = Neighbours::default();
    assert!(looks(with(&[pod("uid", "me", &[B])]), &host));
    let bound = Observed {
        datapath: Some(Datapath { origins: [(at(B), of("uid", 21, 20))].into(), ..Datapath::default() }),
        ..host
    };
    assert!(!looks(with(&[pod("uid", "me", &[B])]), &bound));
    let none = Snapshot { policies: Policies::default(), ..with(&[pod("uid", "me", &["10.244.1.99"])]) };
    assert!(!looks(none, &bound));
}
