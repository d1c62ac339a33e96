//! What happens to a node, with and without faults.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use kubeveil_api::{
    mesh::Mode,
    policy::PolicyMode,
    selector::{LabelSelector, Labels},
};
use kubeveil_core::{
    backstop::Form,
    observed::{Link, Predecessor, Program},
    policy::{
        Namespaces, Policies, Policy, PolicyId,
        pods::{Pod, Workloads},
    },
};
use kubeveil_linux::fake::FakeKernel;

use super::stage::Stage;
use crate::node::tests::bench::{DEVICE, announce};

/// A scenario: a node at rest, or none yet, and a change. Faults begin with the change.
#[derive(Clone, Copy)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// What stands before; a mesh of three nodes that is at rest.
    pub(super) before: Before,
    pub(super) change: fn(&mut Stage),
    /// Pairs are open until they are proven, and the third node never is.
    pub(super) adopts: bool,
    /// The daemon is started after the change, over what stands.
    pub(super) restarts: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// All is as it should be.
    Rest,
    /// The same in mode prefer.
    Prefer,
    /// The same, on a kernel that has no netfilter programs.
    Table,
    /// The same, with pods that are exempt.
    Exempt,
}

/// Addresses of pods of this node.
pub(super) const POD: &[&str] = &["10.244.1.5", "fd00:244:1::5"];
pub(super) const ANOTHER: &[&str] = &["10.244.1.6"];

const fn scenario(name: &'static str, change: fn(&mut Stage)) -> Scenario {
    Scenario { name, before: Before::Rest, change, adopts: false, restarts: false }
}

const fn restart(name: &'static str, change: fn(&mut Stage)) -> Scenario {
    Scenario { restarts: true, ..scenario(name, change) }
}

/// All of them.
pub(super) const SCENARIOS: [Scenario; 21] = [
    Scenario { before: Before::Nothing, ..restart("a cold start", |_| {}) },
    Scenario { before: Before::Nothing, adopts: true, ..restart("adoption", |_| {}) },
    Scenario {
        adopts: true,
        ..scenario("the last pair is proven", |stage| {
            let key = stage.bench.keys[1].public();
            stage.bench.kernel.with(|k| k.answer(key));
        })
    },
    scenario("a node joins", |stage| stage.join()),
    scenario("a node leaves", |stage| {
        stage.bench.world.change(|said| drop(said.snapshot.nodes.remove("node-3")));
    }),
    scenario("another key of a node", |stage| stage.rekey(3)),
    scenario("keys are rotated", |stage| stage.rotate()),
    restart("keys are rotated while nobody ran", |stage| stage.rotate()),
    scenario("a node moves, another grows", |stage| {
        stage.facts(2, |facts| facts.internal_ips[0] = "192.0.2.102".parse().expect("ip"));
        stage.facts(3, |facts| facts.internal_ips.push("192.0.2.103".parse().expect("ip")));
    }),
    scenario("the tunnel is deleted", |stage| stage.bench.kernel.with(|k| k.delete_link(DEVICE))),
    scenario("the tunnel is renamed", |stage| stage.bench.kernel.with(|k| k.tamper_name(DEVICE, "wg0"))),
    scenario("pins are removed", |stage| {
        stage.bench.kernel.with(|k| k.tamper_maps(|maps| maps.unpinned = ["maps/PEERS".to_owned()].into()));
    }),
    scenario("another version was here", |stage| {
        let hooks = [(Program::Steer, 1), (Program::Guard, 1)].into();
        let left = Predecessor { hooks, has_backstop: true };
        stage
            .bench
            .kernel
            .with(|k| k.tamper_maps(|maps| maps.predecessors = [("v9".to_owned(), left)].into()));
    }),
    scenario("the underlay is another device", |stage| {
        stage.bench.kernel.with(|k| {
            let link = k.truth().links.remove(&1).unwrap_or_default();
            k.delete_link("eth0");
            k.add_link(Link { name: "eth1".to_owned(), mtu: 1400, ..link });
        });
    }),
    Scenario {
        before: Before::Prefer,
        ..scenario("the mode is tightened", |stage| {
            stage.bench.world.change(|said| {
                said.snapshot.mesh.as_mut().expect("a mesh").mode = Mode::Require;
            });
        })
    },
    Scenario {
        before: Before::Exempt,
        ..scenario("a pod's address is given on", |stage| {
            stage.bench.kernel.with(|k| ["pod-p", "pod-q"].into_iter().for_each(|name| k.delete_link(name)));
            stage.has_pods(&[("r", POD)]);
        })
    },
    restart("a restart", |_| {}),
    restart("an upgrade", |stage| stage.upgrade()),
    restart("another key of this node", |stage| stage.other_own_key()),
    restart("a restart while a node joined and one left", |stage| {
        stage.bench.world.change(|said| drop(said.snapshot.nodes.remove("node-2")));
        stage.join();
    }),
    Scenario {
        before: Before::Table,
        ..restart("a kernel that takes the backstop's program", |stage| {
            stage.bench.kernel.with(FakeKernel::take_backstops);
        })
    },
];

impl Scenario {
    /// Is there an older key that goes?
    pub(super) fn rotates(&self) -> bool {
        self.name.starts_with("keys are")
    }
}

impl Stage {
    /// This node has these pods and no others, all of them exempt, each behind a device of its own.
    pub(super) fn has_pods(&self, pods: &[(&str, &[&str])]) {
        let mut workloads = Workloads { knows_elsewhere: true, ..Workloads::default() };
        workloads.namespaces.insert("shop".to_owned(), Labels::new());
        for (uid, addresses) in pods {
            let addresses: BTreeSet<IpAddr> =
                addresses.iter().map(|address| address.parse().expect("an address")).collect();
            let link = Link {
                name: format!("pod-{uid}"),
                kind: Some("veth".to_owned()),
                routes: addresses.iter().map(|address| IpNet::from(*address)).collect(),
                ..Link::default()
            };
            self.bench.kernel.with(|k| k.add_link(link));
            let (node, namespace) = ("node-1".to_owned(), "shop".to_owned());
            let pod = Pod { node, namespace, labels: Labels::new(), addresses, network_since: None };
            workloads.pods.insert((*uid).to_owned(), pod);
        }
        let policy = Policy {
            namespaces: Namespaces::Labelled(LabelSelector::default()),
            pods: LabelSelector::default(),
            mode: PolicyMode::Exempt,
            until: None,
            max_key_age: None,
        };
        let id = PolicyId { namespace: None, name: "all".to_owned() };
        self.bench.world.change(|said| {
            said.snapshot.policies = Policies::new([(id, policy)].into());
            said.snapshot.workloads = Arc::new(workloads);
        });
    }

    /// Node 4 comes.
    fn join(&mut self) {
        let key = self.spare();
        self.bench.join(4, key);
    }

    /// Node `n` has another key, which answers.
    fn rekey(&mut self, n: u8) {
        let key = self.spare();
        self.bench.kernel.with(|k| k.answer(key.public()));
        let json = announce(n, &key, 51871);
        self.facts(n, |facts| facts.announcement = Some(json));
    }

    /// The kernel refuses netfilter programs until it is another.
    pub(super) fn without_program(&self) {
        self.bench.kernel.with(|k| k.refuse_backstop(Form::Bpf, "it is too old"));
    }
}
