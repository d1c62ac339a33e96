use kubeveil_api::{condition::READY, selector::LabelSelector, veil_node::VeilNodeStatus};
use kubeveil_core::policy::{Namespaces, pods::Pod};
use serde_json::json;

use super::*;
use crate::{
    census::SeenSlice,
    seen::{Mesh, Node},
};

fn id(name: &str) -> PolicyId {
    PolicyId { namespace: Some("payments".to_owned()), name: name.to_owned() }
}

/// For pods of payments with this label.
fn policy(app: &str, mode: PolicyMode) -> Policy {
    let pods: LabelSelector = format!("app={app}").parse().expect("a selector");
    Policy { namespaces: Namespaces::One("payments".to_owned()), pods, mode, until: None, max_key_age: None }
}

fn seen_policy(name: &str, policy: Policy) -> SeenPolicy {
    let status = PolicyStatus::default();
    SeenPolicy {
        id: id(name),
        uid: name.to_owned(),
        generation: 1,
        policy: Ok(policy),
        last_good: None,
        status,
    }
}

fn pod(name: &str, node: &str, app: &str, address: &str) -> (String, SeenPod) {
    let labels = [("app".to_owned(), app.to_owned())].into();
    let addresses: BTreeSet<_> = address.parse().into_iter().collect();
    let host_network = addresses.is_empty();
    let namespace = "payments".to_owned();
    let id = PodId { namespace: namespace.clone(), name: name.to_owned() };
    let pod = Pod { node: node.to_owned(), namespace, labels, addresses, network_since: None };
    (name.to_owned(), (id, Resident { pod, host_network, has_ended: false }))
}

fn census(policies: Vec<SeenPolicy>, pods: impl IntoIterator<Item = (String, SeenPod)>) -> Census {
    let namespaces = [("payments".to_owned(), Default::default())].into();
    let pods = pods.into_iter().map(|(name, pod)| (name, pod.into())).collect();
    Census { policies, namespaces, pods, ..Census::default() }
}

/// What is in force where nothing was before.
fn readable(census: &Census) -> Policies {
    InForce::default().see(census, Duration::ZERO).0
}

/// A namespace that is deleted loses its policies before its pods: the others go on being told of these, also by a controller that has
/// never seen what held them; and of nobody when it is known that the namespace stays.
#[test]
fn of_a_namespace_that_ends_pods_are_held_until_they_are_gone() {
    let pods = || [pod("ledger", "a", "ledger", "10.0.1.7"), pod("web", "a", "web", "10.0.1.8")];
    let before = census(vec![seen_policy("p", policy("ledger", PolicyMode::Require))], pods());
    let slices = |census: &Census, policies: &Policies| Selected::of(census, policies, Mode::Observe).slices;
    let names = |slices: &BTreeMap<String, Vec<SlicedPod>>| {
        slices.values().flatten().map(|pod| pod.name.clone()).collect::<Vec<_>>()
    };
    let mut in_force = InForce::default();
    let told = slices(&before, &in_force.see(&before, Duration::ZERO).0);
    assert_eq!(names(&told), ["ledger"]);
    let seen = |(node, pods): (&String, &Vec<SlicedPod>)| {
        (node.clone(), SeenSlice { pods: Some(pods.clone()), owner: None })
    };
    let gone = Census { slices: told.iter().map(seen).collect(), ..census(vec![], pods()) };
    let ending = Census { ending: ["payments".to_owned()].into(), ..gone.clone() };
    // Its watch may tell later that it ends.
    let (policies, waits) = in_force.see(&gone, SETTLE);
    assert_eq!((names(&slices(&gone, &policies)), waits), (vec!["ledger".to_owned()], true));
    for at in [SETTLE, SETTLE * 2, SETTLE * 60] {
        let (policies, _) = in_force.see(&ending, at);
        assert_eq!(names(&slices(&ending, &policies)), ["ledger"], "{at:?}");
        assert_eq!(policies.iter().count(), 1, "as the agents have it");
        assert_eq!(policies.digest(&ending.ending), None, "who came later never heard of it");
    }
    assert_eq!(names(&slices(&ending, &readable(&ending))), ["ledger"], "another controller");
    // While nobody can see which namespaces end, no policy of one goes.
    let mut in_force = InForce::default();
    in_force.see(&before, Duration::ZERO);
    let blind = Census { is_blind: true, ..census(vec![], pods()) };
    for at in [SETTLE, SETTLE * 60] {
        assert_eq!(names(&slices(&blind, &in_force.see(&blind, at).0)), ["ledger"], "{at:?}");
    }
    let (policies, waits) = in_force.see(&ending, SETTLE * 60);
    assert_eq!((names(&slices(&ending, &policies)), waits), (vec!["ledger".to_owned()], true));
    let only_web = Census { pods: census(vec![], [pods()[1].clone()]).pods, ..ending.clone() };
    assert_eq!(slices(&only_web, &readable(&only_web)), BTreeMap::new());
    assert_eq!(slices(&gone, &readable(&gone)), BTreeMap::new());
    assert!(in_force.see(&census(vec![], []), SETTLE * 61).0.is_empty());
}

