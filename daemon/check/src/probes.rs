//! Code on the nodes, for a moment: a DaemonSet of our image in a namespace of its own, which is taken away again whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams},
    core::DynamicObject,
};
use kubeveil_api::probe::{PROBE_VERSION, Probe};
use kubeveil_kubernetes::theirs;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    facts::{Node, Probes, Told},
    gather::{text, told},
};

/// Field manager of what is made here.
const MANAGER: &str = "kubeveil-check";
/// What the DaemonSet, and its pods by their label, are called.
const NAME: &str = "kubeveil-probe";
/// Label of the namespaces that are made here.
const MADE_BY: &str = "app.kubernetes.io/managed-by";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Time for questions and answers, after all listen: some rounds of one second each.
const ANSWERS: Duration = Duration::from_secs(8);
/// How many logs are read at once.
const AT_ONCE: usize = 16;
/// Lines of a log that are read: the last counts.
const TAIL: i64 = 3;
/// A probe that was left behind ends its questions after so long.
const WITHIN: &str = "10m";

/// What is made on the API server, until [`Set::remove`].
#[derive(Clone)]
pub struct Set {
    client: Client,
    namespace: String,
}

impl Set {
    /// Makes it: a probe of `image` on each of the nodes that run Linux, which are told of each other.
    pub async fn make(client: &Client, image: &str, nodes: &BTreeMap<String, Node>) -> Result<Self> {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), image);
        let set = Self { client: client.clone(), namespace: format!("kubeveil-check-{:08x}", random >> 32) };
        let params = PatchParams::apply(MANAGER);
        let spaces = namespaces(client);
        let made = spaces.patch(&set.namespace, &params, &Patch::Apply(namespace(&set.namespace))).await;
        made.with_context(|| format!("make Namespace {}", set.namespace))?;
        let kind = theirs("apps", "DaemonSet", "daemonsets");
        let sets: Api<DynamicObject> = Api::namespaced_with(client.clone(), &set.namespace, &kind);
        if let Err(e) =
            sets.patch(NAME, &params, &Patch::Apply(daemon_set(&set.namespace, image, nodes))).await
        {
            set.remove().await?;
            return Err(e).with_context(|| format!("make DaemonSet {NAME} in Namespace {}", set.namespace));
        }
        Ok(set)
    }

    /// Takes all of it away. The API server goes on with that by itself.
    pub async fn remove(&self) -> Result<()> {
        let spaces = namespaces(&self.client);
        match spaces.delete(&self.namespace, &DeleteParams::background()).await {
            Err(kube::Error::Api(refused)) if refused.code == 404 => Ok(()),
            done => done.map(drop).with_context(|| {
                format!("remove what was made: kubectl delete namespace {} does it", self.namespace)
            }),
        }
    }

    /// Name of the namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What probes on `wanted` say, as soon as all have been answered or had the time for it; at most until `end`.
    pub async fn read(&self, wanted: &BTreeSet<String>, end: Instant) -> Probes {
        let mut last = (BTreeMap::new(), "no pod of it was made".to_owned());
        let mut all_since = None;
        loop {
            let in_time = Instant::now() < end;
            match self.look().await {
                Ok((mut found, waiting)) => {
                    // The DaemonSet runs on every Linux node, one that the mesh excludes among them.
                    found.retain(|node, _| wanted.contains(node));
                    let why = waiting.iter().map(|(node, why)| format!("{node}: {why}")).collect::<Vec<_>>();
                    last = (
                        found,
                        why.first().cloned().unwrap_or_else(|| "its probe has said nothing".to_owned()),
                    );
                }
                Err(why) => last.1 = why,
            }
            let all = wanted.iter().all(|node| last.0.contains_key(node));
            let answered = all && last.0.values().all(|probe| probe.unanswered == 0);
            if all && all_since.is_none() {
                all_since = Some(Instant::now());
            }
            let had_time = all_since.is_some_and(|since| since.elapsed() >= ANSWERS);
            if answered || had_time || !in_time {
                let missing = (!all).then(|| format!("no probe came in time ({})", last.1));
                return Probes { by_node: last.0, timed_out: missing.is_some(), missing };
            }
            sleep(LOOK).await;
        }
    }

    /// What is said by now, and why some say nothing, by node.
    async fn look(&self) -> Told<(BTreeMap<String, Probe>, Vec<(String, String)>)> {
        let pods: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &theirs("", "Pod", "pods"));
        let listed = pods.list(&ListParams::default()).await.map_err(|e| told(&e))?;
        let read = listed.items.iter().filter_map(|pod| {
            let node = text(&pod.data["spec"]["nodeName"])?;
            let pods = Api::namespaced(self.client.clone(), &self.namespace);
            let (name, waits) = (pod.name_any(), waits(&pod.data["status"]));
            Some(async move {
                let said = match waits {
                    Some(why) => Err(why),
                    None => said(&pods, &name).await,
                };
                (node, said)
            })
        });
        let (mut found, mut waiting) = (BTreeMap::new(), Vec::new());
        let read: Vec<_> = stream::iter(read).buffer_unordered(AT_ONCE).collect().await;
        for (node, said) in read {
            match said {
                Ok(probe) => drop(found.insert(node, probe)),
                Err(why) => waiting.push((node, why)),
            }
        }
        waiting.sort();
        Ok((found, waiting))
    }
}

