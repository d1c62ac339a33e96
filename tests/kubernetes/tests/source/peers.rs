//! Other nodes known by the controller's slices: the suite that every source is held to, and what becomes of slices.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Result;
use kubeveil_core::{control::Control, source::SourceState};
use kubeveil_tests_kubernetes::{
    cluster::{InApiServer, mesh_kind, node_kind},
    server::Server,
    world::{Watching, World, until},
};
use serde_json::{Value, json};

use crate::{
    OnServer,
    controller::{self, Running},
    suite,
};

pub(crate) const ALL: &[(&str, OnServer)] = &[
    ("peers::a_slice_that_somebody_deletes_comes_back", a_slice_that_somebody_deletes_comes_back),
    ("peers::without_the_controller_what_stands_stands", without_the_controller_what_stands_stands),
    ("peers::a_small_cluster_is_on_record", a_small_cluster_is_on_record),
];

/// A cluster that an API server keeps, and whose agents go by slices.
pub(crate) struct InSlices<'a> {
    world: InApiServer<'a>,
    controller: Option<Running>,
}

impl<'a> InSlices<'a> {
    pub(crate) fn new(server: &'a Server) -> Self {
        let world = InApiServer::new(server).unwrap();
        controller::namespace(server);
        let controller = Some(controller::controller(server));
        Self { world, controller }
    }

    fn slices(&self) -> Option<u64> {
        self.world.get(&mesh_kind(), "default").ok()?["status"]["peerSlices"].as_u64()
    }
}

impl World for InSlices<'_> {
    fn put_node(&mut self, name: &str, pod_cidrs: &[&str], addresses: &[&str]) -> Result<()> {
        self.world.put_node(name, pod_cidrs, addresses)
    }

    fn annotate(&mut self, name: &str, said: Option<&str>) -> Result<()> {
        self.world.annotate(name, said)
    }

    fn delete_node(&mut self, name: &str) -> Result<()> {
        self.world.delete_node(name)
    }

    fn put_mesh(&mut self, spec: &Value) -> Result<()> {
        let mut spec = spec.clone();
        spec["peerSlices"] = json!("always");
        self.world.put_mesh(&spec)
    }

    fn delete_mesh(&mut self) -> Result<()> {
        self.world.delete_mesh()
    }

    fn put_object(&mut self, object: &Value) -> Result<()> {
        self.world.put_object(object)
    }

    fn delete_object(&mut self, object: &Value) -> Result<()> {
        self.world.delete_object(object)
    }

    fn announced(&self, name: &str) -> Result<Option<String>> {
        self.world.announced(name)
    }

    fn control(&self) -> Result<Box<dyn Control>> {
        self.world.control()
    }

    /// It goes by slices when this returns, if its own Node is there.
    fn open(&self, own: &str) -> Result<Watching> {
        until("the controller tells of slices", || self.slices().is_some());
        let mut watching = self.world.open(own)?;
        if self.world.node(own).is_ok() {
            goes_by_slices(&mut watching);
        }
        Ok(watching)
    }
}

fn goes_by_slices(watching: &mut Watching) {
    until("it goes by slices", || {
        watching.read();
        watching.source.name().ends_with("other nodes by VeilPeerSlices")
    });
}

fn slice(number: u32) -> Value {
    json!({"apiVersion": "kubeveil.io/v1alpha1", "kind": "VeilPeerSlice", "metadata": {"name": format!("peers-{number}")}})
}

/// All that is told for so long.
fn for_a_while(watching: &mut Watching, each: impl Fn(&SourceState)) {
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        each(&watching.read());
        watching.woken.recv_timeout(Duration::from_millis(50)).ok();
    }
}

