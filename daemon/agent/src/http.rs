//! Two doors: /metrics, /healthz and /readyz over TCP; the status document, and the metrics where no
//! port can be reached, over a UNIX socket for root.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kubeveil_abi::FWMARK;
use kubeveil_api::status::Status;
use kubeveil_core::{
    mtu,
    problem::{Problem, ProblemKind},
};
use kubeveil_linux::route::Routes;
use rustix::{fs::Mode, process::umask};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::oneshot,
};

use crate::{
    events::{self, Event, Question},
    metrics,
    status::View,
    watch,
};

/// Between two tries to open a door.
const AGAIN: Duration = Duration::from_secs(5);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What handlers hold.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) durations: metrics::SharedDurations,
    /// Doors that can't be opened now, for whoever comes in by another one.
    pub(crate) closed: Closed,
    /// For what only the status document tells: one question a peer, which the loop need not wait for.
    pub(crate) routes: Routes,
    /// Held by who watches packets: one at a time.
    pub(crate) watching: Arc<tokio::sync::Mutex<()>>,
}

/// Problems by door.
pub(crate) type Closed = Arc<Mutex<BTreeMap<String, Problem>>>;

impl Door {
    /// What the node's thread answers.
    pub(crate) async fn question<A>(
        &self,
        question: impl FnOnce(oneshot::Sender<A>) -> Question,
    ) -> Result<A, Response> {
        let late =
            || (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n").into_response();
        events::ask(&self.events, question).await.ok_or_else(late)
    }

    async fn ask(&self) -> Result<Box<View>, Response> {
        let mut view = self.question(Question::View).await?;
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        view.status.problems.extend(closed.values().cloned());
        Ok(view)
    }

    /// Lowers what fits through a peer's tunnel to what fits on the way to its endpoint in one piece.
    async fn find_paths(&self, status: &mut Status) {
        let endpoints = status.peers.iter().filter_map(|peer| Some(peer.endpoint?.ip()));
        let mtus = self.routes.mtus(endpoints.collect::<Vec<_>>(), FWMARK).await;
        for peer in &mut status.peers {
            let found = peer.endpoint.and_then(|to| Some(mtu::inner(*mtus.get(&to.ip())?, to.is_ipv6())));
            peer.path_mtu = found.map_or(peer.path_mtu, |fits| fits.min(peer.path_mtu));
        }
    }
}

/// Serves metrics and probes on `address`.
pub(crate) async fn serve_metrics(address: SocketAddr, door: Door) {
    let closed = door.closed.clone();
    let routes = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Arc::new(door));
    let name = format!("{address} (--metrics-address)");
    let listener = until_open(&name, &closed, || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    })
    .await;
    if let Err(e) = axum::serve(listener, routes).await {
        tracing::error!("serve {address}: {e}");
    }
}

/// Serves the status document on `socket`, which only root may open.
pub(crate) async fn serve_status(socket: PathBuf, door: Door) {
    let closed = door.closed.clone();
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/watch", post(watch::watch))
        .route("/metrics", get(exposition))
        .with_state(Arc::new(door));
    let listener = until_open(&format!("{} (--socket)", socket.display()), &closed, || bind(&socket)).await;
    if let Err(e) = axum::serve(listener, routes).await {
        tracing::error!("serve {}: {e}", socket.display());
    }
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
    }
    // The lock says that no other daemon is alive, so this is what a dead one left.
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // From its first moment on: permissions set afterwards would come too late.
    let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(socket);
    umask(before);
    listener
}

/// Opens a door, as soon as it can be.
async fn until_open<L>(door: &str, closed: &Closed, open: impl Fn() -> io::Result<L>) -> L {
    loop {
        let opened = open();
        note(door, closed, opened.as_ref().err());
        if let Ok(listener) = opened {
            return listener;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn note(door: &str, closed: &Closed, error: Option<&io::Error>) {
    let mut closed = closed.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(error) = error else {
        closed.remove(door);
        return;
    };
    let problem = Problem {
        kind: ProblemKind::State,
        object: door.to_owned(),
        field: String::new(),
        message: format!("can't be listened on: {error}"),
        advice: format!(
            "Nobody can ask there; it is tried again every {} s, and enforcement stands",
            AGAIN.as_secs()
        ),
    };
    if closed.insert(door.to_owned(), problem.clone()).is_none() {
        tracing::error!("{problem}");
    }
}

async fn exposition(State(door): State<Arc<Door>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let openmetrics = accept.contains("application/openmetrics-text");
    let view = match door.ask().await {
        Ok(view) => view,
        Err(late) => return late,
    };
    match metrics::expose(&view, &door.durations, openmetrics) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, if openmetrics { OPENMETRICS } else { TEXT })], text).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

async fn healthz(State(door): State<Arc<Door>>) -> Response {
    door.ask().await.map_or_else(|late| late, |_| "ok\n".into_response())
}

async fn readyz(State(door): State<Arc<Door>>) -> Response {
    match door.ask().await {
        Ok(view) if view.status.ready => "ok\n".into_response(),
        Ok(view) => {
            let text = format!("waiting for: {}\n", view.status.waiting_for.join("; "));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        Err(late) => late,
    }
}

async fn status(State(door): State<Arc<Door>>) -> Response {
    let mut view = match door.ask().await {
        Ok(view) => view,
        Err(late) => return late,
    };
    door.find_paths(&mut view.status).await;
    Json(view.status).into_response()
}
