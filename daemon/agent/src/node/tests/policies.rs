//! What policies come to on a node is told as it is.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use kubeveil_abi::Asked;
use kubeveil_api::{
    mesh::Mode,
    policy::PolicyMode,
    selector::{LabelSelector, Labels},
    status::{PodsByMode, PolicyStatus},
};
use kubeveil_core::{
    action::Action,
    backstop::{Choice, Form},
    observed::Link,
    policy::{
        Namespaces, Policies, Policy, PolicyId, Standing,
        pods::{Pod, Workloads},
    },
    snapshot::Snapshot,
};
use kubeveil_linux::Kernel;

use super::bench::{Bench, Shared};
use crate::{
    node::{Node, Now},
    status::view,
};

fn told<K: Kernel>(node: &mut Node<K>, now: Now) -> Option<PolicyStatus> {
    view(node, now).status.policies
}

/// A policy for all pods of a namespace; of the cluster if it is called so.
pub(super) fn policy(name: &str, of: &str, mode: PolicyMode, until: Option<i64>) -> (PolicyId, Policy) {
    let namespace = (!name.starts_with("cluster")).then(|| of.to_owned());
    let until = until.map(|seconds| Timestamp::from_second(seconds).expect("a time"));
    let policy = Policy {
        namespaces: Namespaces::One(of.to_owned()),
        pods: LabelSelector::default(),
        mode,
        until,
        max_key_age: None,
    };
    (PolicyId { namespace, name: name.to_owned() }, policy)
}

pub(super) fn pod(name: &str, node: &str, namespace: &str, addresses: &[&str]) -> (String, Pod) {
    let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
    let (node, namespace) = (node.to_owned(), namespace.to_owned());
    (name.to_owned(), Pod { node, namespace, labels: Labels::new(), addresses, network_since: None })
}

/// Two nodes, in a mesh of this mode, with these policies and pods of three namespaces.
pub(super) fn bench(mode: Mode, policies: &[(PolicyId, Policy)]) -> Bench {
    let bench = Bench::new(2);
    let pods = BTreeMap::from([
        pod("ledger", "node-1", "payments", &["10.244.1.8", "fd00:244:1::8"]),
        pod("audit", "node-1", "payments", &["10.244.1.9"]),
        pod("shop", "node-1", "shop", &["10.244.1.10", "fd00:244:1::10"]),
        pod("not-yet", "node-1", "shop", &[]),
        pod("unheard-of", "node-1", "others", &["10.244.1.11"]),
        pod("theirs", "node-2", "payments", &["10.244.2.8"]),
    ]);
    let namespaces = ["payments", "shop"].map(|name| (name.to_owned(), Labels::new())).into();
    bench.world.change(|said| {
        said.snapshot.mesh.as_mut().expect("mesh").mode = mode;
        said.snapshot.policies = Policies::new(policies.iter().cloned().collect());
        said.snapshot.workloads =
            Arc::new(Workloads { namespaces, pods, knows_elsewhere: true, ..Workloads::default() });
    });
    bench
}

/// The pod with that address speaks by a device of its own.
pub(super) fn has_device(bench: &Bench, at: &str) {
    let (name, kind) = ("veth".to_owned(), Some("veth".to_owned()));
    let routes = vec![at.parse().expect("a prefix")];
    bench.kernel.with(|k| k.add_link(Link { name, kind, routes, ..Link::default() }));
}

/// Pods of this node alone, each once, with the strictest of its addresses; of whom nothing is known as strictly as anybody.
#[test]
fn what_policies_come_to_is_told() {
    let required = policy("p", "payments", PolicyMode::Require, None);
    let mut bench = bench(Mode::Observe, &[required, policy("cluster", "shop", PolicyMode::Prefer, None)]);
    let mut node = bench.start();
    bench.settle(&mut node);
    let expected = PolicyStatus {
        count: 2,
        namespaced: 1,
        others: Mode::Prefer,
        required: 3,
        pods: PodsByMode { prefer: 1, require: 3, ..PodsByMode::default() },
        known_by_device: 0,
        exemptions: 0,
        exemption_ends: None,
    };
    assert_eq!(told(&mut node, bench.now()), Some(expected.clone()));
    // Who began anew, and has not been told of pods, knows the policies.
    bench.world.change(|said| {
        said.whole = false;
        said.snapshot.policies = Policies::default();
        said.snapshot.workloads = Arc::default();
    });
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    let now = told(&mut again, bench.now()).expect("policies");
    assert_eq!((now.count, now.others, now.pods), (2, Mode::Prefer, PodsByMode::default()));
}

