//! Kubernetes' `v1` Service and `discovery.k8s.io/v1` EndpointSlice, as far as people ask about them: nothing is enforced by them.

use serde::{Deserialize, Serialize};

use crate::{node::or_default, object::Metadata, selector::Labels};

/// Label of a slice: the Service that it is of (kubernetes `staging/src/k8s.io/api/discovery/v1/well_known_labels.go`).
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `v1` Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Service {
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it is.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: ServiceSpec,
    /// What a load balancer gave to it.
    #[serde(default, deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// `spec` of a [`Service`]. Addresses are texts: one is `None` where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// The pods behind it; empty where somebody else says who they are.
    #[serde(default, deserialize_with = "or_default")]
    pub selector: Labels,
    /// Its address.
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: String,
    /// Its addresses, one a family.
    #[serde(default, rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    /// Addresses that nodes take in for it.
    #[serde(default, rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// What it is another name for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub external_name: String,
}

/// `status` of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// As a load balancer has it.
    #[serde(default, deserialize_with = "or_default")]
    pub load_balancer: LoadBalancer,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LoadBalancer {
    /// Where it takes packets in.
    #[serde(default, deserialize_with = "or_default")]
    pub ingress: Vec<Ingress>,
}

/// One of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// Its address; empty where it has a name.
    #[serde(default)]
    pub ip: String,
    /// `Proxy`: packets of the cluster's own go out to the load balancer. Else (`VIP`, by default) nodes take them themselves.
    #[serde(default)]
    pub ip_mode: String,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EndpointSlice {
    /// Namespace, and [`SERVICE_NAME`] among its labels.
    pub metadata: Metadata,
    /// Who is behind the Service.
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
}

/// One of `endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Endpoint {
    /// Its address: consumers go by the first.
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// How it is.
    #[serde(default, deserialize_with = "or_default")]
    pub conditions: EndpointConditions,
}

/// `conditions` of an [`Endpoint`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct EndpointConditions {
    /// Whether packets are sent there; not known counts as yes.
    #[serde(default)]
    pub ready: Option<bool>,
    /// Whether it would answer, though it be about to end; not known: as `ready`.
    #[serde(default)]
    pub serving: Option<bool>,
    /// Whether it is about to end.
    #[serde(default)]
    pub terminating: Option<bool>,
}
