//! What an API server tells of its cluster.

use std::{collections::BTreeMap, str::FromStr};

use ipnet::IpNet;
use kube::{
    Api, Client, ResourceExt as _,
    api::ListParams,
    core::{ApiResource, DynamicObject},
};
use kubeveil_api::{
    condition::READY,
    mesh::EncryptionMesh,
    names,
    problem::{causes, readable},
    veil_node::VeilNodeStatus,
};
use kubeveil_kubernetes::{entries, holds, ours, theirs};
use serde_json::Value;

use crate::{
    facts::{Facts, Installed, Node, Pod, Probes, Told, Webhook},
    webhook::{KINDS, webhooks_of},
};

/// Objects an answer.
const PAGE: u32 = 500;
/// What the chart calls the agents.
const AGENT: &str = "kubeveil-agent";

/// All but what has to be looked at on the nodes.
pub async fn facts(client: &Client, namespace: &str, pre: bool) -> Facts {
    let installed = if pre { None } else { Some(installed(client).await) };
    let mesh = installed.as_ref().and_then(|installed| installed.mesh.as_ref().ok()?.as_ref());
    let pods = all(client, &theirs("", "Pod", "pods"), pod).await.map_err(|e| told(&e));
    Facts {
        pre,
        namespace: namespace.to_owned(),
        namespace_labels: labels(client, namespace).await,
        version: client.apiserver_version().await.map(|version| version.git_version).map_err(|e| told(&e)),
        serves_policies: serves_policies(client).await,
        nodes: nodes_of(client, mesh).await,
        pods,
        webhooks: webhooks(client).await,
        probes: Probes::default(),
        installed,
    }
}

/// Nodes by name.
pub async fn nodes(client: &Client) -> Told<BTreeMap<String, Node>> {
    nodes_of(client, None).await
}

/// The same, in a mesh that may exclude some.
async fn nodes_of(client: &Client, mesh: Option<&EncryptionMesh>) -> Told<BTreeMap<String, Node>> {
    let read = |object: &DynamicObject| {
        let mut node = node(object);
        let announcement = node.announcement.as_deref();
        node.excluded = mesh.is_some_and(|mesh| mesh.spec.excludes(object.labels(), announcement).is_some());
        node.linux &= !node.excluded;
        Some((object.name_any(), node))
    };
    Ok(all(client, &theirs("", "Node", "nodes"), read).await.map_err(|e| told(&e))?.into_iter().collect())
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
    let kind = theirs("networking.k8s.io", "ServiceCIDR", "servicecidrs");
    match all(client, &kind, |object| Some(parsed(&object.data["spec"]["cidrs"]))).await {
        Ok(listed) => Ok(listed.into_iter().flatten().collect()),
        Err(kube::Error::Api(refused)) if refused.code == 404 => Ok(Vec::new()),
        Err(e) => Err(told(&e)),
    }
}

/// The image of the agents that are installed, if any are.
pub async fn installed_image(client: &Client, namespace: &str) -> Told<Option<String>> {
    let kind = theirs("apps", "DaemonSet", "daemonsets");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    let found = api.get_opt(AGENT).await.map_err(|e| told(&e))?;
    let image = found.and_then(|set| text(&set.data["spec"]["template"]["spec"]["containers"][0]["image"]));
    Ok(image)
}

/// Of every object of a kind, page by page, what `read` takes of it.
async fn all<T>(
    client: &Client,
    kind: &ApiResource,
    read: impl Fn(&DynamicObject) -> Option<T>,
) -> kube::Result<Vec<T>> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), kind);
    let mut params = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = api.list(&params).await?;
        objects.extend(page.items.iter().filter_map(&read));
        match page.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => params = params.continue_token(&more),
            None => return Ok(objects),
        }
    }
}

/// A text, if it is one.
pub(crate) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Those texts of a list that are of this type.
fn parsed<T: FromStr>(list: &Value) -> Vec<T> {
    entries(list).filter_map(|entry| entry.as_str()?.parse().ok()).collect()
}

/// In one line, for people.
pub(crate) fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(refused) => readable(&refused.message),
        other => readable(&causes(other)),
    }
}

async fn labels(client: &Client, namespace: &str) -> BTreeMap<String, String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &theirs("", "Namespace", "namespaces"));
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

fn node(node: &DynamicObject) -> Node {
    let (spec, status) = (&node.data["spec"], &node.data["status"]);
    let mut pod_cidrs = parsed(&spec["podCIDRs"]);
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec["podCIDR"].as_str().and_then(|text| text.parse::<IpNet>().ok()));
    }
    let internal = entries(&status["addresses"]).filter(|address| address["type"] == "InternalIP");
    let info = &status["nodeInfo"];
    Node {
        // Where a kubelet has said nothing yet it is taken for one of ours.
        linux: matches!(info["operatingSystem"].as_str(), None | Some("linux" | "")),
        kernel: text(&info["kernelVersion"]).unwrap_or_default(),
        pod_cidrs,
        internal_ips: internal.filter_map(|address| address["address"].as_str()?.parse().ok()).collect(),
        excluded: false,
        uid: node.uid().unwrap_or_default(),
        announcement: node.annotations().get(names::ANNOUNCEMENT).cloned(),
    }
}

fn pod(pod: &DynamicObject) -> Option<Pod> {
    let (spec, status) = (&pod.data["spec"], &pod.data["status"]);
    if !matches!(status["phase"].as_str(), Some("Running" | "Pending")) {
        return None;
    }
    Some(Pod {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        labels: pod.labels().clone(),
        node: text(&spec["nodeName"])?,
        host_network: spec["hostNetwork"] == true,
        ready: holds(status, READY),
        addresses: entries(&status["podIPs"]).filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect(),
    })
}

async fn webhooks(client: &Client) -> Told<Vec<Webhook>> {
    let mut found = Vec::new();
    for (kind, plural) in KINDS {
        let kind = theirs("admissionregistration.k8s.io", kind, plural);
        let read = |object: &DynamicObject| Some(webhooks_of(&kind, object));
        found.extend(all(client, &kind, read).await.map_err(|e| told(&e))?.into_iter().flatten());
    }
    for service in found.iter_mut().filter_map(|webhook| webhook.service.as_mut()) {
        let kind = theirs("", "Service", "services");
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &service.namespace, &kind);
        // Whose pods are not known is told as that.
        let there = api.get_opt(&service.name).await.ok().flatten();
        let selector = there.map(|there| there.data["spec"]["selector"].clone());
        service.selector =
            selector.and_then(|selector| serde_json::from_value(selector).ok()).unwrap_or_default();
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
    let kind = theirs("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let mut missing = Vec::new();
    for name in names::DEFINITIONS {
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
