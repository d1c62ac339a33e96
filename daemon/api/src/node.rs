//! A Kubernetes `v1` Node, as far as we read it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::object::{Metadata, TypeMeta};

/// `v1` Node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Node {
    /// `v1`, `Node`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Name, UID and annotations.
    pub metadata: Metadata,
    /// What the cluster gave it.
    #[serde(default, deserialize_with = "crate::node::or_default")]
    pub spec: NodeSpec,
    /// What its kubelet says of it.
    #[serde(default, deserialize_with = "crate::node::or_default")]
    pub status: NodeStatus,
}

/// `spec` of a [`Node`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct NodeSpec {
    /// The first of `podCIDRs`; read only where that one is absent.
    #[serde(default, rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pub pod_cidr: Option<IpNet>,
    /// Prefixes of the node's pods, at most one a family.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<IpNet>,
}

/// `status` of a [`Node`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct NodeStatus {
    /// All its addresses, of several types.
    #[serde(default)]
    pub addresses: Vec<NodeAddress>,
}

/// One of `status.addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// An address or a name, by type.
    pub address: String,
}

impl Node {
    /// Prefixes of its pods, in canonical form (host bits zero).
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        let given = match (&self.spec.pod_cidrs[..], self.spec.pod_cidr) {
            ([], Some(one)) => vec![one],
            (many, _) => many.to_vec(),
        };
        given.iter().map(IpNet::trunc).collect()
    }

    /// Its `InternalIP` addresses, and those entries of the type that are none.
    pub fn internal_ips(&self) -> (Vec<IpAddr>, Vec<&str>) {
        let mut addresses = Vec::new();
        let mut bad = Vec::new();
        for entry in self.status.addresses.iter().filter(|a| a.kind == "InternalIP") {
            match entry.address.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => bad.push(entry.address.as_str()),
            }
        }
        (addresses, bad)
    }
}

/// `null` (a key without a value, as in a hand-written `spec:`) means the default.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
