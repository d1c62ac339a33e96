//! What is said of flows is what holds, and what would change is told.

use std::{collections::BTreeSet, sync::Arc};

use kubeveil_api::{
    bypass::Bypass,
    mesh::{Adoption, ExcludedNodes, ExcludedTraffic},
    policy_test,
    selector::LabelSelector,
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    policy::{
        census::{Census, PodId, Resident},
        diff::{Class, diff},
        expect,
        explain::{Course, Desk, Explanation, Note, Who},
        ruling::{Law, Rule, Subject},
    },
    snapshot::NodeFacts,
    testing::{mesh, node},
};

fn id(text: &str) -> PodId {
    text.parse().expect("a pod's name")
}

fn law((_, policies, _, _, mesh): &Case) -> Law {
    Law { mesh: *mesh, policies: named(policies) }
}

proptest! {
    #![proptest_config(clusters(4_000))]

    /// It is what the daemons decide, and the rule that is named asks for just that.
    #[test]
    fn what_is_explained_is_what_is_decided(case in case(), now in 0..5_i64) {
        let (law, now) = (law(&case), second(now));
        let held = [&case.2, &case.3].map(|pod| {
            let namespace_labels = of_namespace(&case.0, pod);
            law.on_pod(Subject { namespace: &pod.namespace, namespace_labels, labels: &pod.labels }, now)
        });
        let found = law.on_flow([&held[0], &held[1]], now);
        prop_assert_eq!(found.mode, by_standing(&case, now));
        prop_assert!(!found.rules.is_empty());
        for rule in &found.rules {
            let mode = match rule {
                Rule::Policy { policy, mode } => {
                    let selecting = held.iter().flat_map(|end| &end.selected_by);
                    prop_assert!(selecting.into_iter().any(|one| one.policy == *policy && !one.ended));
                    FlowMode::from(*mode)
                }
                Rule::Strictest { mode } | Rule::Mesh { acts_as: mode, .. } => *mode,
            };
            prop_assert_eq!(mode, found.mode);
        }
    }

    /// Held to every flow there is between two pods, and between a pod and a node.
    #[test]
    fn a_difference_is_told_exactly_where_there_is_one(
        namespaces in vec(labels(), 3),
        laws in (vec(policy(), 0..4), vec(policy(), 0..4), select(Mode::ALL), select(Mode::ALL)),
        pods in vec(pod(), 0..5),
        is_same in any::<bool>(),
        now in 0..5_i64,
    ) {
        let (before, mut after, mesh_before, mesh_after) = laws;
        if is_same {
            after.clone_from(&before);
        }
        let now = second(now);
        let before = Law { mesh: mesh_before, policies: named(&before) };
        let after = Law { mesh: if is_same { mesh_before } else { mesh_after }, policies: named(&after) };
        let mode = |law: &Law, ends: [Option<&Pod>; 2]| {
            let standing = |pod: &Pod| {
                let of = law.policies.of_namespace(&pod.namespace, of_namespace(&namespaces, pod));
                of.standing(&pod.labels)
            };
            flow(law.base(), ends.map(|pod| pod.and_then(standing)), now)
        };
        let mut changed = BTreeSet::new();
        for (at, one) in pods.iter().enumerate() {
            for other in pods[at + 1..].iter().map(Some).chain([None]) {
                let (was, is) = (mode(&before, [Some(one), other]), mode(&after, [Some(one), other]));
                if was != is {
                    changed.insert((was, is));
                }
            }
        }
        let resident = |pod: &Pod| Resident { pod: pod.clone(), ..Resident::default() };
        let pods = pods.iter().enumerate();
        let census = Census {
            pods: pods.map(|(n, pod)| (id(&format!("{}/{n}", pod.namespace)), resident(pod))).collect(),
            namespaces: NAMESPACES.iter().map(|name| (*name).to_owned()).zip(namespaces.iter().cloned()).collect(),
            ..census(Mode::Require, &[], &[])
        };
        let told = diff(&census, &before, &after, now);
        let modes: BTreeSet<_> = told.changes.iter().map(|change| (change.before.mode, change.after.mode)).collect();
        prop_assert_eq!(modes, changed);
    }
}

