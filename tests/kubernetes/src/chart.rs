//! The chart: installed and rendered by helm, and the accounts that it makes.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Request, ask},
    server::{Server, Who},
};

/// Its folder.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/kubeveil");
/// Where it is installed.
pub const NAMESPACE: &str = "kubeveil";
/// The agents' account.
pub const AGENT: &str = "kubeveil-agent";
/// The controller's account.
pub const CONTROLLER: &str = "kubeveil-controller";
/// helm of `binaries`, which keeps what it keeps in `home`.
pub fn helm(binaries: &Path, home: &Path) -> Command {
    let mut helm = Command::new(binaries.join("helm"));
    for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        helm.env(folder, home.join(folder));
    }
    helm.env_remove("KUBECONFIG");
    helm
}

/// What it prints; an error says why it failed.
pub fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("{}{}", text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

/// `helm VERB kubeveil CHART` on `server`, with these values set.
pub fn release(server: &Server, verb: &str, arguments: &[&str], values: &[&str]) -> Result<String> {
    let mut command = helm(server.binaries(), server.dir());
    command.args([verb, "kubeveil", CHART, "--namespace", NAMESPACE]).args(arguments);
    command.arg("--kubeconfig").arg(server.kubeconfig(Who::Admin)?);
    for value in values {
        command.args(["--set", value]);
    }
    said(&mut command)
}

/// Installs it.
pub fn install(server: &Server) -> Result<()> {
    release(server, "install", &["--create-namespace"], &[]).map(|_| ())
}

/// What `helm template` makes of it, without a cluster.
pub fn render(binaries: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let home = tempfile::tempdir()?;
    let mut command = helm(binaries, home.path());
    command.args(["template", "kubeveil", CHART, "--namespace", NAMESPACE]).args(arguments);
    documents(&said(&mut command)?)
}

/// The objects of a YAML text.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(text)?)
}

/// Whether helm runs it apart from the release: its annotation.
pub fn hook(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"]["helm.sh/hook"].as_str()
}

/// A token of one of its accounts as a projected volume has it: bound to a Pod on this node.
pub fn token(server: &Server, account: &str, node: &str) -> Result<String> {
    let pod = pod(server, account, node)?;
    let bound = json!({
        "apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
    });
    token_by(server, account, &json!({"boundObjectRef": bound}))
}

/// A token of one of its accounts, with this `spec` of a TokenRequest.
pub fn token_by(server: &Server, account: &str, spec: &Value) -> Result<String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
    let request = Request::new(Method::POST, &path, &json!({"spec": spec}).to_string());
    let made = ask(server, &server.client(Who::Admin)?, &request)?;
    Ok(made["status"]["token"].as_str().context("a token")?.to_owned())
}

/// A Pod of this account on this node, as the chart has it; called `ACCOUNT-NODE`.
pub fn pod(server: &Server, account: &str, node: &str) -> Result<Value> {
    let client = server.client(Who::Admin)?;
    let name = format!("{account}-{node}");
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    if let Ok(pod) = ask(server, &client, &Request::new(Method::GET, &format!("{pods}/{name}"), "")) {
        return Ok(pod);
    }
    let rendered = render(server.binaries(), &[])?;
    let mut specs = rendered.iter().map(|object| &object["spec"]["template"]["spec"]);
    let spec = specs.find(|spec| spec["serviceAccountName"] == account);
    let mut spec = spec.with_context(|| format!("no workload of {account} in the chart"))?.clone();
    spec["nodeName"] = json!(node);
    let pod = json!({"metadata": {"name": name}, "spec": spec});
    Ok(ask(server, &client, &Request::new(Method::POST, &pods, &pod.to_string()))?)
}
