//! `EncryptionMesh`: the cluster-wide settings, one object called `default`.

use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use kubeveil_keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::{
    bypass::Bypass,
    condition::Condition,
    object::{Metadata, TypeMeta},
    peer_slice::PeerSlices,
    rotation::{RotationRecord, RotationSpec},
    selector::{LabelSelector, Labels},
    words::words,
};

words! {
    /// What happens to pod traffic between nodes that has no proven tunnel.
    pub enum Mode {
        /// Nothing is steered or dropped; what would be is counted.
        Observe = "observe",
        /// It passes, and is counted.
        Prefer = "prefer",
        /// It is dropped, and counted.
        Require = "require",
    }
}

/// `kubeveil.io/v1alpha1` EncryptionMesh.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EncryptionMesh {
    /// `kubeveil.io/v1alpha1`, `EncryptionMesh`.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Its name is `default`.
    pub metadata: Metadata,
    /// What people want.
    pub spec: MeshSpec,
    /// What the controller found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<MeshStatus>,
}

/// The settings to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// What people want, with ranges in any case.
    pub spec: MeshSpec,
    /// Those of its ranges that people gave none of.
    pub found: Ranges,
    /// Slices by which the other nodes can be known, 0 if they can't; `None` as long as no controller says anything.
    pub peer_slices: Option<u32>,
}

/// `spec` of an [`EncryptionMesh`]. An unknown field is refused: a misspelt `mode` must not mean a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-validations" = crate::crd::generation_grows())))]
pub struct MeshSpec {
    /// What happens without a proven tunnel.
    pub mode: Mode,
    /// Ranges that pods have addresses of. Nothing outside of them is ever a pod's. Without them, those in
    /// `status.ranges` count, which the controller finds.
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::pod_ranges"))]
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges that nodes have addresses of. Nothing outside of them is ever a node's. Without them, those in
    /// `status.ranges` count, which the controller finds.
    #[serde(rename = "nodeCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::ranges"))]
    pub node_cidrs: Vec<IpNet>,
    /// How a running cluster comes to be encrypted; without it, nothing is ever plain in mode require.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Adoption"))]
    pub adoption: Option<Adoption>,
    /// The key generation that every node shall be at.
    #[serde(rename = "keyGeneration", default)]
    pub key_generation: u32,
    /// Who asked for that generation, and how it is to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "RotationSpec"))]
    pub rotation: Option<RotationSpec>,
    /// Keys that are never spoken to again.
    #[serde(rename = "revokedKeys", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::keys"))]
    pub revoked_keys: Vec<PublicKey>,
    /// Pairs of nodes that speak in plain for a while, the newest last: those that are on, and the last that were, at most 20. `kubeveil
    /// bypass` writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 20)))]
    pub bypasses: Vec<Bypass>,
    /// Nodes that have no agent, and what becomes of pod traffic between them and the others.
    #[serde(rename = "excludedNodes", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "ExcludedNodes"))]
    pub excluded_nodes: Option<ExcludedNodes>,
    /// By what agents know the other nodes: auto, where it is left out. Of slices the controller tells all agents what all nodes say, so
    /// whoever has its credentials can say it too; never leaves that to the API server alone, at any size.
    #[serde(rename = "peerSlices", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "PeerSlices"))]
    pub peer_slices: Option<PeerSlices>,
    /// Every agent takes its programs, maps and devices away, and pod traffic travels in plain from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uninstall: bool,
}

/// `status` of an [`EncryptionMesh`], written by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MeshStatus {
    /// `metadata.generation` of the mesh that this speaks of.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub observed_generation: i64,
    /// What counts where `spec` names no ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Ranges"))]
    pub ranges: Option<Ranges>,
    /// Nodes that there are.
    #[serde(default)]
    pub nodes: u32,
    /// Those of them whose agent is there and says that it is ready.
    #[serde(default)]
    pub ready_nodes: u32,
    /// Ways from one node to another that are encrypted, of those that there are: `6/6` where three nodes all are.
    #[serde(default)]
    pub encrypted_pairs: String,
    /// The last rotations, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 20)))]
    pub rotations: Vec<RotationRecord>,
    /// When `spec.rotation.every` begins the next rotation; absent while one goes on or waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "date-time")))]
    pub next_rotation: Option<Timestamp>,
    /// How far `spec.adoption` has come; absent as long as it goes on, or never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Adopted"))]
    pub adoption: Option<Adopted>,
    /// VeilPeerSlices by which agents are to know the other nodes; absent where they go by the Nodes themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "u32"))]
    pub peer_slices: Option<u32>,
    /// Ready, FullyConnected, KeysCurrent, Rotating, Bypassed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
}

/// `status.adoption` of an [`EncryptionMesh`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Adopted {
    /// When all pairs of nodes were closed. Who comes later starts closed.
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "date-time")))]
    pub closed_at: Timestamp,
}

