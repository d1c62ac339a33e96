//! Our image in every node, the chart installed by helm, and what stands in the way where encryption does not come about.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::{Cluster, guest, plan::Plan, processes};
use crate::{
    image::{self, Image},
    report::Step,
    workspace::Workspace,
};

/// What the nodes may take to unpack the image, and the agents to encrypt every way between them.
const UNPACKED: Duration = Duration::from_secs(240);
const PATIENCE: Duration = Duration::from_secs(600);
/// For what kubectl waits until all ways between the nodes are encrypted.
pub(super) const CONNECTED: &[&str] = &["--for=condition=FullyConnected", "encryptionmesh/default"];

/// Where helm installs it.
const NAMESPACE: &str = "kubeveil";
/// The archive among what is handed in to the guest, from where each node takes it.
const HANDED_IN: &str = "kubeveil.tar";

/// What is installed: an image, and the chart that names it.
#[derive(Clone)]
pub(super) struct Product {
    pub(super) image: Image,
    pub(super) chart: PathBuf,
    /// `kubeveil`, the same program as in the image.
    pub(super) program: PathBuf,
}

impl Product {
    pub(super) fn new(workspace: &Workspace) -> Result<Self> {
        let image = image::build(workspace)?;
        let program = image.archive.with_file_name("kubeveil");
        Ok(Self { image, chart: workspace.root.join("deploy/helm/kubeveil"), program })
    }

    /// Lays the image where the nodes find it when they start.
    pub(super) fn hand_in(&self, plan: &Plan) -> Result<()> {
        let file = plan.handed_in().join(HANDED_IN);
        fs::copy(&self.image.archive, &file).with_context(|| format!("make {}", file.display()))?;
        Ok(())
    }

    fn helm_install(&self, helm: &mut Command) -> Result<()> {
        let (repository, tag) = self.image.name.split_once(':').context("an image's name without a tag")?;
        helm.args(["install", "kubeveil"]).arg(&self.chart);
        helm.args(["--namespace", NAMESPACE, "--create-namespace", "--set", "encryption.enabled=true"]);
        helm.args(["--set", &format!("image.repository={repository},image.tag={tag}")]);
        processes::output(helm).map(|_| ())
    }
}

/// Installs the chart with encryption switched on, if the cluster is not to stay bare; comes back once all nodes encrypt all
/// ways between them.
pub(super) fn install(cluster: &mut Cluster) -> Result<()> {
    let mut helm = cluster.helm();
    let Some(product) = &cluster.product else { return Ok(()) };
    let mut step = Step::begin("kubeveil on every node");
    step.detail("image");
    for node in 1..=cluster.plan.nodes {
        let port = cluster.plan.guest;
        let line = format!("ctr -n k8s.io images ls -q | grep -qxF {}", product.image.name);
        cluster.processes.wait_until(&format!("node-{node} unpacks the image"), UNPACKED, || {
            guest::run(port, &node.to_string(), &line, b"").is_ok()
        })?;
    }
    step.detail("helm install");
    product.helm_install(&mut helm)?;
    step.detail("every way between nodes gets encrypted");
    let connected = cluster.kubectl_waits(PATIENCE, CONNECTED);
    connected.with_context(|| in_the_way(cluster))?;
    step.end();
    Ok(())
}

/// What a person would ask next, asked; that something can't be told is told too.
fn in_the_way(cluster: &Cluster) -> String {
    let ask = |words: &[&str]| {
        let said =
            processes::output(&mut cluster.kubectl(words)).unwrap_or_else(|error| format!("{error:#}\n"));
        format!("kubectl {}:\n{said}", words.join(" "))
    };
    let conditions = "jsonpath={range .status.conditions[*]}{.type} {.status}: {.message}{\"\\n\"}{end}";
    let mut told = ask(&["get", "veil"]);
    told += &ask(&["get", "encryptionmesh", "default", "--output", conditions]);
    told += &ask(&["get", "pods", "--namespace", NAMESPACE, "--output", "wide"]);
    let events = ["get", "events", "--namespace", NAMESPACE, "--field-selector", "type=Warning"];
    told += &ask(&events);
    for component in ["agent", "controller"] {
        let selector = format!("app.kubernetes.io/component={component}");
        told += &ask(&["logs", "--namespace", NAMESPACE, "--selector", &selector, "--prefix", "--tail=5"]);
    }
    told
}
