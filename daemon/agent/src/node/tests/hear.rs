//! The short way: one node announces something else, and the kernel is not looked at.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use kubeveil_abi::Asked;
use kubeveil_api::{
    policy::PolicyMode,
    selector::{LabelSelector, Labels},
};
use kubeveil_core::{
    action::Action,
    policy::{
        Namespaces, Policies, Policy, PolicyId, Standing,
        pods::{Pod, Workloads},
    },
    problem::ProblemKind,
};
use kubeveil_keys::PrivateKey;
use kubeveil_linux::{Kernel as _, fake::Call};

use super::bench::{Bench, DEVICE, Shared, announce};
use crate::node::Node;

const EBUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();

/// How often the kernel is looked at from now on.
fn looks(bench: &Bench) -> Arc<AtomicUsize> {
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = looks.clone();
    bench.kernel.with(|kernel| {
        kernel.fail_calls(move |call| {
            counted.fetch_add(usize::from(matches!(call, Call::Observe)), Ordering::Relaxed);
            None
        });
    });
    looks
}

/// Takes in what `change` makes of pods, by the short way, which looks at nothing and leaves what the whole would; what it did.
fn hears_of_pods(
    bench: &mut Bench,
    node: &mut Node<Shared>,
    looks: &AtomicUsize,
    change: impl FnOnce(&mut Workloads),
) -> Vec<Action> {
    bench.seconds += 1;
    node.pass(bench.now());
    bench.world.change(|said| change(Arc::make_mut(&mut said.snapshot.workloads)));
    bench.tried();
    let before = looks.load(Ordering::Relaxed);
    node.hear(bench.now());
    assert_eq!(looks.load(Ordering::Relaxed), before, "it looked");
    let tried = bench.tried();
    let (wanted, seen) = (node.last.desired.clone(), node.last.observed.clone());
    node.pass(bench.now());
    assert_eq!(bench.tried(), [], "{tried:?}");
    assert_eq!(node.last.desired, wanted, "{tried:?}");
    assert!(node.last.observed.holds_as(&seen), "{tried:?}");
    tried
}

/// Whatever one node says: what the short way leaves is what the whole way would, and it knows that.
#[test]
fn the_whole_way_finds_nothing_left_to_do() {
    let (mut bench, mut node) = Bench::settled(5);
    // A handshake would be news.
    bench.kernel.with(|kernel| kernel.nobody_answers());
    let fresh = PrivateKey::generate().expect("randomness");
    let said = [
        announce(4, &bench.keys[2], 4000),
        announce(4, &fresh, 4000),
        announce(4, &bench.keys[1], 51871),
        "{}".to_owned(),
        announce(4, &bench.keys[2], 51871),
    ];
    for (n, json) in said.into_iter().enumerate() {
        bench.seconds += 1;
        // So that nobody's handshake has grown older when the two are compared.
        node.pass(bench.now());
        bench.says(4, Some(json));
        node.hear(bench.now());
        bench.tried();
        let (wanted, seen, problems) =
            (node.last.desired.clone(), node.last.observed.clone(), node.last.problems.clone());
        node.pass(bench.now());
        assert_eq!(bench.tried(), [], "{n}");
        assert_eq!(node.last.desired, wanted, "{n}");
        assert_eq!(node.last.problems, problems, "{n}");
        assert!(node.last.observed.holds_as(&seen), "{n}");
    }
}

#[test]
fn another_announcement_costs_no_look_at_the_kernel() {
    let (mut bench, mut node) = Bench::settled(5);
    let looks = looks(&bench);
    bench.tried();
    bench.seconds += 1;
    bench.says(4, Some(announce(4, &bench.keys[2], 4000)));
    node.hear(bench.now());
    let moved = Action::SetEndpoint(
        DEVICE.to_owned(),
        bench.keys[2].public(),
        "192.0.2.4:4000".parse().expect("endpoint"),
    );
    assert_eq!(bench.tried(), [moved]);
    // What is false is told, and changes nothing.
    bench.says(4, Some("{}".to_owned()));
    node.hear(bench.now());
    assert_eq!(bench.tried(), []);
    assert!(
        node.last.problems.iter().any(|p| p.kind == ProblemKind::Announcement),
        "{:?}",
        node.last.problems
    );
    // Nothing at all.
    node.hear(bench.now());
    assert_eq!(looks.load(Ordering::Relaxed), 0);
    // Where it matters what the kernel holds, it is looked at.
    bench.world.change(|said| drop(said.snapshot.nodes.remove("node-5")));
    node.hear(bench.now());
    assert!(looks.load(Ordering::Relaxed) > 0);
}

