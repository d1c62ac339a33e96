//! What is done to a cluster that an API server keeps.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use kubeveil_api::names;
use kubeveil_core::control::Control;
use kubeveil_kubernetes::{Kubernetes, KubernetesControl, Origin, Pace};
use serde_json::{Value, json};

use crate::{
    chart,
    server::{Server, Who},
    world::{Watching, World, addresses_of, annotation, until},
};

/// What `deploy/` has for the API server.
pub const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds");
/// A namespace whose pods are a test's own.
pub const PAYMENTS: &str = "payments";
/// Who does what people do.
const HAND: &str = "a-hand";

/// Time-outs for tests: short, as loopback is.
pub fn pace() -> Pace {
    Pace {
        answer: Duration::from_secs(3),
        silence: Duration::from_secs(4),
        watch: Duration::from_secs(30),
        steady: Duration::from_secs(1),
        first_wait: Duration::from_millis(100),
        longest_wait: Duration::from_secs(2),
    }
}

/// A cluster on a [`Server`], empty at first.
pub struct InApiServer<'a> {
    /// The server.
    pub server: &'a Server,
    client: Client,
}

impl<'a> InApiServer<'a> {
    /// Takes away what others left.
    pub fn new(server: &'a Server) -> Result<Self> {
        let world = Self::resumed(server)?;
        for kind in [node_kind(), mesh_kind(), veil_node_kind()] {
            let api = world.api(&kind);
            let listed = server.runtime.block_on(api.list(&ListParams::default()))?;
            for object in listed {
                let name = object.metadata.name.context("a name")?;
                server.runtime.block_on(api.delete(&name, &DeleteParams::default()))?;
            }
        }
        let others_have = ["Pod", "Service", "EndpointSlice"];
        let only_we_have = ["EncryptionPolicy", "ClusterEncryptionPolicy", "VeilPodSlice", "VeilPeerSlice"];
        for kind in others_have.into_iter().chain(only_we_have) {
            let api = world.api(&kind_of(&json!({"kind": kind})));
            let listed = server.runtime.block_on(api.list(&ListParams::default()))?;
            // To other pods the tokens are bound by which tests speak.
            let is_ours = |object: &&DynamicObject| {
                only_we_have.contains(&kind) || object.metadata.namespace.as_deref() == Some(PAYMENTS)
            };
            for object in listed.iter().filter(is_ours) {
                let (name, namespace) = (&object.metadata.name, &object.metadata.namespace);
                let object = json!({"kind": kind, "metadata": {"name": name, "namespace": namespace}});
                world.remove(&object)?;
            }
        }
        Ok(world)
    }

    fn remove(&self, object: &Value) -> Result<()> {
        let params = DeleteParams::default().grace_period(0);
        let name = object["metadata"]["name"].as_str().context("a name")?;
        self.server.runtime.block_on(self.api_of(object).delete(name, &params))?;
        Ok(())
    }