/// Two nodes, whose agents say that they hold pods to the policies of this digest.
fn cluster(mode: &str, digests: [Option<String>; 2]) -> Seen {
    let mesh = json!({
        "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionMesh", "metadata": {"name": "default"},
        "spec": {"mode": mode, "podCIDRs": ["10.0.0.0/8"], "nodeCIDRs": ["192.0.2.0/24"]},
    });
    let object = serde_json::from_value(mesh).expect("a mesh");
    let mut seen =
        Seen { mesh: Some(Mesh { object, generation: 1, version: String::new() }), ..Seen::default() };
    for (name, policies) in ["a", "b"].into_iter().zip(digests) {
        seen.nodes.insert(name.to_owned(), Node::default());
        seen.agents.insert(name.to_owned(), true);
        let conditions = vec![Condition::new(READY, true, "Enforcing", String::new(), Timestamp::UNIX_EPOCH)];
        seen.veil_nodes.insert(
            name.to_owned(),
            Some(VeilNodeStatus { policies, conditions, ..VeilNodeStatus::default() }),
        );
    }
    seen
}

fn told(census: &Census, sets: &Sets, seen: &Seen) -> BTreeMap<String, PolicyStatus> {
    told_at(census, sets, seen, 0)
}

fn told_at(census: &Census, sets: &Sets, seen: &Seen, second: i64) -> BTreeMap<String, PolicyStatus> {
    let selected = Selected::of(census, &readable(census), Mode::Prefer);
    let now = Timestamp::from_second(second).expect("a time");
    let all = statuses(census, &selected, sets, seen, true, now);
    all.into_iter().map(|(policy, status)| (policy.id.name.clone(), status)).collect()
}

fn reason<'a>(status: &'a PolicyStatus, kind: &str) -> (bool, &'a str) {
    let condition = find(&status.conditions, kind).expect("a condition");
    (condition.holds(), condition.reason.as_str())
}

/// The others are told of whom encryption is required, and of whom less is asked than of all; and of nobody else.
#[test]
fn only_of_exceptions_others_are_told() {
    let pods = [
        pod("ledger-1", "a", "ledger", "10.0.1.7"),
        pod("ledger-2", "b", "ledger", "10.0.2.7"),
        pod("web", "a", "web", "10.0.1.8"),
        pod("on-the-host", "a", "ledger", ""),
    ];
    for (mode, asked, told) in [
        (Mode::Observe, PolicyMode::Require, 2),
        (Mode::Require, PolicyMode::Require, 2),
        (Mode::Require, PolicyMode::Prefer, 2),
        (Mode::Prefer, PolicyMode::Prefer, 0),
        (Mode::Observe, PolicyMode::Prefer, 0),
        (Mode::Require, PolicyMode::Exempt, 2),
        (Mode::Prefer, PolicyMode::Exempt, 2),
        (Mode::Observe, PolicyMode::Exempt, 0),
    ] {
        let census = census(vec![seen_policy("p", policy("ledger", asked))], pods.clone());
        let selected = Selected::of(&census, &readable(&census), mode);
        assert_eq!(selected.slices.len(), told, "{mode} {asked}");
        assert_eq!(selected.counts[&id("p")], [3, 1]);
        for (node, pods) in &selected.slices {
            let [pod] = &pods[..] else { panic!("{pods:?}") };
            assert_eq!(
                (pod.mode, pod.name.as_str()),
                (asked, if node == "a" { "ledger-1" } else { "ledger-2" })
            );
        }
    }
}

