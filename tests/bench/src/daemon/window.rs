//! The window until senders know, with a real API server, the controller, and daemons over kernels that are made of memory: from when the
//! API server has a pod's address, or another label of it, until a daemon on another node has told its kernel, or that on its own. And what
//! all of them write when the first policy comes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http::Method;
use kubeveil_controller::{Options, control};
use kubeveil_kubernetes::Origin;
use kubeveil_linux::fake::FakeKernel;
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    chart,
    cluster::{self, InApiServer, PAYMENTS},
    server::{self, Server, Who},
    world::World as _,
};
use kubeveild::node::{Node, Now};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::profile::{Profile, Profiled};
use crate::{
    row::{Row, Series},
    say,
};

/// As the daemon's loop has it (`daemon/agent/src/run.rs`): it waits for the rest of a burst.
pub(super) const BURST: Duration = Duration::from_millis(20);
/// Nodes with a daemon.
const NODES: u8 = 30;
/// In which nobody writes anything more: agents say nothing twice within five seconds.
const QUIET: Duration = Duration::from_secs(12);
const PATIENCE: Duration = Duration::from_secs(120);
/// What changes something, as the API server counts it.
const WRITES: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];

/// Milliseconds, and writes; `rounds` pods.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    if let Some(why) = server::missing() {
        return Ok(vec![Row::skipped("the window until senders know", "ms", why)]);
    }
    say("window: an API server");
    let server = Server::start()?;
    cluster::install_definitions(&server)?;
    let mut stage = Stage::laid(&server)?;
    let written = stage.first_policy()?;
    stage.daemons.truncate(1);
    let [mut made, mut labelled, mut own] = [Series::new(), Series::new(), Series::new()];
    for round in 0..rounds {
        say(format!("window: pod {} of {rounds}", round + 1));
        let pod = pod(1, u8::try_from(round % 200)? + 50);
        own.push(stage.until_written(
            |world| world.put_object(&pod("web")),
            |world| world.put_object(&pod("ledger")),
        )?);
        stage.until_written(|_| Ok(()), |world| world.delete_object(&pod("")))?;
        // Anywhere in the second that the controller waits for the rest of a burst.
        thread::sleep(Duration::from_millis(round as u64 * 377 % 1_500));
        let pod = self::pod(2, u8::try_from(round % 200)? + 50);
        labelled.push(stage.until_written(
            |world| world.put_object(&pod("web")),
            |world| world.put_object(&pod("ledger")),
        )?);
        stage.until_written(|_| Ok(()), |world| world.delete_object(&pod("")))?;
        thread::sleep(Duration::from_millis(round as u64 * 613 % 1_500));
        made.push(stage.until_written(|_| Ok(()), |world| world.put_object(&pod("ledger")))?);
        stage.until_written(|_| Ok(()), |world| world.delete_object(&pod("")))?;
    }
    let row = |name: &str, series: &Series| {
        let note = format!(
            "median {:.0} ms; of these up to 1,000 ms are the controller's wait for the rest of a burst",
            series.median()
        );
        Row::of_quantile(&format!("{name} until another node's kernel knows, p99"), "ms", series, 0.99)
            .note(note)
    };
    let name = "a pod's label until its own node's kernel knows, p99";
    let note = format!(
        "median {:.0} ms, of which {} are the daemon's wait for the rest of a burst",
        own.median(),
        BURST.as_millis()
    );
    let own = Row::of_quantile(name, "ms", &own, 0.99).at_most(50.0).note(note);
    Ok(vec![own, row("a pod's address", &made), row("a pod's label", &labelled), written])
}

/// A pod on a node, which has this label.
fn pod(node: u8, n: u8) -> impl Fn(&str) -> Value {
    move |app| {
        let ip = IpAddr::from(Ipv4Addr::new(10, 244, node, n));
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{n}"), "namespace": PAYMENTS, "labels": {"app": app}},
            "spec": {
                "nodeName": format!("node-{node}"), "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false,
            },
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        })
    }
}

/// A daemon but for its kernel.
struct Daemon {
    node: Node<Profiled<FakeKernel>>,
    woken: Receiver<()>,
    profile: Profile,
    _state: TempDir,
}

struct Stage<'a> {
    server: &'a Server,
    world: InApiServer<'a>,
    daemons: Vec<Daemon>,
    began: Instant,
}