#[test]
fn without_policies_nothing_is_told_of_them() {
    let mut bench = bench(Mode::Require, &[]);
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(told(&mut node, bench.now()), None);
}

/// An exemption counts until it ends, whether or not it is in force; the next one to end is told.
#[test]
fn exemptions_are_counted_until_they_end() {
    let exempt = |name: &str, until| policy(name, "shop", PolicyMode::Exempt, until);
    let policies = [
        exempt("cluster-a", Some(10_000)),
        exempt("cluster-b", Some(20_000)),
        exempt("cluster-c", None),
        policy("cluster-d", "shop", PolicyMode::Require, None),
    ];
    let mut bench = bench(Mode::Require, &policies);
    let mut node = bench.start();
    bench.settle(&mut node);
    for (at, count, ends) in
        [(9_999, 3, Some(10_000)), (10_000, 2, Some(20_000)), (19_999, 2, Some(20_000)), (20_000, 1, None)]
    {
        let epoch = std::time::Duration::from_secs(at);
        let status = told(&mut node, Now { epoch, ..bench.now() }).expect("policies");
        assert_eq!((status.exemptions, status.exemption_ends), (count, ends), "at {at}");
        assert_eq!(status.count, 4);
    }
}

/// nftables knows no pod from another, so it goes by the strictest that is asked for, and not by what the mesh asks of all.
#[test]
fn the_table_of_an_observing_mesh_requires_what_a_policy_does() {
    let required = policy("p", "payments", PolicyMode::Require, None);
    let preferred = policy("p", "payments", PolicyMode::Prefer, None);
    for (mesh, policies, mode) in [
        (Mode::Observe, &[][..], kubeveil_abi::Mode::Observe),
        (Mode::Observe, &[preferred], kubeveil_abi::Mode::Prefer),
        (Mode::Observe, std::slice::from_ref(&required), kubeveil_abi::Mode::Require),
        (Mode::Prefer, std::slice::from_ref(&required), kubeveil_abi::Mode::Require),
    ] {
        let mut bench = bench(mesh, policies);
        let mut node = bench.start();
        node.backstop = Choice::Only(Form::Nftables);
        bench.settle(&mut node);
        assert_eq!(bench.truth().backstop.nftables.expect("a table").mode, mode, "{mesh}, {policies:?}");
    }
}

/// Where prefixes are known to be wrong, whoever may passes beside the tunnel. Whoever may not goes by it.
#[test]
fn a_pod_with_an_address_of_nobody_takes_no_tunnel_from_who_requires_one() {
    let required = policy("p", "payments", PolicyMode::Require, None);
    for (policies, tunnels) in [(&[][..], 0), (std::slice::from_ref(&required), 1)] {
        let mut bench = bench(Mode::Prefer, policies);
        let mut node = bench.start();
        bench.settle(&mut node);
        assert_eq!(bench.tunnelled(), 1, "{policies:?}");
        bench.world.change(|said| {
            said.snapshot.strangers.insert("Pod a/b has the address 10.9.0.1".to_owned());
        });
        bench.settle(&mut node);
        assert_eq!(bench.tunnelled(), tunnels, "{policies:?}");
    }
}