/// What agents watch follows the exceptions, not the cluster: 500 among 150,000 pods of 600 nodes.
/// Of an address that two pods have, since the first is not known to be gone yet, others are told no less than its own node holds it to.
#[test]
fn an_address_that_two_pods_have_is_not_told_of_as_exempt() {
    let of = |others: &[(&str, &str, &str)]| {
        let exempt = pod("stream", "a", "stream", "10.0.1.7");
        let others =
            others.iter().map(|(app, node, address)| pod(&format!("{app}-{node}"), node, app, address));
        let policies = vec![
            seen_policy("exempt", policy("stream", PolicyMode::Exempt)),
            seen_policy("require", policy("ledger", PolicyMode::Require)),
        ];
        let census = census(policies, others.chain([exempt]));
        let slices = Selected::of(&census, &readable(&census), Mode::Require).slices;
        slices.get("a").into_iter().flatten().map(|pod| (pod.name.clone(), pod.mode)).collect::<Vec<_>>()
    };
    let exempt = ("stream".to_owned(), PolicyMode::Exempt);
    for alone in [&[][..], &[("web", "a", "10.0.1.8"), ("web", "b", "10.0.1.7")]] {
        assert_eq!(of(alone), std::slice::from_ref(&exempt), "{alone:?}");
    }
    assert_eq!(of(&[("web", "a", "10.0.1.7")]), []);
    // Whoever reads the slice takes the stricter of both.
    assert_eq!(of(&[("ledger", "a", "10.0.1.7")]), [("ledger-a".to_owned(), PolicyMode::Require), exempt]);
}

#[test]
fn what_others_are_told_is_as_much_as_there_are_exceptions() {
    const NODES: u32 = 600;
    const PODS: u32 = 150_000;
    const EXCEPTIONS: u32 = 500;
    let pods = (0..PODS).map(|n| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
        let app = if n % (PODS / EXCEPTIONS) == 0 { "ledger" } else { "web" };
        pod(&format!("pod-{n}"), &format!("node-{}", n / (PODS / NODES)), app, &address.to_string())
    });
    let census = census(vec![seen_policy("p", policy("ledger", PolicyMode::Require))], pods);
    let selected = Selected::of(&census, &readable(&census), Mode::Observe);
    let told: Vec<_> = selected.slices.values().flatten().collect();
    assert_eq!((told.len(), selected.counts[&id("p")]), (EXCEPTIONS as usize, [EXCEPTIONS, 0]));
    assert!(selected.slices.len() <= EXCEPTIONS as usize, "nodes without any have none");
    // Of each no more than its names, addresses and mode.
    let bytes = serde_json::to_vec(&selected.slices).expect("JSON").len();
    assert!(bytes < EXCEPTIONS as usize * 150, "{bytes} bytes of {EXCEPTIONS} pods");
}

/// Of a pod whose namespace is not known nothing can be said.
#[test]
fn without_its_namespace_a_pod_is_not_told_of() {
    let policies = vec![seen_policy("p", policy("ledger", PolicyMode::Require))];
    let mut census = census(policies, [pod("ledger", "a", "ledger", "10.0.1.7")]);
    census.namespaces.clear();
    assert!(Selected::of(&census, &readable(&census), Mode::Prefer).slices.is_empty());
}

