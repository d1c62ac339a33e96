//! One agent among 5,000 Nodes of a real API server, over a kernel that is made of memory: how long it takes to begin, what it keeps, how soon
//! an announcement is in its kernel, a storm of them, and what all that costs the API server.

mod slices;

use std::{
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::{DynamicObject, Request},
};
use kubeveil_api::names;
use kubeveil_linux::fake::FakeKernel;
use kubeveil_tests_kubernetes::{
    cluster::{self as objects, InApiServer},
    server::{self, Server, Who},
    world::{Watching, World as _},
};
use kubeveild::node::{Node, Now};
use serde_json::{Value, json};

use super::{
    NODES,
    cluster::{self, Other, Own},
    memory::resident,
    profile::{Profile, Profiled, Spent},
    window::{BURST, writes},
};
use crate::{
    row::{Row, Series},
    say,
};

/// Requests at once, while the cluster is made and in a storm.
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(300);
/// In which an agent that has nothing to say must say nothing.
const REST: Duration = Duration::from_secs(20);
/// Between two reports of a kubelet that has nothing new to say (`nodeStatusReportFrequency` in kubernetes
/// `pkg/kubelet/apis/config/v1beta1/defaults.go`).
const HEARTBEAT: f64 = 300.0;
/// Images that a kubelet tells of: `nodeStatusMaxImages` (the same file) is 50.
const IMAGES: usize = 50;
const MIB: f64 = 1024.0 * 1024.0;

/// `rounds` announcements, one after the other.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    if let Some(why) = server::missing() {
        return Ok(vec![Row::skipped("one agent among 5,000 Nodes of an API server", "", why)]);
    }
    say(format!("scale: an API server with {NODES} Nodes"));
    let server = Server::start()?;
    objects::install_definitions(&server)?;
    let mut world = InApiServer::new(&server)?;
    world.put_mesh(&json!({
        "mode": "require", "podCIDRs": ["10.0.0.0/8", "fd00:244::/32"],
        "nodeCIDRs": ["172.0.0.0/8", "2001:db8::/32", "198.51.100.0/24"],
    }))?;
    world.put_node(cluster::OWN, &["10.244.1.0/24"], &["198.51.100.1"])?;
    let own = Own::make()?;
    let mut others = cluster::others(NODES, &own)?;
    let client = server.client(Who::Admin)?;
    server.runtime.block_on(make(&client, &mut others))?;

    let mut rows = vec![one_heartbeat(&server, &client)?];
    let mut agent = Agent::begin(&world, "")?;
    rows.extend(agent.begins()?);
    rows.push(agent.rests(&server, "by Nodes")?);
    let times = agent.hears(&server, &client, &mut others, rounds, 40_000)?;
    let note = format!(
        "median {:.0} ms, of which {} are the daemon's wait for the rest of a burst",
        times.median(),
        BURST.as_millis()
    );
    let name = "an annotation of one of 5,000 Nodes until the kernel has it, p99";
    rows.push(Row::of_quantile(name, "ms", &times, 0.99).at_most(50.0).note(note));
    let Storm { sent, after, growth } = agent.storm(&server, &client, &mut others, 51_872)?;
    let name = "5,000 announcements at once: from the last until the kernel has all";
    rows.push(one(name, "s", after).note(format!("the API server took {sent:.1} s to take them")));
    rows.push(one("memory that this process grows by meanwhile, its requests included", "MiB", growth));
    drop(agent);
    rows.extend(slices::measure(&server, &client, &world, &mut others, rounds)?);
    Ok(rows)
}

/// Of what is measured once.
fn one(name: impl Into<String>, unit: &'static str, value: f64) -> Row {
    Row::of(name, unit, &[value].into_iter().collect())
}