/// Two nodes, pods of payments and shop on each, and these policies.
pub(super) fn census(mode: Mode, policies: &[(&str, PolicyMode)], more: &[(&str, &str, &str)]) -> Census {
    let pods = [
        ("payments/ledger", "a", "10.244.1.8"),
        ("shop/web", "a", "10.244.1.7"),
        ("payments/ledger-2", "b", "10.244.2.8"),
        ("shop/web-2", "b", "10.244.2.7"),
    ];
    let pod = |(name, node, address): &(&str, &str, &str)| {
        let (name, addresses) = (id(name), address.parse().into_iter().collect());
        let pod = Pod {
            node: (*node).to_owned(),
            namespace: name.namespace.clone(),
            labels: Labels::new(),
            addresses,
            network_since: None,
        };
        let host_network = address.is_empty();
        (name, Resident { pod, host_network, has_ended: false })
    };
    let policy = |(namespace, mode): &(&str, PolicyMode)| {
        let namespaces = Namespaces::One((*namespace).to_owned());
        let policy = Policy {
            namespaces,
            pods: LabelSelector::default(),
            mode: *mode,
            until: None,
            max_key_age: None,
        };
        (PolicyId { namespace: None, name: format!("{namespace}-{mode}") }, policy)
    };
    let mut mesh = mesh();
    mesh.mode = mode;
    Census {
        mesh,
        policies: Policies::new(policies.iter().map(policy).collect()),
        namespaces: ["payments", "shop"].map(|name| (name.to_owned(), Labels::new())).into(),
        ending: BTreeSet::new(),
        pods: pods.iter().chain(more).map(pod).collect(),
        nodes: [("a".to_owned(), Arc::new(node(1))), ("b".to_owned(), Arc::new(node(2)))].into(),
        told: None,
    }
}

fn who(text: &str) -> Who {
    text.parse().expect("somebody")
}

fn explained(census: &Census, from: &str, to: &str) -> Explanation {
    Desk::at(census, second(0)).explain(&who(from), &who(to)).expect("both exist")
}

#[test]
fn who_is_who_and_what_becomes_of_it() {
    let require = [("payments", PolicyMode::Require)];
    let census = census(Mode::Observe, &require, &[("shop/host", "b", "")]);
    use Course::{Crosses, Hosts, Local, Outside};
    for (from, to, course, mode, can_be_plain) in [
        ("shop/web", "shop/web-2", Crosses, Some(FlowMode::Prefer), true),
        ("shop/web", "payments/ledger-2", Crosses, Some(FlowMode::Require), false),
        ("payments/ledger", "shop/web-2", Crosses, Some(FlowMode::Require), false),
        ("payments/ledger", "shop/web", Local, None, false),
        ("payments/ledger", "10.244.2.7", Crosses, Some(FlowMode::Require), false),
        // By either family, and whoever has it.
        ("shop/web", "10.244.2.99", Crosses, Some(FlowMode::Require), true),
        ("shop/web", "fd00:244:2::99", Crosses, Some(FlowMode::Require), true),
        ("shop/web", "10.244.9.9", Crosses, Some(FlowMode::Require), false),
        ("shop/web", "2001:db8::2", Crosses, Some(FlowMode::Prefer), true),
        ("shop/web", "node/a", Local, None, false),
        ("node/a", "payments/ledger-2", Crosses, Some(FlowMode::Require), false),
        ("node/a", "192.0.2.2", Hosts, None, true),
        ("node/a", "shop/host", Hosts, None, true),
        ("payments/ledger", "198.51.100.1", Outside, None, true),
        ("payments/ledger", "192.0.2.77", Outside, None, true),
    ] {
        let found = explained(&census, from, to);
        let modes = found.flow.as_ref().map(|flow| flow.mode);
        assert_eq!(
            (found.course, modes, found.can_be_plain),
            (course, mode, can_be_plain),
            "{from} {to}: {found:#?}"
        );
    }
    let unowned = explained(&census, "shop/web", "10.244.9.9");
    assert!(unowned.notes.iter().any(|note| matches!(note, Note::NoTunnel { .. })), "{unowned:#?}");
    let to_node = explained(&census, "shop/web", "node/b");
    let hidden = Note::Masqueraded { mode: FlowMode::Require };
    assert!(to_node.notes.contains(&hidden), "{to_node:#?}");
}

