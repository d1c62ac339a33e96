//! Kubernetes' `v1` Pod and Namespace, as far as we read them.

use std::net::IpAddr;

use jiff::Timestamp;
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
    /// How far it has come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<PodCondition>,
}

/// One of `status.conditions`. Others than the one that we read may be anything.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCondition {
    /// Which.
    #[serde(default)]
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
    /// Since when it is so, by the clock of the pod's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// The condition that a pod's network stands (kubernetes `staging/src/k8s.io/api/core/v1/types.go`, by default since 1.29).
const NETWORK_STANDS: &str = "PodReadyToStartContainers";

/// When a pod's network was made last, as its kubelet says; `None`: it does not say.
pub fn network_since(conditions: &[PodCondition]) -> Option<Timestamp> {
    let stands = |condition: &&PodCondition| condition.r#type == NETWORK_STANDS && condition.status == "True";
    conditions.iter().find(stands)?.last_transition_time.as_ref()?.parse().ok()
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
