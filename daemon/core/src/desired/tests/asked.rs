//! What policies ask for, beside addresses.

use std::sync::Arc;

use kubeveil_abi::Asked;
use kubeveil_api::{
    mesh::Mode,
    policy::PolicyMode,
    selector::{LabelSelector, Labels},
};

use super::*;
use crate::{
    action::Action,
    observed::{Datapath, Link},
    plan::{Endpoints, plan},
    policy::{
        FlowMode, Namespaces, Policies, Policy, PolicyId, Standing,
        pods::{Exceptions, Pod, Workloads},
        ruling::{Law, Subject},
    },
};

/// A cluster of two nodes whose mesh has this mode, with a policy for pods of payments and these pods.
fn of_payments(mode: Mode, pods: &[(&str, &str, &str, &str)], mode_asked: PolicyMode) -> Snapshot {
    let nodes = [("b", node(2)), ("me", node(1))];
    let mut snapshot = snapshot(&nodes);
    snapshot.mesh.as_mut().expect("a mesh").mode = mode;
    let policy = Policy {
        namespaces: Namespaces::One("payments".to_owned()),
        pods: LabelSelector::default(),
        mode: mode_asked,
        until: None,
        max_key_age: None,
    };
    let id = PolicyId { namespace: Some("payments".to_owned()), name: "p".to_owned() };
    snapshot.policies = Policies::new([(id, policy)].into());
    let pod = |(name, node, namespace, address): &(&str, &str, &str, &str)| {
        let addresses = [address.parse().expect("an address")].into();
        let (node, namespace) = ((*node).to_owned(), (*namespace).to_owned());
        ((*name).to_owned(), Pod { node, namespace, addresses, ..Pod::default() })
    };
    let namespaces = ["shop", "payments"].map(|name| (name.to_owned(), Labels::new()));
    snapshot.workloads = Arc::new(Workloads {
        namespaces: namespaces.into(),
        pods: pods.iter().map(pod).collect(),
        elsewhere: BTreeMap::new(),
        knows_elsewhere: true,
    });
    snapshot
}

/// What is said of another node's addresses counts where they are that node's, and nowhere else.
#[test]
fn of_other_nodes_only_the_exceptions_are_told() {
    let mut snapshot =
        of_payments(Mode::Prefer, &[("shop", "me", "shop", "10.244.1.7")], PolicyMode::Require);
    let standing = |mode| Standing { mode, until: None };
    let told = [
        ("10.244.2.8", PolicyMode::Require),
        ("fd00:244:2::8", PolicyMode::Require),
        ("10.244.2.9", PolicyMode::Exempt),
        ("10.244.1.7", PolicyMode::Require),
        ("10.244.1.10", PolicyMode::Require),
        ("10.244.77.1", PolicyMode::Require),
        ("192.0.2.1", PolicyMode::Require),
        ("192.0.2.2", PolicyMode::Require),
        ("198.51.100.1", PolicyMode::Require),
    ];
    let told: Exceptions = told.map(|(at, mode)| (at.parse().expect("an address"), standing(mode))).into();
    Arc::make_mut(&mut snapshot.workloads).elsewhere = [("b".to_owned(), Arc::new(told))].into();
    let (desired, _) = of(snapshot, &Owners::new());
    for (at, asked) in [
        ("10.244.2.8/32", Some(Asked::Require)),
        ("fd00:244:2::8/128", Some(Asked::Require)),
        ("10.244.2.9/32", Some(Asked::Exempt)),
        ("10.244.1.7/32", Some(Asked::Mesh)),
        ("10.244.1.10/32", None),
        ("10.244.77.1/32", None),
        ("192.0.2.1/32", Some(Asked::Mesh)),
        ("192.0.2.2/32", Some(Asked::Mesh)),
        ("198.51.100.1/32", None),
    ] {
        assert_eq!(asked_in(&desired, at), asked, "{at}");
    }
}

fn asked_in(desired: &Desired, text: &str) -> Option<Asked> {
    desired.prefixes.get(&net(text)).map(|prefix| prefix.asked)
}