/// Namespaces of runs that never came to their end.
pub async fn left_behind(client: &Client) -> Vec<String> {
    let spaces = namespaces(client);
    let params = ListParams::default().labels(&format!("{MADE_BY}={MANAGER}"));
    let listed = spaces.list(&params).await.map(|listed| listed.items).unwrap_or_default();
    let stays = |space: &&DynamicObject| space.metadata.deletion_timestamp.is_none();
    listed.iter().filter(stays).map(|space| space.name_any()).collect()
}

fn namespaces(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &theirs("", "Namespace", "namespaces"))
}

async fn said(pods: &Api<Pod>, name: &str) -> Told<Probe> {
    let params = LogParams { tail_lines: Some(TAIL), ..LogParams::default() };
    let log = pods.logs(name, &params).await.map_err(|e| told(&e))?;
    read(&log)
}

/// The last document in what a probe has printed.
fn read(log: &str) -> Told<Probe> {
    let last =
        log.lines().rev().find(|line| line.starts_with('{')).ok_or("its probe has said nothing yet")?;
    let value: Value =
        serde_json::from_str(last).map_err(|e| format!("what its probe says is no JSON: {e}"))?;
    let version = value["schemaVersion"].as_u64();
    if version != Some(u64::from(PROBE_VERSION)) {
        return Err(format!(
            "its probe speaks version {version:?}, this program {PROBE_VERSION}: use an image of this version"
        ));
    }
    serde_json::from_value(value).map_err(|e| format!("what its probe says can't be read: {e}"))
}

/// Why a pod with this status does not run yet, in the kubelet's words.
fn waits(status: &Value) -> Option<String> {
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    if waiting.is_object() {
        let words = ["reason", "message"].map(|word| text(&waiting[word]).unwrap_or_default());
        return Some(words.join(": ").trim_end_matches(": ").to_owned());
    }
    (status["phase"] != "Running").then(|| "its pod is not running".to_owned())
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {
            MADE_BY: MANAGER,
            // It looks at the host's network and its BPF file system.
            "pod-security.kubernetes.io/enforce": "privileged",
        }},
    })
}

/// What an agent may, for the kernel is asked as an agent would ask it; no token, and no disk.
fn daemon_set(namespace: &str, image: &str, nodes: &BTreeMap<String, Node>) -> Value {
    let mut args = vec![
        "probe".to_owned(),
        "--name=$(KUBEVEIL_NODE)".to_owned(),
        "--bpf-dir=/run/bpf/kubeveil".to_owned(),
        format!("--within={WITHIN}"),
    ];
    for (name, node) in nodes.iter().filter(|(_, node)| node.linux && !node.internal_ips.is_empty()) {
        let addresses: Vec<String> = node.internal_ips.iter().map(ToString::to_string).collect();
        args.push(format!("--peer={name}={}", addresses.join(",")));
    }
    let labels = json!({"app.kubernetes.io/name": NAME});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "automountServiceAccountToken": false,
                "hostNetwork": true,
                "dnsPolicy": "Default",
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "probe",
                    "image": image,
                    "command": ["/usr/bin/kubeveild"],
                    "args": args,
                    "env": [{"name": "KUBEVEIL_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                    "securityContext": {
                        "runAsUser": 0, "runAsGroup": 0, "privileged": false,
                        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "BPF", "PERFMON"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": "bpf", "mountPath": "/run/bpf", "readOnly": true, "mountPropagation": "HostToContainer"}],
                }],
                "volumes": [{"name": "bpf", "hostPath": {"path": "/sys/fs/bpf"}}],
            }},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_document_counts() {
        let document = |node: &str| {
            json!({
                "schemaVersion": 1, "node": node, "kernel": "6.12", "attachment": "tcx", "btf": true, "bpffs": true,
                "programs": [], "ports": [], "asked": 0, "silent": [], "unanswered": 0, "clocks": [], "unseen": [],
            })
            .to_string()
        };
        let log = format!("a word\n{}\n{}\nanother\n", document("a"), document("b"));
        assert_eq!(read(&log).expect("a document").node, "b");
        assert!(read("a word").expect_err("none").contains("nothing yet"));
        let newer = document("a").replace("\"schemaVersion\":1", "\"schemaVersion\":2");
        assert!(read(&newer).expect_err("newer").contains("version Some(2)"));
    }

    #[test]
    fn why_a_pod_does_not_run_is_told() {
        let waiting = json!({"containerStatuses": [{
            "name": "probe", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
        }]});
        assert_eq!(waits(&waiting).as_deref(), Some("ErrImagePull: no such image"));
        assert_eq!(waits(&json!({"phase": "Pending"})).as_deref(), Some("its pod is not running"));
        assert_eq!(waits(&json!({"phase": "Running"})), None);
    }
}
