//! Held to a naive evaluation, written apart: by pods, in which every policy is looked at for each end of each flow.

mod explained;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use jiff::Timestamp;
use kubeveil_api::{
    mesh::Mode,
    policy::PolicyMode,
    selector::{LabelSelector, Labels, Operator, Requirement},
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    FlowMode, Namespaces, Policies, Policy, PolicyId, Standing, both, flow,
    pods::{Pod, Pods},
};

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 3] = ["app", "pci", "team"];
const VALUES: [&str; 2] = ["x", "y"];

fn second(at: i64) -> Timestamp {
    Timestamp::from_second(at).expect("a time")
}

fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&KEYS[..]), select(&VALUES[..])), 0..3)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn requirement() -> impl Strategy<Value = Requirement> {
    (select(&KEYS[..]), select(Operator::ALL), vec(select(&VALUES[..]), 1..3)).prop_map(
        |(key, operator, values)| {
            let has_values = matches!(operator, Operator::In | Operator::NotIn);
            let values = values.into_iter().filter(|_| has_values).map(str::to_owned).collect();
            Requirement { key: key.to_owned(), operator, values }
        },
    )
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    (labels(), vec(requirement(), 0..2))
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

fn policy() -> impl Strategy<Value = Policy> {
    let namespaces = prop_oneof![
        select(&NAMESPACES[..]).prop_map(|name| Namespaces::One(name.to_owned())),
        selector().prop_map(Namespaces::Labelled),
    ];
    let until = prop_oneof![Just(None), (0..4_i64).prop_map(|at| Some(second(at)))];
    (namespaces, selector(), select(PolicyMode::ALL), until).prop_map(|(namespaces, pods, mode, until)| {
        Policy {
            namespaces,
            pods,
            mode,
            until: until.filter(|_| mode == PolicyMode::Exempt),
            max_key_age: None,
        }
    })
}

fn pod() -> impl Strategy<Value = Pod> {
    (select(&NAMESPACES[..]), labels(), vec(0..4_u8, 0..3)).prop_map(|(namespace, labels, addresses)| {
        let addresses = addresses.into_iter().map(address).collect();
        Pod { node: String::new(), namespace: namespace.to_owned(), labels, addresses, network_since: None }
    })
}

fn address(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n).into()
}

fn named(policies: &[Policy]) -> Policies {
    let named = policies.iter().enumerate();
    let id = |n: usize| PolicyId { namespace: None, name: n.to_string() };
    Policies::new(named.map(|(n, policy)| (id(n), policy.clone())).collect())
}

/// A cluster: the labels of its namespaces, its policies, and two pods.
type Case = (Vec<Labels>, Vec<Policy>, Pod, Pod, Mode);

fn case() -> impl Strategy<Value = Case> {
    (vec(labels(), 3), vec(policy(), 0..6), pod(), pod(), select(Mode::ALL))
}

fn of_namespace<'a>(namespaces: &'a [Labels], pod: &Pod) -> &'a Labels {
    &namespaces[NAMESPACES.iter().position(|name| *name == pod.namespace).expect("a namespace")]
}

/// By classes: what a pod's policies come to, and then the flow.
fn by_standing((namespaces, policies, one, other, mesh): &Case, now: Timestamp) -> FlowMode {
    let policies = named(policies);
    let ends = [one, other].map(|pod| {
        policies.of_namespace(&pod.namespace, of_namespace(namespaces, pod)).standing(&pod.labels)
    });
    flow(policies.base(*mesh), ends, now)
}