/// Beside each address: of a pod of ours what is asked of it, of one of whom nothing is known the most that is asked of anybody, of
/// another node's only what is asked of it beyond the mesh.
#[test]
fn what_is_asked_for_stands_beside_the_address() {
    let pods = [
        ("shop", "me", "shop", "10.244.1.7"),
        ("ledger", "me", "payments", "10.244.1.8"),
        ("ledger-6", "me", "payments", "fd00:244:1::8"),
        ("their-shop", "b", "shop", "10.244.2.7"),
        ("their-ledger", "b", "payments", "10.244.2.8"),
        ("of-another-pool", "me", "payments", "10.9.9.9"),
        ("shop-of-another-pool", "me", "shop", "10.9.9.10"),
        ("on-a-node", "me", "payments", "192.0.2.2"),
        ("of-no-namespace-that-is-known", "me", "others", "10.244.1.9"),
        ("their-liar", "b", "shop", "10.244.1.10"),
        ("another-liar", "b", "payments", "10.244.1.7"),
    ];
    let (desired, _) = of(of_payments(Mode::Observe, &pods, PolicyMode::Require), &Owners::new());
    for (at, asked) in [
        ("10.244.1.0/24", Some(Asked::Require)),
        ("fd00:244:1::/64", Some(Asked::Require)),
        ("10.244.1.7/32", Some(Asked::Mesh)),
        ("10.244.1.8/32", Some(Asked::Require)),
        ("fd00:244:1::8/128", Some(Asked::Require)),
        ("10.244.1.9/32", None),
        ("10.244.2.0/24", Some(Asked::Mesh)),
        ("10.244.2.7/32", None),
        ("10.244.2.8/32", Some(Asked::Require)),
        ("10.9.9.9/32", Some(Asked::Require)),
        ("10.9.9.10/32", None),
        ("10.244.1.10/32", None),
        ("192.0.2.2/32", Some(Asked::Mesh)),
        ("10.244.0.0/16", Some(Asked::Require)),
    ] {
        assert_eq!(asked_in(&desired, at), asked, "{at}");
    }
    assert_eq!(desired.prefixes[&net("192.0.2.2/32")].kind, PrefixKind::RemoteNode);
    let peers = ["10.244.2.0/24", "10.244.2.8/32"].map(|at| desired.prefixes[&net(at)].peer);
    assert!(peers[0] != 0 && peers[0] == peers[1]);
    // An observing mesh steers from there on, and an unknown pod is asked as much of as anybody.
    let Config { mode, unknown, .. } = desired.config;
    assert_eq!((mode, unknown), (kubeveil_abi::Mode::Prefer as u32, Asked::Require as u32));
}

/// A pod is held to the strictest that stands beside any of its addresses, one that nobody has told us of to what stands beside all.
#[test]
fn a_pod_is_held_to_what_stands_beside_its_addresses() {
    use FlowMode::{Exempt, Observe, Prefer, Require};
    let pods = [("shop", "me", "shop", "10.244.1.7"), ("ledger-6", "me", "payments", "fd00:244:1::8")];
    let (mut desired, _) = of(of_payments(Mode::Prefer, &pods, PolicyMode::Require), &Owners::new());
    let exempt = Prefix { asked: Asked::Exempt, ..Prefix::new(PrefixKind::LocalPods, 0) };
    desired.prefixes.insert(net("10.244.1.20/32"), exempt);
    for (base, addresses, mode) in [
        (Prefer, &["10.244.1.7"][..], Some(Prefer)),
        (Prefer, &["fd00:244:1::8"], Some(Require)),
        (Prefer, &["10.244.1.7", "fd00:244:1::8"], Some(Require)),
        (Prefer, &["10.244.1.99"], Some(Require)),
        (Prefer, &["203.0.113.7"], Some(Prefer)),
        (Prefer, &["10.244.1.20"], Some(Exempt)),
        (Require, &["10.244.1.20"], Some(Exempt)),
        (Require, &["10.244.1.7", "10.244.1.20"], Some(Require)),
        (Observe, &["fd00:244:1::8"], Some(Observe)),
        (Prefer, &[], None),
    ] {
        let addresses: Vec<_> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        assert_eq!(held(base, &desired, None, &addresses), mode, "{base:?} {addresses:?}");
    }
}

