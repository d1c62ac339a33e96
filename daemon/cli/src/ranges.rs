//! `kubeveil ranges`: what pods and nodes may have addresses of, what agents refuse, and how that is approved.

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use kubeveil_api::mesh::Ranges;
use kubeveil_check::{
    approve::approve,
    gather,
    ranges::{InForce, Stranger, in_force, strangers},
};
use serde::Serialize;

use crate::{Output, server::Server};

/// Options of `ranges`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    server: Server,
    /// A table for people or JSON for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,
    #[command(subcommand)]
    deed: Option<Deed>,
}

/// What else it can do.
#[derive(Debug, Subcommand)]
enum Deed {
    /// Take one more range into the mesh's spec: from then on agents believe Nodes that have addresses of it.
    Approve {
        /// The range, such as 10.245.0.0/16.
        range: IpNet,
        /// It is one of nodes' own addresses; else of pods.
        #[arg(long)]
        nodes: bool,
        /// Take the field over from whoever has written it (helm, a GitOps tool), which may write it back.
        #[arg(long)]
        force: bool,
    },
}

/// What there is to show.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    schema_version: u32,
    /// Ranges that agents go by.
    ranges: Ranges,
    /// Of `ranges` those that nobody gave and the controller found.
    found_by_controller: Vec<&'static str>,
    /// What lies outside.
    refused: Vec<Refused>,
}

/// A prefix that agents refuse.
#[derive(Debug, Serialize)]
struct Refused {
    node: String,
    prefix: IpNet,
    /// `podCIDRs` or `nodeCIDRs`.
    outside: &'static str,
}

impl Document {
    fn new(now: &InForce, outside: Vec<Stranger>) -> Self {
        let found = [("podCIDRs", now.pods_found), ("nodeCIDRs", now.nodes_found)];
        let refused = outside.into_iter().map(|stranger| Refused {
            node: stranger.node,
            prefix: stranger.prefix,
            outside: if stranger.is_pods { "podCIDRs" } else { "nodeCIDRs" },
        });
        Self {
            schema_version: 1,
            ranges: now.ranges.clone(),
            found_by_controller: found.iter().filter(|(_, found)| *found).map(|(name, _)| *name).collect(),
            refused: refused.collect(),
        }
    }

    /// Something is refused.
    pub(crate) fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }
}

/// What is in force once all is done that was asked for.
pub(crate) fn ranges(options: &Options) -> Result<Document> {
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    runtime.block_on(async {
        let client = options.server.client().await?;
        if let Some(Deed::Approve { range, nodes, force }) = options.deed {
            approve(&client, range, !nodes, force).await?;
        }
        let mesh =
            gather::mesh(&client).await.map_err(|why| anyhow!("read EncryptionMesh default: {why}"))?;
        let now = in_force(&mesh.context("there is no EncryptionMesh default: is kubeveil installed?")?);
        let nodes = gather::nodes(&client).await.map_err(|why| anyhow!("list nodes: {why}"))?;
        let outside = strangers(&now.ranges, &nodes);
        Ok(Document::new(&now, outside))
    })
}

/// For people.
pub(crate) fn table(document: &Document) -> String {
    let list = |ranges: &[IpNet]| match ranges {
        [] => "none".to_owned(),
        ranges => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let by =
        |name| if document.found_by_controller.contains(&name) { " (found by the controller)" } else { "" };
    let mut out = format!(
        "Pods       {}{}\nNodes      {}{}\n",
        list(&document.ranges.pod_cidrs),
        by("podCIDRs"),
        list(&document.ranges.node_cidrs),
        by("nodeCIDRs")
    );
    if document.refused.is_empty() {
        return out + "\nNothing is refused.\n";
    }
    out += "\nRefused, since outside of these; approve what is no stranger:\n";
    for refused in &document.refused {
        let nodes = if refused.outside == "nodeCIDRs" { " --nodes" } else { "" };
        out += &format!(
            "  {} {}\n              $ kubeveil ranges approve {}{nodes}\n",
            refused.node, refused.prefix, refused.prefix
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("net")
    }

    #[test]
    fn they_are_shown() {
        let ranges = Ranges {
            pod_cidrs: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
            node_cidrs: vec![net("192.0.2.0/24")],
            ..Ranges::default()
        };
        let now = InForce { ranges, pods_found: true, nodes_found: false };
        let stranger = |prefix, is_pods| Stranger { node: "node-9".to_owned(), prefix: net(prefix), is_pods };
        let all =
            Document::new(&now, vec![stranger("10.7.0.0/24", true), stranger("198.51.100.9/32", false)]);
        insta::assert_snapshot!("ranges_table", table(&all));
        insta::assert_json_snapshot!("ranges_json", all);
        assert!(table(&Document::new(&now, vec![])).ends_with("Nothing is refused.\n"));
    }
}