/// Of both ends, or the other one is as strict as the mesh anyway.
#[test]
fn what_is_loosened_is_told_with_what_it_hangs_on() {
    use PolicyMode::{Exempt, Prefer};
    for (mode, asked, to, held) in [
        (Mode::Require, Exempt, "shop/web-2", FlowMode::Exempt),
        (Mode::Require, Prefer, "shop/web-2", FlowMode::Prefer),
        (Mode::Prefer, Exempt, "shop/web-2", FlowMode::Exempt),
        (Mode::Require, Exempt, "node/b", FlowMode::Require),
        (Mode::Prefer, Prefer, "shop/web-2", FlowMode::Prefer),
    ] {
        let census = census(mode, &[("payments", asked), ("shop", asked)], &[]);
        let found = explained(&census, "payments/ledger", to);
        let flow = found.flow.expect("it crosses");
        assert_eq!(flow.mode, held, "{mode} {asked} {to}");
        assert_eq!(found.can_be_plain, held != FlowMode::Require, "{mode} {asked} {to}");
        let is_loosened =
            held < FlowMode::from(if mode == Mode::Require { PolicyMode::Require } else { Prefer });
        assert_eq!(found.notes.contains(&Note::WhileDevicesAreKnown), is_loosened, "{:?}", found.notes);
    }
}

/// On Kubernetes the sender may not have been told yet that the receiver requires encryption; and a pair may be open yet by adoption, but
/// not to whom a policy is about.
#[test]
fn what_may_be_on_the_wire_before_it_is_dropped_counts_as_plain() {
    let mut census = census(Mode::Prefer, &[("payments", PolicyMode::Require)], &[]);
    census.told = Some(BTreeSet::new());
    for (from, to, can_be_plain) in [
        ("shop/web", "payments/ledger-2", true),
        ("payments/ledger", "shop/web-2", true),
        ("payments/ledger", "payments/ledger-2", false),
    ] {
        let found = explained(&census, from, to);
        assert_eq!(found.can_be_plain, can_be_plain, "{from} {to}");
        assert_eq!(found.notes.contains(&Note::DroppedByReceiver), can_be_plain, "{from} {to}");
    }
    census.told = Some(["10.244.2.8".parse().expect("an address")].into());
    assert!(!explained(&census, "shop/web", "payments/ledger-2").can_be_plain);
    assert!(explained(&census, "shop/web-2", "payments/ledger").can_be_plain, "of another nobody was told");
    census.mesh.mode = Mode::Require;
    assert!(!explained(&census, "shop/web-2", "payments/ledger").can_be_plain, "the mesh requires it of all");
    census.mesh.adoption = Some(Adoption { deadline: second(10) });
    assert!(explained(&census, "shop/web", "shop/web-2").can_be_plain);
    assert!(explained(&census, "shop/web-2", "payments/ledger").can_be_plain, "its node knows of no policy");
    assert!(!explained(&census, "shop/web", "payments/ledger-2").can_be_plain);
    census.mesh.adoption = Some(Adoption { deadline: second(0) });
    assert!(!explained(&census, "shop/web", "shop/web-2").can_be_plain);
    census.mesh.uninstall = true;
    assert!(explained(&census, "shop/web", "shop/web-2").can_be_plain);
}

/// What held its pods may be gone while that still holds them.
#[test]
fn that_a_namespace_ends_is_told() {
    let mut census = census(Mode::Observe, &[], &[]);
    census.ending.insert("payments".to_owned());
    for (from, told) in [("payments/ledger", true), ("shop/web", false)] {
        let found = explained(&census, from, "shop/web-2");
        let note = Note::NamespaceEnds { pod: id(from) };
        assert_eq!(found.notes.contains(&note), told, "{from}: {:?}", found.notes);
    }
}