/// Of two, the second, while there is room in the first: no node that stood in it is lost on the way back.
fn a_slice_that_somebody_deletes_comes_back(server: &mut Server) {
    let mut world = InSlices::new(server);
    suite::settle(&mut world, 150);
    world.delete_node("node-7").unwrap();
    let names: Vec<String> = (1..=150).filter(|n| *n != 7).map(|n| format!("node-{n}")).collect();
    let all: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let all: Vec<&str> = all.into_iter().collect();
    let mut watching = suite::opened(&world, &all);
    assert!(world.world.object(&slice(1)).is_ok());
    world.delete_object(&slice(1)).unwrap();
    let (end, mut was_partial) = (Instant::now() + Duration::from_secs(8), false);
    while Instant::now() < end {
        let state = watching.read();
        was_partial |= state.knowledge.synced().is_none();
        assert!(
            state.knowledge.synced().is_none() || suite::knows(&state, &all),
            "what is partial removes nobody"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(was_partial, "it was not missed");
    watching.until("it is back", |state| suite::knows(state, &all));
    world.annotate("node-2", Some("later")).unwrap();
    watching.until("it goes on", |state| {
        state.knowledge.snapshot().nodes["node-2"].announcement.as_deref() == Some("later")
    });
}

/// For as long as it likes; nodes that come and go meanwhile are known when it is back, and by Nodes wherever people say so.
fn without_the_controller_what_stands_stands(server: &mut Server) {
    let mut world = InSlices::new(server);
    suite::settle(&mut world, 2);
    let mut watching = suite::opened(&world, &["node-1", "node-2"]);
    world.controller = None;
    world.delete_node("node-2").unwrap();
    suite::put(&mut world, 3);
    for_a_while(&mut watching, |state| assert!(suite::knows(state, &["node-1", "node-2"]), "{state:#?}"));
    // One that begins meanwhile lists all Nodes, and does not go by slices that lack one of them.
    suite::opened(&world.world, &["node-1", "node-3"]);
    let mut mesh = suite::mesh();
    mesh["peerSlices"] = json!("never");
    world.world.put_mesh(&mesh).unwrap();
    watching.until("by Nodes", |state| suite::knows(state, &["node-1", "node-3"]));
    // What slices say is of before, and nobody goes by them again before they say more.
    world.put_mesh(&suite::mesh()).unwrap();
    for_a_while(&mut watching, |state| assert!(suite::knows(state, &["node-1", "node-3"]), "{state:#?}"));
    world.controller = Some(controller::controller(world.world.server));
    // It waits for the lease of the one before.
    until("a slice tells of who came", || {
        world.world.object(&slice(0)).is_ok_and(|slice| slice.to_string().contains("node-3"))
    });
    goes_by_slices(&mut watching);
    watching.until("by slices", |state| suite::knows(state, &["node-1", "node-3"]));
    world.world.put_mesh(&mesh).unwrap();
    until("the controller tells of slices no more", || world.slices().is_none());
    watching.until("by Nodes again", |state| suite::knows(state, &["node-1", "node-3"]));
}

/// By which a newcomer knows who was first, though all go by Nodes.
fn a_small_cluster_is_on_record(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    controller::namespace(server);
    let _controller = controller::controller(server);
    suite::settle(&mut world, 2);
    world.annotate("node-2", Some("said")).unwrap();
    let peers = |world: &InApiServer<'_>| {
        let slice = world.object(&slice(0)).ok();
        slice.map(|slice| slice["peers"].as_array().cloned().unwrap_or_default()).unwrap_or_default()
    };
    until("both are on record", || {
        peers(&world).len() == 2 && peers(&world)[1]["internalIPs"] == json!(["192.0.2.2"])
    });
    assert!(
        peers(&world).iter().all(|peer| peer.get("announcement").is_none() && peer.get("refused").is_none())
    );
    // Made by hand: an API server lets nobody claim twice, a kubelet is not asked.
    world.put(&node_kind(), &json!({"metadata": {"name": "a-thief"}, "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}})).unwrap();
    let mut newcomer = world.open("node-1").unwrap();
    let state = newcomer.until("it is told whose it is not", |state| {
        state.knowledge.synced().is_some() && !state.knowledge.snapshot().refused.is_empty()
    });
    let refused: Vec<_> = state
        .knowledge
        .snapshot()
        .refused
        .iter()
        .map(|(prefix, owner)| (prefix.to_string(), owner.name.clone()))
        .collect();
    assert_eq!(refused, [("10.244.2.0/24".to_owned(), "a-thief".to_owned())]);
    assert!(!newcomer.source.name().contains("VeilPeerSlices"));
}