/// When all nodes have said so, of what it is now; and others that come and go change nothing of that.
#[test]
fn a_policy_is_in_force_when_all_nodes_hold_it() {
    let mut sets = Sets::default();
    let one = seen_policy("one", policy("ledger", PolicyMode::Require));
    let two = seen_policy("two", policy("web", PolicyMode::Require));
    let alone = census(vec![one.clone()], []);
    let both = census(vec![one.clone(), two.clone()], []);
    let [first, second] = [&alone, &both].map(|census| readable(census).digest(&BTreeSet::new()));
    let mut look = |census: &Census, digests: [&Option<String>; 2]| {
        sets.see(&readable(census), &BTreeSet::new());
        let told = told(census, &sets, &cluster("prefer", digests.map(Clone::clone)));
        told.into_iter().map(|(name, status)| (name, reason(&status, IN_FORCE).0)).collect::<Vec<_>>()
    };
    let says = |one, two: Option<bool>| {
        let two = two.map(|holds| ("two".to_owned(), holds));
        [("one".to_owned(), one)].into_iter().chain(two).collect::<Vec<_>>()
    };
    assert_eq!(look(&alone, [&None, &first]), says(false, None));
    assert_eq!(look(&alone, [&first, &first]), says(true, None));
    // Another comes: the first holds all the same, on nodes of either set.
    assert_eq!(look(&both, [&first, &second]), says(true, Some(false)));
    assert_eq!(look(&both, [&second, &second]), says(true, Some(true)));
    // It goes, and comes again: who has not heard of its end is behind with nothing, who has not heard of its return is.
    assert_eq!(look(&alone, [&second, &second]), says(true, None));
    assert_eq!(look(&both, [&first, &first]), says(true, Some(false)));
    // It is another now.
    let mut other = both.clone();
    other.policies[0].policy = Ok(policy("other", PolicyMode::Require));
    let third = readable(&other).digest(&BTreeSet::new());
    assert_eq!(look(&other, [&second, &third]), says(false, Some(true)));
    assert_eq!(look(&other, [&third, &third]), says(true, Some(true)));
}

/// A controller that begins anew does not take back what the last one saw, and takes nobody's word for what it can't know.
#[test]
fn what_was_in_force_stays_so_under_another_controller() {
    let mut one = seen_policy("one", policy("ledger", PolicyMode::Require));
    let digest = readable(&census(vec![one.clone()], [])).digest(&BTreeSet::new());
    let look = |one: &SeenPolicy, digests: [Option<String>; 2]| {
        let census = census(vec![one.clone()], []);
        let mut sets = Sets::default();
        sets.see(&readable(&census), &BTreeSet::new());
        told(&census, &sets, &cluster("prefer", digests)).remove("one")
    };
    let unknown = Some("0123456789abcdef".to_owned());
    let first = look(&one, [digest.clone(), digest.clone()]).expect("news");
    assert_eq!(reason(&first, IN_FORCE), (true, "AllNodesHold"));
    let behind = look(&one, [digest.clone(), unknown.clone()]).expect("news");
    assert_eq!(reason(&behind, IN_FORCE), (false, "NodesBehind"));
    one.status = first;
    assert_eq!(look(&one, [digest.clone(), unknown.clone()]), None, "nothing new");
    assert!(look(&one, [digest.clone(), None]).is_some(), "an agent that says nothing holds nothing");
    one.generation = 2;
    let again = look(&one, [digest, unknown]).expect("news");
    assert_eq!(reason(&again, IN_FORCE), (false, "NodesBehind"));
}

/// Since when is since it came to be so, whatever else of a policy is news.
#[test]
fn since_when_a_policy_holds_is_told() {
    let mut one = seen_policy("one", policy("ledger", PolicyMode::Require));
    let digest = readable(&census(vec![one.clone()], [])).digest(&BTreeSet::new());
    let since = |one: &mut SeenPolicy, digests, second| {
        let census = census(vec![one.clone()], []);
        let mut sets = Sets::default();
        sets.see(&readable(&census), &BTreeSet::new());
        let status =
            told_at(&census, &sets, &cluster("prefer", digests), second).remove("one").expect("news");
        let since = find(&status.conditions, IN_FORCE).expect("a condition").last_transition_time.as_second();
        one.status = status;
        one.generation += 1;
        since
    };
    assert_eq!(since(&mut one, [digest.clone(), None], 5), 5);
    assert_eq!(since(&mut one, [digest.clone(), digest.clone()], 7), 7);
    assert_eq!(since(&mut one, [digest.clone(), digest.clone()], 9), 7);
    assert_eq!(since(&mut one, [digest, None], 11), 11);
}

