//! Puts the daemon together and runs it: one thread owns the node and goes round; the async side only
//! listens and answers.

use std::{
    fs,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use kubeveil_cli::SourceArg;
use kubeveil_core::source::Source;
use kubeveil_kubernetes::{Kubernetes, Pace};
use kubeveil_linux::{Kernel, RealKernel, harden, link, preflight, route::Routes};
use kubeveil_manifests::Folder;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::EnvFilter;

use crate::{
    args::{self, Args, LogFormat},
    events::{Event, Question},
    http::{self, Door},
    lock,
    metrics::{Durations, SharedDurations},
    node::{Node, Now},
    status::{self, View},
    watch,
};

/// The eBPF object that this build embeds.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kubeveil.bpf.o"));
/// Changes come in bursts; wait for the rest of one.
const BURST: Duration = Duration::from_millis(20);
/// Events that are taken at once between two ways round.
const BACKLOG: usize = 256;
/// How old a look at the kernel may be for an answer.
const FRESH: Duration = Duration::from_millis(200);
/// How often it is looked whether somebody changed what holds packets back, of which nobody tells. Half of what it may
/// take until it stands again.
const GLANCE: Duration = Duration::from_millis(500);
/// How often flows that are over are forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    log(args)?;
    harden::harden()?;
    let node = args.node.as_deref().context("--node is missing")?;
    let source = args.source.as_ref().context("--source is missing")?;
    let missing = preflight::preflight(&args.bpf_dir);
    if !missing.is_empty() {
        let lines: Vec<String> = missing.iter().map(|p| format!("\n  {p}")).collect();
        bail!("this node lacks what kubeveild needs:{}", lines.concat());
    }
    let _locks = lock::lock(args)?;

    let runtime = Runtime::new().context("start the async runtime")?;
    let _guard = runtime.enter();
    let (events, inbox) = mpsc::channel();
    let wake = events.clone();
    let source = open(source, node, &runtime, move || drop(wake.send(Event::Hear)));
    let mut kernel = RealKernel::new(&args.bpf_dir, object(args)?)?;
    if let Some(version) = args.abi {
        kernel = kernel.of_version(&args.bpf_dir, version);
    }
    let build = kernel.build().to_owned();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node,
        build,
        kernel = preflight::kernel_release(),
        "kubeveild starts"
    );
    let mut node = Node::new(node, &args.underlay, &build, kernel, source, &args.state_dir);
    node.backstop = args.backstop.into();

    let durations: SharedDurations = Arc::new(Durations::new());
    let door = Door {
        events: events.clone(),
        durations: durations.clone(),
        closed: http::Closed::default(),
        routes: Routes::connect()?,
        watching: Arc::default(),
    };
    // Doors that can't be opened (a port in use) are tried again: no reason to leave a node unguarded.
    runtime.spawn(http::serve_status(args.socket.clone(), door.clone()));
    runtime.spawn(http::serve_metrics(args.metrics_address, door));
    listen(&runtime, &events)?;

    let node_thread = thread::Builder::new().name("node".to_owned());
    let round = node_thread
        .spawn(move || {
            go_round(&mut node, &inbox, &durations);
            // Who watches packets will not be answered. (What a daemon that is killed leaves armed the next one forgets.)
            if !node.has_left() {
                drop(node.kernel.watch(&[]));
            }
            node.has_left()
        })
        .context("start the node's thread")?;
    let has_left = round.join().map_err(|_| {
        anyhow::anyhow!("the node's thread panicked; the programs in the kernel go on enforcing")
    })?;
    if has_left {
        // Whoever made the folder around it takes that away.
        drop(fs::remove_file(&args.socket));
        tracing::info!("kubeveild ends, and nothing of it is on this node");
        return Ok(ExitCode::SUCCESS);
    }
    tracing::info!("kubeveild ends; the kernel goes on enforcing what it has been told");
    Ok(ExitCode::SUCCESS)
}

fn open(
    source: &SourceArg,
    node: &str,
    runtime: &Runtime,
    wake: impl Fn() + Send + Sync + 'static,
) -> Box<dyn Source> {
    match source {
        SourceArg::Folder(folder) => Box::new(Folder::open(folder, wake)),
        SourceArg::Kubernetes(file) => {
            let origin = args::origin(file.as_ref());
            Box::new(Kubernetes::open(origin, node, Pace::default(), runtime.handle(), wake))
        }
    }
}

/// What there is to look at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stirred {
    Kernel,
    Source,
    /// A time has come.
    Nothing,
}

