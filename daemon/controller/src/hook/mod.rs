//! What a chart's hooks do: apply the definitions before an upgrade, have every node clean up before the chart goes, and try
//! whether traffic is encrypted.

mod echo;
mod frames;
mod traffic;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::{DynamicObject, Object},
};
use kubeveil_api::{
    condition::{self, Condition, DEGRADED},
    names,
    veil_node::{UNINSTALLED, VeilNodeStatus},
};
use kubeveil_kubernetes::{Origin, holds, ours, theirs};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

pub use self::{
    echo::serve as serve_echo,
    traffic::{Trial, try_traffic},
};
use crate::client;

/// Field manager of what hooks write.
const MANAGER: &str = "kubeveil-hook";
/// Between two looks at how far it has got.
const LOOK: Duration = Duration::from_secs(2);
/// Within which the API server serves what it was given.
const SERVED: Duration = Duration::from_secs(30);
/// As `cargo xtask codegen` makes them.
const DEFINITIONS: [&str; 6] = [
    include_str!("../../../../deploy/crds/encryptionmeshes.kubeveil.io.yaml"),
    include_str!("../../../../deploy/crds/veilnodes.kubeveil.io.yaml"),
    include_str!("../../../../deploy/crds/encryptionpolicies.kubeveil.io.yaml"),
    include_str!("../../../../deploy/crds/clusterencryptionpolicies.kubeveil.io.yaml"),
    include_str!("../../../../deploy/crds/veilpodslices.kubeveil.io.yaml"),
    include_str!("../../../../deploy/crds/veilpeerslices.kubeveil.io.yaml"),
];

/// Applies the definitions that this version goes by: helm installs them once and never again.
pub async fn apply_definitions(origin: &Origin) -> Result<()> {
    let kind = theirs("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions");
    let api: Api<DynamicObject> = Api::all_with(client(origin).await?, &kind);
    for text in DEFINITIONS {
        let definition: Value =
            serde_saphyr::from_str(text).context("read a definition of this program's own")?;
        let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let params = PatchParams::apply(MANAGER).force();
        let applied = api.patch(&name, &params, &Patch::Apply(&definition)).await;
        applied.with_context(|| format!("apply CustomResourceDefinition {name}"))?;
        until_served(&api, &name).await?;
        tracing::info!("applied CustomResourceDefinition {name}");
    }
    Ok(())
}

async fn until_served(api: &Api<DynamicObject>, name: &str) -> Result<()> {
    let end = Instant::now() + SERVED;
    loop {
        if holds(&api.get(name).await?.data["status"], "Established") {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("CustomResourceDefinition {name} is not served within {} s", SERVED.as_secs());
        }
        sleep(LOOK).await;
    }
}

/// Who is left after the time was up.
#[derive(Debug)]
pub struct Left(
    /// Names of nodes, with what they say.
    pub Vec<String>,
);

type VeilNode = Object<Option<Value>, VeilNodeStatus>;