/// As it is written for people: "the strictest of the policies that select it, or the mesh's mode when none does; a flow's mode is the
/// strictest of its two ends; with anything in force that wants encryption, an observing mesh behaves as prefer".
fn naive((namespaces, policies, one, other, mesh): &Case, now: Timestamp) -> FlowMode {
    fn holds(selector: &LabelSelector, labels: &Labels) -> bool {
        for (key, value) in &selector.match_labels {
            if labels.get(key) != Some(value) {
                return false;
            }
        }
        for Requirement { key, operator, values } in &selector.match_expressions {
            let is_so = match (operator, labels.get(key)) {
                (Operator::In, Some(value)) => values.contains(value),
                (Operator::NotIn, Some(value)) => !values.contains(value),
                (Operator::NotIn | Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => true,
                (Operator::In | Operator::Exists, None) | (Operator::DoesNotExist, Some(_)) => false,
            };
            if !is_so {
                return false;
            }
        }
        true
    }
    let steers = *mesh != Mode::Observe || policies.iter().any(|policy| policy.mode != PolicyMode::Exempt);
    if !steers {
        return FlowMode::Observe;
    }
    let mut strictest = None;
    for pod in [one, other] {
        let mut modes = Vec::new();
        for policy in policies {
            let is_of = match &policy.namespaces {
                Namespaces::One(name) => *name == pod.namespace,
                Namespaces::Labelled(selector) => holds(selector, of_namespace(namespaces, pod)),
            };
            let is_over = policy.until.is_some_and(|until| until <= now);
            if is_of && !is_over && holds(&policy.pods, &pod.labels) {
                modes.push(policy.mode);
            }
        }
        let mode = match (modes.into_iter().max(), mesh) {
            (Some(PolicyMode::Require), _) | (None, Mode::Require) => FlowMode::Require,
            (Some(PolicyMode::Prefer), _) | (None, Mode::Prefer | Mode::Observe) => FlowMode::Prefer,
            (Some(PolicyMode::Exempt), _) => FlowMode::Exempt,
        };
        strictest = strictest.max(Some(mode));
    }
    strictest.expect("two ends")
}

/// So many random clusters; or as many as somebody wants (`cargo xtask clusters`).
fn clusters(usually: u32) -> ProptestConfig {
    let wanted = std::env::var("KUBEVEIL_CLUSTERS").ok();
    let cases = wanted.map_or(usually, |number| number.parse().expect("KUBEVEIL_CLUSTERS is a number"));
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(clusters(10_000))]

    #[test]
    fn by_standing_is_as_by_pods(case in case()) {
        for now in 0..5 {
            prop_assert_eq!(by_standing(&case, second(now)), naive(&case, second(now)));
        }
    }

    #[test]
    fn what_only_tightens_never_loosens(case in case(), mut more in policy(), now in 0..5_i64) {
        let before = by_standing(&case, second(now));
        (more.mode, more.until) = (PolicyMode::Require, None);
        let mut after = case;
        after.1.push(more);
        prop_assert!(by_standing(&after, second(now)) >= before);
    }

    #[test]
    fn no_order_matters(case in case(), now in 0..5_i64, turn in 0..6_usize) {
        let mut turned = case.clone();
        if !turned.1.is_empty() {
            let by = turn % turned.1.len();
            turned.1.rotate_left(by);
        }
        std::mem::swap(&mut turned.2, &mut turned.3);
        prop_assert_eq!(by_standing(&case, second(now)), by_standing(&turned, second(now)));
    }

    /// Nobody who is known is held to more than somebody who is not.
    #[test]
    fn the_unknown_is_the_strictest((namespaces, policies, one, _, mesh) in case(), now in 0..5_i64) {
        let policies = named(&policies);
        let base = policies.base(mesh);
        let standing =
            policies.of_namespace(&one.namespace, of_namespace(&namespaces, &one)).standing(&one.labels);
        let unknown = policies.strictest().map_or(base, |most| base.max(most.into()));
        prop_assert!(super::end(base, standing, second(now)) <= unknown);
    }
}