/// Until it was told of other nodes' pods: a range that is new is closed, one that stands stays as it is.
#[test]
fn before_other_nodes_pods_are_told_of_nothing_opens() {
    let mut snapshot =
        of_payments(Mode::Prefer, &[("shop", "me", "shop", "10.244.1.7")], PolicyMode::Require);
    Arc::make_mut(&mut snapshot.workloads).knows_elsewhere = false;
    let stands = Prefix::new(PrefixKind::RemotePods, 1);
    let datapath = Datapath { prefixes: [(net("10.244.2.0/24"), stands)].into(), ..Datapath::default() };
    let observed = Observed { datapath: Some(datapath), ..Observed::default() };
    let desired = over(snapshot.clone(), &Owners::new(), &observed).0;
    assert_eq!(asked_in(&desired, "10.244.2.0/24"), Some(Asked::Mesh));
    assert_eq!(asked_in(&desired, "fd00:244:2::/64"), Some(Asked::Require));
    Arc::make_mut(&mut snapshot.workloads).knows_elsewhere = true;
    let desired = over(snapshot.clone(), &Owners::new(), &observed).0;
    assert_eq!(asked_in(&desired, "fd00:244:2::/64"), Some(Asked::Mesh));
    // Where no policy asks for anything there is nothing to be told.
    snapshot.policies = Policies::default();
    Arc::make_mut(&mut snapshot.workloads).knows_elsewhere = false;
    let desired = over(snapshot, &Owners::new(), &observed).0;
    assert_eq!(asked_in(&desired, "fd00:244:2::/64"), Some(Asked::Mesh));
}

/// More exceptions than the map has room for: the ranges of their nodes stand for them, and no other node's.
#[test]
fn too_many_exceptions_are_held_to_by_their_nodes_ranges() {
    let mut snapshot = of_payments(
        Mode::Prefer,
        &[("shop", "me", "shop", "10.244.1.7"), ("ledger", "me", "payments", "10.244.1.8")],
        PolicyMode::Require,
    );
    let require = Standing { mode: PolicyMode::Require, until: None };
    let all = |count: u32| -> Exceptions {
        let base = u128::from_be_bytes(std::net::Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 0).octets());
        (1..=count).map(|n| (std::net::Ipv6Addr::from(base + u128::from(n)).into(), require)).collect()
    };
    for (count, entry, range) in
        [(16_000, Some(Asked::Require), Some(Asked::Mesh)), (17_000, None, Some(Asked::Require))]
    {
        let elsewhere = [("b".to_owned(), Arc::new(all(count)))].into();
        Arc::make_mut(&mut snapshot.workloads).elsewhere = elsewhere;
        let (desired, _) = of(snapshot.clone(), &Owners::new());
        for (at, asked) in [
            ("fd00:244:2::7/128", entry),
            ("fd00:244:2::/64", range),
            ("10.244.2.0/24", Some(Asked::Mesh)),
            ("10.244.1.7/32", Some(Asked::Mesh)),
            ("10.244.1.8/32", Some(Asked::Require)),
        ] {
            assert_eq!(asked_in(&desired, at), asked, "{count}: {at}");
        }
    }
}

/// A kernel in which pods of this node speak by these devices, of which some are there.
fn devices(of: &[(&str, u32)], alive: &[u32]) -> Observed {
    let link = |(address, index): &(&str, u32)| {
        let routes = vec![IpNet::from(address.parse::<IpAddr>().expect("an address"))];
        (*index, Link { kind: Some("veth".to_owned()), routes, ..Link::default() })
    };
    let origin = |(address, index): &(&str, u32)| {
        let pod = origin::in_few_words("ledger", &Pod::default());
        (address.parse().expect("an address"), Origin { device: *index, via: *index, pod })
    };
    let datapath = Datapath {
        origins: of.iter().map(origin).collect(),
        alive: of
            .iter()
            .map(origin)
            .map(|(_, origin)| origin)
            .filter(|origin| alive.contains(&origin.device))
            .map(|origin| origin.key())
            .collect(),
        ..Datapath::default()
    };
    Observed { links: of.iter().map(link).collect(), datapath: Some(datapath), ..Observed::default() }
}