/// Pods behind a bridge are looked for until they are heard, at first every second. What is said of one ends with its device, and is told.
#[test]
fn a_pod_is_looked_for_until_it_is_heard() {
    let exempt = policy("cluster", "shop", PolicyMode::Exempt, None);
    let mut bench = bench(Mode::Require, &[exempt]);
    let link = |kind: &str, routes: &[&str], controller| Link {
        name: kind.to_owned(),
        kind: Some(kind.to_owned()),
        routes: routes.iter().map(|route| route.parse().expect("a prefix")).collect(),
        controller,
        ..Link::default()
    };
    let (bridge, port) = bench.kernel.with(|k| {
        let bridge = k.add_link(link("bridge", &["10.244.1.0/24", "fd00:244:1::/64"], None));
        (bridge, k.add_link(link("veth", &[], Some(bridge))))
    });
    let mut node = bench.start();
    bench.settle(&mut node);
    let look = |bench: &mut Bench, node: &mut Node<Shared>| {
        bench.seconds += 1;
        let wait = node.pass(bench.now());
        let told = told(node, bench.now()).expect("policies");
        (wait, told.known_by_device, told.pods.exempt)
    };
    let second = std::time::Duration::from_secs(1);
    let unknown = |node: &Node<Shared>, what: &str| {
        node.problems().iter().any(|problem| problem.message.contains(what))
    };
    assert_eq!(look(&mut bench, &mut node), (second, 0, 0));
    assert!(!unknown(&node, "by which device"), "that is told when it lasts: {:?}", node.problems());
    let waits: Vec<_> = (0..40).map(|_| look(&mut bench, &mut node).0).collect();
    assert!(waits[0] == second && *waits.last().expect("some") > second, "{waits:?}");
    assert!(unknown(&node, "not known by which device they speak"), "{:?}", node.problems());
    bench.kernel.with(|k| {
        for address in ["10.244.1.10", "fd00:244:1::10"] {
            k.hear(address.parse().expect("an address"), bridge, port);
        }
    });
    assert_eq!(look(&mut bench, &mut node).1, 2);
    assert_eq!(look(&mut bench, &mut node).2, 1);
    assert!(!unknown(&node, "by which device"), "{:?}", node.problems());
    // Another pod is looked for as often as the first was, though others of this node were never found.
    bench.world.change(|said| {
        let workloads = Arc::make_mut(&mut said.snapshot.workloads);
        workloads.pods.extend([pod("new", "node-1", "shop", &["10.244.1.20"])]);
    });
    assert_eq!(look(&mut bench, &mut node).0, second);
    bench.kernel.with(|k| k.delete_link("veth"));
    let (_, known, exempt) = look(&mut bench, &mut node);
    assert_eq!((known, exempt), (0, 0));
    assert!(!unknown(&node, "are gone"), "{:?}", node.problems());
    for _ in 0..40 {
        look(&mut bench, &mut node);
    }
    assert!(unknown(&node, "are gone"), "{:?}", node.problems());
}

/// What was said of who had an address is taken back before another device speaks for it; what loosens is said of who is known to have it;
/// and a device is forgotten after what it held up.
#[test]
fn no_step_gives_a_pods_rights_to_the_next() {
    let at = "10.244.1.10";
    let policies = [
        policy("cluster", "shop", PolicyMode::Exempt, None),
        policy("p", "payments", PolicyMode::Require, None),
    ];
    for (before, after, order) in [
        ("shop", "others", &["PutPrefix", "PutOrigin"][..]),
        ("shop", "payments", &["PutPrefix", "PutOrigin"]),
        ("others", "shop", &["PutOrigin", "PutPrefix"]),
        ("payments", "shop", &["PutOrigin", "PutPrefix"]),
        ("shop", "shop", &["PutOrigin"]),
        ("others", "", &["RemovePrefix", "RemoveOrigin"]),
    ] {
        let mut bench = bench(Mode::Require, &policies);
        let has = |bench: &Bench, uid: &str, namespace: &str| {
            let known = ["payments", "shop", "others"].map(|name| (name.to_owned(), Labels::new())).into();
            let pods = (!namespace.is_empty()).then(|| pod(uid, "node-1", namespace, &[at]));
            let workloads = Workloads {
                namespaces: known,
                pods: pods.into_iter().collect(),
                knows_elsewhere: true,
                ..Workloads::default()
            };
            bench.world.change(|said| said.snapshot.workloads = Arc::new(workloads));
            let routes = vec![format!("{at}/32").parse().expect("a prefix")];
            let (name, kind) = (uid.to_owned(), Some("veth".to_owned()));
            bench.kernel.with(|k| k.add_link(Link { name, kind, routes, ..Link::default() }));
        };
        has(&bench, "first", before);
        let mut node = bench.start();
        bench.settle(&mut node);
        bench.tried();
        bench.kernel.with(|k| k.delete_link("first"));
        has(&bench, "second", after);
        bench.settle(&mut node);
        let about = |action: &Action| match action {
            Action::PutPrefix(net, _) if net.addr().to_string() == at => Some("PutPrefix"),
            Action::RemovePrefix(net) if net.addr().to_string() == at => Some("RemovePrefix"),
            Action::PutOrigin(..) => Some("PutOrigin"),
            Action::RemoveOrigin(..) => Some("RemoveOrigin"),
            _ => None,
        };
        let steps: Vec<_> = bench.tried().iter().filter_map(about).collect();
        assert_eq!(steps, order, "{before} -> {after}");
    }
}

