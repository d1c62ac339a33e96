//! A whole daemon, but for its kernel, goes through rotations while the API server is away, or tells of the past, at each step.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use kubeveil_abi::PeerState;
use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_keys::{Generation, PrivateKey};
use kubeveil_linux::fake::FakeKernel;
use kubeveil_tests_kubernetes::{
    cluster::InApiServer,
    proxy::{Mischief, Proxy},
    server::{Server, Who},
    world::{World, until},
};
use kubeveild::node::Node;
use serde_json::json;

use crate::{
    OnServer,
    agent::{Watched, goes_round},
    suite::{mesh, settle},
};

/// How long it lasts, each time.
const LASTS: Duration = Duration::from_millis(1500);
/// Within which what is done reaches whoever watches and is not in the way of it.
const HEARD: Duration = Duration::from_millis(700);
/// This node, and two others by their number.
const OTHERS: [u8; 2] = [2, 3];

/// When it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// Before the others do what is next: the daemon can't hear of it.
    Before,
    /// After that, and before the daemon has gone round: it can't tell.
    After,
}

/// What the others do, one after another, and what this node announces then: its generations, counted from the old one, and whom it
/// has not moved.
const STEPS: [(&str, Deed, &[u32], &[&str]); 5] = [
    ("the mesh wants the next", |it| it.wants(), &[0, 1], &["node-2", "node-3"]),
    ("one has it", |it| it.has(2, &["node-1", "node-3"]), &[0, 1], &["node-3"]),
    ("both have it", |it| it.has(3, &["node-1", "node-2"]), &[0, 1], &[]),
    ("one has moved", |it| it.has(2, &[]), &[0, 1], &[]),
    ("both have moved", |it| it.has(3, &[]), &[1], &[]),
];

type Deed = fn(&mut Cluster<'_>);

struct Cluster<'a> {
    world: InApiServer<'a>,
    proxy: Proxy,
    dir: tempfile::TempDir,
    kernel: Watched,
    /// Of each of the others, the one in use and the next.
    keys: [[PrivateKey; 2]; 2],
    /// The generation that is in use.
    old: u32,
}

fn key() -> PrivateKey {
    PrivateKey::generate().unwrap()
}

impl<'a> Cluster<'a> {
    fn new(server: &'a Server) -> Self {
        let mut world = InApiServer::new(server).unwrap();
        settle(&mut world, 3);
        let proxy = Proxy::start(server).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), server.authority.pem()).unwrap();
        let (ca, kubeconfig) = (dir.path().join("ca.pem"), dir.path().join("kubeconfig"));
        server.write_kubeconfig(&kubeconfig, &proxy.url(), Who::Agent, &ca).unwrap();
        let kernel =
            Watched(Arc::new(Mutex::new(FakeKernel::new("build", &["192.0.2.1/24".parse().unwrap()]))));
        let keys = [0, 1].map(|_| [key(), key()]);
        let mut cluster = Self { world, proxy, dir, kernel, keys, old: 0 };
        OTHERS.iter().for_each(|n| cluster.says(*n, false, &[]));
        cluster
    }

    /// A daemon on the first node, by way of the proxy.
    fn daemon(&self) -> Node<Watched> {
        let watching = self.world.open_by("node-1", &self.dir.path().join("kubeconfig"));
        Node::new(
            "node-1",
            &[],
            "build",
            self.kernel.clone(),
            watching.source,
            &self.dir.path().join("state"),
        )
    }

    fn wants(&mut self) {
        let mut spec = mesh();
        spec["keyGeneration"] = json!(self.old + 1);
        self.world.put_mesh(&spec).unwrap();
    }

    fn has(&mut self, n: u8, not_flipped: &[&str]) {
        self.says(n, true, not_flipped);
    }

    /// Node `n` says that it has the key in use and perhaps the next one, and answers by them.
    fn says(&mut self, n: u8, has_next: bool, not_flipped: &[&str]) {
        let name = format!("node-{n}");
        let uid = self.world.node(&name).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        let keys: Vec<&PrivateKey> =
            self.keys[usize::from(n) - 2].iter().take(1 + usize::from(has_next)).collect();
        let newest = self.old + u32::from(has_next);
        let entries = (self.old..).zip(&keys).map(|(number, key)| {
            let generation = Generation::new(number);
            let state = if number == newest { GenerationState::Active } else { GenerationState::Retiring };
            let port = generation.port(51871).and_then(|port| port.try_into().ok()).unwrap();
            GenerationEntry { generation, public_key: key.public(), port, state }
        });
        let list = NotFlipped::of(not_flipped.iter().map(|name| (*name).to_owned()));
        let signed = Announcement::sign(&name, &uid, entries.collect(), list, &keys).unwrap();
        self.kernel.with(|kernel| keys.iter().for_each(|key| kernel.answer(key.public())));
        self.world.annotate(&name, Some(&signed.to_json())).unwrap();
    }

    /// What this node announces, where anybody sees it.
    fn announced(&self) -> (Vec<u32>, NotFlipped) {
        let uid = self.world.node("node-1").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        let said = self.world.announced("node-1").unwrap().unwrap_or_default();
        let Ok(said) = Announcement::parse_and_verify(&said, "node-1", &uid) else {
            return (Vec::new(), NotFlipped::nobody());
        };
        (said.generations().iter().map(|one| one.generation.number()).collect(), said.not_flipped().clone())
    }

    /// To how many others packets go by a tunnel that stands.
    fn tunnelled(&self) -> usize {
        self.kernel.with(|kernel| {
            let truth = kernel.truth();
            let Some(datapath) = &truth.datapath else { return 0 };
            let leads = |slot: u8| {
                truth.tunnels.values().any(|device| device.ifindex == datapath.slots[usize::from(slot)])
            };
            datapath.peers.values().filter(|v| v.state() == PeerState::Tunnel && leads(v.slot())).count()
        })
    }
}

