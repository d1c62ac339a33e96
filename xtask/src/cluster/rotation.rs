//! Keys are rotated as README's page says, by a credential that has the rights it names, while pods ping each other.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Cluster, guest,
    installed::CONNECTED,
    nodes::AGENT,
    processes,
    smoke::Pods,
    traffic::{observed, undisturbed},
};

/// Who rotates: by impersonation, so that the API server knows them by this name and gives them these rights alone.
const OPERATOR: &str = "ops@example.com";
/// What README's page asks for.
const RIGHTS: &str = r#"{apiVersion: v1, kind: List, items: [
  {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: rotate}, rules: [
    {apiGroups: [""], resources: [nodes], verbs: [list]},
    {apiGroups: [kubeveil.io], resources: [encryptionmeshes], verbs: [get, patch]}]},
  {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: rotate},
    roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: rotate},
    subjects: [{kind: User, name: ops@example.com}]}]}"#;
/// As README has it.
const EVENTS: [&str; 5] =
    ["events", "-n", "default", "--field-selector", "involvedObject.kind=EncryptionMesh"];
/// How long the API server is away amid a rotation: longer than agents wait for an answer (30 s), so that they tell of it.
const AWAY: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(300);

impl Cluster {
    /// `kubeveil` as the operator.
    fn kubeveil(&self, words: &[&str]) -> Result<Command> {
        let product = self.product.as_ref().context("a cluster without kubeveil")?;
        let mut kubeveil = crate::process::command(&product.program);
        kubeveil.args(words).arg("--source");
        kubeveil.arg(format!("kubernetes:{}", self.plan.file("operator.kubeconfig").display()));
        Ok(kubeveil)
    }

    /// What it prints as an object, or one a line.
    fn told(&self, words: &[&str]) -> Result<Vec<Value>> {
        let said = processes::output(self.kubeveil(words)?.args(["-o", "json"]))?;
        let objects = serde_json::Deserializer::from_str(&said).into_iter();
        objects.collect::<Result<_, _>>().with_context(|| format!("not JSON: {said}"))
    }

    fn mesh(&self) -> Result<Value> {
        let said = processes::output(&mut self.kubectl(&["get", "encryptionmesh", "default", "-o", "json"]))?;
        Ok(serde_json::from_str(&said)?)
    }
}

/// The operator, as who administers the cluster makes one.
fn appoint(cluster: &Cluster) -> Result<()> {
    let admin = std::fs::read_to_string(cluster.plan.file("admin.kubeconfig"))?;
    let (before, after) = admin.split_once("user: {").context("a kubeconfig without a user")?;
    let file = cluster.plan.file("operator.kubeconfig");
    std::fs::write(&file, format!("{before}user: {{as: \"{OPERATOR}\", {after}"))?;
    let rights = cluster.plan.file("operator.yaml");
    std::fs::write(&rights, RIGHTS)?;
    processes::output(cluster.kubectl(&["apply", "-f"]).arg(rights)).map(|_| ())
}

/// Generation that the mesh asks for.
fn generation(cluster: &Cluster) -> Result<u64> {
    Ok(cluster.mesh()?["spec"]["keyGeneration"].as_u64().unwrap_or_default())
}

/// The next generation: who asked and why is in its history, and in Events.
pub(super) fn rotate(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    appoint(cluster)?;
    let before = generation(cluster)?;
    undisturbed(cluster, &pods.all(), |cluster| {
        let steps = cluster.told(&["rotate", "--reason", "quarterly"])?;
        let last = steps.last().context("it says nothing")?;
        ensure!(last["event"] == "done", "{last}");
        Ok(())
    })?;
    ensure!(generation(cluster)? == before + 1, "the mesh does not want the next generation");
    let history = cluster.told(&["rotate", "history"])?;
    let told = serde_json::to_string(&history)?;
    ensure!(told.contains(OPERATOR) && told.contains("quarterly"), "who asked, and why, is not told: {told}");
    let what = "an Event tells of the rotation";
    let mut events = cluster.kubectl(&["get"]);
    events.args(EVENTS);
    cluster.processes.wait_until(what, PATIENCE, || {
        processes::output(&mut events).is_ok_and(|said| said.contains("quarterly") || said.contains(OPERATOR))
    })?;
    // Nobody may speak for another: the API server's own user is who asked.
    let forged = json!({"spec": {"keyGeneration": before + 2, "rotation": {"requestedBy": "somebody else", "forGeneration": before + 2}}});
    let mut forge = cluster.kubectl(&["patch", "encryptionmesh", "default", "--type=merge", "-p"]);
    forge.arg(forged.to_string()).args(["--as", OPERATOR]);
    ensure!(processes::output(&mut forge).is_err(), "the API server took a name that is not the asker's");
    Ok(())
}

