//! Asking the daemon over its UNIX socket.

use std::{io::ErrorKind, path::Path};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use kubeveil_api::status::{STATUS_VERSION, Status};
use tokio::{net::UnixStream, runtime};

/// The status document of the daemon behind `socket`.
pub(crate) fn status(socket: &Path) -> Result<Status> {
    let body =
        runtime::Builder::new_current_thread().enable_all().build()?.block_on(get(socket, "/v1/status"))?;
    let document: serde_json::Value =
        serde_json::from_slice(&body).context("the daemon's answer is no JSON")?;
    let version = document.get("schemaVersion").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(STATUS_VERSION)) {
        bail!(
            "the daemon speaks version {version:?} of the status document, this program {STATUS_VERSION}; use the kubeveil of the daemon's version"
        );
    }
    serde_json::from_value(document).context("read the daemon's answer")
}

async fn get(socket: &Path, path: &str) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await.map_err(|e| explain(socket, e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header(HOST, "kubeveild").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("ask the daemon")?;
    let answered = response.status();
    let body = response.into_body().collect().await.context("read the daemon's answer")?.to_bytes();
    if !answered.is_success() {
        bail!("the daemon answers {answered}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

fn explain(socket: &Path, error: std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::NotFound => "is kubeveild running on this node, and with this --socket?",
        ErrorKind::ConnectionRefused => {
            "kubeveild is not running; what it left in the kernel goes on enforcing"
        }
        ErrorKind::PermissionDenied => "only root may ask",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("connect to {}: {advice}", socket.display()))
}
