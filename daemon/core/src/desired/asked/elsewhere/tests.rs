//! What is decided of a few nodes' pods is what would be decided of all.

use std::time::Duration;

use jiff::Timestamp;
use kubeveil_api::{mesh::Mode, policy::PolicyMode, selector::LabelSelector};
use proptest::prelude::*;

use super::*;
use crate::{
    desired::{desired, tests::World},
    observed::Datapath,
    ownership::Owners,
    plan::{Endpoints, plan},
    policy::{
        Namespaces, Policies, Policy, PolicyId, Standing,
        pods::{Pod, Workloads},
    },
    snapshot::Knowledge,
    testing::{mesh, node, snapshot},
};

const OTHERS: [&str; 3] = ["n2", "n3", "n4"];
const NOW: Duration = Duration::from_secs(1_000);

/// Of an address, and what is asked of it.
type Asks = (u8, Standing);

#[derive(Debug)]
struct Case {
    mesh: Mode,
    /// A policy of the cluster, for this node's pods.
    policy: PolicyMode,
    /// Addresses of this node's pods, or what they say.
    pods: Vec<u8>,
    before: Vec<Vec<Asks>>,
    /// What is asked of pods of some nodes afterwards; `None`: nothing else than of all.
    after: Vec<(usize, Option<Vec<Asks>>)>,
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

fn case() -> impl Strategy<Value = Case> {
    let mesh = prop_oneof![Just(Mode::Require), Just(Mode::Prefer), Just(Mode::Observe)];
    let after = prop::collection::vec((0..OTHERS.len(), prop::option::weighted(0.8, asks())), 1..3);
    let pods = prop::collection::vec(0u8..36, 0..3);
    let before = prop::collection::vec(asks(), OTHERS.len());
    (mesh, mode(), pods, before, after).prop_map(|(mesh, policy, pods, before, after)| Case {
        mesh,
        policy,
        pods,
        before,
        after,
    })
}

fn exceptions(asks: &[Asks]) -> Arc<Exceptions> {
    Arc::new(asks.iter().map(|(n, standing)| (address(*n), *standing)).collect())
}

/// What is decided on, before.
fn world(case: &Case) -> World {
    let nodes = [("me", node(1)), ("n2", node(2)), ("n3", node(3)), ("n4", node(4))];
    let mut all = snapshot(&nodes);
    let settings = all.mesh.as_mut().expect("mesh");
    settings.mode = case.mesh;
    // A prefix of one address that is there without any policy.
    settings.pod_cidrs.push(IpNet::from(address(3)));
    let policy = Policy {
        namespaces: Namespaces::Labelled(LabelSelector::default()),
        pods: LabelSelector::default(),
        mode: case.policy,
        until: None,
        max_key_age: None,
    };
    let id = PolicyId { namespace: None, name: "p".to_owned() };
    all.policies = Policies::new([(id, policy)].into());
    let pod = |n: &u8| {
        let addresses = [address(*n)].into();
        let (node, namespace) = ("me".to_owned(), "n".to_owned());
        (format!("uid-{n}"), Pod { node, namespace, addresses, ..Pod::default() })
    };
    let slices = OTHERS.iter().zip(&case.before);
    all.workloads = Arc::new(Workloads {
        namespaces: [("n".to_owned(), Default::default())].into(),
        pods: case.pods.iter().map(pod).collect(),
        elsewhere: slices.map(|(node, asks)| ((*node).to_owned(), exceptions(asks))).collect(),
        knows_elsewhere: true,
    });
    let mesh = all.mesh.clone().unwrap_or_else(mesh);
    let datapath = Datapath { build: "build".to_owned(), ..Datapath::default() };
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
    let mut before = BTreeMap::new();
    for (n, asked) in &case.after {
        let asked = asked.as_ref().map(|asks| exceptions(asks));
        let was = world.knowledge.hear_elsewhere(OTHERS[*n], asked);
        before.entry(OTHERS[*n].to_owned()).or_insert(was);
    }
    let inputs = world.inputs();
    let Some(part) = Elsewhere::of(&inputs, &last, &before) else { return false };
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
    fn pods_elsewhere_are_decided_as_the_whole_is(case in case()) {
        check(&case);
    }
}

fn require(n: u8) -> Asks {
    (n, Standing { mode: PolicyMode::Require, until: None })
}

fn ordinary() -> Case {
    Case {
        mesh: Mode::Prefer,
        policy: PolicyMode::Require,
        pods: vec![0],
        before: vec![vec![require(1)], vec![require(2)], vec![]],
        after: vec![(0, Some(vec![require(7), require(19)]))],
    }
}

/// What is ordinary is decided by itself; what is not, never.
#[test]
fn what_concerns_others_is_decided_as_a_whole() {
    assert!(check(&ordinary()));
    // What another node says of the address counts for nothing.
    assert!(check(&Case { after: vec![(0, None), (1, Some(vec![require(1)]))], ..ordinary() }));
    // A pod that was told of by name; an address that is a range; this node's own slice; what is unknown; too many.
    assert!(!check(&Case { pods: vec![7], ..ordinary() }));
    assert!(!check(&Case { after: vec![(2, Some(vec![require(3)]))], ..ordinary() }));
    let refuses = |change: fn(&mut Workloads), before: &str| {
        let mut world = world(&ordinary());
        let last = settle(&mut world);
        let mut all = world.knowledge.snapshot().clone();
        change(Arc::make_mut(&mut all.workloads));
        world.knowledge = Knowledge::Whole(all.attest_whole());
        Elsewhere::of(&world.inputs(), &last, &[(before.to_owned(), Arc::default())].into()).is_none()
    };
    assert!(!refuses(|_| (), "n2"));
    assert!(refuses(|_| (), "me"));
    assert!(refuses(|workloads| workloads.knows_elsewhere = false, "n2"));
    let many = |workloads: &mut Workloads| {
        let many = (0..=u32::try_from(MOST_EXCEPTIONS).expect("few"))
            .map(|n| (IpAddr::from(std::net::Ipv4Addr::from_bits(n)), require(0).1));
        workloads.elsewhere.insert("n3".to_owned(), Arc::new(many.collect()));
    };
    assert!(refuses(many, "n2"));
}
