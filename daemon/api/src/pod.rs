//! Kubernetes' `v1` Pod and Namespace, as far as we read them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    node::or_default,
    object::{Metadata, TypeMeta},
};

/// `v1` Pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pod {
    /// `v1`, `Pod`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Name, namespace, UID and labels.
    pub metadata: Metadata,
    /// What is wanted of it.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: PodSpec,
    /// What its kubelet says of it.
    #[serde(default, deserialize_with = "or_default")]
    pub status: PodStatus,
}

/// `spec` of a [`Pod`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Where it runs; empty as long as that is not decided.
    #[serde(default)]
    pub node_name: String,
    /// It shares its node's addresses, and has none of its own.
    #[serde(default)]
    pub host_network: bool,
}

/// `status` of a [`Pod`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, …
    #[serde(default)]
    pub phase: String,
    /// The first of `podIPs`; read only where that one is absent.
    #[serde(default, rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<IpAddr>,
    /// Its addresses, at most one a family.
    #[serde(default, rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    pub pod_ips: Vec<PodIp>,
}

/// One of `status.podIPs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PodIp {
    /// The address.
    pub ip: IpAddr,
}

/// Does nobody have the addresses of such a pod but it? It may share its node's, and when it has ended its plugin gives them to the
/// next one.
pub fn has_its_own(host_network: bool, phase: &str) -> bool {
    !host_network && !matches!(phase, "Succeeded" | "Failed")
}

impl Pod {
    /// Addresses that nobody has but it.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let is_alone = has_its_own(self.spec.host_network, &self.status.phase);
        let first = self.status.pod_ip.filter(|_| self.status.pod_ips.is_empty());
        let all = self.status.pod_ips.iter().map(|entry| entry.ip).chain(first);
        all.filter(move |_| is_alone)
    }
}

/// `v1` Namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Namespace {
    /// `v1`, `Namespace`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Name and labels.
    pub metadata: Metadata,
}
