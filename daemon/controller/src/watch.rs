//! What there is, kept by watches.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DynamicObject, Object},
    runtime::{
        WatchStreamExt as _, reflector,
        reflector::Store,
        watcher::{self, watcher},
    },
};
use kubeveil_api::{mesh::EncryptionMesh, names, object, veil_node::VeilNodeStatus};
use kubeveil_kubernetes::{PodStatus, entries, ours, theirs};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use crate::{
    Options,
    census::PodObject,
    ranges,
    seen::{Mesh, NodeSpec, NodeStatus, Said, Seen, read_node},
};

type NodeObject = Object<NodeSpec, NodeStatus>;
/// Parts that are read later, each for itself: one object that can't be read must not stop the others.
type Loose = Object<Option<Value>, Value>;

/// How long the first lists may take.
const FIRST: Duration = Duration::from_secs(60);

/// Watches, as long as it lives.
pub(crate) struct Watches {
    nodes: Store<NodeObject>,
    veil_nodes: Store<Loose>,
    meshes: Store<Loose>,
    pods: Store<PodObject>,
    said: Said,
    tasks: JoinSet<()>,
}

impl Watches {
    /// All that there is has been seen once when it returns. `stirred` is notified whenever something changes.
    pub(crate) async fn begin(client: &Client, options: &Options, stirred: Arc<Notify>) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let mut watch = Starter { stirred, tasks: &mut tasks };
        let all = watcher::Config::default;
        let kind = theirs("", "Node", "nodes");
        let nodes = watch.start(Api::all_with(client.clone(), &kind), all(), kind);
        let kind = ours("VeilNode", "veilnodes");
        let veil_nodes = watch.start(Api::all_with(client.clone(), &kind), all(), kind);
        let kind = ours("EncryptionMesh", "encryptionmeshes");
        let meshes = watch.start(
            Api::all_with(client.clone(), &kind),
            all().fields(&format!("metadata.name={}", names::MESH)),
            kind,
        );
        let kind = theirs("", "Pod", "pods");
        let pods = Api::namespaced_with(client.clone(), &options.namespace, &kind);
        let pods = watch.start(pods, all().labels(names::AGENTS), kind);
        let seen = async {
            nodes.wait_until_ready().await?;
            veil_nodes.wait_until_ready().await?;
            meshes.wait_until_ready().await?;
            pods.wait_until_ready().await
        };
        tokio::time::timeout(FIRST, seen).await.context("the API server does not list what there is")??;
        let said = said(client).await;
        Ok(Self { nodes, veil_nodes, meshes, pods, said, tasks })
    }

    /// They go on for ever, so one that does not is broken.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.tasks.try_join_next().is_some()
    }

    /// As of now.
    pub(crate) fn seen(&self) -> Seen {
        let mesh = self.meshes.state().into_iter().find_map(|mesh| read_mesh(&mesh));
        let (mut nodes, mut excluded) = (BTreeMap::new(), BTreeMap::new());
        for node in self.nodes.state() {
            let announcement = node.annotations().get(names::ANNOUNCEMENT).cloned();
            let spec = mesh.as_ref().map(|mesh| &mesh.object.spec);
            let is_excluded =
                spec.is_some_and(|spec| spec.excludes(node.labels(), announcement.as_deref()).is_some());
            let read = read_node(
                node.uid().unwrap_or_default(),
                announcement,
                node.labels(),
                &node.spec,
                node.status.as_ref(),
            );
            let of = if is_excluded { &mut excluded } else { &mut nodes };
            of.insert(node.name_any(), read);
        }
        let veil_nodes = self.veil_nodes.state().into_iter().map(|node| {
            let status = node.status.clone().and_then(|status| serde_json::from_value(status).ok());
            (node.name_any(), status)
        });
        let mut agents: BTreeMap<String, bool> = BTreeMap::new();
        for pod in self.pods.state() {
            let Some(node) = pod.spec.node() else { continue };
            *agents.entry(node.to_owned()).or_default() |=
                pod.status.as_ref().is_some_and(PodStatus::is_ready);
        }
        Seen {
            mesh,
            nodes,
            excluded,
            veil_nodes: veil_nodes.collect::<BTreeMap<_, Option<VeilNodeStatus>>>(),
            agents,
            said: self.said.clone(),
        }
    }
}

/// A mesh that can't be read is none: what its status says stays as it is.
fn read_mesh(mesh: &Loose) -> Option<Mesh> {
    let made = mesh.metadata.creation_timestamp.as_ref();
    let object = EncryptionMesh {
        types: object::TypeMeta {
            api_version: names::API_VERSION.to_owned(),
            kind: "EncryptionMesh".to_owned(),
        },
        metadata: object::Metadata {
            name: mesh.name_any(),
            uid: mesh.uid().unwrap_or_default(),
            // The API has another version of the type.
            creation_timestamp: made.and_then(|made| Timestamp::from_second(made.0.as_second()).ok()),
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

struct Starter<'a> {
    stirred: Arc<Notify>,
    tasks: &'a mut JoinSet<()>,
}

impl Starter<'_> {
    fn start<K>(&mut self, api: Api<K>, config: watcher::Config, kind: K::DynamicType) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Clone + Eq + std::hash::Hash + Send + Sync + 'static,
    {
        let writer = reflector::store::Writer::new(kind);
        let store = writer.as_reader();
        let stirred = self.stirred.clone();
        let events = watcher(api, config)
            .modify(|object| object.managed_fields_mut().clear())
            .default_backoff()
            .reflect(writer)
            .inspect_err(|e| tracing::warn!("watch: {e}"));
        self.tasks.spawn(events.for_each(move |_| {
            stirred.notify_one();
            std::future::ready(())
        }));
        store
    }
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