    /// Where such an object is.
    fn api_of(&self, object: &Value) -> Api<DynamicObject> {
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind_of(object)),
            None => self.api(&kind_of(object)),
        }
    }

    /// Made, or put in place of what was; refused as the API server says.
    pub fn apply(&self, object: &Value) -> kube::Result<()> {
        let (api, name) = (self.api_of(object), object["metadata"]["name"].as_str().unwrap_or_default());
        let params = PatchParams::apply(HAND).force();
        self.server.runtime.block_on(async {
            api.patch(name, &params, &Patch::Apply(object)).await?;
            if let Some(status) = object.get("status") {
                api.patch_status(name, &merge(), &Patch::Merge(json!({"status": status}))).await?;
            }
            Ok(())
        })
    }

    /// As it is.
    pub fn resumed(server: &'a Server) -> Result<Self> {
        Ok(Self { server, client: server.client(Who::Admin)? })
    }

    fn api(&self, kind: &ApiResource) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), kind)
    }

    /// Made, or changed by a merge; refused as the API server says.
    pub fn put(&self, kind: &ApiResource, object: &Value) -> kube::Result<DynamicObject> {
        let api = self.api(kind);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        self.server.runtime.block_on(async {
            match api.get_opt(name).await? {
                Some(_) => api.patch(name, &merge(), &Patch::Merge(object)).await,
                None => {
                    let mut whole = object.clone();
                    whole["apiVersion"] = json!(kind.api_version);
                    whole["kind"] = json!(kind.kind);
                    let whole = serde_json::from_value(whole).map_err(kube::Error::SerdeError)?;
                    api.create(&PostParams::default(), &whole).await
                }
            }
        })
    }

    fn delete(&self, kind: &ApiResource, name: &str) -> Result<()> {
        self.server.runtime.block_on(self.api(kind).delete(name, &DeleteParams::default()))?;
        Ok(())
    }

    /// A source for `own` at the API server of this kubeconfig.
    pub fn open_by(&self, own: &str, kubeconfig: &Path) -> Watching {
        let runtime = self.server.runtime.handle();
        let origin = Origin::Kubeconfig(kubeconfig.to_owned());
        Watching::new(|wake| Kubernetes::open(origin, own, pace(), runtime, wake))
    }

    /// Any object, as it is.
    pub fn object(&self, object: &Value) -> Result<Value> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        Ok(serde_json::to_value(self.server.runtime.block_on(self.api_of(object).get(name))?)?)
    }

    /// Its kubelet says that it is alive, for the `beat`th time.
    pub fn beat(&self, node: &str, beat: u32) -> Result<()> {
        let condition = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": format!("beat {beat}"),
        });
        let status = json!({"status": {"conditions": [condition]}});
        let api = self.api(&node_kind());
        self.server.runtime.block_on(api.patch_status(node, &merge(), &Patch::Merge(status)))?;
        Ok(())
    }

    /// An object, as it is.
    pub fn get(&self, kind: &ApiResource, name: &str) -> Result<Value> {
        let object = self.server.runtime.block_on(self.api(kind).get(name))?;
        Ok(serde_json::to_value(object)?)
    }

    /// A Node, as it is.
    pub fn node(&self, name: &str) -> Result<Value> {
        self.get(&node_kind(), name)
    }
}

impl InApiServer<'_> {
    /// Writes into an object's status.
    pub fn put_status(&self, kind: &ApiResource, name: &str, status: &Value) -> Result<()> {
        let (api, patch) = (self.api(kind), Patch::Merge(json!({"status": status})));
        self.server.runtime.block_on(api.patch_status(name, &merge(), &patch))?;
        Ok(())
    }
}

impl World for InApiServer<'_> {
    fn put_node(&mut self, name: &str, pod_cidrs: &[&str], addresses: &[&str]) -> Result<()> {
        let spec = if pod_cidrs.is_empty() {
            json!({})
        } else {
            json!({"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs})
        };
        self.put(&node_kind(), &json!({"metadata": {"name": name}, "spec": spec}))?;
        self.put_status(&node_kind(), name, &addresses_of(addresses))
    }

    fn annotate(&mut self, name: &str, said: Option<&str>) -> Result<()> {
        let object = json!({"metadata": {"name": name, "annotations": {names::ANNOUNCEMENT: said}}});
        self.put(&node_kind(), &object)?;
        Ok(())
    }

    fn delete_node(&mut self, name: &str) -> Result<()> {
        self.delete(&node_kind(), name)
    }

    fn put_mesh(&mut self, spec: &Value) -> Result<()> {
        self.put(&mesh_kind(), &json!({"metadata": {"name": names::MESH}, "spec": spec}))?;
        Ok(())
    }

    fn delete_mesh(&mut self) -> Result<()> {
        self.delete(&mesh_kind(), names::MESH)
    }

    fn put_object(&mut self, object: &Value) -> Result<()> {
        self.apply(object)?;
        if object["kind"] == "Namespace" {
            // No controller makes it here, and no pod is taken without.
            let metadata = json!({"name": "default", "namespace": object["metadata"]["name"]});
            self.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))?;
        }
        Ok(())
    }

    fn delete_object(&mut self, object: &Value) -> Result<()> {
        self.remove(object)
    }

    fn announced(&self, name: &str) -> Result<Option<String>> {
        Ok(annotation(&self.node(name)?))
    }

    fn control(&self) -> Result<Box<dyn Control>> {
        let origin = Origin::Kubeconfig(self.server.kubeconfig(Who::Admin)?);
        Ok(Box::new(KubernetesControl::new(origin, pace(), self.server.runtime.handle())))
    }

    fn open(&self, own: &str) -> Result<Watching> {
        Ok(self.open_by(own, &self.server.kubeconfig_of(chart::AGENT, own)?))
    }
}

