//! What is decided of a few pods is what would be decided of all.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kubeveil_abi::Origin;
use kubeveil_api::{
    mesh::Mode,
    policy::PolicyMode,
    selector::{LabelSelector, Labels},
};
use proptest::prelude::*;

use super::*;
use crate::{
    desired::{desired, tests::World},
    observed::Datapath,
    origin::in_few_words,
    ownership::Owners,
    plan::{Endpoints, plan},
    policy::{
        Namespaces, Policies, Policy, PolicyId, Standing,
        pods::{Exceptions, OfPods, Pod, Workloads},
    },
    snapshot::Knowledge,
    testing::{mesh, node, snapshot},
};

const OTHERS: [&str; 3] = ["n2", "n3", "n4"];
const NOW: Duration = Duration::from_secs(1_000);

/// Of an address, and what is asked of it.
type Asks = (u8, Standing);

/// A pod of this node: its address, its namespace, its label; and whether its device is known, and there.
type Own = (u8, u8, u8, Option<bool>);

#[derive(Debug)]
struct Case {
    mesh: Mode,
    /// A policy of the cluster for all pods of namespaces labelled 1, and one for pods labelled 1 wherever.
    policies: [PolicyMode; 2],
    /// This node's pods, or what they say.
    pods: Vec<Own>,
    before: Vec<Vec<Asks>>,
    /// What is asked of pods of some nodes afterwards; `None`: nothing else than of all.
    after: Vec<(usize, Option<Vec<Asks>>)>,
    /// The pods that are labelled otherwise then, and how.
    labelled: Vec<(usize, u8)>,
    /// The namespaces.
    namespaces: Vec<(u8, u8)>,
}

/// Few, so that nodes speak of each other's, of this node's, and of nobody's.
fn address(n: u8) -> IpAddr {
    let (node, host) = (n % 6 + 1, n / 6 % 3 + 1);
    let text = if n < 18 { format!("10.244.{node}.{host}") } else { format!("fd00:244:{node}::{host}") };
    text.parse().expect("an address")
}

fn mode() -> impl Strategy<Value = PolicyMode> {
    prop_oneof![Just(PolicyMode::Exempt), Just(PolicyMode::Prefer), Just(PolicyMode::Require)]
}

fn asks() -> impl Strategy<Value = Vec<Asks>> {
    // Over, in two seconds of each other, and for ever.
    let until = prop_oneof![
        2 => Just(None),
        1 => prop_oneof![Just(900), Just(2_000), Just(2_001), Just(5_000)].prop_map(Some)
    ];
    let standing = (mode(), until).prop_map(|(mode, until)| {
        let until = until.filter(|_| mode == PolicyMode::Exempt);
        Standing { mode, until: until.map(|at| Timestamp::from_second(at).expect("a time")) }
    });
    prop::collection::vec((0u8..36, standing), 0..5)
}

fn own() -> impl Strategy<Value = Own> {
    // Namespace 2 is not known.
    (
        0u8..36,
        prop_oneof![4 => 0u8..2, 1 => Just(2)],
        0u8..2,
        prop::option::weighted(0.7, prop::bool::weighted(0.7)),
    )
}

fn case() -> impl Strategy<Value = Case> {
    let mesh = prop_oneof![Just(Mode::Require), Just(Mode::Prefer), Just(Mode::Observe)];
    let after = prop::collection::vec((0..OTHERS.len(), prop::option::weighted(0.8, asks())), 0..3);
    let pods = prop::collection::vec(own(), 0..4);
    let before = prop::collection::vec(asks(), OTHERS.len());
    let labelled = prop::collection::vec((0usize..4, 0u8..2), 0..3);
    let namespaces = prop::collection::vec((0u8..2, 0u8..2), 0..2);
    (mesh, [mode(), mode()], pods, before, after, labelled, namespaces).prop_map(
        |(mesh, policies, pods, before, after, labelled, namespaces)| {
            let labelled = labelled.into_iter().filter(|(n, _)| *n < pods.len()).collect();
            Case { mesh, policies, pods, before, after, labelled, namespaces }
        },
    )
}

fn labels(n: u8) -> Labels {
    [("l".to_owned(), n.to_string())].into()
}

fn exceptions(asks: &[Asks]) -> Arc<Exceptions> {
    Arc::new(asks.iter().map(|(n, standing)| (address(*n), *standing)).collect())
}

