//! The cluster as a folder of manifests.

use std::{fs, path::Path};

use anyhow::Result;
use kubeveil_api::names;
use kubeveil_core::snapshot::NodeFacts;
use serde_json::{Value, json};

use super::{OWN, Other, mesh, own};

/// The mesh, all Nodes as one list, and the announcements of the others as they write them.
pub(crate) fn write(folder: &Path, others: &[Other]) -> Result<()> {
    let mesh = json!({
        "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionMesh", "metadata": {"name": "default"}, "spec": mesh()?,
    });
    put(folder, "mesh.json", &mesh)?;
    let mut items: Vec<Value> = others.iter().map(|other| node(&other.name(), &other.facts)).collect();
    items.push(node(OWN, &own()?));
    put(folder, "nodes.json", &json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
    others.iter().try_for_each(|other| announce(folder, other))
}

/// What a node's daemon writes.
pub(crate) fn announce(folder: &Path, other: &Other) -> Result<()> {
    let file = format!("{}/{}.yaml", names::ANNOUNCEMENTS_DIR, other.name());
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": other.name(), "uid": other.facts.uid,
            "annotations": {names::ANNOUNCEMENT: other.facts.announcement},
        },
    });
    put(folder, &file, &node)
}

fn node(name: &str, facts: &NodeFacts) -> Value {
    let addresses: Vec<Value> =
        facts.internal_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": facts.uid},
        "spec": {"podCIDRs": facts.pod_cidrs},
        "status": {"addresses": addresses},
    })
}

/// By rename, as everybody writes there.
fn put(folder: &Path, file: &str, object: &Value) -> Result<()> {
    fs::create_dir_all(folder.join(names::ANNOUNCEMENTS_DIR))?;
    let beside = folder.join(".new");
    fs::write(&beside, serde_json::to_vec(object)?)?;
    Ok(fs::rename(beside, folder.join(file))?)
}