/// Both nodes of a pair, while it is on; and nobody of whom a policy requires encryption.
#[test]
fn who_is_bypassed_is_told_by_whom_and_until_when() {
    let mut census = census(Mode::Require, &[("payments", PolicyMode::Require)], &[]);
    let bypass = |one: &str, other: &str, until| Bypass {
        nodes: [one.to_owned(), other.to_owned()],
        at: second(-600),
        until: second(until),
        by: "alice".to_owned(),
        reason: "INC-1".to_owned(),
    };
    let note = Note::Bypassed { until: second(10), by: "alice".to_owned(), reason: "INC-1".to_owned() };
    let is_plain = |census: &Census, from: &str, to: &str| {
        let found = explained(census, from, to);
        assert_eq!(found.can_be_plain, found.notes.contains(&note), "{from} {to}: {:?}", found.notes);
        found.can_be_plain
    };
    census.mesh.bypasses = vec![bypass("b", "a", 5), bypass("a", "b", 10), bypass("a", "c", 99)];
    assert!(is_plain(&census, "shop/web", "shop/web-2"));
    assert!(is_plain(&census, "shop/web-2", "shop/web"));
    assert!(!is_plain(&census, "payments/ledger", "payments/ledger-2"));
    assert!(!is_plain(&census, "shop/web", "payments/ledger-2"));
    census.mesh.bypasses = vec![bypass("a", "b", 0), bypass("a", "c", 99)];
    assert!(!is_plain(&census, "shop/web", "shop/web-2"), "over, and others'");
}

/// A node that can have no agent, where the mesh lets its traffic pass; and nobody of whom a policy requires encryption.
#[test]
fn that_a_node_can_have_no_agent_is_told() {
    let mut census = census(Mode::Require, &[("payments", PolicyMode::Require)], &[]);
    let labels: Labels = [("os".to_owned(), "windows".to_owned())].into();
    let mut node = NodeFacts::clone(&census.nodes["b"]);
    (node.labels, node.announcement) = (labels.clone(), None);
    census.nodes.insert("b".to_owned(), node.into());
    let selector = LabelSelector { match_labels: labels, ..LabelSelector::default() };
    let note = Note::Excluded { node: "b".to_owned() };
    for (traffic, from, to, is_plain) in [
        (ExcludedTraffic::Plain, "shop/web", "shop/web-2", true),
        (ExcludedTraffic::Plain, "shop/web-2", "shop/web", true),
        (ExcludedTraffic::Plain, "payments/ledger", "shop/web-2", false),
        (ExcludedTraffic::Drop, "shop/web", "shop/web-2", false),
    ] {
        census.mesh.excluded_nodes = Some(ExcludedNodes { selector: selector.clone(), traffic });
        let found = explained(&census, from, to);
        assert_eq!((found.can_be_plain, found.notes.contains(&note)), (is_plain, is_plain), "{from} {to}");
    }
}

/// Of each policy that selects an end and is in force; the mesh decides where none is left, with what policies elsewhere make of it.
#[test]
fn what_would_be_without_a_policy_is_told() {
    let told = |census: &Census, from: &str, to: &str| {
        let without = explained(census, from, to).without;
        without.iter().map(|w| (w.policy.name.clone(), w.flow.mode)).collect::<Vec<_>>()
    };
    let mut both =
        census(Mode::Observe, &[("payments", PolicyMode::Require), ("shop", PolicyMode::Require)], &[]);
    let (payments, shop) = ("payments-require".to_owned(), "shop-require".to_owned());
    assert_eq!(
        told(&both, "payments/ledger", "shop/web-2"),
        [(payments.clone(), FlowMode::Require), (shop, FlowMode::Require)],
        "the other one still asks for it"
    );
    assert_eq!(told(&both, "payments/ledger", "payments/ledger-2"), [(payments.clone(), FlowMode::Prefer)]);
    assert_eq!(told(&both, "payments/ledger", "node/a"), [], "nothing crosses the wire");
    both = census(Mode::Observe, &[("payments", PolicyMode::Require)], &[]);
    assert_eq!(told(&both, "payments/ledger", "shop/web-2"), [(payments, FlowMode::Observe)]);
    assert_eq!(told(&both, "shop/web", "shop/web-2"), [], "no policy selects an end");
}