impl<'a> Stage<'a> {
    /// All nodes with their daemons, a controller, and no policy.
    fn laid(server: &'a Server) -> Result<Self> {
        let mut world = InApiServer::new(server)?;
        let mesh = json!({"mode": "observe", "podCIDRs": ["10.244.0.0/16"], "nodeCIDRs": ["192.0.2.0/24"]});
        world.put_mesh(&mesh)?;
        for n in 1..=NODES {
            world.put_node(
                &format!("node-{n}"),
                &[&format!("10.244.{n}.0/24")],
                &[&format!("192.0.2.{n}")],
            )?;
        }
        world
            .put_object(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PAYMENTS}}))?;
        let options = Options {
            origin: Origin::Kubeconfig(server.kubeconfig(Who::Controller)?),
            namespace: chart::NAMESPACE.to_owned(),
            identity: "bench".to_owned(),
            health_address: ([127, 0, 0, 1], 0).into(),
        };
        server.runtime.spawn(async move { control(&options).await });
        let daemons = (1..=NODES).map(|n| daemon(&world, n)).collect::<Result<_>>()?;
        let mut stage = Self { server, world, daemons, began: Instant::now() };
        stage.until_quiet()?;
        Ok(stage)
    }

    fn now(&self) -> Now {
        let at = Duration::from_secs(1_000) + self.began.elapsed();
        Now { monotonic: at, epoch: at }
    }

    /// All daemons go on until nobody has written anything for a while.
    fn until_quiet(&mut self) -> Result<()> {
        let (end, mut last, mut since) = (Instant::now() + PATIENCE, writes(self.server)?, Instant::now());
        while since.elapsed() < QUIET {
            ensure!(Instant::now() < end, "it does not become quiet: {last:?}");
            let now = self.now();
            for daemon in &mut self.daemons {
                daemon.node.pass(now);
            }
            thread::sleep(Duration::from_millis(500));
            let writes = writes(self.server)?;
            if writes != last {
                (last, since) = (writes, Instant::now());
            }
        }
        Ok(())
    }

    /// A policy, where on each node there is a pod that it selects.
    fn first_policy(&mut self) -> Result<Row> {
        say(format!("window: the first policy of {NODES} nodes"));
        for n in 1..=NODES {
            let mut pod = pod(2, 1)("ledger");
            let ip = format!("10.244.{n}.1");
            pod["metadata"]["name"] = json!(format!("first-{n}"));
            pod["spec"]["nodeName"] = json!(format!("node-{n}"));
            pod["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
            self.world.put_object(&pod)?;
        }
        self.until_quiet()?;
        let before = writes(self.server)?;
        let policy = json!({
            "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionPolicy",
            "metadata": {"name": "cardholder-data", "namespace": PAYMENTS},
            "spec": {"podSelector": {"matchLabels": {"app": "ledger"}}, "mode": "require"},
        });
        self.world.put_object(&policy)?;
        self.until_quiet()?;
        let mut told = Vec::new();
        let mut sum = 0;
        for (resource, count) in writes(self.server)? {
            let more = count - before.get(&resource).copied().unwrap_or_default();
            if more > 0 {
                told.push(format!("{more} to {resource}"));
                sum += more;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let series = [sum as f64 / f64::from(NODES)].into_iter().collect();
        let note = format!(
            "of {NODES} nodes with one such pod each; {}, the policy itself among them",
            told.join(", ")
        );
        Ok(Row::of("API writes when the first policy comes, a node", "writes", &series).note(note))
    }

    /// Milliseconds from when `change` is done, some time after `prepare`, until the first daemon's kernel has been told of one address.
    fn until_written(
        &mut self,
        prepare: impl FnOnce(&mut InApiServer<'a>) -> Result<()>,
        change: impl FnOnce(&mut InApiServer<'a>) -> Result<()>,
    ) -> Result<f64> {
        prepare(&mut self.world)?;
        // The controller, and the daemon, have heard of that.
        thread::sleep(Duration::from_millis(200));
        let now = self.now();
        self.daemons[0].node.pass(now);
        ensure!(self.daemons[0].node.is_settled(), "{:?}", self.daemons[0].node.problems());
        self.daemons[0].profile.take();
        change(&mut self.world)?;
        let done = Instant::now();
        while done.elapsed() < PATIENCE {
            if self.daemons[0].woken.recv_timeout(Duration::from_millis(100)).is_err() {
                continue;
            }
            thread::sleep(BURST);
            while self.daemons[0].woken.try_recv().is_ok() {}
            let now = self.now();
            self.daemons[0].node.hear(now);
            let spent = self.daemons[0].profile.take();
            if let Some(written) = spent.written {
                ensure!(spent.writes == 1, "{} writes for one address", spent.writes);
                return Ok(written.saturating_duration_since(done).as_secs_f64() * 1e3);
            }
        }
        anyhow::bail!("the kernel is never told")
    }
}

/// What changed anything so far, by resource, as the API server counts it.
pub(super) fn writes(server: &Server) -> Result<BTreeMap<String, u64>> {
    let told = ask(server, &server.client(Who::Admin)?, &Request::new(Method::GET, "/metrics", ""))?;
    let mut all = BTreeMap::new();
    for line in
        told.as_str().context("metrics")?.lines().filter(|l| l.starts_with("apiserver_request_total{"))
    {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let (verb, resource) = (label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
        // Who leads is renewed all the time.
        if WRITES.contains(&verb.as_str()) && resource != "leases" {
            let count: f64 = line.rsplit(' ').next().context("a number")?.parse()?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let count = count as u64;
            *all.entry(resource).or_default() += count;
        }
    }
    Ok(all)
}

fn daemon(world: &InApiServer<'_>, n: u8) -> Result<Daemon> {
    let name = format!("node-{n}");
    let (kernel, profile) = Profiled::new(FakeKernel::new("bench", &[format!("192.0.2.{n}/24").parse()?]));
    let watching = world.open(&name)?;
    let state = tempfile::tempdir()?;
    let node = Node::new(&name, &[], "bench", kernel, watching.source, state.path());
    Ok(Daemon { node, woken: watching.woken, profile, _state: state })
}
