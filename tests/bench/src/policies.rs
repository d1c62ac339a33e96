//! What policies cost: the programs with 500 exceptions in their maps against the same without, and what is decided anew when a policy,
//! or a pod, is another.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

use anyhow::Result;
use kubeveil_abi::{Asked, Direction, PrefixKind, PrefixValue};
use kubeveil_api::{
    policy::PolicyMode,
    selector::{LabelSelector, Labels, Operator, Requirement},
};
use kubeveil_core::policy::{
    FlowMode, Namespaces, Policies, Policy, PolicyId, Standing,
    pods::{Pod, Pods, Workloads},
};
use kubeveil_tests_bpf::kernel::{Kernel, test_run};
use kubeveil_verdict::testing::{World, address};

use crate::{
    daemon::pods,
    programs::{cluster, nanoseconds, node, situations},
    raw,
    row::{Row, Series},
    say,
};

/// Runs of a program a measurement.
const REPEAT: u32 = 100_000;
const NODES: u16 = 1_000;
/// Pods of this node, and those of others of which something else is asked for than of all.
const LOCAL: u16 = 250;
const EXCEPTIONS: u16 = 500;
const POLICIES: u16 = 1_000;
const NAMESPACES: u16 = 50;

pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    let mut rows = per_packet(rounds)?;
    rows.extend(deciding(rounds));
    rows.extend(pods::measure(rounds)?);
    Ok(rows)
}

/// The same packets without policies and with; and of a pod of which nothing is asked among them, whose device is not known and is. Round
/// by round.
fn per_packet(rounds: usize) -> Result<Vec<Row>> {
    let plain = cluster(NODES);
    let with = with_policies(plain.clone());
    let free = with_free_pod(with.clone());
    let mut bound = free.clone();
    bound.bind_pod();
    let worlds = [plain, with, free, bound];
    let mut kernels = worlds.iter().map(Kernel::with).collect::<Result<Vec<_>>>()?;
    let mut empty = raw::Program::load(&[raw::NEXT, raw::EXIT])?;
    let situations: Vec<_> =
        situations(NODES).into_iter().filter(|(what, _, _)| what.starts_with("pod to pod")).collect();
    let mut costs: Vec<[Series; 4]> = situations.iter().map(|_| Default::default()).collect();
    for round in 1..=rounds {
        say(format!("policies: round {round} of {rounds}"));
        for ((_, direction, situation), cost) in situations.iter().zip(&mut costs) {
            let frame = situation.build.frame();
            let nothing = nanoseconds(test_run(empty.classifier()?, &frame, None, REPEAT)?.duration);
            for (kernel, series) in kernels.iter_mut().zip(cost) {
                kernel.settle()?;
                let ran = kernel.run_often(*direction, situation, &frame, 0, REPEAT)?;
                series.push(nanoseconds(ran.duration) - nothing);
            }
        }
    }
    let rows =
        |((what, direction, _), [without, with, free, bound]): (&(&str, Direction, _), &[Series; 4])| {
            let of = |name: String| format!("{}, {what}, {name}", direction.name());
            let note = format!("{:.0} ns with, {:.0} ns without", with.median(), without.median());
            let name = of(format!("{EXCEPTIONS} exceptions / no policy"));
            let policies = Row::of(name, "ratio", &with.over(without));
            let note_bound =
                format!("{:.0} ns, {:.0} ns where its device is not known", bound.median(), free.median());
            let bound = Row::of(
                of("a pod bound to its device / one that is not".to_owned()),
                "ratio",
                &bound.over(free),
            );
            [policies.at_most(1.15).note(note), bound.note(note_bound)]
        };
    Ok(situations.iter().zip(&costs).flat_map(rows).collect())
}

/// Nothing is asked of the pod whose packets are measured: only of such a one it matters whether its device lives.
fn with_free_pod(mut world: World) -> World {
    for is_v6 in [false, true] {
        let own = address(local(0, is_v6));
        for (_, _, value) in world.prefixes.iter_mut().filter(|(at, length, _)| *at == own && *length == 128)
        {
            *value = PrefixValue::new(PrefixKind::LocalPods, 0);
        }
    }
    world
}

/// Of every other one of this node's pods, and of some of other nodes', encryption is required; of who is unknown as well.
fn with_policies(mut world: World) -> World {
    world.config.unknown = Asked::Require as u32;
    for (_, _, value) in &mut world.prefixes {
        if value.kind == PrefixKind::LocalPods as u8 {
            *value = value.asking(Asked::Require, 0);
        }
    }
    for is_v6 in [false, true] {
        let here = PrefixValue::new(PrefixKind::LocalPods, 0);
        for n in 0..LOCAL {
            let asked = if n % 2 == 0 { Asked::Require } else { Asked::Mesh };
            world.prefixes.push((address(local(n, is_v6)), 128, here.asking(asked, 0)));
        }
        for n in 0..EXCEPTIONS {
            let (at, peer) = elsewhere(n, is_v6);
            let there = PrefixValue::new(PrefixKind::RemotePods, peer);
            world.prefixes.push((address(at), 128, there.asking(Asked::Require, 0)));
        }
    }
    world
}