/// Tells every node to clean up, and waits until all have, at most so long; the `VeilNode`s and all slices go with them. Names the nodes
/// that have not.
pub async fn uninstall(origin: &Origin, patience: Duration) -> Result<Result<(), Left>> {
    let client = client(origin).await?;
    let kind = ours("EncryptionMesh", "encryptionmeshes");
    let meshes: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let kind = ours("VeilNode", "veilnodes");
    let nodes: Api<VeilNode> = Api::all_with(client.clone(), &kind);
    let slices = [("VeilPodSlice", "veilpodslices"), ("VeilPeerSlice", "veilpeerslices")]
        .map(|(kind, plural)| (kind, Api::<DynamicObject>::all_with(client.clone(), &ours(kind, plural))));
    if meshes.get_opt(names::MESH).await?.is_none() {
        tracing::info!("there is no EncryptionMesh {}: nothing to uninstall", names::MESH);
        return Ok(Ok(()));
    }
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let wish = json!({"spec": {"uninstall": true}});
    let wished = meshes.patch(names::MESH, &params, &Patch::Merge(wish)).await;
    wished.with_context(|| format!("set spec.uninstall of EncryptionMesh {}", names::MESH))?;
    let end = Instant::now() + patience;
    let mut told = usize::MAX;
    loop {
        let listed = nodes.list(&ListParams::default()).await.context("list VeilNodes")?;
        let left: Vec<String> = listed.iter().filter_map(what_is_left).collect();
        if left.is_empty() {
            let gone = nodes.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
            gone.context("delete the VeilNodes")?;
            for (kind, slices) in &slices {
                match slices.delete_collection(&DeleteParams::default(), &ListParams::default()).await {
                    // Of a cluster that has no such definition.
                    Err(kube::Error::Api(refused)) if refused.code == 404 => {}
                    gone => drop(gone.with_context(|| format!("delete the {kind}s"))?),
                }
            }
            tracing::info!("nothing of kubeveil is left on {} nodes", listed.items.len());
            return Ok(Ok(()));
        }
        if left.len() != told {
            told = left.len();
            tracing::info!("{told} of {} nodes are left", listed.items.len());
        }
        if Instant::now() >= end {
            return Ok(Err(Left(left)));
        }
        sleep(LOOK).await;
    }
}

/// A node on which there may be something still, and what its agent says of it. One that never had an agent says nothing.
fn what_is_left(node: &VeilNode) -> Option<String> {
    let status = node.status.as_ref()?;
    let done = condition::find(&status.conditions, UNINSTALLED);
    if done.is_some_and(Condition::holds) {
        return None;
    }
    let name = node.name_any();
    let wrong = condition::find(&status.conditions, DEGRADED).filter(|condition| condition.holds());
    Some(match (done, wrong) {
        (None, _) => format!("{name}: its agent has not answered"),
        (Some(_), Some(wrong)) => format!("{name}: {}", wrong.message),
        (Some(_), None) => format!("{name}: is at it"),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

    use super::*;
    use jiff::Timestamp;

    /// What the chart installs first is what is applied later.
    #[test]
    fn every_definition_is_applied() {
        let made = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/kubeveil/crds");
        let files = std::fs::read_dir(made).expect("a folder").map(|entry| entry.expect("a file").path());
        let mut made: Vec<String> = files.map(|file| std::fs::read_to_string(file).expect("read")).collect();
        made.sort();
        let mut applied = DEFINITIONS.to_vec();
        applied.sort_unstable();
        assert_eq!(applied, made);
    }

    #[test]
    fn who_is_left_is_named_with_why() {
        let node = |conditions: Option<Vec<(&str, bool)>>| {
            let conditions = conditions.map(|all| {
                let condition = |(kind, holds)| {
                    Condition::new(kind, holds, "R", format!("{kind} is said"), Timestamp::default())
                };
                all.into_iter().map(condition).collect()
            });
            let mut node = VeilNode::new("n", &ours("VeilNode", "veilnodes"), None);
            node.status = conditions.map(|conditions| VeilNodeStatus { conditions, ..Default::default() });
            what_is_left(&node)
        };
        assert_eq!(node(None), None);
        assert_eq!(node(Some(vec![("Uninstalled", true), ("Degraded", true)])), None);
        assert_eq!(node(Some(vec![("Ready", true)])).as_deref(), Some("n: its agent has not answered"));
        assert_eq!(node(Some(vec![("Uninstalled", false)])).as_deref(), Some("n: is at it"));
        let wrong = node(Some(vec![("Uninstalled", false), ("Degraded", true)]));
        assert_eq!(wrong.as_deref(), Some("n: Degraded is said"));
    }

    #[test]
    fn the_definitions_can_be_read() {
        let read = DEFINITIONS.map(|text| {
            let read: CustomResourceDefinition = serde_saphyr::from_str(text).expect("a definition");
            assert_eq!(read.spec.group, names::GROUP);
            read.metadata.name.unwrap_or_default()
        });
        assert_eq!(read, names::DEFINITIONS);
    }
}
