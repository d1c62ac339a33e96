//! What an API server tells of its cluster.

use std::{collections::BTreeMap, fmt::Debug};

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::DaemonSet,
        core::v1::{self as core, Namespace, Service},
        networking::v1::ServiceCIDR,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ListParams,
    core::{DynamicObject, ObjectList},
};
use kubeveil_api::{
    mesh::EncryptionMesh,
    names,
    problem::{causes, readable},
    veil_node::VeilNodeStatus,
};
use kubeveil_kubernetes::ours;
use serde::de::DeserializeOwned;

use crate::{
    facts::{Facts, Installed, Node, Pod, Probes, Told, Webhook},
    webhook::{mutating, validating},
};

/// Objects an answer.
const PAGE: u32 = 500;
/// Definitions that this version goes by.
const DEFINITIONS: [&str; 5] = [
    "encryptionmeshes.kubeveil.io",
    "veilnodes.kubeveil.io",
    "encryptionpolicies.kubeveil.io",
    "clusterencryptionpolicies.kubeveil.io",
    "veilpodslices.kubeveil.io",
];
/// What the chart calls the agents.
const AGENT: &str = "kubeveil-agent";

/// All but what has to be looked at on the nodes.
pub async fn facts(client: &Client, namespace: &str, pre: bool) -> Facts {
    let pods = all::<core::Pod>(client).await.map_err(|e| told(&e));
    let pods = pods.map(|pods| pods.iter().filter_map(pod).collect());
    Facts {
        pre,
        namespace: namespace.to_owned(),
        namespace_labels: labels(client, namespace).await,
        version: client.apiserver_version().await.map(|version| version.git_version).map_err(|e| told(&e)),
        serves_policies: serves_policies(client).await,
        nodes: nodes(client).await,
        pods,
        webhooks: webhooks(client).await,
        probes: Probes::default(),
        installed: if pre { None } else { Some(installed(client).await) },
    }
}

/// Nodes by name.
pub async fn nodes(client: &Client) -> Told<BTreeMap<String, Node>> {
    let listed = all::<core::Node>(client).await.map_err(|e| told(&e))?;
    Ok(listed.iter().map(|object| (object.name_any(), node(object))).collect())
}

/// `EncryptionMesh/default`, if it is there; and not where there is no definition of it either.
pub async fn mesh(client: &Client) -> Told<Option<EncryptionMesh>> {
    Ok(mesh_and_version(client).await?.map(|(mesh, _)| mesh))
}

/// The same with its `metadata.resourceVersion`, for who is about to write it.
pub async fn mesh_and_version(client: &Client) -> Told<Option<(EncryptionMesh, String)>> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ours("EncryptionMesh", "encryptionmeshes"));
    let Some(found) = api.get_opt(names::MESH).await.map_err(|e| told(&e))? else { return Ok(None) };
    let version = found.resource_version().unwrap_or_default();
    let value = serde_json::to_value(found).map_err(|e| causes(&e))?;
    let mesh = serde_json::from_value(value).map_err(|e| format!("it can't be read: {e}"))?;
    Ok(Some((mesh, version)))
}

/// Ranges of Services; empty where the API server does not tell them as objects (before 1.33).
pub async fn services(client: &Client) -> Told<Vec<IpNet>> {
    let listed = match all::<ServiceCIDR>(client).await {
        Ok(listed) => listed,
        Err(kube::Error::Api(refused)) if refused.code == 404 => return Ok(Vec::new()),
        Err(e) => return Err(told(&e)),
    };
    let texts = listed.into_iter().filter_map(|object| object.spec?.cidrs).flatten();
    Ok(texts.filter_map(|text| text.parse().ok()).collect())
}

/// The image of the agents that are installed, if any are.
pub async fn installed_image(client: &Client, namespace: &str) -> Told<Option<String>> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(AGENT).await.map_err(|e| told(&e))?;
    let containers = found.and_then(|set| set.spec?.template.spec).map(|spec| spec.containers);
    Ok(containers.and_then(|containers| containers.into_iter().next()?.image))
}

