//! What is not known yet, or not any more, holds nobody to less.

use std::sync::Arc;

use ipnet::IpNet;
use kubeveil_abi::Asked;
use kubeveil_api::{mesh::Mode, policy::PolicyMode};
use kubeveil_core::{
    observed::Link,
    policy::{Policies, pods::Workloads},
    snapshot::Snapshot,
};
use kubeveil_linux::fake::FakeKernel;

use super::{
    bench::{Bench, Shared},
    policies::{bench, has_device, pod, policy},
};
use crate::node::Node;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// Mode, and what is asked of whom nobody told of.
fn config(bench: &Bench) -> (kubeveil_abi::Mode, Asked) {
    let config = bench.truth().datapath.expect("a datapath").config;
    (kubeveil_abi::Mode::from_raw(config.mode), Asked::from_raw(config.unknown))
}

/// What stands of an address.
fn asked(bench: &Bench, at: &str) -> Option<Asked> {
    bench.truth().datapath.expect("a datapath").prefixes.get(&net(at)).map(|prefix| prefix.asked)
}

/// The mesh is told of, and nothing else.
fn only_the_mesh(bench: &Bench) {
    bench.world.change(|said| {
        let mesh = said.snapshot.mesh.clone();
        (said.whole, said.snapshot) = (false, Snapshot { mesh, ..Snapshot::default() });
    });
}

/// A mesh that observes, and a policy that was made while the node was off: nothing passes before it was told of, by whatever it comes.
#[test]
fn a_policy_that_was_not_told_of_yet_is_not_ruled_out() {
    let required = policy("p", "payments", PolicyMode::Require, None);
    let mut bench = bench(Mode::Observe, &[]);
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(config(&bench), (kubeveil_abi::Mode::Observe, Asked::Mesh), "nobody asks for anything");

    // It boots: of all that was in the kernel nothing is left, and nothing was told yet.
    let all = bench.world.said().snapshot;
    bench.world.change(|said| (said.whole, said.snapshot) = (false, Snapshot::default()));
    drop(node);
    let addresses = ["192.0.2.1/24", "2001:db8::1/64"].map(net);
    bench.kernel.with(|kernel| *kernel = FakeKernel::new("build", &addresses));
    let mut node = bench.start();
    let holds_all = |bench: &Bench| {
        assert_eq!(config(bench), (kubeveil_abi::Mode::Prefer, Asked::Require), "there may be one");
        for pods in ["10.244.1.0/24", "10.244.2.0/24", "10.244.0.0/16"] {
            assert_eq!(asked(bench, pods), Some(Asked::Require), "{pods}");
        }
    };
    bench.settle(&mut node);
    holds_all(&bench);
    bench.world.change(|said| said.snapshot.mesh.clone_from(&all.mesh));
    for _ in 0..3 {
        bench.settle(&mut node);
        holds_all(&bench);
    }
    let policies = Policies::new([required].into());
    bench.world.change(|said| (said.whole, said.snapshot) = (true, Snapshot { policies, ..all.clone() }));
    bench.settle(&mut node);
    assert_eq!(config(&bench), (kubeveil_abi::Mode::Prefer, Asked::Require));
    let kept = bench.dir.path().join("known.json");
    let with_it = std::fs::read(&kept).expect("kept");
    bench.world.change(|said| said.snapshot.policies = Policies::default());
    for _ in 0..3 {
        bench.settle(&mut node);
    }
    assert_eq!(config(&bench), (kubeveil_abi::Mode::Observe, Asked::Mesh), "it was told that there is none");

    // It is made again, and the disk takes nothing of that.
    let without = std::fs::read(&kept).expect("kept");
    assert_ne!(with_it, without);
    let policies = Policies::new([policy("p", "payments", PolicyMode::Require, None)].into());
    bench.world.change(|said| said.snapshot.policies = policies);
    bench.settle(&mut node);
    std::fs::write(&kept, without).expect("put back");
    only_the_mesh(&bench);
    let mut node = bench.restart(node);
    for _ in 0..3 {
        bench.settle(&mut node);
        assert_eq!(config(&bench), (kubeveil_abi::Mode::Prefer, Asked::Require), "what stands stands");
    }
}