/// What asks for no more than the mesh does leaves no trace in the map.
#[test]
fn what_asks_for_no_more_counts_for_nothing() {
    let pods = [("shop", "me", "shop", "10.244.1.7"), ("ledger", "me", "payments", "10.244.1.8")];
    let observed = devices(&[("10.244.1.8", 10)], &[10]);
    for (mode, asked, written) in [
        (Mode::Require, PolicyMode::Require, Some(Asked::Require)),
        (Mode::Require, PolicyMode::Prefer, Some(Asked::Prefer)),
        (Mode::Require, PolicyMode::Exempt, Some(Asked::Exempt)),
        (Mode::Prefer, PolicyMode::Prefer, None),
        (Mode::Prefer, PolicyMode::Exempt, Some(Asked::Exempt)),
        (Mode::Observe, PolicyMode::Require, Some(Asked::Require)),
        (Mode::Observe, PolicyMode::Prefer, None),
        (Mode::Observe, PolicyMode::Exempt, None),
    ] {
        let desired = over(of_payments(mode, &pods, asked), &Owners::new(), &observed).0;
        assert_eq!(asked_in(&desired, "10.244.1.8/32"), written, "{mode} {asked}");
        let unknown = if asked == PolicyMode::Require { Asked::Require } else { Asked::Mesh };
        assert_eq!(desired.config.unknown, unknown as u32, "{mode} {asked}");
        let others = desired.prefixes.iter().filter(|(net, _)| **net != self::net("10.244.1.8/32"));
        let loose =
            others.filter(|(_, prefix)| matches!(prefix.asked, Asked::Exempt | Asked::Prefer)).count();
        assert_eq!(
            (loose, desired.problems.len()),
            (0, whole(&[("me", node(1))], &Owners::new()).0.problems.len())
        );
    }
}

/// Less is asked only of a pod whose device is known; of one whose device is gone the programs ask as of an unknown one. Both are told.
#[test]
fn less_is_asked_of_who_is_known_by_device() {
    let pods = [("ledger", "me", "payments", "10.244.1.8")];
    let told = |observed: &Observed| {
        let desired = over(of_payments(Mode::Require, &pods, PolicyMode::Exempt), &Owners::new(), observed).0;
        (asked_in(&desired, "10.244.1.8/32"), desired.held_back.into_values().collect::<Vec<_>>())
    };
    assert_eq!(told(&Observed::default()), (None, vec![HeldBack::DeviceUnknown]));
    let exempt = Some(Asked::Exempt);
    assert_eq!(told(&devices(&[("10.244.1.8", 10)], &[])), (exempt, vec![HeldBack::DeviceGone]));
    assert_eq!(told(&devices(&[("10.244.1.8", 10)], &[10])), (exempt, vec![]));
    let mut others = devices(&[("10.244.1.8", 10)], &[10]);
    let datapath = others.datapath.as_mut().expect("a datapath");
    for origin in datapath.origins.values_mut() {
        origin.pod = [1, 2];
        datapath.alive = [origin.key()].into();
    }
    assert_eq!(told(&others), (None, vec![HeldBack::Disputed]));
}

/// The ports of a bridge say where packets came from before anybody is held to less; where nobody is, nobody asks them.
#[test]
fn ports_are_told_apart_before_less_is_asked() {
    let pods = [("ledger", "me", "payments", "10.244.1.8")];
    let mut observed = devices(&[("10.244.1.8", 10)], &[10]);
    let datapath = observed.datapath.as_mut().expect("a datapath");
    datapath.origins.values_mut().for_each(|origin| origin.via = 20);
    datapath.build = "build".to_owned();
    for (index, kind, controller) in [(10, "veth", Some(20)), (11, "veth", Some(20)), (20, "bridge", None)] {
        let kind = Some(kind.to_owned());
        observed.links.insert(index, Link { kind, controller, ..Link::default() });
    }
    for (asked, ports) in [
        (PolicyMode::Require, vec![]),
        (PolicyMode::Prefer, vec![(Program::Origin, 10), (Program::Origin, 11)]),
        (PolicyMode::Exempt, vec![(Program::Origin, 10), (Program::Origin, 11)]),
    ] {
        let desired = over(of_payments(Mode::Require, &pods, asked), &Owners::new(), &observed).0;
        let hooks = desired.hooks.iter().filter(|hook| hook.0 == Program::Origin).copied();
        assert_eq!(hooks.collect::<Vec<_>>(), ports, "{asked}");
        let plan = plan(&desired, &observed, None, &Endpoints::default());
        let first = |is_it: fn(&Action) -> bool| plan.iter().position(is_it);
        let at_a_port = |action: &Action| matches!(action, Action::Attach((Program::Origin, _)));
        let looser = |action: &Action| matches!(action, Action::PutPrefix(_, prefix) if matches!(prefix.asked, Asked::Exempt | Asked::Prefer));
        let (attached, loosened) = (first(at_a_port), first(looser));
        assert_eq!(
            (attached.is_some(), loosened.is_some()),
            (!ports.is_empty(), !ports.is_empty()),
            "{asked}"
        );
        assert!(attached <= loosened, "{plan:?}");
    }
}

