//! The objects that the daemons watch, as `kubectl get -o yaml` prints them. Pure, save for the writing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Mode;
use crate::address::{Families, Node, node_range, nodes, pod_range};

/// One file of the folder.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its name.
    pub file: String,
    /// What is in it.
    pub object: Value,
}

impl Manifest {
    /// Its text.
    pub fn yaml(&self) -> Result<String> {
        serde_saphyr::to_string(&self.object).with_context(|| format!("write {} as YAML", self.file))
    }

    /// Puts it into `folder` whole: written aside and renamed.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = self.yaml()?;
        // A leading dot and another ending: whoever lists the folder takes neither for a manifest.
        let aside = folder.join(format!(".{}.new", self.file));
        fs::write(&aside, text).with_context(|| format!("write {}", aside.display()))?;
        let target = folder.join(&self.file);
        fs::rename(&aside, &target).with_context(|| format!("put {} in place", target.display()))
    }
}

/// The mesh: one object for the whole cluster. No `adoption`: closed from the first attach.
pub fn mesh(mode: Mode, families: Families) -> Manifest {
    let object = json!({
        "apiVersion": "kubeveil.io/v1alpha1",
        "kind": "EncryptionMesh",
        "metadata": { "name": "default", "uid": uid("mesh", 0), "generation": 1 },
        "spec": {
            "mode": mode.in_manifest(),
            "podCIDRs": families.map(pod_range),
            "nodeCIDRs": families.map(node_range),
            "keyGeneration": 0,
        },
    });
    Manifest { file: "mesh.yaml".to_owned(), object }
}

/// One node.
pub fn node(node: Node, families: Families) -> Manifest {
    let mut addresses =
        families.map(|family| json!({ "type": "InternalIP", "address": node.address(family).to_string() }));
    addresses.push(json!({ "type": "Hostname", "address": node.name() }));
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name(),
            "uid": uid("node", node.0.into()),
            "labels": { "kubernetes.io/hostname": node.name(), "kubernetes.io/os": "linux" },
        },
        "spec": {
            "podCIDR": families.first(|family| node.pod_cidr(family)),
            "podCIDRs": families.map(|family| node.pod_cidr(family)),
        },
        "status": {
            "addresses": addresses,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        },
    });
    Manifest { file: format!("{}.yaml", node.name()), object }
}

/// All pods, and their namespaces: `a` pods are the shop's, `b` pods handle payments.
pub fn pods(count: u8, families: Families) -> Manifest {
    let mut items = vec![namespace("shop", 1), namespace("payments", 2)];
    for node in nodes(count) {
        for pod in node.pods() {
            let (namespace, app, index) = match pod.letter {
                'a' => ("shop", "web", 0),
                _ => ("payments", "ledger", 1),
            };
            items.push(json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": pod.name(),
                    "namespace": namespace,
                    "uid": uid("pod", u32::from(node.0) * 2 + index),
                    "labels": { "app": app },
                },
                "spec": { "nodeName": node.name(), "containers": [{ "name": app, "image": app }] },
                "status": {
                    "phase": "Running",
                    "hostIP": families.first(|family| node.address(family).to_string()),
                    "hostIPs": families.map(|family| json!({ "ip": node.address(family).to_string() })),
                    "podIP": families.first(|family| pod.address(family).to_string()),
                    "podIPs": families.map(|family| json!({ "ip": pod.address(family).to_string() })),
                },
            }));
        }
    }
    let object = json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": items });
    Manifest { file: "pods.yaml".to_owned(), object }
}

fn namespace(name: &str, number: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": uid("namespace", number),
            "labels": { "kubernetes.io/metadata.name": name },
        },
        "status": { "phase": "Active" },
    })
}

/// The same object has the same UID in each run, and no two share one.
fn uid(kind: &str, number: u32) -> String {
    let kind = match kind {
        "mesh" => 1,
        "node" => 2,
        "namespace" => 3,
        _ => 4,
    };
    format!("{number:08x}-244a-4{kind:03x}-8000-6b7562657665")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::MAX_NODES;
    use std::collections::BTreeSet;

    #[test]
    fn no_uid_is_given_twice() {
        let mut uids = BTreeSet::new();
        let mut objects = vec![mesh(Mode::Require, Families::Dual).object];
        objects.extend(nodes(MAX_NODES).map(|one| node(one, Families::Dual).object));
        if let Value::Array(items) = &pods(MAX_NODES, Families::Dual).object["items"] {
            objects.extend(items.iter().cloned());
        }
        assert_eq!(objects.len(), 1 + 32 + 2 + 64);
        for object in objects {
            assert!(uids.insert(object["metadata"]["uid"].to_string()), "{object}");
        }
    }

    #[test]
    fn a_node_reads_as_kubectl_prints_it() {
        let yaml = node(Node(2), Families::Dual).yaml().expect("YAML");
        for line in
            // Quoted by a writer that is more careful than kubectl's.
            [
                "kind: Node",
                "  podCIDR: 10.244.2.0/24",
                "  - fd00:244:2::/64",
                "  - address: \"192.0.2.2\"",
            ]
        {
            assert!(yaml.contains(line), "{line} in\n{yaml}");
        }
    }
}