/// What a source tells of a pod whose network was made before the node was started last may be of before that: another may have its
/// address by now. So it counts as a pod of which nothing is told, until the kubelet has had time to tell of it.
#[test]
fn what_is_told_of_before_a_boot_does_not_count() {
    const BOOT: u64 = 1_000_000;
    let mut bench = bench(Mode::Observe, &[policy("p", "payments", PolicyMode::Require, None)]);
    let mut node = bench.start();
    bench.settle(&mut node);
    let prefixes = |bench: &Bench| bench.truth().datapath.expect("a datapath").prefixes;
    let mut held = |since: Option<u64>, uptime: u64| {
        let since =
            since.map(|at| Timestamp::from_second(i64::try_from(at).expect("a time")).expect("a time"));
        bench.world.change(|said| {
            let workloads = Arc::make_mut(&mut said.snapshot.workloads);
            workloads.pods.get_mut("shop").expect("a pod").network_since = since;
        });
        let [monotonic, epoch] = [uptime, BOOT + uptime].map(std::time::Duration::from_secs);
        for _ in 0..3 {
            node.pass(Now { monotonic, epoch });
        }
        prefixes(&bench).contains_key(&"10.244.1.10/32".parse().expect("a prefix"))
    };
    for (since, uptime, is_told) in [
        (Some(BOOT - 60), 100, false),
        (Some(BOOT + 20), 100, true),
        (None, 100, true),
        (Some(BOOT - 1), 100, true),
        (Some(BOOT - 60), 700, true),
    ] {
        assert_eq!(held(since, uptime), is_told, "{since:?} at {uptime}");
    }
}

/// Of each kind, with pods here and elsewhere: what stands costs nothing, whoever reads it.
#[test]
fn policies_that_stand_cost_no_write() {
    let policies = [
        policy("p", "payments", PolicyMode::Require, None),
        policy("cluster", "shop", PolicyMode::Exempt, Some(100_000)),
    ];
    let mut bench = bench(Mode::Require, &policies);
    bench.kernel.with(|kernel| kernel.nobody_answers());
    has_device(&bench, "10.244.1.10/32");
    bench.world.change(|said| {
        let require = Standing { mode: PolicyMode::Require, until: None };
        let slice = [([10, 244, 2, 9].into(), require)].into();
        let workloads = Arc::make_mut(&mut said.snapshot.workloads);
        workloads.elsewhere.insert("node-2".to_owned(), Arc::new(slice));
    });
    let mut node = bench.start();
    bench.settle(&mut node);
    let prefixes = bench.truth().datapath.expect("a datapath").prefixes;
    let asked = |net: &str| prefixes[&net.parse::<IpNet>().expect("a prefix")].asked;
    assert_eq!(
        ["10.244.1.8/32", "10.244.2.9/32", "10.244.1.10/32"].map(asked),
        [Asked::Require, Asked::Require, Asked::Exempt]
    );
    assert_eq!(bench.settle(&mut node), 0);
    // Clocks that go differently move no end of an exemption.
    let writes = node.writes;
    for ahead in [1, 2, 0] {
        let now = bench.now();
        node.pass(Now { epoch: now.epoch + std::time::Duration::from_secs(ahead), ..now });
    }
    assert_eq!(node.writes, writes);
    // The next daemon loads its programs, and finds all else as it should be.
    let mut again = bench.restart(node);
    bench.tried();
    bench.settle(&mut again);
    let tried = bench.tried();
    assert!(tried.iter().all(|action| matches!(action, Action::LoadPrograms)), "{tried:?}");
    assert_eq!(bench.settle(&mut again), 0);
}