fn uid(n: usize) -> String {
    format!("uid-{n}")
}

/// What is decided on, before.
fn world(case: &Case) -> World {
    let nodes = [("me", node(1)), ("n2", node(2)), ("n3", node(3)), ("n4", node(4))];
    let mut all = snapshot(&nodes);
    let settings = all.mesh.as_mut().expect("mesh");
    settings.mode = case.mesh;
    // A prefix of one address that is there without any policy.
    settings.pod_cidrs.push(IpNet::from(address(3)));
    let one = || LabelSelector { match_labels: labels(1), ..LabelSelector::default() };
    let policy = |name: &str, mode, namespaces, pods| {
        let id = PolicyId { namespace: None, name: name.to_owned() };
        let namespaces = Namespaces::Labelled(namespaces);
        (id, Policy { namespaces, pods, mode, until: None, max_key_age: None })
    };
    let [of_namespaces, of_pods] = case.policies;
    let policies = [
        policy("n", of_namespaces, one(), LabelSelector::default()),
        policy("p", of_pods, LabelSelector::default(), one()),
    ];
    all.policies = Policies::new(policies.into());
    let pod = |(n, (at, namespace, label, _)): (usize, &Own)| {
        let addresses = [address(*at)].into();
        let (node, namespace) = ("me".to_owned(), format!("n{namespace}"));
        (uid(n), Pod { node, namespace, addresses, labels: labels(*label), network_since: None })
    };
    let pods: BTreeMap<_, _> = case.pods.iter().enumerate().map(pod).collect();
    let mut datapath = Datapath { build: "build".to_owned(), ..Datapath::default() };
    for (n, (at, _, _, device)) in case.pods.iter().enumerate() {
        if let Some(is_there) = device {
            let index = u32::try_from(n).expect("few") + 7;
            let origin = Origin { device: index, via: index, pod: in_few_words(&uid(n), &pods[&uid(n)]) };
            datapath.origins.insert(address(*at), origin);
            datapath.alive.extend(is_there.then(|| origin.key()));
        }
    }
    let slices = OTHERS.iter().zip(&case.before);
    all.workloads = Arc::new(Workloads {
        namespaces: [("n0".to_owned(), labels(0)), ("n1".to_owned(), labels(1))].into(),
        pods,
        elsewhere: slices.map(|(node, asks)| ((*node).to_owned(), exceptions(asks))).collect(),
        knows_elsewhere: true,
    });
    let mesh = all.mesh.clone().unwrap_or_else(mesh);
    let observed = Observed { datapath: Some(datapath), ..Observed::default() };
    World { observed, now: NOW, epoch: NOW, ..World::of(all, &mesh, &Owners::new()) }
}

/// The kernel holds what is wanted.
fn settle(world: &mut World) -> Desired {
    for _ in 0..2 {
        let wanted = desired(&world.inputs());
        let datapath = world.observed.datapath.as_mut().expect("datapath");
        datapath.prefixes.clone_from(&wanted.prefixes);
    }
    desired(&world.inputs())
}

fn said_elsewhere(after: &[(usize, Option<Vec<Asks>>)]) -> BTreeMap<String, Option<Arc<Exceptions>>> {
    let said =
        after.iter().map(|(n, asked)| (OTHERS[*n].to_owned(), asked.as_ref().map(|asks| exceptions(asks))));
    said.collect()
}

fn prefixes(world: &World) -> &BTreeMap<IpNet, Prefix> {
    &world.observed.datapath.as_ref().expect("datapath").prefixes
}

fn told(actions: &[Action]) -> BTreeSet<String> {
    actions.iter().map(Action::to_string).collect()
}