/// A rotation, in each step of which `mischief` is played for a while; the daemon is started anew meanwhile.
fn rotates(cluster: &mut Cluster<'_>, node: &mut Option<Node<Watched>>, mischief: Mischief, since: Since) {
    let old = cluster.old;
    let before = (vec![old], NotFlipped::nobody());
    let mut stands = before;
    for (what, deed, generations, not_flipped) in STEPS {
        let what = format!("{mischief:?} {since:?}, rotation to {}, {what}", old + 1);
        let not_flipped = NotFlipped::of(not_flipped.iter().map(|name| (*name).to_owned()));
        let wanted = (generations.iter().map(|after| old + after).collect::<Vec<_>>(), not_flipped);
        if since == Since::After {
            deed(cluster);
            std::thread::sleep(HEARD);
        }
        cluster.proxy.play(mischief);
        if since == Since::Before {
            deed(cluster);
        }
        let running = node.as_mut().unwrap();
        let end = Instant::now() + LASTS;
        goes_round(running, &what, |_| {
            assert_eq!(cluster.tunnelled(), 2, "{what}");
            Instant::now() > end
        });
        // Where others could not be told, they see what they saw.
        if mischief != Mischief::OldLists {
            assert_eq!(cluster.announced(), stands, "{what}");
        }
        // Another one, which knows nobody but from its disk.
        drop(node.take());
        cluster.kernel.with(FakeKernel::daemon_ends);
        let running = node.insert(cluster.daemon());
        let end = Instant::now() + LASTS;
        goes_round(running, &what, |_| {
            assert_eq!(cluster.tunnelled(), 2, "{what}, and the daemon began anew");
            Instant::now() > end
        });
        cluster.proxy.play(Mischief::Nothing);
        goes_round(running, &format!("{what}: {wanted:?}"), |_| {
            assert_eq!(cluster.tunnelled(), 2, "{what}, and over");
            cluster.announced() == wanted
        });
        stands = wanted;
    }
    cluster.old += 1;
    // The others give theirs up as well.
    cluster.keys.iter_mut().for_each(|keys| {
        keys.reverse();
        keys[1] = key();
    });
    OTHERS.iter().for_each(|n| cluster.says(*n, false, &[]));
    let running = node.as_mut().unwrap();
    goes_round(running, "one device, and all is well", |node| {
        let devices = cluster.kernel.with(|kernel| kernel.truth().tunnels.len());
        // Nobody makes a VeilNode here.
        let is_well = node.problems().iter().all(|problem| problem.object.starts_with("VeilNode"));
        devices == 1 && cluster.tunnelled() == 2 && is_well
    });
}

fn plays(server: &mut Server, mischief: Mischief) {
    let mut cluster = Cluster::new(server);
    let mut node = Some(cluster.daemon());
    goes_round(node.as_mut().unwrap(), "two tunnels", |_| cluster.tunnelled() == 2);
    until("it has announced itself", || cluster.announced().0 == [0]);
    for since in [Since::Before, Since::After] {
        rotates(&mut cluster, &mut node, mischief, since);
    }
}

/// Each of them, by the name of its test.
pub(crate) const ALL: &[(&str, OnServer)] = &[
    ("rotation::the_api_server_is_away_at_each_step", |server| plays(server, Mischief::Reset)),
    ("rotation::the_api_server_tells_of_the_past_at_each_step", |server| plays(server, Mischief::OldLists)),
];