/// The `n`th pod of this node.
fn local(n: u16, is_v6: bool) -> IpAddr {
    let own = kubeveil_verdict::testing::Place::LocalPod.ip(is_v6);
    beside(own, n)
}

/// The `n`th exception elsewhere, and its node's peer index.
fn elsewhere(n: u16, is_v6: bool) -> (IpAddr, u32) {
    let at = n * 2;
    let (pod, _) = node(at, is_v6);
    (beside(pod, 1), u32::from(at) + u32::from(kubeveil_verdict::testing::Scene::PEERS))
}

fn beside(address: IpAddr, n: u16) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ u32::from(n % 256)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ u128::from(n)).into(),
    }
}

/// What is decided of pods, by the clock of this machine.
fn deciding(rounds: usize) -> Vec<Row> {
    let (policies, workloads) = world();
    let [mut all, mut one] = [Series::new(), Series::new()];
    for round in 1..=rounds {
        say(format!("policies: deciding {round} of {rounds}"));
        let start = Instant::now();
        let asked = workloads.asked(&policies, FlowMode::Prefer, "", |_| None);
        all.push(start.elapsed().as_secs_f64() * 1e3);
        std::hint::black_box(asked);
        one.push(changes(&policies, &workloads));
    }
    vec![
        Row::of(format!("{POLICIES} policies decided anew for {LOCAL} pods"), "ms", &all).at_most(10.0),
        Row::of(format!("a pod's label decided anew among {POLICIES} policies"), "us", &one).at_most(100.0),
    ]
}

/// Microseconds a change of one pod's labels, of as many as there are pods.
fn changes(policies: &Policies, workloads: &Workloads) -> f64 {
    let mut pods = Pods::default();
    pods.set_policies(policies.clone());
    for (name, labels) in &workloads.namespaces {
        pods.set_namespace(name, Some(labels.clone()));
    }
    for (uid, pod) in &workloads.pods {
        pods.set_pod(uid, Some(pod.clone()));
    }
    let others: Vec<(&String, Pod)> = workloads
        .pods
        .iter()
        .map(|(uid, pod)| (uid, Pod { labels: labels(&[("app", "another".to_owned())]), ..pod.clone() }))
        .collect();
    let count = others.len();
    let start = Instant::now();
    for (uid, pod) in others {
        std::hint::black_box(pods.set_pod(uid, Some(pod)));
    }
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let count = count as f64;
    start.elapsed().as_secs_f64() * 1e6 / count
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// Half of the policies select by a label, as most do, the others by an expression that has to be tried; a tenth are the cluster's.
fn world() -> (Policies, Workloads) {
    let policy = |n: u16| {
        let by_label = LabelSelector {
            match_labels: labels(&[("app", format!("app-{}", n % 100))]),
            match_expressions: Vec::new(),
        };
        let tried =
            Requirement { key: "tier".to_owned(), operator: Operator::In, values: vec![format!("t-{n}")] };
        let by_expression = LabelSelector { match_labels: Labels::new(), match_expressions: vec![tried] };
        let pods = if n.is_multiple_of(2) { by_label } else { by_expression };
        let namespaces = if n.is_multiple_of(10) {
            Namespaces::Labelled(LabelSelector::default())
        } else {
            Namespaces::One(format!("namespace-{}", n % NAMESPACES))
        };
        let id = PolicyId { namespace: None, name: format!("policy-{n}") };
        (id, Policy { namespaces, pods, mode: PolicyMode::Require, until: None, max_key_age: None })
    };
    let pod = |n: u16| {
        let labels = labels(&[("app", format!("app-{}", n % 100)), ("tier", format!("t-{n}"))]);
        let addresses = [local(n, false), local(n, true)].into();
        let namespace = format!("namespace-{}", n % NAMESPACES);
        (
            format!("uid-{n}"),
            Pod { node: "own".to_owned(), namespace, labels, addresses, network_since: None },
        )
    };
    let require = Standing { mode: PolicyMode::Require, until: None };
    let exceptions: BTreeMap<_, _> = (0..EXCEPTIONS).map(|n| (elsewhere(n, false).0, require)).collect();
    let workloads = Workloads {
        namespaces: (0..NAMESPACES).map(|n| (format!("namespace-{n}"), Labels::new())).collect(),
        pods: (0..LOCAL).map(pod).collect(),
        elsewhere: [("others".to_owned(), Arc::new(exceptions))].into(),
        knows_elsewhere: true,
    };
    (Policies::new((0..POLICIES).map(policy).collect()), workloads)
}