/// What happens to a table of pods.
#[derive(Clone, Debug)]
enum Event {
    Policies(Vec<Policy>),
    Namespace(usize, Option<Labels>),
    Pod(u8, Option<Pod>),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => vec(policy(), 0..5).prop_map(Event::Policies),
        2 => (0..3_usize, proptest::option::weighted(0.8, labels())).prop_map(|(n, labels)| Event::Namespace(n, labels)),
        4 => (0..4_u8, proptest::option::weighted(0.8, pod())).prop_map(|(n, pod)| Event::Pod(n, pod)),
    ]
}

/// What the table says of every address.
fn told(pods: &Pods, base: FlowMode) -> BTreeMap<IpAddr, Option<Option<Standing>>> {
    (0..4).map(|n| (address(n), pods.of_address(base, &address(n)))).collect()
}

proptest! {
    #![proptest_config(clusters(2_000))]

    /// Step by step it comes to what it does from scratch, and tells of every address that is otherwise.
    #[test]
    fn step_by_step_is_as_from_scratch(events in vec(event(), 1..12)) {
        let mut table = Pods::default();
        let (mut policies, mut namespaces, mut pods) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for event in events {
            let before = told(&table, FlowMode::Prefer);
            let changed = match event {
                Event::Policies(now) => {
                    policies = now;
                    table.set_policies(named(&policies))
                }
                Event::Namespace(n, labels) => {
                    namespaces.insert(n, labels.clone());
                    table.set_namespace(NAMESPACES[n], labels)
                }
                Event::Pod(n, pod) => {
                    pods.insert(n, pod.clone());
                    table.set_pod(&n.to_string(), pod)
                }
            };
            let mut scratch = Pods::default();
            scratch.set_policies(named(&policies));
            for (n, pod) in &pods {
                scratch.set_pod(&n.to_string(), pod.clone());
            }
            for (n, labels) in &namespaces {
                scratch.set_namespace(NAMESPACES[*n], labels.clone());
            }
            prop_assert_eq!(&table, &scratch);
            let after = told(&table, FlowMode::Prefer);
            let otherwise: BTreeSet<_> = after.iter().filter(|(at, now)| before[*at] != **now).map(|(at, _)| *at).collect();
            prop_assert!(otherwise.is_subset(&changed), "{otherwise:?} and told were {changed:?}");
        }
    }
}

#[test]
fn of_two_pods_with_one_address_the_stricter_counts() {
    let exempt = |until: Option<i64>| Some(Standing { mode: PolicyMode::Exempt, until: until.map(second) });
    let require = Some(Standing { mode: PolicyMode::Require, until: None });
    for (one, other, stricter) in [
        (None, exempt(None), None),
        (None, require, require),
        (exempt(Some(2)), exempt(Some(1)), exempt(Some(1))),
        (exempt(Some(2)), exempt(None), exempt(Some(2))),
        (exempt(None), require, require),
    ] {
        assert_eq!(both(FlowMode::Prefer, one, other), stricter);
        assert_eq!(both(FlowMode::Prefer, other, one), stricter);
    }
    // Where the mesh requires, it is stricter than what prefers.
    let prefer = Some(Standing { mode: PolicyMode::Prefer, until: None });
    assert_eq!(both(FlowMode::Require, prefer, None), None);
    assert_eq!(both(FlowMode::Observe, prefer, None), prefer);
}

/// Somebody whose namespace is not known is nobody who is known.
#[test]
fn without_its_namespace_nothing_is_known_of_a_pod() {
    let mut pods = Pods::default();
    let pod = Pod { namespace: "a".to_owned(), addresses: [address(1)].into(), ..Pod::default() };
    pods.set_pod("u", Some(pod));
    assert_eq!(pods.of_address(FlowMode::Prefer, &address(1)), None);
    assert_eq!(pods.set_namespace("a", Some(Labels::new())), [address(1)].into());
    assert_eq!(pods.of_address(FlowMode::Prefer, &address(1)), Some(None));
    assert_eq!(pods.set_namespace("a", None), [address(1)].into());
    assert_eq!(pods.of_address(FlowMode::Prefer, &address(1)), None);
}