/// Whose device is gone matters where more is asked of a pod that is not known.
#[test]
fn a_device_that_is_gone_is_told_of_where_it_matters() {
    let gone = devices(&[("10.244.1.8", 10)], &[]);
    let pods = [("ledger", "me", "shop", "10.244.1.8"), ("other", "me", "payments", "10.244.1.9")];
    for (asked, held_back) in
        [(PolicyMode::Require, vec![HeldBack::DeviceGone]), (PolicyMode::Prefer, vec![])]
    {
        let desired = over(of_payments(Mode::Observe, &pods, asked), &Owners::new(), &gone).0;
        assert_eq!(desired.held_back.into_values().collect::<Vec<_>>(), held_back, "{asked}");
    }
}

/// It ends by the clock that programs count on, is written once, and no more when it is over.
#[test]
fn an_exemption_ends_by_the_clock_of_the_programs() {
    let pods = [("ledger", "me", "payments", "10.244.1.8"), ("theirs", "b", "payments", "10.244.2.8")];
    let mut snapshot = of_payments(Mode::Require, &pods, PolicyMode::Exempt);
    let (id, policy) =
        snapshot.policies.iter().next().map(|(id, policy)| (id.clone(), policy.clone())).expect("one");
    let until = Some(jiff::Timestamp::from_second(1_000_060).expect("a time"));
    snapshot.policies = Policies::new([(id, Policy { until, ..policy })].into());
    let mut observed = devices(&[("10.244.1.8", 10)], &[10]);
    let mut at = |now: u64, epoch: u64, stands: Option<u32>| {
        let prefixes = stands.map(|until| {
            let prefix = Prefix { asked: Asked::Exempt, until, ..Prefix::new(PrefixKind::LocalPods, 0) };
            (net("10.244.1.8/32"), prefix)
        });
        observed.datapath.as_mut().expect("a datapath").prefixes = prefixes.into_iter().collect();
        let [now, epoch] = [now, epoch].map(Duration::from_secs);
        let desired = over_at(snapshot.clone(), &Owners::new(), &observed, now, epoch).0;
        ["10.244.1.8/32", "10.244.2.8/32"]
            .map(|at| desired.prefixes.get(&net(at)).map(|prefix| (prefix.asked, prefix.until)))
    };
    let exempt = |until| Some((Asked::Exempt, until));
    assert_eq!(at(500, 1_000_000, None), [exempt(560); 2]);
    assert_eq!(at(510, 1_000_011, Some(560))[0], exempt(560), "clocks that go a little differently");
    assert_eq!(at(510, 1_000_020, Some(560))[0], exempt(550), "somebody has set the clock, or the end");
    assert_eq!(at(560, 1_000_060, Some(560)), [None; 2]);
}

/// More exceptions than there is room for: who is exempt takes none from whom encryption is required.
#[test]
fn who_is_exempt_takes_no_room_from_others() {
    let mut snapshot = of_payments(Mode::Require, &[], PolicyMode::Exempt);
    let standing = |mode| Standing { mode, until: None };
    let base = u128::from_be_bytes(std::net::Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 0).octets());
    let at = |n: u32| -> IpAddr { std::net::Ipv6Addr::from(base + u128::from(n)).into() };
    for (exempt, written) in [(10_000, Some(Asked::Exempt)), (20_000, None)] {
        let mut all: Exceptions = (1..=exempt).map(|n| (at(n), standing(PolicyMode::Exempt))).collect();
        all.insert(at(60_000), standing(PolicyMode::Require));
        Arc::make_mut(&mut snapshot.workloads).elsewhere = [("b".to_owned(), Arc::new(all))].into();
        let desired = of(snapshot.clone(), &Owners::new()).0;
        assert_eq!(asked_in(&desired, "fd00:244:2::7/128"), written);
        assert_eq!(asked_in(&desired, "fd00:244:2::ea60/128"), Some(Asked::Require));
        assert_eq!(asked_in(&desired, "fd00:244:2::/64"), Some(Asked::Mesh));
        let told = desired.problems.iter().any(|problem| problem.message.contains("are more than the 16384"));
        assert_eq!(told, written.is_none(), "{:?}", desired.problems);
    }
}

