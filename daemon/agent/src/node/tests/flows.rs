//! From labels to packets: what the programs make of a flow, over the maps that the daemon wrote, is what somebody says who looks at every
//! policy for each end.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use kubeveil_api::{
    mesh::Mode,
    pod_slice::SlicedPod,
    policy::PolicyMode,
    selector::{LabelSelector, Labels},
};
use kubeveil_core::{
    observed::Link,
    policy::{
        FlowMode, Namespaces, Policies, Policy, PolicyId,
        pods::{Pod, Workloads, exceptions},
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{bench::Bench, faults::packets::Datapath};

const NAMESPACES: [&str; 2] = ["a", "b"];
const KEYS: [&str; 2] = ["app", "pci"];
const VALUES: [&str; 2] = ["x", "y"];

/// Namespaces' labels, policies, pods of this node and of another, in a mesh of a mode.
#[derive(Clone, Debug)]
struct Cluster {
    namespaces: Vec<Labels>,
    policies: Vec<Policy>,
    /// Namespace and labels.
    here: Vec<(usize, Labels)>,
    there: Vec<(usize, Labels)>,
    mode: Mode,
}

fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&KEYS[..]), select(&VALUES[..])), 0..3)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    labels().prop_map(|match_labels| LabelSelector { match_labels, match_expressions: vec![] })
}

fn policy() -> impl Strategy<Value = Policy> {
    let namespaces = prop_oneof![
        select(&NAMESPACES[..]).prop_map(|name| Namespaces::One(name.to_owned())),
        selector().prop_map(Namespaces::Labelled),
    ];
    (namespaces, selector(), select(PolicyMode::ALL)).prop_map(|(namespaces, pods, mode)| Policy {
        namespaces,
        pods,
        mode,
        until: None,
        max_key_age: None,
    })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let pods = || vec((0..NAMESPACES.len(), labels()), 1..4);
    let all = (vec(labels(), NAMESPACES.len()), vec(policy(), 0..5), pods(), pods(), select(Mode::ALL));
    all.prop_map(|(namespaces, policies, here, there, mode)| Cluster {
        namespaces,
        policies,
        here,
        there,
        mode,
    })
}

/// Both addresses of the `n`th pod of node `node`.
fn addresses(node: u8, n: usize) -> [IpAddr; 2] {
    let n = n + 10;
    [format!("10.244.{node}.{n}"), format!("fd00:244:{node}::{n}")]
        .map(|text| text.parse().expect("an address"))
}

/// As README says it: the strictest of the policies that select a pod, or the mesh's mode; of a flow the strictest of both ends; and in an
/// observing mesh nothing is steered unless a policy wants encryption of somebody.
fn said(cluster: &Cluster, ends: [&(usize, Labels); 2]) -> FlowMode {
    let holds = |selector: &LabelSelector, labels: &Labels| {
        selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    if cluster.mode == Mode::Observe && cluster.policies.iter().all(|p| p.mode == PolicyMode::Exempt) {
        return FlowMode::Observe;
    }
    let of = |(namespace, labels): &(usize, Labels)| {
        let mut strictest = None;
        for policy in &cluster.policies {
            let is_of = match &policy.namespaces {
                Namespaces::One(name) => *name == NAMESPACES[*namespace],
                Namespaces::Labelled(selector) => holds(selector, &cluster.namespaces[*namespace]),
            };
            if is_of && holds(&policy.pods, labels) {
                strictest = strictest.max(Some(policy.mode));
            }
        }
        match (strictest, cluster.mode) {
            (Some(PolicyMode::Require), _) | (None, Mode::Require) => FlowMode::Require,
            (Some(PolicyMode::Prefer), _) | (None, Mode::Prefer | Mode::Observe) => FlowMode::Prefer,
            (Some(PolicyMode::Exempt), _) => FlowMode::Exempt,
        }
    };
    ends.map(of).into_iter().max().expect("two ends")
}

/// A daemon that has been told of all that, with no tunnel to the other node; by which device each pod of this node speaks.
fn told(cluster: &Cluster) -> (Bench, Vec<u32>) {
    let id = |n: usize| PolicyId { namespace: None, name: n.to_string() };
    let named = cluster.policies.iter().enumerate().map(|(n, policy)| (id(n), policy.clone()));
    let policies = Policies::new(named.collect());
    let base = policies.base(cluster.mode);
    let namespaces: BTreeMap<String, Labels> = NAMESPACES
        .iter()
        .zip(&cluster.namespaces)
        .map(|(name, labels)| ((*name).to_owned(), labels.clone()))
        .collect();
    let here = cluster.here.iter().enumerate().map(|(n, (namespace, labels))| {
        let pod = Pod {
            node: "node-1".to_owned(),
            namespace: NAMESPACES[*namespace].to_owned(),
            labels: labels.clone(),
            addresses: addresses(1, n).into(),
            network_since: None,
        };
        (n.to_string(), pod)
    });
    // As the controller tells it.
    let there = cluster.there.iter().enumerate().filter_map(|(n, (namespace, labels))| {
        let name = NAMESPACES[*namespace];
        let standing = policies.of_namespace(name, &namespaces[name]).standing(labels)?;
        let (namespace, addresses) = (name.to_owned(), addresses(2, n).into());
        let sliced =
            SlicedPod { namespace, name: n.to_string(), addresses, mode: standing.mode, until: None };
        standing.is_exception(base).then_some(sliced)
    });
    let workloads = Workloads {
        pods: here.collect(),
        elsewhere: [("node-2".to_owned(), Arc::new(exceptions(&there.collect::<Vec<_>>())))].into(),
        knows_elsewhere: true,
        namespaces,
    };
    let mut bench = Bench::new(2);
    let devices = (0..cluster.here.len()).map(|n| {
        let (name, kind) = (format!("veth{n}"), Some("veth".to_owned()));
        let routes = addresses(1, n).map(Into::into).into();
        bench.kernel.with(|k| k.add_link(Link { name, kind, routes, ..Link::default() }))
    });
    let devices = devices.collect();
    bench.kernel.with(|kernel| kernel.nobody_answers());
    bench.world.change(|said| {
        said.snapshot.mesh.as_mut().expect("mesh").mode = cluster.mode;
        said.snapshot.policies = policies.clone();
        said.snapshot.workloads = workloads.into();
    });
    let mut node = bench.start();
    bench.settle(&mut node);
    (bench, devices)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Out of this node and into it, in both families, at a device that is guarded.
    #[test]
    fn packets_are_held_as_policies_say(cluster in cluster()) {
        let (bench, devices) = told(&cluster);
        let datapath = bench.kernel.with(|kernel| Datapath::of(kernel));
        let underlay = datapath.devices()[0].0;
        for (n, here) in cluster.here.iter().enumerate() {
            for (m, there) in cluster.there.iter().enumerate() {
                let is_held = said(&cluster, [here, there]) == FlowMode::Require;
                for (own, other) in addresses(1, n).into_iter().zip(addresses(2, m)) {
                    let out = datapath.holds_out(own, other, devices[n], underlay);
                    let into = datapath.holds_in(other, own, underlay);
                    prop_assert_eq!((out, into), (is_held, is_held), "{} and {}", own, other);
                }
            }
        }
    }
}