/// Ranges that the controller found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ranges {
    /// Of pods.
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::ranges"))]
    pub pod_cidrs: Vec<IpNet>,
    /// Of nodes.
    #[serde(rename = "nodeCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::ranges"))]
    pub node_cidrs: Vec<IpNet>,
    /// Addresses of API servers that were no node's when they were found, such as a managed control plane's: no node can claim one, and no host is
    /// kept from one. One that is a node's all the same has the label `node-role.kubernetes.io/control-plane`, which no kubelet can give itself.
    #[serde(rename = "apiServers", default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::ranges"))]
    pub api_servers: Vec<IpNet>,
}

/// `spec.adoption`: in mode require, packets between two nodes pass in plain until the tunnel between them is proven
/// for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Adoption {
    /// … or until this moment, though it be not proven. Written as RFC 3339 has it.
    #[serde(deserialize_with = "crate::moment::time")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time"))]
    pub deadline: Timestamp,
}

words! {
    /// What becomes of pod traffic between a node that has no agent and the others.
    pub enum ExcludedTraffic {
        /// What becomes of it wherever there is no tunnel: in mode require it is dropped.
        Drop = "drop",
        /// It passes in plain, and is counted; but for what policies require encryption of.
        Plain = "plain",
    }
}

/// `spec.excludedNodes`: nodes that can have no agent, such as those of Windows, or virtual ones. Nobody waits for them. A node that
/// announces a key has an agent and is none of them, whatever its labels.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExcludedNodes {
    /// Which, by their labels.
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-validations" = crate::crd::selects_some())))]
    pub selector: LabelSelector,
    /// What becomes of pod traffic to and from them.
    pub traffic: ExcludedTraffic,
}

impl Adoption {
    /// The deadline, since 1970; a time before that is 1970.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.deadline.as_second()).unwrap_or(0))
    }
}

/// Of a range that is one of everything.
pub(crate) const WHOLE: &str = "is the whole address space; name the cluster's own ranges";
/// Of `spec.excludedNodes.selector`.
pub(crate) const EVERY_NODE: &str = "is empty, so it would mean every node; name a label that only nodes without an agent have, such as \
                                     kubernetes.io/os: windows";

impl MeshSpec {
    /// That of a cluster with these ranges, and nothing else.
    pub const fn new(mode: Mode, pod_cidrs: Vec<IpNet>, node_cidrs: Vec<IpNet>) -> Self {
        Self {
            mode,
            pod_cidrs,
            node_cidrs,
            adoption: None,
            key_generation: 0,
            rotation: None,
            revoked_keys: Vec::new(),
            bypasses: Vec::new(),
            excluded_nodes: None,
            peer_slices: None,
            uninstall: false,
        }
    }

    /// Is it refused for good?
    pub fn revokes(&self, key: &PublicKey) -> bool {
        self.revoked_keys.contains(key)
    }

    /// What becomes of traffic with a node of these labels, if it is one that can have no agent; one that announces something has one.
    pub fn excludes(&self, labels: &Labels, announcement: Option<&str>) -> Option<ExcludedTraffic> {
        let excluded = self.excluded_nodes.as_ref().filter(|_| announcement.is_none())?;
        excluded.selector.selects(labels).then_some(excluded.traffic)
    }

    /// What was asked for of the generation that is wanted.
    pub fn asked(&self) -> RotationSpec {
        self.rotation.as_ref().map(|asked| asked.of(self.key_generation)).unwrap_or_default()
    }

    /// The settings to go by: ranges that people gave none of are those that the controller found. The field that stands
    /// against it, and why.
    pub fn in_force(mut self, status: Option<&MeshStatus>) -> Result<InForce, (String, String)> {
        let mut found = status.and_then(|status| status.ranges.clone()).unwrap_or_default();
        for (own, found) in
            [(&mut self.pod_cidrs, &mut found.pod_cidrs), (&mut self.node_cidrs, &mut found.node_cidrs)]
        {
            if own.is_empty() { own.clone_from(found) } else { found.clear() }
        }
        if self.pod_cidrs.is_empty() {
            return Err((
                "spec.podCIDRs".to_owned(),
                "is not given, and no controller has found any (status.ranges), so no address would be a pod's and nothing encrypted"
                    .to_owned(),
            ));
        }
        for (name, ranges) in [("podCIDRs", &self.pod_cidrs), ("nodeCIDRs", &self.node_cidrs)] {
            if let Some(at) = ranges.iter().position(|range| range.prefix_len() == 0) {
                return Err((format!("spec.{name}[{at}]"), WHOLE.to_owned()));
            }
        }
        if self.excluded_nodes.as_ref().is_some_and(|excluded| excluded.selector.is_empty()) {
            return Err(("spec.excludedNodes.selector".to_owned(), EVERY_NODE.to_owned()));
        }
        let wrong = |(at, bypass): (usize, &Bypass)| bypass.refusal().map(|(field, why)| (at, field, why));
        if let Some((at, field, why)) = self.bypasses.iter().enumerate().find_map(wrong) {
            return Err((format!("spec.bypasses[{at}].{field}"), why.to_owned()));
        }
        // What is over for all is over for whoever has no record of its own.
        self.adoption = self.adoption.filter(|_| status.is_none_or(|status| status.adoption.is_none()));
        let peer_slices = status.map(|status| status.peer_slices.unwrap_or(0));
        Ok(InForce { spec: self, found, peer_slices })
    }
}
