//! A proxy before an API server that plays one that fails or lies.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificate::{Authority, Identity},
    server::{Server, Who},
    world::until,
};

/// What it does to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// It passes them on.
    Nothing,
    /// It refuses all with this status.
    Refuse(u16),
    /// It never answers.
    Hang,
    /// No watch can go on, and of lists there comes half before it hangs up.
    Half,
    /// No watch can go on, and lists come a byte at a time.
    Drip,
    /// Watches say nothing, a byte at a time.
    DripWatches,
    /// It resets connections.
    Reset,
    /// It shows a certificate of somebody else.
    WrongCertificate,
    /// No watch can go on (410).
    Expire,
    /// Watches end with half an event, as soon as they begin.
    EndWatches,
    /// The same as `Expire`, and lists are empty.
    EmptyLists,
    /// Lists but of these kinds are empty, and watches expire once they have begun.
    EmptyListsBut(&'static [&'static str]),
    /// The same as `Expire`, and lists are as the first ones were.
    OldLists,
}

/// Between two bytes that drip.
const DRIP: Duration = Duration::from_millis(100);

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// The proxy; ends with this value.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: Client,
    /// What it does, and what each connection holds as long as it does that.
    mischief: watch::Sender<(Mischief, Arc<()>)>,
    requests: AtomicU64,
    /// The first list of each path.
    first: Mutex<std::collections::BTreeMap<String, Bytes>>,
}

impl Proxy {
    /// Before `server`, to which it speaks with an agent's rights.
    pub fn start(server: &Server) -> Result<Self> {
        Self::start_as(server, Who::Agent)
    }

    /// With other rights.
    pub fn start_as(server: &Server, who: Who) -> Result<Self> {
        let own = acceptor(server.authority.issue(&["127.0.0.1"])?)?;
        let other = acceptor(Authority::new()?.issue(&["127.0.0.1"])?)?;
        let shared = Arc::new(Shared {
            upstream: server.client(who)?,
            mischief: watch::Sender::new((Mischief::Nothing, Arc::default())),
            requests: AtomicU64::new(0),
            first: Mutex::default(),
        });
        let listener = server.runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let task = server.runtime.spawn(accept(listener, shared.clone(), own, other));
        Ok(Self { address, shared, task })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// From now on it does this; every connection that there was has ended when this returns.
    pub fn play(&self, mischief: Mischief) {
        let (_, held) = self.shared.mischief.send_replace((mischief, Arc::default()));
        until("connections end", || Arc::strong_count(&held) == 1);
        self.shared.requests.store(0, Ordering::Relaxed);
    }

    /// Requests since the last change, and connections that it let come to none.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor(identity: Identity) -> Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, own: TlsAcceptor, other: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut changed = shared.mischief.subscribe();
        let (mischief, held) = changed.borrow_and_update().clone();
        if mischief == Mischief::Reset {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            stream.set_zero_linger().ok();
            continue;
        }
        let acceptor = if mischief == Mischief::WrongCertificate {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            other.clone()
        } else {
            own.clone()
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let serve = async {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(|request| answer(shared.clone(), mischief, request));
                let connection = hyper::server::conn::http1::Builder::new();
                connection.serve_connection(TokioIo::new(stream), service).await.ok();
            };
            tokio::select! { () = serve => {}, _ = changed.changed() => {} }
            drop(held);
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    mischief: Mischief,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let is_list = request.method() == http::Method::GET && !is_watch;
    let path = request.uri().path().to_owned();
    let expires =
        [Mischief::Expire, Mischief::EmptyLists, Mischief::OldLists, Mischief::Drip, Mischief::Half];
    let expires = expires.contains(&mischief);
    Ok(match mischief {
        Mischief::Hang => std::future::pending().await,
        Mischief::Refuse(code) => refusal(code),
        _ if expires && is_watch => refusal(410),
        // As a watch says it that has begun.
        Mischief::EmptyListsBut(_) if is_watch => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"});
            let event = json!({"type": "ERROR", "object": status}).to_string() + "\n";
            Response::new(Full::new(event.into()).map_err(never).boxed_unsync())
        }
        Mischief::EndWatches if is_watch => broken(br#"{"type":"DELETED","object":{"metadata":{"na"#),
        Mischief::DripWatches if is_watch => dripping(vec![b' '; 1 << 16].into()),
        Mischief::OldLists if is_list => {
            let first = shared.first.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
            Response::new(Full::new(first.unwrap_or_default()).map_err(never).boxed_unsync())
        }
        _ if !is_list => forward(&shared, request).await,
        _ => {
            let (head, body) = forward(&shared, request).await.into_parts();
            let Ok(body) = body.collect().await else { return Ok(refusal(502)) };
            let body = body.to_bytes();
            if mischief == Mischief::Nothing {
                let mut first = shared.first.lock().unwrap_or_else(PoisonError::into_inner);
                first.entry(path.clone()).or_insert_with(|| body.clone());
            }
            match mischief {
                Mischief::Half => broken(&body[..body.len() / 2]),
                Mischief::Drip => dripping(body),
                Mischief::EmptyLists => emptied(&body),
                Mischief::EmptyListsBut(kinds) if !kinds.iter().any(|kind| path.ends_with(kind)) => {
                    emptied(&body)
                }
                _ => Response::from_parts(head, Full::new(body).map_err(never).boxed_unsync()),
            }
        }
    })
}

/// As the API server answers.
async fn forward(shared: &Shared, request: Request<Incoming>) -> Answer {
    let (mut head, body) = request.into_parts();
    // The client knows both by itself.
    head.headers.remove(header::HOST);
    head.headers.remove(header::AUTHORIZATION);
    let Ok(body) = body.collect().await else { return refusal(400) };
    let request = Request::from_parts(head, Body::from(body.to_bytes().to_vec()));
    match shared.upstream.send(request).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            head.headers.remove(header::CONTENT_LENGTH);
            head.headers.remove(header::TRANSFER_ENCODING);
            Response::from_parts(head, body.map_err(std::io::Error::other).boxed_unsync())
        }
        Err(_) => refusal(502),
    }
}

fn refusal(code: u16) -> Answer {
    let reason = if code == 410 { "Expired" } else { "Refused" };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": reason, "message": "refused by a test",
    });
    let mut answer = Response::new(Full::new(status.to_string().into()).map_err(never).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
    answer
}

/// This much, and then the connection breaks.
fn broken(text: &[u8]) -> Answer {
    let text = Ok(Bytes::copy_from_slice(text));
    let end = stream::once(async {
        // What was written before is on its way.
        sleep(DRIP).await;
        Err(std::io::Error::other("a test hangs up"))
    });
    stream_of(stream::iter([text]).chain(end))
}

fn dripping(body: Bytes) -> Answer {
    stream_of(stream::iter(body).then(|byte| async move {
        sleep(DRIP).await;
        Ok(Bytes::copy_from_slice(&[byte]))
    }))
}

fn stream_of(bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Answer {
    Response::new(StreamBody::new(bytes.map(|bytes| bytes.map(Frame::data))).boxed_unsync())
}

/// The same list, with nothing in it.
fn emptied(list: &Bytes) -> Answer {
    let mut list: Value = serde_json::from_slice(list).unwrap_or_default();
    list["items"] = json!([]);
    Response::new(Full::new(list.to_string().into()).map_err(never).boxed_unsync())
}

fn never(never: Infallible) -> std::io::Error {
    match never {}
}