/// What an agent said counts as long as it lives and enforces; and senders have to be told.
#[test]
fn who_does_not_enforce_holds_nothing() {
    let census = census(vec![seen_policy("one", policy("ledger", PolicyMode::Require))], []);
    let mut sets = Sets::default();
    sets.see(&readable(&census), &BTreeSet::new());
    let digest = readable(&census).digest(&BTreeSet::new());
    let good = cluster("prefer", [digest.clone(), digest]);
    let look = |seen: &Seen| reason(&told(&census, &sets, seen)["one"], IN_FORCE).0;
    assert!(look(&good));
    let mut gone = good.clone();
    gone.agents.remove("b");
    let mut failing = good.clone();
    failing.agents.insert("b".to_owned(), false);
    let mut waiting = good.clone();
    let said = waiting.veil_nodes.get_mut("b").and_then(Option::as_mut).expect("said");
    said.conditions[0] = Condition::new(READY, false, "Waiting", String::new(), Timestamp::UNIX_EPOCH);
    assert_eq!([gone, failing, waiting].map(|seen| look(&seen)), [false; 3]);
    let selected = Selected::of(&census, &readable(&census), Mode::Prefer);
    let untold = statuses(&census, &selected, &sets, &good, false, Timestamp::UNIX_EPOCH);
    assert_eq!(reason(&untold[0].1, IN_FORCE), (false, "SendersNotTold"));
}

/// One that can't be read any more holds as it did: the agents keep its last good state, and so do senders.
#[test]
fn an_unreadable_policy_holds_as_it_did() {
    let mut one = seen_policy("one", policy("ledger", PolicyMode::Require));
    let pods = || [pod("ledger", "a", "ledger", "10.0.1.7")];
    let before = readable(&census(vec![one.clone()], []));
    one.last_good = one.policy.clone().ok();
    one.policy = Err("spec.until no time".to_owned());
    let census = census(vec![one], pods());
    assert_eq!(readable(&census), before);
    assert_eq!(Selected::of(&census, &readable(&census), Mode::Prefer).slices.len(), 1);
}

#[test]
fn why_a_policy_does_nothing_is_told() {
    let less = seen_policy("less", policy("ledger", PolicyMode::Prefer));
    let mut unreadable = seen_policy("unreadable", policy("ledger", PolicyMode::Require));
    unreadable.policy = Err("spec.mode unknown variant".to_owned());
    let nobody = seen_policy("nobody", policy("nobody", PolicyMode::Require));
    let host = seen_policy("host", policy("host", PolicyMode::Require));
    let pods = [pod("ledger", "a", "ledger", "10.0.1.7"), pod("host", "a", "host", "")];
    let census = census(vec![less, unreadable, nobody, host], pods);
    let mut sets = Sets::default();
    sets.see(&readable(&census), &BTreeSet::new());
    let digest = readable(&census).digest(&BTreeSet::new());
    let told = told(&census, &sets, &cluster("require", [digest.clone(), digest]));
    for (name, in_force, selecting, pods) in [
        ("less", (true, "AllNodesHold"), (true, "PodsSelected"), 1),
        ("unreadable", (false, "Unreadable"), (false, "NoPods"), 0),
        ("nobody", (true, "AllNodesHold"), (false, "NoPods"), 0),
        ("host", (true, "AllNodesHold"), (false, "OnlyHostNetwork"), 1),
    ] {
        let status = &told[name];
        assert_eq!(
            (reason(status, IN_FORCE), reason(status, SELECTING), status.pods),
            (in_force, selecting, pods),
            "{name}"
        );
    }
}

/// Of all nodes, by what they say; and only where a policy asks for it.
#[test]
fn keys_that_are_older_than_a_policy_allows_are_told_of() {
    let most = |age: &str| {
        let max_key_age = Some(age.parse().expect("a period"));
        seen_policy(age, Policy { max_key_age, ..policy("ledger", PolicyMode::Require) })
    };
    let any = seen_policy("any", policy("ledger", PolicyMode::Require));
    let census = census(vec![most("30d"), most("90d"), any], []);
    let mut sets = Sets::default();
    sets.see(&readable(&census), &BTreeSet::new());
    let mut seen = cluster("prefer", [None, None]);
    let said = seen.veil_nodes.get_mut("b").and_then(Option::as_mut).expect("said");
    said.key_created_at = Some(Timestamp::UNIX_EPOCH - jiff::SignedDuration::from_hours(60 * 24));
    let told = told(&census, &sets, &seen);
    assert_eq!(reason(&told["30d"], KEYS_CURRENT), (false, "KeysTooOld"));
    let message = &find(&told["30d"].conditions, KEYS_CURRENT).expect("a condition").message;
    assert!(message.contains("30d") && message.ends_with(": b"), "{message}");
    assert_eq!(reason(&told["90d"], KEYS_CURRENT), (true, "AllKeysCurrent"));
    assert!(find(&told["any"].conditions, KEYS_CURRENT).is_none());
}
