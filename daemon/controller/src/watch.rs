//! What there is, kept by watches.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use kube::{
    Api, Client, ResourceExt as _,
    core::{DynamicObject, Object},
    runtime::watcher::Config,
};
use kubeveil_api::{mesh::EncryptionMesh, names, object, veil_node::VeilNodeStatus};
use kubeveil_kubernetes::{PodStatus, entries, ours, theirs};
use serde_json::Value;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{
    Options,
    census::PodObject,
    follow::{Loose, Watches},
    kept::Kept,
    ranges,
    seen::{Mesh, Node, NodeSpec, NodeStatus, Said, Seen, read_node},
};

type NodeObject = Object<NodeSpec, NodeStatus>;

/// How long the first lists may take.
const FIRST: Duration = Duration::from_secs(60);

/// All of it, as long as it lives.
pub(crate) struct Cluster {
    pub(crate) watches: Watches,
    nodes: Kept<Node>,
    /// What is said in them, if anything that can be read.
    veil_nodes: Kept<Option<VeilNodeStatus>>,
    meshes: Kept<Mesh>,
    /// Where an agent's pod runs, and whether it is ready.
    agents: Kept<(String, bool)>,
    said: Said,
}

impl Cluster {
    /// All that there is has been seen once when it returns. `stirred` is notified whenever something changes.
    pub(crate) async fn begin(client: &Client, options: &Options, stirred: Arc<Notify>) -> Result<Self> {
        let mut watches = Watches::new(client, stirred.clone());
        let nodes =
            watches.all(&theirs("", "Node", "nodes"), NodeObject::name_any, |node, _| Some(read_node(&node)));
        let veil_nodes = watches.all(&ours("VeilNode", "veilnodes"), Loose::name_any, |node, _| {
            Some(node.status.and_then(|status| serde_json::from_value(status).ok()))
        });
        let meshes = watches.some(
            Api::all_with(client.clone(), &ours("EncryptionMesh", "encryptionmeshes")),
            Config::default().fields(&format!("metadata.name={}", names::MESH)),
            Loose::name_any,
            |mesh, _| read_mesh(&mesh),
        );
        let agents = watches.some(
            Api::namespaced_with(client.clone(), &options.namespace, &theirs("", "Pod", "pods")),
            Config::default().labels(names::AGENTS),
            PodObject::name_any,
            |pod, _| {
                let is_ready = pod.status.as_ref().is_some_and(PodStatus::is_ready);
                Some((pod.spec.node()?.to_owned(), is_ready))
            },
        );
        let mut cluster = Self { watches, nodes, veil_nodes, meshes, agents, said: Said::default() };
        let end = Instant::now() + FIRST;
        while cluster.seen().is_none() {
            let stirs = timeout_at(end, stirred.notified()).await;
            stirs.context("the API server does not list what there is")?;
        }
        cluster.said = said(client).await;
        if let Some(seen) = cluster.seen() {
            cluster.said.servers = ranges::foreign(&cluster.said.servers, &seen);
        }
        Ok(cluster)
    }

    /// As of now; `None` until everything has been seen once.
    pub(crate) fn seen(&self) -> Option<Seen> {
        let mesh = self.meshes.all()?.into_values().next();
        let spec = mesh.as_ref().map(|mesh| &mesh.object.spec);
        let is_excluded = |node: &Node| spec.and_then(|spec| node.excluded_by(spec)).is_some();
        let (excluded, nodes) = self.nodes.all()?.into_iter().partition(|(_, node)| is_excluded(node));
        let mut agents: BTreeMap<String, bool> = BTreeMap::new();
        for (node, is_ready) in self.agents.all()?.into_values() {
            *agents.entry(node).or_default() |= is_ready;
        }
        Some(Seen {
            mesh,
            nodes,
            excluded,
            veil_nodes: self.veil_nodes.all()?,
            agents,
            said: self.said.clone(),
        })
    }
}