/// What a person is told of a pod is what stands beside its address.
#[test]
fn what_is_explained_is_what_is_written() {
    let pods = [("shop", "me", "shop", "10.244.1.7"), ("ledger", "me", "payments", "10.244.1.8")];
    for (mode, asked) in
        Mode::ALL.iter().flat_map(|mode| PolicyMode::ALL.iter().map(move |asked| (*mode, *asked)))
    {
        let snapshot = of_payments(mode, &pods, asked);
        let law = Law { mesh: mode, policies: snapshot.policies.clone() };
        let (desired, _) = over(snapshot, &Owners::new(), &devices(&[("10.244.1.8", 10)], &[10]));
        for (namespace, address) in [("shop", "10.244.1.7/32"), ("payments", "10.244.1.8/32")] {
            let none = Labels::new();
            let subject = Subject { namespace, namespace_labels: &none, labels: &none };
            let held = match asked_in(&desired, address) {
                Some(Asked::Require) => FlowMode::Require,
                Some(Asked::Prefer) => FlowMode::Prefer,
                Some(Asked::Exempt) => FlowMode::Exempt,
                _ => law.base(),
            };
            assert_eq!(
                law.on_pod(subject, jiff::Timestamp::UNIX_EPOCH).mode,
                held,
                "{mode} {asked} {namespace}"
            );
        }
        let unknown =
            if desired.config.unknown == Asked::Require as u32 { FlowMode::Require } else { law.base() };
        assert_eq!(law.on_unknown().mode, unknown, "{mode} {asked}");
    }
}

/// Nobody is held to what is asked for of those whom we don't know before it is said who he is.
#[test]
fn the_more_specific_is_written_first() {
    let pods = [("shop", "me", "shop", "10.244.1.7"), ("ledger", "b", "payments", "10.244.2.8")];
    let (desired, _) = of(of_payments(Mode::Prefer, &pods, PolicyMode::Require), &Owners::new());
    let observed = Observed {
        datapath: Some(Datapath { build: desired.build.clone(), ..Datapath::default() }),
        ..Observed::default()
    };
    let actions = plan(&desired, &observed, None, &Endpoints::new());
    let at = |text: &str| {
        let is_it = |action: &Action| matches!(action, Action::PutPrefix(at, _) if *at == net(text));
        actions.iter().position(is_it).unwrap_or_else(|| panic!("{text} is not put"))
    };
    assert!(at("10.244.0.0/16") < at("10.244.1.7/32"), "the mesh's ranges close first");
    assert!(at("10.244.1.7/32") < at("10.244.1.0/24") && at("10.244.2.8/32") < at("10.244.2.0/24"));
}

/// Before all was told, what stands in the map is not loosened; but not what stood for something else there.
#[test]
fn what_stood_for_another_kind_holds_nobody() {
    let pods = net("10.244.2.0/24");
    let asked = |stood: PrefixKind| {
        let known = snapshot(&[("b", node(2)), ("me", node(1))]);
        let mut world = World { told: Told::default(), ..World::of(known, &mesh(), &Owners::new()) };
        let prefix = Prefix { asked: Asked::Require, ..Prefix::new(stood, 1) };
        world.observed.datapath = Some(Datapath { prefixes: [(pods, prefix)].into(), ..Datapath::default() });
        desired(&world.inputs()).prefixes[&pods].asked
    };
    assert_eq!(asked(PrefixKind::RemotePods), Asked::Require);
    assert_eq!(asked(PrefixKind::UnownedPods), Asked::Mesh);
}
