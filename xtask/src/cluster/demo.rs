//! `cargo xtask demo --kubernetes`: the main job on a real Kubernetes, as its operator meets it.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result};

use super::{
    Cluster,
    installed::Product,
    life,
    network::Cni,
    nodes, processes, rotation,
    smoke::{Pods, roll_out},
};
use crate::{report, workspace::Workspace};

/// Of the story: what happens, and what kubectl shows of it then.
struct Chapter {
    title: &'static str,
    deed: fn(&Pods, &mut Cluster) -> Result<()>,
    held: &'static str,
    shown: &'static [&'static str],
}

const STORY: &[Chapter] = &[
    Chapter {
        title: "Three nodes with kubelet, containerd and kube-proxy; a pod on each, and each pings the others",
        deed: Pods::plain_pings,
        held: "all are answered, and the wire between the nodes has seen every ping in plain",
        shown: &["get", "nodes,pods", "--output=wide"],
    },
    Chapter {
        title: "helm install kubeveil deploy/helm/kubeveil -n kubeveil --create-namespace --set encryption.enabled=true",
        deed: Pods::install,
        held: "the mesh is FullyConnected",
        shown: &["get", "veil"],
    },
    Chapter {
        title: "The same pings",
        deed: Pods::hidden_pings,
        held: "all are answered, and the wire has seen WireGuard's packets and no ping",
        shown: &[],
    },
    Chapter {
        title: "kubeveil rotate --reason quarterly, while pods ping each other",
        deed: rotation::rotate,
        held: "every node has a new key; no ping was lost, none was in plain",
        shown: &["get", "events", "--field-selector=involvedObject.kind=EncryptionMesh"],
    },
    Chapter {
        title: "An agent is killed, and another one's pod is deleted, while pods ping each other",
        deed: agents_go,
        held: "no ping was lost, none was in plain",
        shown: &["get", "pods", "--namespace=kubeveil"],
    },
    Chapter {
        title: "helm uninstall kubeveil -n kubeveil",
        deed: life::uninstall,
        held: "no device, program, pin, rule, annotation or object of it is left; pods speak in plain again",
        shown: &[],
    },
];

fn agents_go(pods: &Pods, cluster: &mut Cluster) -> Result<()> {
    nodes::agent_killed(pods, cluster)?;
    life::agent_gone(pods, cluster)
}

/// Tells it; success only if all of it held.
pub(crate) fn demo(workspace: &Workspace) -> Result<ExitCode> {
    let product = Product::new(workspace)?;
    let start = Instant::now();
    super::with(workspace, 3, super::MEMORY, Cni::Bridge, Some(product), |cluster| {
        let pods = roll_out(cluster, workspace)?;
        for (number, chapter) in (1..).zip(STORY) {
            report::print(format!("\n{number}. {}", chapter.title));
            let begun = Instant::now();
            (chapter.deed)(&pods, cluster).with_context(|| format!("chapter {number}"))?;
            if !chapter.shown.is_empty() {
                let said = processes::output(&mut cluster.kubectl(chapter.shown))?;
                report::print(format!("\n$ kubectl {}\n{}\n", chapter.shown.join(" "), said.trim_end()));
            }
            report::print(format!("   {} ({} s)", chapter.held, begun.elapsed().as_secs()));
        }
        report::print(String::new());
        Ok(())
    })?;
    report::print(format!("all of it held, in {} s", start.elapsed().as_secs()));
    Ok(ExitCode::SUCCESS)
}