/// All of them, with their announcements; as a kubelet writes a Node, but for what no bytes are saved by.
async fn make(client: &Client, others: &mut [Other]) -> Result<()> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &objects::node_kind());
    let made = stream::iter(others.iter().map(|other| {
        let (name, facts, api) = (other.name(), &other.facts, &api);
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": facts.pod_cidrs[0], "podCIDRs": facts.pod_cidrs},
        });
        let addresses: Vec<Value> =
            facts.internal_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        async move {
            let made = api.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
            let status = json!({"status": {"addresses": addresses, "images": images()}});
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
            anyhow::Ok(made.metadata.uid.context("a UID")?)
        }
    }));
    let uids: Vec<String> = made.buffered(AT_ONCE).try_collect().await?;
    for (other, uid) in others.iter_mut().zip(uids) {
        other.facts.uid = uid;
        other.announce(51_871)?;
    }
    announce(client, others).await
}

fn images() -> Value {
    let image = |n: usize| {
        let digest = format!("registry.example.com/team/service-{n}@sha256:{:064x}", n * 7919);
        json!({"names": [digest, format!("registry.example.com/team/service-{n}:v1.{n}.0")], "sizeBytes": 100_000_000 + n})
    };
    (0..IMAGES).map(image).collect()
}

/// What they say, as fast as the API server takes it.
async fn announce(client: &Client, others: &[Other]) -> Result<()> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &objects::node_kind());
    let said = others.iter().map(|other| {
        let patch = json!({"metadata": {"annotations": {names::ANNOUNCEMENT: other.facts.announcement}}});
        let (name, api) = (other.name(), &api);
        async move { api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop) }
    });
    Ok(stream::iter(said).buffer_unordered(AT_ONCE).try_collect().await?)
}

/// What every watcher of Nodes is sent with each heartbeat of each kubelet: the whole Node.
fn one_heartbeat(server: &Server, client: &Client) -> Result<Row> {
    let node = Request::new("/api/v1/nodes").get(&cluster::name(1), &Default::default())?;
    let bytes = server.runtime.block_on(client.request_text(node))?.len();
    #[expect(clippy::cast_precision_loss, reason = "some thousand bytes")]
    let a_second = bytes as f64 * f64::from(NODES) / HEARTBEAT;
    let note = format!(
        "{bytes} bytes a Node of {IMAGES} images, each of {NODES} every {HEARTBEAT} s; of all agents together {:.0} MiB a second",
        a_second * f64::from(NODES) / MIB
    );
    Ok(one("what kubelets' heartbeats send to one agent", "KiB/s", a_second / 1024.0).note(note))
}

/// Seconds that the API server took to take all announcements, and that the kernel had the last of them later; MiB by which this process grew.
struct Storm {
    sent: f64,
    after: f64,
    growth: f64,
}

/// A daemon but for its kernel.
struct Agent {
    node: Node<Profiled<FakeKernel>>,
    woken: Receiver<()>,
    profile: Profile,
    began: Instant,
    /// MiB of this process before it.
    before: f64,
    _state: tempfile::TempDir,
}

impl Agent {
    /// When it goes `by` what it should, as its source's name says.
    fn begin(world: &InApiServer<'_>, by: &str) -> Result<Self> {
        say("scale: an agent");
        let (before, began) = (resident("self")? / 1024.0, Instant::now());
        let kernel = FakeKernel::new("bench", &["198.51.100.1/24".parse()?]);
        let (kernel, profile) = Profiled::new(kernel);
        let Watching { source, woken, .. } = world.open(cluster::OWN)?;
        while !source.name().contains(by) {
            ensure!(began.elapsed() < PATIENCE, "it goes by {}, and not by {by}", source.name());
            thread::sleep(Duration::from_millis(10));
        }
        let state = tempfile::tempdir()?;
        let node = Node::new(cluster::OWN, &[], "bench", kernel, source, state.path());
        Ok(Self { node, woken, profile, began, before, _state: state })
    }

    fn now(&self) -> Now {
        let at = Duration::from_secs(1_000) + self.began.elapsed();
        Now { monotonic: at, epoch: Duration::from_secs(1_800_000_000) + at }
    }