/// The loop.
fn go_round<K: Kernel>(node: &mut Node<K>, inbox: &mpsc::Receiver<Event>, durations: &Durations) {
    let start = Instant::now();
    let mut swept = start;
    let mut stirred = Stirred::Kernel;
    loop {
        let began = Instant::now();
        let next = began
            + match stirred {
                Stirred::Kernel => node.pass(now()),
                Stirred::Source => node.hear(now()),
                Stirred::Nothing => node.tick(now()),
            };
        if node.is_wanted_again() {
            tracing::info!("the mesh wants kubeveil again; a daemon that starts anew begins from nothing");
            return;
        }
        stirred = Stirred::Nothing;
        durations.observe(began.elapsed().as_secs_f64());
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            node.sweep_flows();
        }
        let mut glanced = Instant::now();
        // Until the time has come or something stirs, whoever asks.
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            let until_glance = GLANCE.saturating_sub(glanced.elapsed());
            if until_glance.is_zero() {
                glanced = Instant::now();
                if node.is_touched() {
                    stirred = Stirred::Kernel;
                    break;
                }
                continue;
            }
            match inbox.recv_timeout(left.min(until_glance)) {
                Ok(Event::Ask(question)) => answer(node, question),
                Ok(event @ (Event::Stir | Event::Hear)) => {
                    thread::sleep(BURST);
                    stirred = if matches!(event, Event::Hear) { Stirred::Source } else { Stirred::Kernel };
                    break;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Event::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
        // The rest of the burst, as much as there is now.
        for event in inbox.try_iter().take(BACKLOG) {
            match event {
                Event::Ask(question) => answer(node, question),
                Event::Stop => return,
                Event::Stir => stirred = Stirred::Kernel,
                Event::Hear if stirred == Stirred::Nothing => stirred = Stirred::Source,
                Event::Hear => {}
            }
        }
    }
}

/// Whoever asked may have gone, and hears nothing then.
fn answer<K: Kernel>(node: &mut Node<K>, question: Question) {
    match question {
        Question::View(answer) => tell(node, answer),
        Question::Watch(flows, answer) => drop(answer.send(node.kernel.watch(&flows))),
        Question::Seen(answer) => drop(answer.send(watch::seen(node, now().monotonic))),
    }
}

/// Tells how the node is, from a look at the kernel that is fresh but not fresher than anybody needs: who
/// asks without end must not keep the node from its work.
///
/// While a handshake is awaited a look could find it before the next way round does, and call a peer up
/// to which nothing is sent yet; so then the way round itself is the look.
fn tell<K: Kernel>(node: &mut Node<K>, answer: oneshot::Sender<Box<View>>) {
    if answer.is_closed() {
        return;
    }
    let now = now();
    if node.looked_before(now, FRESH) {
        if node.tunnels.next_look(now.monotonic).is_some() {
            node.pass(now);
        } else {
            node.look(now);
        }
    }
    drop(answer.send(Box::new(status::view(node, now))));
}

/// The one place where clocks are read. The monotonic one counts through suspend, as keys age then too.
fn now() -> Now {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let monotonic =
        Duration::new(u64::try_from(boot.tv_sec).unwrap_or(0), u32::try_from(boot.tv_nsec).unwrap_or(0));
    Now { monotonic, epoch: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
}

/// Signals and changes of links become events.
fn listen(runtime: &Runtime, events: &mpsc::Sender<Event>) -> Result<()> {
    let mut changes = link::watch_changes()?;
    let stir = events.clone();
    runtime.spawn(async move { while changes.changed().await.is_ok() && stir.send(Event::Stir).is_ok() {} });
    let mut term = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let stop = events.clone();
    runtime.spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        drop(stop.send(Event::Stop));
    });
    Ok(())
}

/// The eBPF object: the built-in one, or the one that is named.
pub(crate) fn object(args: &Args) -> Result<Vec<u8>> {
    match &args.ebpf_object {
        Some(path) => fs::read(path).with_context(|| format!("read {} (--ebpf-object)", path.display())),
        None if OBJECT.is_empty() => {
            bail!("this kubeveild was built without its eBPF programs: build it by `cargo xtask build`")
        }
        None => Ok(OBJECT.to_vec()),
    }
}

/// Logs go to standard error, as `args` say.
pub(crate) fn log(args: &Args) -> Result<()> {
    let filter =
        EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?} is no filter", args.log))?;
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => base.with_ansi(false).init(),
        LogFormat::Json => base.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