/// A peer with another key is proven anew, as soon as it answers.
#[test]
fn another_key_is_proven_before_it_is_used() {
    let (mut bench, mut node) = Bench::settled(3);
    let own = node.keeper.info().expect("a key").public;
    // A higher one, so that this node has the first word.
    let mut keys = std::iter::repeat_with(|| PrivateKey::generate().expect("randomness"));
    let fresh = keys.find(|key| key.public() > own).expect("a key");
    bench.says(3, Some(announce(3, &fresh, 51871)));
    let wait = node.hear(bench.now());
    assert_eq!(bench.tunnelled(), 1);
    assert!(wait.as_secs() < 1, "nobody looks for the handshake: {wait:?}");
    bench.kernel.with(|kernel| kernel.answer(fresh.public()));
    let reads = bench.world.said().reads;
    bench.seconds += 1;
    node.tick(bench.now());
    assert_eq!(bench.tunnelled(), 2);
    assert_eq!(bench.world.said().reads, reads, "it went the whole way");
    // Nothing is left to do, and nobody has done anything.
    bench.tried();
    assert!(!node.is_touched());
    bench.seconds += 1;
    node.pass(bench.now());
    assert_eq!((bench.tried(), node.problems()), (vec![], &[][..]));
}

/// Whoever changes a peer while one is awaited is found out as ever.
#[test]
fn what_somebody_changes_meanwhile_is_put_back_and_told() {
    let (mut bench, mut node) = Bench::settled(3);
    let (fresh, other) = (PrivateKey::generate().expect("randomness"), bench.keys[0].public());
    bench.says(3, Some(announce(3, &fresh, 51871)));
    bench.seconds += 1;
    node.hear(bench.now());
    bench.kernel.with(|kernel| {
        kernel.tamper(DEVICE, |device| device.peers.get_mut(&other).expect("a peer").allowed_ips.clear());
    });
    bench.seconds += 1;
    node.tick(bench.now());
    assert_eq!(bench.truth().tunnels[DEVICE].peers[&other].allowed_ips.len(), 4);
    let told: Vec<_> = node.problems().iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|told| told.contains("somebody else changed it")), "{told:?}");
}

/// What is half done is finished, and told, by the whole way.
#[test]
fn what_fails_on_the_short_way_is_done_on_the_whole() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.kernel.with(|kernel| {
        kernel.fail(|action| matches!(action, Action::SetEndpoint(..)).then_some(EBUSY));
    });
    bench.says(3, Some(announce(3, &bench.keys[1], 4000)));
    node.hear(bench.now());
    assert!(node.last.problems.iter().any(|p| p.kind == ProblemKind::Kernel), "{:?}", node.last.problems);
    bench.kernel.with(|kernel| kernel.heal());
    bench.settle(&mut node);
    let endpoint = bench.truth().tunnels[DEVICE].peers[&bench.keys[1].public()].endpoint;
    assert_eq!(endpoint, Some("192.0.2.3:4000".parse().expect("endpoint")));
    assert_eq!(node.last.problems, []);
}

/// What is kept on disk is written on the whole way, so it can be older than what is in the kernel; then that stands, until
/// somebody tells.
#[test]
fn what_was_kept_does_not_undo_what_is_newer() {
    let (mut bench, mut node) = Bench::settled(3);
    let fresh = PrivateKey::generate().expect("randomness");
    bench.kernel.with(|kernel| kernel.answer(fresh.public()));
    bench.says(3, Some(announce(3, &fresh, 4000)));
    let (kept, file) = (bench.dir.path().join("known.json"), std::fs::read_to_string);
    let before = file(&kept).expect("kept");
    bench.seconds += 1;
    node.hear(bench.now());
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 2);
    std::fs::write(&kept, before).expect("as it was then");

    let all = bench.world.said();
    bench.world.change(|said| (said.whole, said.snapshot) = (false, Default::default()));
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    bench.world.change(|said| *said = all);
    bench.settle(&mut again);
    assert_eq!(bench.tried(), [Action::LoadPrograms]);
    // And what is told counts, though not everything is.
    bench.world.change(|said| said.whole = false);
    let mut again = bench.restart(again);
    bench.says(3, Some(announce(3, &bench.keys[1], 4000)));
    bench.settle(&mut again);
    assert!(bench.truth().tunnels[DEVICE].peers.contains_key(&bench.keys[1].public()));
}

/// What is in force is compared with what the short way left, twice a second.
#[test]
fn what_the_short_way_did_is_nobodys_deed() {
    let (bench, mut node) = Bench::settled(3);
    let fresh = PrivateKey::generate().expect("randomness");
    bench.says(3, Some(announce(3, &fresh, 51871)));
    node.hear(bench.now());
    assert!(bench.kernel.with(|kernel| kernel.still_holds(&node.last.observed)).expect("a look"));
    assert!(!node.is_touched());
}