/// Other nodes may hear later that nothing is required any more: until then they refuse what comes in plain.
#[test]
fn what_a_policy_had_steered_is_steered_a_moment_longer() {
    let required = policy("p", "payments", PolicyMode::Require, None);
    let mut bench = bench(Mode::Observe, std::slice::from_ref(&required));
    let mut node = bench.start();
    bench.settle(&mut node);
    let mode = |bench: &Bench| bench.truth().datapath.expect("a datapath").config.mode;
    let [steers, observes] =
        [kubeveil_abi::Mode::Prefer, kubeveil_abi::Mode::Observe].map(|mode| mode as u32);
    assert_eq!(mode(&bench), steers);
    bench.world.change(|said| said.snapshot.policies = Policies::default());
    let gone = bench.seconds;
    let mut wait = node.hear(bench.now());
    while mode(&bench) == steers {
        assert!(bench.seconds < gone + 60, "for ever");
        assert!(wait <= std::time::Duration::from_secs(5), "{wait:?}");
        bench.seconds += wait.as_secs().max(1);
        wait = node.pass(bench.now());
    }
    assert_eq!(mode(&bench), observes);
    assert_eq!(bench.seconds - gone, 5);
    // One that only ever observed waits for nothing.
    let bench = self::bench(Mode::Observe, &[]);
    let mut node = bench.start();
    bench.kernel.with(|kernel| kernel.nobody_answers());
    node.pass(bench.now());
    assert_eq!(mode(&bench), observes);
}

/// The disk took nothing when the mesh and a policy became stricter, and the next daemon is told of neither.
#[test]
fn what_is_on_disk_loosens_nothing_that_stands() {
    let exempt = policy("cluster", "payments", PolicyMode::Exempt, None);
    let mut bench = bench(Mode::Prefer, std::slice::from_ref(&exempt));
    bench.kernel.with(|kernel| kernel.nobody_answers());
    has_device(&bench, "10.244.1.8/32");
    let stands = |bench: &Bench| {
        let datapath = bench.truth().datapath.expect("a datapath");
        let asked = |net: &str| datapath.prefixes[&net.parse::<IpNet>().expect("a prefix")].asked;
        let (pod, pods) = (asked("10.244.1.8/32"), asked("10.244.1.0/24"));
        (datapath.config.mode, Asked::from_raw(datapath.config.unknown), pod, pods)
    };
    let [require, prefer] = [kubeveil_abi::Mode::Require, kubeveil_abi::Mode::Prefer].map(|mode| mode as u32);
    let loose = (prefer, Asked::Mesh, Asked::Exempt, Asked::Mesh);
    let strict = (require, Asked::Require, Asked::Require, Asked::Require);

    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(stands(&bench), loose);
    let file = bench.dir.path().join("known.json");
    let older = std::fs::read(&file).expect("kept");
    bench.world.change(|said| {
        said.snapshot.mesh.as_mut().expect("mesh").mode = Mode::Require;
        let required = policy("p", "payments", PolicyMode::Require, None);
        said.snapshot.policies = Policies::new([required].into());
    });
    bench.settle(&mut node);
    assert_eq!(stands(&bench), strict);

    std::fs::write(&file, &older).expect("put back");
    let before = bench.world.said().snapshot;
    bench.world.change(|said| (said.whole, said.snapshot) = (false, Snapshot::default()));
    bench.tried();
    let mut node = bench.restart(node);
    bench.settle(&mut node);
    let tried = bench.tried();
    let of_strictness = |action: &Action| matches!(action, Action::SetConfig(_) | Action::PutPrefix(..));
    assert!(!tried.iter().any(of_strictness), "{tried:?}");
    assert_eq!(stands(&bench), strict);

    // What is told loosens what it is about, and all that is known all.
    let mut mesh = before.mesh.clone();
    mesh.as_mut().expect("mesh").mode = Mode::Prefer;
    bench.world.change(|said| said.snapshot.mesh.clone_from(&mesh));
    bench.settle(&mut node);
    assert_eq!(stands(&bench), (prefer, Asked::Require, Asked::Require, Asked::Require));
    bench.world.change(|said| {
        let policies = Policies::new([exempt].into());
        (said.whole, said.snapshot) = (true, Snapshot { mesh, policies, ..before });
    });
    bench.settle(&mut node);
    assert_eq!(stands(&bench), loose);
}