#[test]
fn who_does_not_exist_is_told_with_who_does() {
    let census = census(Mode::Observe, &[], &[]);
    let told =
        |from: &str| Desk::at(&census, second(0)).explain(&who(from), &who("shop/web")).expect_err("nobody");
    assert_eq!(told("shop/ledger"), "there is no pod shop/ledger; there is payments/ledger");
    assert_eq!(
        told("payments/ledger-9"),
        "there is no pod payments/ledger-9; there is payments/ledger, payments/ledger-2"
    );
    assert_eq!(told("shop/x"), "there is no pod shop/x; in that namespace there is shop/web, shop/web-2");
    assert_eq!(told("y/x"), "there is no pod y/x; pods are known in payments, shop");
    assert_eq!(told("node/c"), "there is no node c; there is a, b");
    for text in ["web", "a/b/c", "node/", "svc/shop/web", "10.0.0.0/8"] {
        assert!(text.parse::<Who>().is_err(), "{text}");
    }
}

/// One of several pods that are said to have one address is not enough; and whoever runs elsewhere does not have it.
#[test]
fn of_an_address_the_strictest_of_its_pods_counts() {
    let more = [("shop/twin", "b", "10.244.2.8"), ("payments/liar", "a", "10.244.2.7")];
    let census = census(Mode::Observe, &[("payments", PolicyMode::Require)], &more);
    let twin = explained(&census, "shop/web", "10.244.2.8");
    assert_eq!(twin.flow.expect("it crosses").mode, FlowMode::Require);
    let pods = ["payments/ledger-2", "shop/twin"].map(id).into();
    assert!(twin.notes.contains(&Note::AddressShared { pods }), "{:?}", twin.notes);
    let lied = explained(&census, "shop/web", "10.244.2.7");
    assert_eq!(lied.flow.expect("it crosses").mode, FlowMode::Prefer);
}

#[test]
fn a_difference_speaks_of_classes() {
    let none = census(Mode::Observe, &[], &[]);
    let some = census(Mode::Observe, &[("payments", PolicyMode::Require)], &[]);
    let told = diff(&none, &none.law(), &some.law(), second(0));
    let names = |at: usize| -> Vec<String> {
        let classes = told.groups[at].classes.iter();
        let name = |class: &Class| match class {
            Class::Nodes => "nodes".to_owned(),
            Class::Pods { namespace, count, .. } => format!("{namespace} {count}"),
        };
        classes.map(name).collect()
    };
    let changes: Vec<_> = told
        .changes
        .iter()
        .map(|change| (change.between.map(names), change.before.mode, change.after.mode))
        .collect();
    let (payments, others) = (vec!["payments 2".to_owned()], vec!["shop 2".to_owned(), "nodes".to_owned()]);
    let from = FlowMode::Observe;
    assert_eq!(
        changes,
        [
            ([others.clone(), others.clone()], from, FlowMode::Prefer),
            ([others, payments.clone()], from, FlowMode::Require),
            ([payments.clone(), payments], from, FlowMode::Require),
        ]
    );
    // Back again, what loosens most stands first.
    let back = diff(&none, &some.law(), &none.law(), second(0));
    assert!(back.changes.iter().all(|change| change.after.mode == FlowMode::Observe));
}

/// Nobody knows what a policy selects that asks for labels of a namespace that nobody has told of.
#[test]
fn an_expectation_without_its_namespace_is_refused() {
    let mut census = census(Mode::Observe, &[], &[]);
    let selector = |text: &str| text.parse::<LabelSelector>().expect("a selector");
    let policy = |namespaces: &str| {
        let policy = Policy {
            namespaces: Namespaces::Labelled(selector(namespaces)),
            pods: LabelSelector::default(),
            mode: PolicyMode::Require,
            until: None,
            max_key_age: None,
        };
        Policies::new([(PolicyId { namespace: None, name: "p".to_owned() }, policy)].into())
    };
    let subject = |namespace: &str| policy_test::Subject {
        namespace: Some(namespace.to_owned()),
        ..policy_test::Subject::default()
    };
    let found = |census: &Census| {
        let (known, unknown) = (subject("shop"), subject("elsewhere"));
        expect::found(census, &census.law(), [&known, &unknown], second(0)).map(|found| found.mode)
    };
    assert_eq!(found(&census), Ok(FlowMode::Observe));
    census.policies = policy("kubernetes.io/metadata.name=elsewhere");
    assert_eq!(found(&census), Ok(FlowMode::Require), "an API server names each by a label");
    census.policies = policy("team=a");
    let (field, why) = found(&census).expect_err("nobody knows");
    assert!(field == "to.namespace" && why.contains("labels of elsewhere are not known"), "{field}: {why}");
}