fn merge() -> PatchParams {
    PatchParams { field_manager: Some(HAND.to_owned()), ..PatchParams::default() }
}

/// That of an object.
fn kind_of(object: &Value) -> ApiResource {
    let kind = object["kind"].as_str().unwrap_or_default();
    let (group, version, plural) = match kind {
        "Pod" => ("", "v1", "pods"),
        "Namespace" => ("", "v1", "namespaces"),
        "Service" => ("", "v1", "services"),
        "EndpointSlice" => ("discovery.k8s.io", "v1", "endpointslices"),
        "ServiceAccount" => ("", "v1", "serviceaccounts"),
        "EncryptionPolicy" => (names::GROUP, "v1alpha1", "encryptionpolicies"),
        "ClusterEncryptionPolicy" => (names::GROUP, "v1alpha1", "clusterencryptionpolicies"),
        "VeilPodSlice" => (names::GROUP, "v1alpha1", "veilpodslices"),
        "VeilPeerSlice" => (names::GROUP, "v1alpha1", "veilpeerslices"),
        kind => unreachable!("no test has such an object: {kind}"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// `v1` Node.
pub fn node_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Node"), "nodes")
}

/// What an agent says of its node.
pub fn veil_node_kind() -> ApiResource {
    let gvk = GroupVersionKind::gvk(names::GROUP, "v1alpha1", "VeilNode");
    ApiResource::from_gvk_with_plural(&gvk, "veilnodes")
}

/// Our mesh.
pub fn mesh_kind() -> ApiResource {
    let version = names::API_VERSION.rsplit('/').next().unwrap_or_default();
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(names::GROUP, version, "EncryptionMesh"),
        "encryptionmeshes",
    )
}

/// The definitions in `deploy/`, by name.
pub fn definitions() -> Result<Vec<(String, Value)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(DEFINITIONS).context(DEFINITIONS)? {
        let object: Value = serde_saphyr::from_str(&fs::read_to_string(entry?.path())?)?;
        all.push((object["metadata"]["name"].as_str().context("a name")?.to_owned(), object));
    }
    Ok(all)
}

/// Installs the definitions in `deploy/`; returns when they serve.
pub fn install_definitions(server: &Server) -> Result<()> {
    let client = server.client(Who::Admin)?;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (name, definition) in definitions()? {
        let params = PatchParams::apply(HAND).force();
        server.runtime.block_on(api.patch(&name, &params, &Patch::Apply(definition)))?;
    }
    let meshes: Api<DynamicObject> = Api::all_with(client, &mesh_kind());
    until("the mesh's definition serves", || {
        server.runtime.block_on(meshes.list(&ListParams::default())).is_ok()
    });
    Ok(())
}

/// Takes one away, and all objects with it.
pub fn remove_definition(server: &Server, name: &str) -> Result<()> {
    let client = server.client(Who::Admin)?;
    let api: Api<CustomResourceDefinition> = Api::all(client);
    server.runtime.block_on(api.delete(name, &DeleteParams::default()))?;
    until("the definition is gone", || {
        server.runtime.block_on(api.get_opt(name)).is_ok_and(|found| found.is_none())
    });
    Ok(())
}