/// Every object of a kind, page by page.
async fn all<K>(client: &Client) -> kube::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page: ObjectList<K> = api.list(&params).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => params = params.continue_token(&more),
            None => return Ok(objects),
        }
    }
}

/// In one line, for people.
pub(crate) fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(refused) => readable(&refused.message),
        other => readable(&causes(other)),
    }
}

async fn labels(client: &Client, namespace: &str) -> BTreeMap<String, String> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = api.get_opt(namespace).await.ok().flatten();
    let mut labels = found.and_then(|found| found.metadata.labels).unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
    labels
}

async fn serves_policies(client: &Client) -> Told<bool> {
    let served = client.list_api_group_resources("admissionregistration.k8s.io/v1").await;
    let served = served.map_err(|e| told(&e))?;
    Ok(served.resources.iter().any(|resource| resource.name == "validatingadmissionpolicies"))
}

fn node(node: &core::Node) -> Node {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let given = match (spec.pod_cidrs, spec.pod_cidr) {
        (Some(many), _) if !many.is_empty() => many,
        (_, one) => one.into_iter().collect(),
    };
    let internal = status.addresses.iter().flatten().filter(|address| address.type_ == "InternalIP");
    let info = status.node_info.unwrap_or_default();
    Node {
        // Where a kubelet has said nothing yet it is taken for one of ours.
        linux: matches!(info.operating_system.as_str(), "linux" | ""),
        kernel: info.kernel_version,
        pod_cidrs: given.iter().filter_map(|text| text.parse().ok()).collect(),
        internal_ips: internal.filter_map(|address| address.address.parse().ok()).collect(),
        uid: node.uid().unwrap_or_default(),
        announcement: node.annotations().get(names::ANNOUNCEMENT).cloned(),
    }
}

fn pod(pod: &core::Pod) -> Option<Pod> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if !matches!(status.phase.as_deref(), Some("Running" | "Pending")) {
        return None;
    }
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    Some(Pod {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        labels: pod.labels().clone(),
        node: spec.node_name.clone()?,
        host_network: spec.host_network.unwrap_or_default(),
        ready,
        addresses: status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
    })
}

async fn webhooks(client: &Client) -> Told<Vec<Webhook>> {
    let of_one_kind = all::<ValidatingWebhookConfiguration>(client).await.map_err(|e| told(&e))?;
    let of_the_other = all::<MutatingWebhookConfiguration>(client).await.map_err(|e| told(&e))?;
    let mut found: Vec<Webhook> = of_one_kind.iter().flat_map(validating).collect();
    found.extend(of_the_other.iter().flat_map(mutating));
    for service in found.iter_mut().filter_map(|webhook| webhook.service.as_mut()) {
        let api: Api<Service> = Api::namespaced(client.clone(), &service.namespace);
        // Whose pods are not known is told as that.
        let there = api.get_opt(&service.name).await.ok().flatten();
        service.selector = there.and_then(|there| there.spec?.selector).unwrap_or_default();
    }
    Ok(found)
}

async fn installed(client: &Client) -> Installed {
    Installed {
        definitions_missing: missing(client).await,
        mesh: mesh(client).await,
        veil_nodes: veil_nodes(client).await,
    }
}

async fn missing(client: &Client) -> Told<Vec<String>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut missing = Vec::new();
    for name in DEFINITIONS {
        if api.get_opt(name).await.map_err(|e| told(&e))?.is_none() {
            missing.push(name.to_owned());
        }
    }
    Ok(missing)
}

async fn veil_nodes(client: &Client) -> Told<BTreeMap<String, Option<VeilNodeStatus>>> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ours("VeilNode", "veilnodes"));
    let listed = match api.list(&ListParams::default()).await {
        Ok(listed) => listed,
        // Without a definition there are none.
        Err(kube::Error::Api(refused)) if refused.code == 404 => return Ok(BTreeMap::new()),
        Err(e) => return Err(told(&e)),
    };
    let status = |object: &DynamicObject| serde_json::from_value(object.data.get("status")?.clone()).ok();
    Ok(listed.iter().map(|object| (object.name_any(), status(object))).collect())
}