/// A mesh that can't be read is none: what its status says stays as it is.
fn read_mesh(mesh: &Loose) -> Option<Mesh> {
    let object = EncryptionMesh {
        types: object::TypeMeta {
            api_version: names::API_VERSION.to_owned(),
            kind: "EncryptionMesh".to_owned(),
        },
        metadata: object::Metadata {
            name: mesh.name_any(),
            uid: mesh.uid().unwrap_or_default(),
            creation_timestamp: mesh.metadata.creation_timestamp.as_ref().map(|made| made.0),
            ..object::Metadata::default()
        },
        spec: serde_json::from_value(mesh.spec.clone()?)
            .inspect_err(|e| tracing::warn!("EncryptionMesh {} spec: {e}", names::MESH))
            .ok()?,
        status: mesh.status.clone().and_then(|status| serde_json::from_value(status).ok()),
    };
    let generation = mesh.metadata.generation.unwrap_or_default();
    Some(Mesh { object, generation, version: mesh.resource_version().unwrap_or_default() })
}

/// What the cluster says of its ranges. Where it says nothing, or won't tell us, what is seen has to do.
async fn said(client: &Client) -> Said {
    let kind = theirs("", "ConfigMap", "configmaps");
    let system: Api<DynamicObject> = Api::namespaced_with(client.clone(), "kube-system", &kind);
    let mut said = Said::default();
    if let Some(text) = entry(&system, "kubeadm-config", "ClusterConfiguration").await {
        said.pods = field(&text, "podSubnet").map(|text| ranges::listed(&text)).unwrap_or_default();
        said.services = field(&text, "serviceSubnet").map(|text| ranges::listed(&text)).unwrap_or_default();
    }
    if said.pods.is_empty()
        && let Some(text) = entry(&system, "kube-proxy", "config.conf").await
    {
        said.pods = field(&text, "clusterCIDR").map(|text| ranges::listed(&text)).unwrap_or_default();
    }
    let kind = theirs("networking.k8s.io", "ServiceCIDR", "servicecidrs");
    let services: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    if let Ok(list) = services.list(&Default::default()).await {
        let cidrs = list.items.iter().flat_map(|object| entries(&object.data["spec"]["cidrs"]));
        said.services.extend(cidrs.filter_map(Value::as_str).flat_map(ranges::listed));
    }
    let own = std::env::var("KUBERNETES_SERVICE_HOST").ok();
    said.services.extend(own.and_then(|text| ranges::address(&text)));
    let kind = theirs("discovery.k8s.io", "EndpointSlice", "endpointslices");
    // What the API servers say of themselves (kubernetes `pkg/controlplane/reconcilers`).
    let slices: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &kind);
    if let Ok(Some(slice)) = slices.get_opt("kubernetes").await {
        let addresses =
            entries(&slice.data["endpoints"]).flat_map(|endpoint| entries(&endpoint["addresses"]));
        said.servers = addresses.filter_map(Value::as_str).filter_map(ranges::address).collect();
    }
    said.services.sort();
    said.services.dedup();
    said
}

async fn entry(maps: &Api<DynamicObject>, name: &str, key: &str) -> Option<String> {
    maps.get_opt(name).await.ok()??.data["data"][key].as_str().map(str::to_owned)
}

/// A field of a configuration in YAML: kubeadm's are below `networking`, kube-proxy's at the top.
fn field(text: &str, name: &str) -> Option<String> {
    let read: Value = serde_saphyr::from_str(text).ok()?;
    let value = read.get("networking").and_then(|below| below.get(name)).or_else(|| read.get(name))?;
    value.as_str().filter(|value| !value.is_empty()).map(str::to_owned)
}

/// A task that ends with its handle.
pub(crate) struct Bound<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for Bound<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read() {
        let kubeadm = "networking:\n  dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16,fd00::/48\n  serviceSubnet: \"10.96.0.0/12\"\n";
        assert_eq!(field(kubeadm, "podSubnet").as_deref(), Some("10.244.0.0/16,fd00::/48"));
        assert_eq!(field(kubeadm, "serviceSubnet").as_deref(), Some("10.96.0.0/12"));
        assert_eq!(field("clusterCIDR: \"\"\n", "clusterCIDR"), None);
        assert_eq!(field(kubeadm, "clusterCIDR"), None);
    }
}