/// What came of a case: whether it was decided by itself.
fn check(case: &Case) -> bool {
    let mut world = world(case);
    let last = settle(&mut world);
    assert_eq!(prefixes(&world), &last.prefixes);
    let said = OfPods {
        labels: case.labelled.iter().map(|(n, label)| (uid(*n), labels(*label))).collect(),
        namespaces: case.namespaces.iter().map(|(n, label)| (format!("n{n}"), labels(*label))).collect(),
        elsewhere: said_elsewhere(&case.after),
    };
    let concerned = world.knowledge.hear_of_pods(said).expect("all are known");
    let inputs = world.inputs();
    let Some(part) = AddressPart::of(&inputs, &last, &concerned) else { return false };
    let synced = inputs.knowledge.synced();
    let whole = desired(&inputs);
    let actions = part.plan(synced);
    // What is not about addresses is the same before and after.
    let [all, others] =
        [&whole, &last].map(|wanted| told(&plan(wanted, inputs.observed, synced, &Endpoints::new())));
    assert_eq!(told(&actions), &all - &others);
    assert!(part.plan(None).iter().all(|action| !matches!(action, Action::RemovePrefix(_))));

    let mut wanted = last;
    part.put_back(&mut wanted, &mut world.observed);
    assert_eq!(wanted, whole);
    assert_eq!(prefixes(&world), &whole.prefixes);
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_few_addresses_are_decided_as_the_whole_is(case in case()) {
        check(&case);
    }
}

fn require(n: u8) -> Asks {
    (n, Standing { mode: PolicyMode::Require, until: None })
}

fn ordinary() -> Case {
    Case {
        mesh: Mode::Prefer,
        policies: [PolicyMode::Require, PolicyMode::Exempt],
        pods: vec![(0, 0, 0, Some(true))],
        before: vec![vec![require(1)], vec![require(2)], vec![]],
        after: vec![],
        labelled: vec![],
        namespaces: vec![],
    }
}

/// What is ordinary is decided by itself; what is not, never.
#[test]
fn what_concerns_others_is_decided_as_a_whole() {
    let says = |after: &[(usize, Option<Vec<Asks>>)]| Case { after: after.to_vec(), ..ordinary() };
    assert!(check(&says(&[(0, Some(vec![require(7), require(19)]))])));
    // What another node says of the address counts for nothing.
    assert!(check(&says(&[(0, None), (1, Some(vec![require(1)]))])));
    // A pod that was told of by name; an address that is a range; this node's own slice; what is unknown; too many.
    assert!(!check(&Case { pods: vec![(7, 0, 0, None)], ..says(&[(0, Some(vec![require(7)]))]) }));
    assert!(!check(&says(&[(2, Some(vec![require(3)]))])));
    let refuses = |change: fn(&mut Workloads)| {
        let mut world = world(&ordinary());
        let last = settle(&mut world);
        let mut all = world.knowledge.snapshot().clone();
        change(Arc::make_mut(&mut all.workloads));
        world.knowledge = Knowledge::Whole(all.attest_whole());
        let concerned = [("n2".to_owned(), [address(7)].into())].into();
        AddressPart::of(&world.inputs(), &last, &concerned).is_none()
    };
    assert!(!refuses(|_| ()));
    assert!(refuses(|workloads| workloads.knows_elsewhere = false));
    let many = |workloads: &mut Workloads| {
        let many = (0..=u32::try_from(MOST_EXCEPTIONS).expect("few"))
            .map(|n| (IpAddr::from(std::net::Ipv4Addr::from_bits(n)), require(0).1));
        workloads.elsewhere.insert("n3".to_owned(), Arc::new(many.collect()));
    };
    assert!(refuses(many));
}

/// Labels of this node's pods, and of their namespaces, likewise.
#[test]
fn what_is_held_back_is_decided_as_a_whole() {
    let labelled = |own: Own| Case { pods: vec![own], labelled: vec![(0, 1 - own.2)], ..ordinary() };
    let to_exempt = |device| labelled((0, 0, 0, device));
    assert!(check(&to_exempt(Some(true))));
    assert!(check(&labelled((0, 0, 1, Some(true)))), "and back");
    assert!(check(&Case { namespaces: vec![(0, 1)], ..ordinary() }));
    assert!(check(&Case { namespaces: vec![(0, 1)], ..to_exempt(None) }), "what is required");
    // Its device is not known, or gone; nobody knows what its namespace is; two have the address; it is none of this node's.
    assert!(!check(&to_exempt(None)));
    assert!(!check(&to_exempt(Some(false))));
    assert!(!check(&labelled((0, 2, 0, Some(true)))));
    assert!(!check(&labelled((5, 0, 0, Some(true)))));
    let twice = vec![(0, 0, 0, Some(true)), (0, 1, 0, Some(true))];
    assert!(!check(&Case { pods: twice, ..to_exempt(None) }));
    // It was held back before.
    assert!(!check(&labelled((0, 0, 1, None))));
}
