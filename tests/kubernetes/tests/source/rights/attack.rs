//! What an attack is, and what may come of it.

use http::Method;
use kubeveil_tests_kubernetes::ask::Request;

/// Whose credential was stolen. A node is taken to be `node-1`.
pub(crate) const CREDENTIALS: [&str; 5] = ["agent", "kubelet", "controller", "apply-crds", "uninstall"];

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// RBAC gives no such right.
    NoRight,
    /// An admission policy of the chart refuses it with these words.
    Policy(&'static str),
    /// The API server's own admission for kubelets (NodeRestriction) refuses it with these words.
    Restricted(&'static str),
    /// It is answered as if it were done, and nothing has changed.
    Ignored,
    /// It is done, and harms the thief's own node only.
    Itself,
    /// It is done: what the credential is for, or what it can do, honestly.
    Can,
}

/// One attack, by each credential.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// What it would do, for people.
    pub(crate) what: &'static str,
    pub(crate) request: fn() -> Request,
    /// By credential, as [`CREDENTIALS`] has them.
    pub(crate) outcomes: [Outcome; 5],
}

pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const OWN: &str = "/api/v1/nodes/node-1";
pub(crate) const OTHER: &str = "/api/v1/nodes/node-2";
pub(crate) const OURS: &str = "/apis/kubeveil.io/v1alpha1";

pub(crate) fn merge(path: &str, body: &str) -> Request {
    Request::patch("merge", path, body)
}

pub(crate) fn post(path: &str, body: &str) -> Request {
    Request::new(Method::POST, path, body)
}

pub(crate) fn get(path: &str) -> Request {
    Request::new(Method::GET, path, "")
}

pub(crate) fn delete(path: &str) -> Request {
    Request::new(Method::DELETE, path, "")
}

/// A path below our group.
pub(crate) fn ours(rest: &str) -> String {
    format!("{OURS}/{rest}")
}

/// What a Node announces, so long.
pub(crate) fn announcement(length: usize) -> String {
    format!(r#"{{"metadata":{{"annotations":{{"kubeveil.io/announcement":"{}"}}}}}}"#, "x".repeat(length))
}