/// What is asked of other nodes' pods costs no look at the kernel either, one write an address, and is what the whole way would make of it.
#[test]
fn pods_elsewhere_cost_no_look_at_the_kernel() {
    let (mut bench, mut node) = Bench::settled(5);
    bench.kernel.with(|kernel| kernel.nobody_answers());
    let policy = Policy {
        namespaces: Namespaces::One("payments".to_owned()),
        pods: LabelSelector::default(),
        mode: PolicyMode::Require,
        until: None,
        max_key_age: None,
    };
    let id = PolicyId { namespace: Some("payments".to_owned()), name: "all".to_owned() };
    bench.world.change(|said| {
        said.snapshot.policies = Policies::new([(id, policy)].into());
        said.snapshot.workloads = Arc::new(Workloads { knows_elsewhere: true, ..Workloads::default() });
    });
    bench.settle(&mut node);
    let looks = looks(&bench);
    let mut hears = |pods: &[u8]| {
        let require = Standing { mode: PolicyMode::Require, until: None };
        let asked = pods.iter().map(|pod| ([10, 244, 4, *pod].into(), require)).collect();
        let tried = hears_of_pods(&mut bench, &mut node, &looks, |workloads| match pods {
            [] => drop(workloads.elsewhere.remove("node-4")),
            _ => drop(workloads.elsewhere.insert("node-4".to_owned(), Arc::new(asked))),
        });
        let told = |action: Action| match action {
            Action::PutPrefix(net, prefix) if prefix.asked == Asked::Require => format!("+{}", net.addr()),
            Action::RemovePrefix(net) => format!("-{}", net.addr()),
            other => other.to_string(),
        };
        tried.into_iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(hears(&[8]), ["+10.244.4.8"]);
    assert_eq!(hears(&[8, 9]), ["+10.244.4.9"]);
    assert_eq!(hears(&[9]), ["-10.244.4.8"]);
    assert_eq!(hears(&[]), ["-10.244.4.9"]);
}

/// Nor does it cost one how this node's pods, or their namespaces, are labelled.
#[test]
fn labels_of_this_nodes_pods_cost_no_look_at_the_kernel() {
    let (mut bench, mut node) = Bench::settled(5);
    bench.kernel.with(|kernel| kernel.nobody_answers());
    let labels = |value: &str| Labels::from([("is".to_owned(), value.to_owned())]);
    let policy = |name: &str, namespaces, pods| {
        let mode = PolicyMode::Require;
        let id = PolicyId { namespace: None, name: name.to_owned() };
        (
            id,
            Policy {
                namespaces: Namespaces::Labelled(namespaces),
                pods,
                mode,
                until: None,
                max_key_age: None,
            },
        )
    };
    let held = || LabelSelector { match_labels: labels("held"), ..LabelSelector::default() };
    let policies =
        [policy("n", held(), LabelSelector::default()), policy("p", LabelSelector::default(), held())];
    let pod = |n: u8| {
        let (node, namespace) = ("node-1".to_owned(), "shop".to_owned());
        let addresses = [[10, 244, 1, n].into()].into();
        (format!("uid-{n}"), Pod { node, namespace, addresses, ..Pod::default() })
    };
    bench.world.change(|said| {
        said.snapshot.policies = Policies::new(policies.into());
        said.snapshot.workloads = Arc::new(Workloads {
            namespaces: [("shop".to_owned(), Labels::new())].into(),
            pods: [pod(8), pod(9)].into(),
            knows_elsewhere: true,
            ..Workloads::default()
        });
    });
    bench.settle(&mut node);
    let looks = looks(&bench);
    let mut becomes = |change: &dyn Fn(&mut Workloads)| {
        let tried = hears_of_pods(&mut bench, &mut node, &looks, change);
        let told = |action: Action| match action {
            Action::PutPrefix(net, prefix) => format!("{} {:?}", net.addr(), prefix.asked),
            other => other.to_string(),
        };
        tried.into_iter().map(told).collect::<Vec<_>>()
    };
    let pod = |n: u8, value: &'static str| {
        move |all: &mut Workloads| {
            all.pods.get_mut(&format!("uid-{n}")).expect("a pod").labels = labels(value)
        }
    };
    let namespace = |value: &'static str| {
        move |all: &mut Workloads| *all.namespaces.get_mut("shop").expect("a namespace") = labels(value)
    };
    assert_eq!(becomes(&pod(8, "held")), ["10.244.1.8 Require"]);
    assert_eq!(becomes(&namespace("held")), ["10.244.1.9 Require"]);
    assert_eq!(becomes(&pod(8, "free")), [""; 0]);
    assert_eq!(becomes(&namespace("free")), ["10.244.1.8 Mesh", "10.244.1.9 Mesh"]);
}
