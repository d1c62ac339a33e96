//! A namespace that is deleted, and what is in it, in any order: pods that still speak stay held, by their own node and by others.

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::Method;
use ipnet::IpNet;
use kubeveil_abi::Asked;
use kubeveil_linux::fake::FakeKernel;
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    cluster::InApiServer,
    server::{Server, Who},
    world::{World, until},
};
use kubeveild::node::{Node, Now};
use serde_json::{Value, json};

use crate::{
    agent::Watched,
    controller::{controller, namespace},
    rights::attack::get,
    suite::{mesh, put},
};

const LEAVING: &str = "leaving";
const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 2, 7));
/// Longer than a policy that goes is waited for, and than the controller waits for the rest of a burst.
const LONG: Duration = Duration::from_secs(5);

/// A daemon but for its kernel, which is the fake one.
struct Daemon {
    node: Node<Watched>,
    kernel: Watched,
    began: Instant,
}

impl Daemon {
    fn on(world: &InApiServer<'_>, n: u8, state: &Path) -> Self {
        let address = format!("192.0.2.{n}/24").parse().unwrap();
        let kernel = Watched(Arc::new(Mutex::new(FakeKernel::new("build", &[address]))));
        let name = format!("node-{n}");
        let source = world.open(&name).unwrap().source;
        let node = Node::new(&name, &[], "build", kernel.clone(), source, state);
        Self { node, kernel, began: Instant::now() }
    }

    /// What its programs ask of the pod's address, by the entry of its own; and of whom nobody knows.
    fn asks(&mut self) -> [Option<Asked>; 2] {
        let at = Duration::from_secs(1) + self.began.elapsed();
        self.node.pass(Now { monotonic: at, epoch: at });
        let datapath = self.kernel.with(|kernel| kernel.truth().datapath);
        let of_pod = datapath.as_ref().and_then(|datapath| datapath.prefixes.get(&IpNet::from(POD)));
        [of_pod.map(|prefix| prefix.asked), datapath.as_ref().map(|d| Asked::from_raw(d.config.unknown))]
    }
}

fn is_gone(server: &Server, path: &str) -> bool {
    let found = ask(server, &server.client(Who::Admin).unwrap(), &get(path));
    matches!(found, Err(kube::Error::Api(status)) if status.code == 404)
}

pub(crate) fn pods_are_held_until_they_are_gone(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    let mut spec = mesh();
    spec["mode"] = json!("observe");
    world.put_mesh(&spec).unwrap();
    (1..=2).for_each(|n| put(&mut world, n));
    namespace(server);
    let running = controller(server);
    let metadata = |name: &str| json!({"name": name, "namespace": LEAVING, "labels": {"app": "ledger"}});
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEAVING, "labels": {}}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata("ledger"),
        "spec": {
            "nodeName": "node-2", "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false,
        },
        "status": {"phase": "Running", "podIP": POD, "podIPs": [{"ip": POD}]},
    });
    let policy = json!({
        "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionPolicy", "metadata": metadata("ledger"),
        "spec": {"podSelector": {}, "mode": "require"},
    });
    for object in [&space, &policy, &pod] {
        world.put_object(object).unwrap();
    }
    let states = [1, 2].map(|_| tempfile::tempdir().unwrap());
    let mut daemons = [(1, 0), (2, 1)].map(|(n, at): (u8, usize)| Daemon::on(&world, n, states[at].path()));
    let held = [Some(Asked::Require), Some(Asked::Require)];
    for daemon in &mut daemons {
        until("it is held", || daemon.asks() == held);
    }

    // The policy goes first, and the watches may tell of both in any order.
    let client = server.client(Who::Admin).unwrap();
    world.delete_object(&policy).unwrap();
    let path = format!("/api/v1/namespaces/{LEAVING}");
    ask(server, &client, &Request::new(Method::DELETE, &path, "")).unwrap();
    let slice = "/apis/kubeveil.io/v1alpha1/veilpodslices/node-2";
    let stays = |daemons: &mut [Daemon; 2]| {
        let end = Instant::now() + LONG;
        while Instant::now() < end {
            assert_eq!(daemons.each_mut().map(Daemon::asks), [held, held]);
            assert!(!is_gone(server, slice), "others are told of it");
        }
    };
    stays(&mut daemons);
    // Neither a controller nor daemons that begin anew have ever seen the policy.
    drop((daemons, running));
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kubeveil/leases/kubeveil-controller";
    ask(server, &client, &Request::new(Method::DELETE, lease, "")).unwrap();
    let _running = controller(server);
    let mut daemons = [(1, 0), (2, 1)].map(|(n, at): (u8, usize)| Daemon::on(&world, n, states[at].path()));
    for daemon in &mut daemons {
        until("it is held anew", || daemon.asks() == held);
    }
    stays(&mut daemons);

    world.delete_object(&pod).unwrap();
    until("nobody is told of it", || is_gone(server, slice));
    until("nobody holds it", || daemons.each_mut().map(|daemon| daemon.asks()[0]) == [None, None]);
    let mut object: Value = ask(server, &client, &get(&path)).unwrap();
    object["spec"]["finalizers"] = json!([]);
    let finalize = Request::new(Method::PUT, &format!("{path}/finalize"), &object.to_string());
    ask(server, &client, &finalize).unwrap();
    let nothing = [None, Some(Asked::Mesh)];
    until("nothing is asked of anybody", || daemons.each_mut().map(Daemon::asks) == [nothing, nothing]);
}
