//! The controller: does for the cluster what needs one writer. It makes the `VeilNode`s, tells in the mesh's status how far the
//! cluster has got, begins rotations that are scheduled, finds the ranges of pods and nodes where people name none, tells all nodes of
//! whose pods more is asked than of all, and keeps a record of whose prefixes are whose. Nothing that encrypts waits for it.
//!
//! `watch` keeps what there is, `census` who pods are, both by `follow`, `seen` is that at one moment, `status`, `schedule`, `ranges`, `policies` and `peers` decide
//! (pure), `act` writes. What a chart's hooks
//! do stands beside it, in [`hook`].

mod act;
mod census;
mod follow;
pub mod hook;
mod kept;
mod peers;
mod policies;
mod ranges;
mod schedule;
mod seen;
mod status;
mod watch;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use axum::{Router, routing::get};
use jiff::Timestamp;
use kube_lease_manager::LeaseManagerBuilder;
use kubeveil_kubernetes::{Origin, Pace};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use act::Writer;
use census::Workloads;
use seen::Seen;
use watch::{Bound, Cluster};

/// What the lease is called.
const LEASE: &str = "kubeveil-controller";
/// Seconds that a lease holds without being renewed, and how many before its end it is.
const LEASE_HOLDS: u64 = 30;
const LEASE_RENEWED: u64 = 15;
/// Changes come in bursts.
const BURST: Duration = Duration::from_secs(1);
/// What is written is looked at this often, though nothing stirs.
const RESYNC: Duration = Duration::from_secs(60);
/// Before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// How it is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which API server.
    pub origin: Origin,
    /// Where the lease is kept, and the agents' pods are.
    pub namespace: String,
    /// Who this is among several of its kind.
    pub identity: String,
    /// `/healthz` and `/readyz` answer here.
    pub health_address: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let listener = TcpListener::bind(options.health_address)
        .await
        .with_context(|| format!("listen on {} (--health-address)", options.health_address))?;
    // It is alive, and that is all that it promises: a standby is as ready as who leads.
    let routes =
        Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(|| async { "ok\n" }));
    let _health = Bound(tokio::spawn(async move { axum::serve(listener, routes).await }));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity = options.identity, "the controller starts");
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = control(&options) => {}
    }
    tracing::info!("the controller ends");
    Ok(())
}

/// Leads whenever it may, for ever.
pub async fn control(options: &Options) {
    loop {
        if let Err(e) = stand(options).await {
            tracing::warn!("{e:#}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn client(origin: &Origin) -> Result<kube::Client> {
    origin.client(&Pace::default()).await.map_err(|problem| anyhow::anyhow!("{problem}"))
}

/// Waits for the lease, and leads as long as it holds.
async fn stand(options: &Options) -> Result<()> {
    let client = client(&options.origin).await?;
    let lease = LeaseManagerBuilder::new(client.clone(), LEASE)
        .with_namespace(&options.namespace)
        .with_identity(&options.identity)
        .with_duration(LEASE_HOLDS)
        .with_grace(LEASE_RENEWED)
        .build()
        .await
        .with_context(|| format!("Lease {}/{LEASE}", options.namespace))?;
    let (mut holds, task) = lease.watch().await;
    let _task = Bound(task);
    loop {
        if !*holds.borrow_and_update() {
            tracing::info!("stands by");
            holds.changed().await.context("the lease is not sought any more")?;
            continue;
        }
        tracing::info!("leads");
        tokio::select! {
            changed = holds.changed() => changed.context("the lease is not sought any more")?,
            ended = lead(client.clone(), options) => ended?,
        }
    }
}

/// How long until a bypass has ended, of which people are told.
fn until_next_end(seen: &Seen, now: Timestamp) -> Option<Duration> {
    let end = status::next_end(seen, now)?;
    // What ends with a second has ended after it.
    Duration::try_from(end.duration_since(now)).ok().map(|left| left + Duration::from_secs(1))
}

async fn lead(client: kube::Client, options: &Options) -> Result<()> {
    let stirred = Arc::new(Notify::new());
    let mut cluster = Cluster::begin(&client, options, stirred.clone()).await?;
    let mut workloads = Workloads::begin(&client, stirred.clone());
    let mut writer = Writer::new(client, &options.identity);
    loop {
        let (seen, now) = (cluster.seen().unwrap_or_default(), Timestamp::now());
        // Where no node is, nobody was ever told of a pod: it is not the cluster that we know.
        let known = workloads.seen().filter(|_| !seen.nodes.is_empty());
        let again = match writer.write(&seen, known.as_ref(), workloads.peers().as_ref(), now).await {
            Ok(()) => until_next_end(&seen, now).map_or(RESYNC, |end| end.min(RESYNC)),
            Err(e) => {
                tracing::warn!("{e:#}");
                AGAIN
            }
        };
        let again = again.min(writer.again);
        // Which of both it was does not matter.
        drop(tokio::time::timeout(again, stirred.notified()).await);
        tokio::time::sleep(BURST).await;
        if cluster.watches.has_ended() || workloads.watches.has_ended() {
            bail!("a watch has ended");
        }
    }
}
