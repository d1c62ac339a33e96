//! What one node has to do when something else is asked for of another node's pods, or one of its own is labelled otherwise: the
//! daemon's own way round, over a kernel that is made of memory. In a cluster whose pods come and go that is nearly all that an agent
//! hears.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, ensure};
use kubeveil_api::{
    policy::PolicyMode,
    selector::{LabelSelector, Labels},
};
use kubeveil_core::policy::{
    Namespaces, Policies, Policy, PolicyId, Standing,
    pods::{Exceptions, OfPods, Pod, Workloads},
};
use kubeveil_linux::fake::FakeKernel;
use kubeveild::node::Node;

use super::{
    NODES,
    cluster::{self, Memory, OWN, Own},
    hear,
    memory::resident,
    profile::{Profile, Profiled},
    settle,
};
use crate::{
    row::{Row, Series},
    say,
};

/// Nodes that have exceptions, and how many each has.
const WITH: u16 = 100;
const EACH: u8 = 5;
/// Pods of this node.
const LOCAL: u8 = 250;
/// Slices, or labels, that change in a round.
const CHANGES: u8 = 20;

/// What is asked for of pods of node `n`, where they have come and gone so often.
fn exceptions(n: u16, turn: u8) -> Arc<Exceptions> {
    let [high, low] = n.to_be_bytes();
    let require = Standing { mode: PolicyMode::Require, until: None };
    let address = |pod: u8| [10, 128 + high, low, 10 + turn % 100 + pod].into();
    Arc::new((0..EACH).map(|pod| (address(pod), require)).collect())
}

fn app(name: &str) -> Labels {
    [("app".to_owned(), name.to_owned())].into()
}

fn policies() -> Policies {
    let policy = Policy {
        namespaces: Namespaces::One("payments".to_owned()),
        pods: LabelSelector { match_labels: app("ledger"), ..LabelSelector::default() },
        mode: PolicyMode::Require,
        until: None,
        max_key_age: None,
    };
    let id = PolicyId { namespace: Some("payments".to_owned()), name: "all".to_owned() };
    Policies::new([(id, policy)].into())
}

fn uid(n: u8) -> String {
    format!("uid-{n}")
}

fn workloads() -> Workloads {
    let pod = |n: u8| {
        let addresses = [[10, 244, 1, n].into()].into();
        let (node, namespace) = (OWN.to_owned(), "payments".to_owned());
        (uid(n), Pod { node, namespace, addresses, labels: app("web"), ..Pod::default() })
    };
    Workloads {
        namespaces: [("payments".to_owned(), Labels::new())].into(),
        pods: (0..LOCAL).map(pod).collect(),
        elsewhere: (1..=WITH).map(|n| (cluster::name(n), exceptions(n, 0))).collect(),
        knows_elsewhere: true,
    }
}

/// A daemon that has nothing left to do; `with` exceptions elsewhere, or none.
fn laid(own: &Own, with: bool) -> Result<(Node<Profiled<FakeKernel>>, Profile, Memory)> {
    let kernel = FakeKernel::new("bench", &["198.51.100.1/24".parse()?, "2001:db8:1::1/64".parse()?]);
    let (kernel, profile) = Profiled::new(kernel);
    let source = Memory::of(&cluster::others(NODES, own)?);
    let (mesh, facts) = (cluster::mesh()?, cluster::own()?);
    source.change(|snapshot| {
        snapshot.mesh = Some(mesh);
        snapshot.nodes.insert(OWN.to_owned(), facts.into());
        snapshot.policies = policies();
        snapshot.workloads = workloads().into();
        if !with {
            Arc::make_mut(&mut snapshot.workloads).elsewhere.clear();
        }
    });
    let mut node = Node::new(OWN, &[], "bench", kernel, Box::new(source.clone()), own.state());
    (0..4).try_for_each(|_| settle(&mut node))?;
    Ok((node, profile, source))
}

/// What is said in a change of a round: the how manieth it is, and in which turn.
type Said = fn(u8, u8) -> OfPods;

/// Of another node's pods.
fn slice(n: u8, turn: u8) -> OfPods {
    let n = u16::from(n) % WITH + 1;
    let elsewhere = [(cluster::name(n), Some(exceptions(n, turn)))].into();
    OfPods { elsewhere, ..OfPods::default() }
}

/// Of one of this node's.
fn label(n: u8, turn: u8) -> OfPods {
    let labels = app(if turn.is_multiple_of(2) { "web" } else { "ledger" });
    OfPods { labels: [(uid(n), labels)].into(), ..OfPods::default() }
}

/// Milliseconds for each slice, and for each label, that is another, by the short way and by the whole.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    say(format!("pods: {NODES} nodes"));
    let own = Own::make()?;
    let (mut node, profile, source) = laid(&own, true)?;
    let mut rows = Vec::new();
    let slice: Said = slice;
    for (what, change) in
        [("a VeilPodSlice that is another", slice), ("a label of an own pod that is another", label)]
    {
        let [mut short, mut whole] = [Series::new(), Series::new()];
        for round in 1..=rounds {
            say(format!("pods: {what}, round {round} of {rounds}"));
            for (way, series) in [(false, &mut short), (true, &mut whole)] {
                let mut took = 0.0;
                let turn = u8::try_from(round % 50)? * 2 + u8::from(way);
                for n in 0..CHANGES {
                    source.hear_of_pods(change(n, turn + 1))?;
                    if way {
                        source.change(|_| ());
                    }
                    profile.take();
                    let start = Instant::now();
                    hear(&mut node)?;
                    took += start.elapsed().as_secs_f64();
                    let spent = profile.take();
                    ensure!(spent.writes > 0 && (spent.looks > 0) == way, "{spent:?}, which is another way");
                }
                series.push(took * 1e3 / f64::from(CHANGES));
            }
        }
        let name = format!("{what}, {NODES} nodes");
        let note = format!("the whole way round: {:.0} ms; over a kernel of memory", whole.median());
        rows.push(Row::of(name.clone(), "ms", &short).note(note));
        rows.push(Row::of(format!("{name} / the whole way round"), "ratio", &short.over(&whole)));
    }
    Ok(rows)
}

/// Entries that come into the kernel's maps, and KiB of memory, for all exceptions among the pods of all nodes: what others pods there
/// are costs nothing, since nobody tells of them.
pub(super) fn exceptions_cost() -> Result<[f64; 2]> {
    let own = Own::make()?;
    let (mut node, profile, source) = laid(&own, false)?;
    let before = resident("self")?;
    profile.take();
    source.change(|snapshot| snapshot.workloads = workloads().into());
    (0..3).try_for_each(|_| settle(&mut node))?;
    Ok([f64::from(profile.take().writes), resident("self")? - before])
}