/// One of its pods is another, by what is told of it while not all is known.
fn becomes(bench: &mut Bench, node: &mut Node<Shared>, namespace: &str) {
    bench.world.change(|said| {
        let workloads = Arc::make_mut(&mut said.snapshot.workloads);
        workloads.pods.retain(|_, pod| !pod.addresses.contains(&"10.244.1.10".parse().expect("an address")));
        workloads.pods.extend([pod(namespace, "node-1", namespace, &["10.244.1.10"])]);
        said.whole = false;
    });
    bench.settle(node);
}

/// An exemption ends with its label, and with its pod, though not all be known: to take an entry away waits for that, to say more does not.
#[test]
fn an_exemption_does_not_wait_for_all_to_be_known_to_end() {
    for policies in [
        vec![policy("cluster", "shop", PolicyMode::Exempt, None)],
        vec![
            policy("cluster", "shop", PolicyMode::Exempt, None),
            policy("p", "payments", PolicyMode::Require, None),
        ],
    ] {
        for next in ["others", "payments", "shop"] {
            let mut bench = bench(Mode::Require, &policies);
            has_device(&bench, "10.244.1.10/32");
            let mut node = bench.start();
            bench.settle(&mut node);
            assert_eq!(asked(&bench, "10.244.1.10/32"), Some(Asked::Exempt));
            becomes(&mut bench, &mut node, next);
            // `others` is no namespace that is known: the exemption is of the first one's device, which is there still.
            let wanted = match next {
                "payments" if policies.len() == 2 => Asked::Require,
                "payments" => Asked::Mesh,
                _ => Asked::Exempt,
            };
            assert_eq!(asked(&bench, "10.244.1.10/32"), Some(wanted), "{next} of {}", policies.len());
        }
    }
}

/// What was said of a pod is taken back before the next one at its address may speak by its own device, of whom nothing is known.
#[test]
fn no_device_is_bound_to_what_was_asked_of_another() {
    let mut bench = bench(Mode::Require, &[policy("cluster", "shop", PolicyMode::Exempt, None)]);
    has_device(&bench, "10.244.1.10/32");
    let mut node = bench.start();
    bench.settle(&mut node);
    bench.tried();
    bench.kernel.with(|kernel| kernel.delete_link("veth"));
    let (name, kind) = ("another".to_owned(), Some("veth".to_owned()));
    let link = Link { name, kind, routes: vec![net("10.244.1.10/32")], ..Link::default() };
    bench.kernel.with(|kernel| kernel.add_link(link));
    bench.world.change(|said| {
        let workloads = Arc::make_mut(&mut said.snapshot.workloads);
        workloads.pods.retain(|_, pod| !pod.addresses.contains(&"10.244.1.10".parse().expect("an address")));
        workloads.pods.extend([pod("next", "node-1", "others", &["10.244.1.10"])]);
    });
    bench.settle(&mut node);
    let steps: Vec<String> = bench.tried().iter().map(ToString::to_string).collect();
    let at = |what: &str| steps.iter().position(|step| step.contains(what) && step.contains("10.244.1.10"));
    let (said, bound) = (at("put prefix"), at("behind"));
    assert!(said.is_some() && bound.is_some() && said < bound, "{steps:#?}");
    assert_eq!(asked(&bench, "10.244.1.10/32"), None, "nothing is left to be said of it");
}

/// A pod whose plugin gives it an address of another node's: what is required of it is required there, and of nobody else's pods.
#[test]
fn what_is_required_of_a_pod_is_required_at_any_address() {
    let mut bench = bench(Mode::Prefer, &[policy("p", "payments", PolicyMode::Require, None)]);
    bench.world.change(|said| {
        let workloads = Arc::make_mut(&mut said.snapshot.workloads);
        workloads.pods.extend([
            pod("astray", "node-1", "payments", &["10.244.2.77"]),
            pod("shop-astray", "node-1", "shop", &["10.244.2.78"]),
            pod("liar", "node-2", "payments", &["10.244.1.79"]),
        ]);
    });
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(asked(&bench, "10.244.2.77/32"), Some(Asked::Require));
    assert_eq!(asked(&bench, "10.244.2.78/32"), None);
    assert_eq!(asked(&bench, "10.244.1.79/32"), None);
}

