//! Asking the daemon over its UNIX socket.

use std::{io::ErrorKind, os::unix::fs::FileTypeExt as _, path::Path};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use kubeveil_api::{
    status::{STATUS_VERSION, Status},
    watch::{WATCH_VERSION, Watch, Watched},
};
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, runtime};

/// The status document of the daemon behind `socket`.
pub(crate) fn status(socket: &Path) -> Result<Status> {
    document(socket, Request::get("/v1/status"), String::new(), ("status document", STATUS_VERSION))
}

/// What it sees of packets, when the time to watch is over.
pub(crate) fn watch(socket: &Path, watch: &Watch) -> Result<Watched> {
    let request = Request::post("/v1/watch").header(CONTENT_TYPE, "application/json");
    document(socket, request, serde_json::to_string(watch)?, ("packets seen", WATCH_VERSION))
}

/// The answer to a request, a document of this name and version.
fn document<D: DeserializeOwned>(
    socket: &Path,
    request: Builder,
    body: String,
    (what, version): (&str, u32),
) -> Result<D> {
    let request = request.header(HOST, "kubeveild").body(Full::new(Bytes::from(body)))?;
    let answer =
        runtime::Builder::new_current_thread().enable_all().build()?.block_on(send(socket, request))?;
    let document: serde_json::Value =
        serde_json::from_slice(&answer).context("the daemon's answer is no JSON")?;
    let said = document.get("schemaVersion").and_then(serde_json::Value::as_u64);
    if said != Some(u64::from(version)) {
        bail!(
            "the daemon speaks version {said:?} of the {what}, this program {version}; use the kubeveil of the daemon's version"
        );
    }
    serde_json::from_value(document).context("read the daemon's answer")
}

async fn send(socket: &Path, request: Request<Full<Bytes>>) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await.map_err(|e| explain(socket, e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.context("ask the daemon")?;
    let answered = response.status();
    let body = response.into_body().collect().await.context("read the daemon's answer")?.to_bytes();
    if !answered.is_success() {
        bail!("the daemon answers {answered}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

fn is_no_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket())
}

fn explain(socket: &Path, error: std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::NotFound => "is kubeveild running on this node, and with this --socket?",
        _ if is_no_socket(socket) => "it is no socket; --socket names that of kubeveild",
        ErrorKind::ConnectionRefused => {
            "nobody listens there: kubeveild has ended, which opens nothing that it closed"
        }
        ErrorKind::PermissionDenied => "only root may ask",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("connect to {}: {advice}", socket.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &Path) -> String {
        format!("{:#}", status(path).expect_err("nobody answers"))
    }

    #[test]
    fn only_what_was_looked_at_is_told() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert!(said(&file).contains("it is no socket"), "{}", said(&file));
        let dead = dir.path().join("dead");
        drop(std::os::unix::net::UnixListener::bind(&dead).expect("bound"));
        assert!(said(&dead).contains("nobody listens there"), "{}", said(&dead));
        assert!(said(&dir.path().join("none")).contains("is kubeveild running"));
    }
}
