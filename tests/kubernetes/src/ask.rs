//! Plain requests to an API server.

use http::{Method, header};
use kube::Client;
use serde_json::Value;

use crate::server::Server;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: String,
    body: String,
    kind: &'static str,
    /// Whom it pretends to be.
    pub impersonates: Option<&'static str>,
}

impl Request {
    /// With a JSON body, or an empty one.
    pub fn new(method: Method, path: &str, body: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            body: body.to_owned(),
            kind: "application/json",
            impersonates: None,
        }
    }

    /// A patch of this kind: `merge`, `strategic-merge`, `json` or `apply`.
    pub fn patch(kind: &str, path: &str, body: &str) -> Self {
        let kind = match kind {
            "merge" => "application/merge-patch+json",
            "strategic-merge" => "application/strategic-merge-patch+json",
            "json" => "application/json-patch+json",
            _ => "application/apply-patch+yaml",
        };
        Self { kind, ..Self::new(Method::PATCH, path, body) }
    }

    /// The same with something of its body replaced.
    #[must_use]
    pub fn with(mut self, from: &str, to: &str) -> Self {
        self.body = self.body.replace(from, to);
        self
    }
}

/// What the API server answers; refused as it says.
pub fn ask(server: &Server, client: &Client, request: &Request) -> kube::Result<Value> {
    let mut built = http::Request::builder().method(&request.method).uri(&request.path);
    built = built.header(header::CONTENT_TYPE, request.kind);
    if let Some(user) = request.impersonates {
        built = built.header("Impersonate-User", user);
    }
    let built = built.body(request.body.clone().into_bytes()).map_err(kube::Error::HttpError)?;
    let text = server.runtime.block_on(client.request_text(built))?;
    // A log, or nothing.
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
