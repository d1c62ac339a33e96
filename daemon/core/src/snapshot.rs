//! What is known of the cluster at one moment.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use kubeveil_api::mesh::MeshSpec;
use serde::{Deserialize, Serialize};

/// A node, as far as Kubernetes and the node itself speak of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct NodeFacts {
    /// UID of the Node object.
    pub uid: String,
    /// Prefixes of its pods, from `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses of type `InternalIP`.
    pub internal_ips: Vec<IpAddr>,
    /// What it says of itself, not verified yet.
    pub announcement: Option<String>,
}

/// The mesh and the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Snapshot {
    /// `EncryptionMesh/default`; the last one that was seen, if it was deleted since.
    pub mesh: Option<MeshSpec>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeFacts>,
}

/// A snapshot that is known to be whole: what it lacks does not exist. Nothing is removed without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced(Snapshot);

/// A snapshot, and whether absence from it means anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// From disk, or from a source that has not told all yet.
    Partial(Snapshot),
    /// From a source in sync.
    Whole(Synced),
}

impl Snapshot {
    /// To be called by a source that has read everything there is, without an error, and by nobody else.
    pub fn attest_whole(self) -> Synced {
        Synced(self)
    }
}

impl Knowledge {
    /// What is known.
    pub fn snapshot(&self) -> &Snapshot {
        match self {
            Self::Partial(snapshot) | Self::Whole(Synced(snapshot)) => snapshot,
        }
    }

    /// The proof that absence means removal.
    pub fn synced(&self) -> Option<&Synced> {
        match self {
            Self::Partial(_) => None,
            Self::Whole(synced) => Some(synced),
        }
    }

    /// A cluster in which this very node does not exist can't be all of it: a source that answers with
    /// nothing after a failure, a folder that was emptied, the wrong cluster. Absence from it means nothing.
    pub fn as_seen_by(self, own: &str) -> Self {
        match self {
            Self::Whole(Synced(snapshot)) if !snapshot.nodes.contains_key(own) => Self::Partial(snapshot),
            other => other,
        }
    }

    /// What was known before stands until it is known to be gone: the union of a partial snapshot
    /// with `before`; a whole one replaces it, but for a mesh object that was deleted (DESIGN
    /// section 6: the last spec stands).
    pub fn or_before(self, before: &Snapshot) -> Self {
        match self {
            Self::Whole(Synced(mut now)) => {
                now.mesh = now.mesh.or_else(|| before.mesh.clone());
                Self::Whole(Synced(now))
            }
            Self::Partial(mut now) => {
                now.mesh = now.mesh.or_else(|| before.mesh.clone());
                for (name, facts) in &before.nodes {
                    now.nodes.entry(name.clone()).or_insert_with(|| facts.clone());
                }
                Self::Partial(now)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Snapshot {
        Snapshot {
            mesh: None,
            nodes: names.iter().map(|n| ((*n).to_owned(), NodeFacts::default())).collect(),
        }
    }

    #[test]
    fn a_partial_snapshot_forgets_nobody() {
        let now = Knowledge::Partial(nodes(&["c"])).or_before(&nodes(&["a", "b"]));
        assert_eq!(now.snapshot().nodes.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(now.synced().is_none());
    }

    #[test]
    fn a_cluster_without_this_node_is_not_whole() {
        let whole = |names: &[&str]| Knowledge::Whole(nodes(names).attest_whole());
        assert!(whole(&["a", "me"]).as_seen_by("me").synced().is_some());
        assert!(whole(&["a"]).as_seen_by("me").synced().is_none());
        assert!(whole(&[]).as_seen_by("me").synced().is_none());
    }

    #[test]
    fn a_whole_snapshot_does() {
        let now = Knowledge::Whole(nodes(&["c"]).attest_whole()).or_before(&nodes(&["a", "b"]));
        assert_eq!(now.snapshot().nodes.keys().collect::<Vec<_>>(), ["c"]);
        assert!(now.synced().is_some());
    }
}