    /// As the daemon's loop goes, until its kernel has been written to so often, and nothing is left to do; when the last write was.
    fn until(&mut self, wanted: u32) -> Result<(Spent, Instant)> {
        let (start, mut all) = (Instant::now(), Spent::default());
        while start.elapsed() < PATIENCE {
            if self.woken.recv_timeout(Duration::from_millis(100)).is_ok() {
                thread::sleep(BURST);
                while self.woken.try_recv().is_ok() {}
            }
            let now = self.now();
            self.node.hear(now);
            let spent = self.profile.take();
            all.writes += spent.writes;
            all.written = spent.written.or(all.written);
            if let Some(written) = all.written.filter(|_| all.writes >= wanted && self.node.is_settled()) {
                return Ok((all, written));
            }
        }
        anyhow::bail!(
            "{} of {wanted} writes within {} s: {:?}",
            all.writes,
            PATIENCE.as_secs(),
            self.node.problems()
        )
    }

    fn begins(&mut self) -> Result<[Row; 2]> {
        let (spent, written) = self.until(NODES.into())?;
        let seconds = written.duration_since(self.began).as_secs_f64();
        let note = format!("{} writes to the kernel; the list of Nodes comes in pages", spent.writes);
        let memory = resident("self")? / 1024.0 - self.before;
        Ok([
            one("an agent's start until its kernel has 5,000 Nodes of an API server", "s", seconds)
                .note(note),
            one("memory of it, its kernel of memory included", "MiB", memory),
        ])
    }

    /// The other agents are not there, so whatever is written it has written.
    fn rests(&mut self, server: &Server, by: &str) -> Result<Row> {
        let sum = |server| anyhow::Ok(writes(server)?.values().sum::<u64>());
        let settles = Instant::now();
        while settles.elapsed() < REST {
            let now = self.now();
            self.node.pass(now);
            thread::sleep(Duration::from_millis(500));
        }
        let (before, start) = (sum(server)?, Instant::now());
        while start.elapsed() < REST {
            let now = self.now();
            self.node.pass(now);
            thread::sleep(Duration::from_millis(500));
        }
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let written = (sum(server)? - before) as f64;
        let name = format!("API writes of an agent at rest {by}, in {} s", REST.as_secs());
        Ok(one(name, "writes", written).at_most(0.0))
    }

    /// Milliseconds from when the API server has another annotation until the kernel has what it says, `rounds` times; ports from `port` on.
    fn hears(
        &mut self,
        server: &Server,
        client: &Client,
        others: &mut [Other],
        rounds: usize,
        port: u16,
    ) -> Result<Series> {
        let mut times = Series::new();
        for round in 0..rounds {
            say(format!("scale: announcement {} of {rounds}", round + 1));
            self.profile.take();
            // Each time of another slice, which was not written a moment ago.
            let other = &mut others[round * 211 % usize::from(NODES)];
            other.announce(port + u16::try_from(round)?)?;
            server.runtime.block_on(announce(client, std::slice::from_ref(other)))?;
            let done = Instant::now();
            let (spent, written) = self.until(1)?;
            ensure!(spent.writes == 1, "{} writes for one announcement", spent.writes);
            times.push(written.saturating_duration_since(done).as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    /// All announce something else at once.
    fn storm(&mut self, server: &Server, client: &Client, others: &mut [Other], port: u16) -> Result<Storm> {
        say(format!("scale: {NODES} announcements at once"));
        for other in &mut *others {
            other.announce(port)?;
        }
        self.profile.take();
        let (before, start) = (resident("self")? / 1024.0, Instant::now());
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let done = server.runtime.block_on(announce(client, others));
                done.map(|()| start.elapsed().as_secs_f64())
            });
            let mut most = before;
            let all = self.until_all(&mut most);
            let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender ended"))??;
            let after = all?.duration_since(start).as_secs_f64() - sent;
            Ok(Storm { sent, after, growth: most - before })
        })
    }

    fn until_all(&mut self, most: &mut f64) -> Result<Instant> {
        let (mut all, start) = (0, Instant::now());
        while start.elapsed() < PATIENCE {
            let (spent, written) = self.until(1)?;
            all += spent.writes;
            *most = most.max(resident("self")? / 1024.0);
            if all >= u32::from(NODES) {
                return Ok(written);
            }
        }
        anyhow::bail!("{all} of {NODES} within {} s", PATIENCE.as_secs())
    }
}