/// An exemption that stands with an end keeps it, where the disk knows of none.
#[test]
fn no_end_is_put_off_by_what_was_kept() {
    let exempt = |until| policy("cluster", "payments", PolicyMode::Exempt, until);
    let mut bench = bench(Mode::Require, &[exempt(None)]);
    has_device(&bench, "10.244.1.8/32");
    let mut node = bench.start();
    bench.settle(&mut node);
    let kept = bench.dir.path().join("known.json");
    let without = std::fs::read(&kept).expect("kept");
    let until = i64::try_from(bench.seconds).expect("a time") + 1000;
    bench.world.change(|said| said.snapshot.policies = Policies::new([exempt(Some(until))].into()));
    bench.settle(&mut node);
    let end =
        |bench: &Bench| bench.truth().datapath.expect("a datapath").prefixes[&net("10.244.1.8/32")].until;
    let stands = end(&bench);
    assert_ne!(stands, 0);
    std::fs::write(&kept, without).expect("put back");
    bench.world.change(|said| {
        let workloads = said.snapshot.workloads.clone();
        (said.whole, said.snapshot) = (false, Snapshot { workloads, ..Snapshot::default() });
    });
    let mut node = bench.restart(node);
    bench.settle(&mut node);
    assert_eq!((asked(&bench, "10.244.1.8/32"), end(&bench)), (Some(Asked::Exempt), stands));
}

/// Whoever has just joined is told of the mesh and of its policies at once: where it observes, nothing is touched before all else is known.
#[test]
fn who_joins_a_mesh_that_observes_touches_nothing() {
    let mut bench = bench(Mode::Observe, &[]);
    let all = bench.world.said().snapshot;
    bench.world.change(|said| (said.whole, said.snapshot) = (false, Snapshot::default()));
    let mut node = bench.start();
    bench.seconds += 1;
    node.pass(bench.now());
    bench.world.change(|said| {
        let workloads = Arc::default();
        (said.whole, said.snapshot) = (false, Snapshot { workloads, ..all.clone() });
    });
    for second in 0..20 {
        bench.seconds += 1;
        node.pass(bench.now());
        let (mode, unknown) = config(&bench);
        assert_ne!(mode, kubeveil_abi::Mode::Require, "after {second} s");
        assert_eq!(unknown, Asked::Mesh, "after {second} s");
        assert_eq!(asked(&bench, "10.244.2.0/24"), Some(Asked::Mesh), "after {second} s");
    }
    assert_eq!(config(&bench).0, kubeveil_abi::Mode::Observe);
}

/// A daemon that begins, and is told nothing, or of pods and not of their namespaces, leaves what is said of them as it stands.
#[test]
fn a_restart_takes_back_nothing_that_holds() {
    for (mode, policies) in [
        (Mode::Require, vec![policy("cluster", "shop", PolicyMode::Exempt, None)]),
        (
            Mode::Prefer,
            vec![
                policy("cluster", "shop", PolicyMode::Exempt, None),
                policy("p", "payments", PolicyMode::Require, None),
            ],
        ),
    ] {
        let mut bench = bench(mode, &policies);
        has_device(&bench, "10.244.1.10/32");
        let mut node = bench.start();
        bench.settle(&mut node);
        let stands = bench.truth().datapath.expect("a datapath").prefixes;
        let all = bench.world.said().snapshot;
        for tells_pods in [false, true] {
            let mut workloads = Workloads::default();
            if tells_pods {
                workloads.pods.clone_from(&all.workloads.pods);
            }
            bench.world.change(|said| {
                (said.whole, said.snapshot) =
                    (false, Snapshot { workloads: Arc::new(workloads), ..Snapshot::default() });
            });
            node = bench.restart(node);
            bench.settle(&mut node);
            let now = bench.truth().datapath.expect("a datapath").prefixes;
            assert_eq!(now, stands, "{mode} {tells_pods}");
        }
    }
}