/// The API server goes amid it, for so long that agents tell of it, and comes back.
pub(super) fn api_server_away(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let before = generation(cluster)?;
    undisturbed(cluster, &pods.all(), |cluster| {
        processes::output(&mut cluster.kubeveil(&["rotate", "--reason", "outage", "--no-wait"])?)?;
        cluster.processes.pause("kube-apiserver", true)?;
        std::thread::sleep(AWAY);
        // On its node: kubectl has nobody to ask.
        let status = format!("{AGENT}; nsenter -t $pid -m /usr/bin/kubeveil status; true");
        let told = guest::run(cluster.plan.guest, "1", &status, b"");
        cluster.processes.pause("kube-apiserver", false)?;
        let told = told?;
        ensure!(
            told.contains("can't be asked to") || told.contains("no answer within"),
            "an agent does not tell that its API server is away: {told}"
        );
        wait(cluster, before + 1)
    })
}

/// Until the rotation to `generation` is over, by what the mesh says.
fn wait(cluster: &mut Cluster, generation: u64) -> Result<()> {
    let mut status = cluster.kubeveil(&["rotate", "status", "-o", "json"])?;
    let what = format!("the rotation to generation {generation} is over");
    let mut last = String::new();
    let done = cluster.processes.wait_until(&what, PATIENCE, || match processes::output(&mut status) {
        Ok(said) => {
            last = said;
            true
        }
        Err(error) => {
            last = format!("{error:#}");
            false
        }
    });
    done.with_context(|| last)?;
    ensure!(self::generation(cluster)? == generation, "the mesh wants another generation");
    Ok(())
}

/// A key that was stolen is retired at once; what its node loses meanwhile comes back, and nothing of it is ever in plain.
pub(super) fn compromised(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let node = pods.0[1].node.clone();
    let key = |cluster: &Cluster| {
        let mut get = cluster.kubectl(&["get", "node", &node, "-o"]);
        processes::output(get.arg("jsonpath={.metadata.annotations.kubeveil\\.io/announcement}"))
    };
    let before = key(cluster)?;
    let told = observed(cluster, &pods.all(), |cluster| {
        let words = ["rotate", "--compromised", &node, "--reason", "stolen"];
        processes::output(&mut cluster.kubeveil(&words)?).map(|_| ())
    })?;
    ensure!(
        told.plain.is_empty(),
        "the wire has seen {} frames, the first: {}",
        told.plain.len(),
        told.plain[0]
    );
    let revoked = cluster.mesh()?["spec"]["revokedKeys"].as_array().map_or(0, Vec::len);
    ensure!(revoked > 0, "no key is revoked in the mesh");
    if before == key(cluster)? {
        bail!("{node} still announces the key that was stolen");
    }
    cluster.kubectl_waits(PATIENCE, CONNECTED)?;
    pods.hidden_pings(cluster)
}

/// GitOps raises the generation by itself, and says nothing else.
pub(super) fn by_gitops(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    let before = generation(cluster)?;
    undisturbed(cluster, &pods.all(), |cluster| {
        let patch = json!({"spec": {"keyGeneration": before + 1}}).to_string();
        let mut raise =
            cluster.kubectl(&["patch", "encryptionmesh", "default", "--type=merge", "-p", &patch]);
        processes::output(&mut raise)?;
        wait(cluster, before + 1)
    })
}
