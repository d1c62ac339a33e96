//! The same by the controller's slices: what one agent is sent for what kubelets report, how long it takes to begin, how soon it hears.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{AsyncBufReadExt as _, TryStreamExt as _};
use kube::{
    Client,
    core::{
        Request,
        params::{ListParams, WatchParams},
    },
};
use kubeveil_controller::{Options, control};
use kubeveil_kubernetes::Origin;
use kubeveil_tests_kubernetes::{
    chart,
    cluster::{InApiServer, mesh_kind},
    server::{Server, Who},
};
use serde_json::Value;

use super::{Agent, NODES, PATIENCE, Storm, one};
use crate::{
    daemon::cluster::{self, Other},
    row::Row,
    say,
};

/// Kubelets that report, once each.
const BEATS: u16 = 100;
/// Within which what was sent has come.
const ON_ITS_WAY: Duration = Duration::from_secs(5);
const KIB: f64 = 1024.0;

/// A watch by which nothing is done but counting.
struct Counted {
    events: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    fn begin(server: &Server, client: &Client, path: &'static str) -> Result<Self> {
        let counted = Self { events: Arc::default(), bytes: Arc::default() };
        let (events, bytes) = (counted.events.clone(), counted.bytes.clone());
        let list = Request::new(path).list(&ListParams::default().limit(1))?;
        let listed: Value = serde_json::from_str(&server.runtime.block_on(client.request_text(list))?)?;
        let from = listed["metadata"]["resourceVersion"].as_str().context("a resourceVersion")?;
        let watch = Request::new(path).watch(&WatchParams::default().timeout(290), from)?;
        let lines = server.runtime.block_on(client.request_stream(watch))?.lines();
        server.runtime.spawn(lines.try_for_each(move |line| {
            if !line.starts_with(r#"{"type":"BOOKMARK""#) {
                events.fetch_add(1, Relaxed);
                bytes.fetch_add(line.len() as u64 + 1, Relaxed);
            }
            std::future::ready(Ok(()))
        }));
        Ok(counted)
    }

    /// KiB, and how many events.
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    fn told(&self) -> (f64, u64) {
        (self.bytes.load(Relaxed) as f64 / KIB, self.events.load(Relaxed))
    }
}

fn watches(server: &Server, client: &Client) -> Result<[(&'static str, Counted); 2]> {
    let by = |how, path| Counted::begin(server, client, path).map(|counted| (how, counted));
    Ok([by("Nodes", "/api/v1/nodes")?, by("slices", "/apis/kubeveil.io/v1alpha1/veilpeerslices")?])
}

/// With a controller, which makes the slices.
pub(super) fn measure(
    server: &Server,
    client: &Client,
    world: &InApiServer<'_>,
    others: &mut [Other],
    rounds: usize,
) -> Result<Vec<Row>> {
    let options = Options {
        origin: Origin::Kubeconfig(server.kubeconfig(Who::Controller)?),
        namespace: chart::NAMESPACE.to_owned(),
        identity: "bench".to_owned(),
        health_address: ([127, 0, 0, 1], 0).into(),
    };
    let start = Instant::now();
    server.runtime.spawn(async move { control(&options).await });
    say("scale: the controller's slices");
    let slices = loop {
        ensure!(start.elapsed() < PATIENCE, "no slices within {} s", PATIENCE.as_secs());
        if let Some(slices) = world.get(&mesh_kind(), "default")?["status"]["peerSlices"].as_u64() {
            break slices;
        }
        thread::sleep(Duration::from_millis(200));
    };
    let made =
        one("a controller's start until agents can go by its slices", "s", start.elapsed().as_secs_f64());
    let mut rows = vec![made.note(format!("{slices} slices; 5,000 VeilNodes are made before"))];

    say(format!("scale: {BEATS} heartbeats"));
    let counted = watches(server, client)?;
    for n in 1..=BEATS {
        world.beat(&cluster::name(n), 1)?;
    }
    thread::sleep(ON_ITS_WAY);
    rows.extend(sent_by(&counted, &format!("{BEATS} heartbeats")));

    let mut agent = Agent::begin(world, "VeilPeerSlices")?;
    let (spent, written) = agent.until(NODES.into())?;
    let seconds = written.duration_since(agent.began).as_secs_f64();
    let begins = one("an agent's start until its kernel has 5,000 nodes of slices", "s", seconds);
    rows.push(begins.note(format!("{} writes to the kernel", spent.writes)));
    rows.push(agent.rests(server, "by slices")?);
    let times = agent.hears(server, client, others, rounds, 41_000)?;
    let note = format!(
        "median {:.0} ms, of which up to 1,000 are the controller's wait for the rest of a burst",
        times.median()
    );
    rows.push(
        Row::of_quantile("an annotation until the kernel has it, by slices, p99", "ms", &times, 0.99)
            .note(note),
    );

    let counted = watches(server, client)?;
    let Storm { sent, after, .. } = agent.storm(server, client, others, 51_873)?;
    let name = "5,000 announcements at once, by slices: from the last until the kernel has all";
    rows.push(one(name, "s", after).note(format!("the API server took {sent:.1} s to take them")));
    thread::sleep(ON_ITS_WAY);
    rows.extend(sent_by(&counted, "5,000 announcements"));
    Ok(rows)
}

/// What one agent is sent.
fn sent_by(counted: &[(&str, Counted)], what: &str) -> Vec<Row> {
    let row = |(how, counted): &(&str, Counted)| {
        let (kib, events) = counted.told();
        one(format!("what one agent is sent for {what}, by {how}"), "KiB", kib)
            .note(format!("{events} events"))
    };
    counted.iter().map(row).collect()
}
