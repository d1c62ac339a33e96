//! `VeilPeerSlice`: some nodes, as Kubernetes has them and as they announce themselves, written by the controller. It is the record of whose
//! prefixes are whose; and in a large cluster agents go by it in place of the Nodes themselves, which change with each report of a kubelet.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{selector::Labels, words::words};

/// Most nodes of a slice. With all that is told of each of them it is below what etcd takes (1.5 MiB, `DefaultMaxRequestBytes` in etcd
/// `server/embed/config.go`).
pub const MOST_PEERS: usize = 100;

/// Most prefixes, and most addresses, of a node that a slice tells of. One more than agents take (`kubeveil_core::ownership`, `MOST`): who has more
/// gets none, and no slice grows by him.
pub const MOST_CLAIMS: usize = 17;

/// Nodes from which on agents go by slices, where people leave that to us. From here on the reports of kubelets alone, sent to all
/// agents as Nodes, are some ten megabytes a second (`cargo xtask bench scale`: 11,155 bytes a Node, every five minutes to each agent).
pub const MANY_NODES: usize = 500;

words! {
    /// By what agents know the other nodes.
    pub enum PeerSlices {
        /// By slices in a cluster of 500 nodes and more, by the Nodes themselves in a smaller one.
        Auto = "auto",
        /// By slices.
        Always = "always",
        /// By the Nodes themselves.
        Never = "never",
    }
}

/// What the slice of this number is called.
pub fn name(number: u32) -> String {
    format!("peers-{number}")
}

/// The number of the slice that is called so.
pub fn number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("peers-")?.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SlicedPeer {
    /// Name of its Node.
    pub name: String,
    /// UID of its Node.
    pub uid: String,
    /// `spec.podCIDRs` of its Node.
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>", extend("maxItems" = 64)))]
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses of type `InternalIP`.
    #[serde(rename = "internalIPs", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>", extend("maxItems" = 64)))]
    pub internal_ips: Vec<IpAddr>,
    /// Those of its prefixes and addresses that are not its own: another node had them first, or several claim them, or they lie outside
    /// of the mesh's ranges. All others are on record as its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>", extend("maxItems" = 128)))]
    pub refused: Vec<IpNet>,
    /// What it announces, where agents go by slices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub announcement: Option<String>,
    /// Its labels, as many as have room and those first by which nodes are excluded, where agents go by slices and it announces nothing.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl SlicedPeer {
    /// What it claims: its prefixes, and its addresses as such.
    pub fn claims(&self) -> impl Iterator<Item = IpNet> {
        let addresses = self.internal_ips.iter().map(|address| IpNet::from(*address));
        self.pod_cidrs.iter().map(IpNet::trunc).chain(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_numbered() {
        assert_eq!(number(&name(0)), Some(0));
        assert_eq!(number(&name(4711)), Some(4711));
        for other in ["peers-", "peers-01", "peers-+1", "peers-x", "0", "peers-4294967296"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
