//! Taking a range into the mesh's spec, by whoever's credential this runs with.

use anyhow::{Context as _, Result, anyhow, bail};
use ipnet::IpNet;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use kubeveil_api::names;
use kubeveil_kubernetes::ours;
use serde_json::json;

use crate::{
    gather,
    ranges::{approved, in_force},
};

/// Who writes ranges of pods, and of nodes, of those who write the mesh. Not one name for both: what an apply leaves out that its
/// manager wrote before is taken away.
const MANAGERS: [&str; 2] = ["kubeveil-ranges-nodes", "kubeveil-ranges-pods"];

/// Agents believe Nodes that have addresses of `range` from then on; what was in force stays so. Where somebody else writes the
/// field it is refused, unless it is to be taken over by `force`.
pub async fn approve(client: &Client, range: IpNet, is_pods: bool, force: bool) -> Result<()> {
    let found = gather::mesh_and_version(client)
        .await
        .map_err(|why| anyhow!("read EncryptionMesh default: {why}"))?;
    let (mesh, version) = found.context("there is no EncryptionMesh default: is kubeveil installed?")?;
    let others = others(client, is_pods).await?;
    let after = approved(&in_force(&mesh).ranges, range, is_pods, &others).map_err(|why| anyhow!("{why}"))?;
    let (field, ranges) =
        if is_pods { ("podCIDRs", &after.pod_cidrs) } else { ("nodeCIDRs", &after.node_cidrs) };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ours("EncryptionMesh", "encryptionmeshes"));
    let patch = json!({
        "apiVersion": names::API_VERSION, "kind": "EncryptionMesh",
        // What was read is what is written over: nobody else's range is lost meanwhile.
        "metadata": {"name": names::MESH, "resourceVersion": version},
        "spec": {field: ranges},
    });
    let params = PatchParams { force, ..PatchParams::apply(MANAGERS[usize::from(is_pods)]) };
    match api.patch(names::MESH, &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(refused)) if refused.code == 409 => bail!(
            "spec.{field} of EncryptionMesh default is not changed: {}. Where helm or a GitOps tool writes it, add {range} there \
             (the chart's encryption.{field}); else --force",
            refused.message
        ),
        Err(e) => Err(e).with_context(|| format!("write spec.{field} of EncryptionMesh default")),
    }
}

/// What such a range must not hold, and what it is.
async fn others(client: &Client, is_pods: bool) -> Result<Vec<(IpNet, String)>> {
    let services = gather::services(client).await.map_err(|why| anyhow!("list ranges of Services: {why}"))?;
    let mut others: Vec<(IpNet, String)> =
        services.into_iter().map(|range| (range, "a range of Services".to_owned())).collect();
    if is_pods {
        let nodes = gather::nodes(client).await.map_err(|why| anyhow!("list nodes: {why}"))?;
        for (name, node) in &nodes {
            let own = node.internal_ips.iter();
            others.extend(own.map(|ip| (IpNet::from(*ip), format!("the address of Node {name}"))));
        }
    }
    Ok(others)
}
