//! A whole daemon but for its kernel, which is the fake one: peers from Node objects, and what becomes of them without an
//! API server.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kubeveil_abi::Asked;
use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_core::{
    action::Action,
    observed::{Neighbours, Observed},
};
use kubeveil_keys::{Generation, PrivateKey};
use kubeveil_linux::{Count, Flow, Kernel, KernelError, Removed, Secrets, Sightings, fake::FakeKernel};
use kubeveil_tests_kubernetes::{
    cluster::InApiServer,
    server::Server,
    world::{World, until},
};
use kubeveild::node::{Node, Now};

use crate::{
    mischief::policies,
    suite::{put, settle},
};

/// A kernel that can be looked at while a daemon has it.
#[derive(Clone)]
pub(crate) struct Watched(pub(crate) Arc<Mutex<FakeKernel>>);

impl Watched {
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut FakeKernel) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Addresses of pods of which encryption is required by name, here or elsewhere.
    fn required(&self) -> Vec<String> {
        let datapath = self.with(|kernel| kernel.truth().datapath);
        let prefixes = datapath.map(|datapath| datapath.prefixes).unwrap_or_default();
        let are = prefixes.into_iter().filter(|(net, prefix)| {
            net.prefix_len() == net.max_prefix_len() && prefix.asked == Asked::Require
        });
        are.map(|(net, _)| net.addr().to_string()).collect()
    }

    /// Nodes that it would encrypt to, by the number of their key's first peer.
    fn peers(&self) -> usize {
        self.with(|kernel| kernel.truth().tunnels.values().map(|tunnel| tunnel.peers.len()).sum())
    }
}

impl Kernel for Watched {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        self.with(FakeKernel::observe)
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.with(|kernel| kernel.neighbours())
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        self.with(|kernel| kernel.still_holds(last))
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        self.with(|kernel| kernel.execute(action, secrets))
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        self.with(FakeKernel::counters)
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        self.with(|kernel| kernel.watch(flows))
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        self.with(FakeKernel::seen)
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        self.with(FakeKernel::sweep_flows)
    }

    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        self.with(FakeKernel::remove_everything)
    }
}

/// Node `n` announces a key of its own, for the Node that it is.
pub(crate) fn announces(world: &mut InApiServer<'_>, n: u8) {
    announces_of(world, n, Generation::FIRST);
}

/// The same, of this generation and no other.
pub(crate) fn announces_of(world: &mut InApiServer<'_>, n: u8, generation: Generation) {
    let name = format!("node-{n}");
    let node = world.node(&name).unwrap();
    let uid = node["metadata"]["uid"].as_str().unwrap();
    let key = PrivateKey::generate().unwrap();
    let entry = GenerationEntry {
        generation,
        public_key: key.public(),
        port: 51871.try_into().unwrap(),
        state: GenerationState::Active,
    };
    let signed = Announcement::sign(&name, uid, vec![entry], NotFlipped::nobody(), &[&key]).unwrap();
    world.annotate(&name, Some(&signed.to_json())).unwrap();
}

fn daemon(world: &InApiServer<'_>, kernel: &Watched, state: &Path) -> Node<Watched> {
    let watching = world.open("node-1").unwrap();
    Node::new("node-1", &[], "build", kernel.clone(), watching.source, state)
}

/// Goes round until `is_so`.
pub(crate) fn goes_round(
    node: &mut Node<Watched>,
    what: &str,
    mut is_so: impl FnMut(&Node<Watched>) -> bool,
) {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    until(what, || {
        let at = Duration::from_secs(1) + START.get_or_init(Instant::now).elapsed();
        node.pass(Now { monotonic: at, epoch: at });
        is_so(node)
    });
}

pub(crate) fn peers_come_from_nodes_and_outlive_the_api_server(server: &mut Server) {
    let state = tempfile::tempdir().unwrap();
    let kernel = Watched(Arc::new(Mutex::new(FakeKernel::new("build", &["192.0.2.1/24".parse().unwrap()]))));
    let held = ["10.244.1.7", "10.244.2.7"];
    let mut node = {
        let mut world = InApiServer::new(server).unwrap();
        settle(&mut world, 3);
        (2..=3).for_each(|n| announces(&mut world, n));
        policies().iter().for_each(|object| world.put_object(object).unwrap());
        let mut node = daemon(&world, &kernel, state.path());
        goes_round(&mut node, "two peers", |_| kernel.peers() == 2);
        goes_round(&mut node, "one pod here, and one elsewhere", |_| kernel.required() == held);
        until("it has announced itself", || world.announced("node-1").unwrap().is_some());
        node
    };
    server.halt();
    goes_round(&mut node, "it is told", |node| {
        node.problems()
            .iter()
            .any(|problem| problem.to_string().contains("can't be asked to watch nodes since"))
    });
    assert_eq!(kernel.peers(), 2);
    assert_eq!(kernel.required(), held);
    // A daemon that starts meanwhile knows nobody but from its disk.
    drop(node);
    kernel.with(FakeKernel::daemon_ends);
    let config = server.kubeconfig(kubeveil_tests_kubernetes::server::Who::Agent).unwrap();
    let open = |wake: Box<dyn Fn() + Send + Sync>| {
        let origin = kubeveil_kubernetes::Origin::Kubeconfig(config.clone());
        let pace = kubeveil_tests_kubernetes::cluster::pace();
        kubeveil_kubernetes::Kubernetes::open(origin, "node-1", pace, server.runtime.handle(), wake)
    };
    let watching = kubeveil_tests_kubernetes::world::Watching::new(open);
    let mut node = Node::new("node-1", &[], "build", kernel.clone(), watching.source, state.path());
    let mut ways = 0;
    goes_round(&mut node, "ten ways round, and it is told", |node| {
        assert_eq!(kernel.peers(), 2);
        assert_eq!(kernel.required(), held);
        ways += 1;
        ways > 10
            && node
                .problems()
                .iter()
                .any(|problem| problem.to_string().contains("can't be asked to list nodes"))
    });

    server.resume().unwrap();
    let mut world = InApiServer::resumed(server).unwrap();
    world.delete_node("node-3").unwrap();
    goes_round(&mut node, "it is gone", |_| kernel.peers() == 1);
    put(&mut world, 4);
    announces(&mut world, 4);
    goes_round(&mut node, "it is here", |_| kernel.peers() == 2);
    let [_, _, slice, of_namespace, of_cluster] = policies();
    world.delete_object(&slice).unwrap();
    goes_round(&mut node, "nothing is asked elsewhere", |_| kernel.required() == held[..1]);
    for policy in [of_namespace, of_cluster] {
        world.delete_object(&policy).unwrap();
    }
    goes_round(&mut node, "nor here", |_| kernel.required().is_empty());
}
