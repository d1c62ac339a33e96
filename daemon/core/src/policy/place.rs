//! Whom somebody asks about, and who that is.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use serde::Serialize;

use super::census::PodId;

/// Whom somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A pod.
    Pod(PodId),
    /// A node itself, and pods of its network.
    Node(String),
    /// Whoever has this address.
    Address(IpAddr),
}

impl FromStr for Who {
    type Err = String;

    /// `NAMESPACE/NAME`, `node/NAME`, or an address.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Some(name) = text.strip_prefix("node/").filter(|name| !name.is_empty() && !name.contains('/'))
        {
            return Ok(Self::Node(name.to_owned()));
        }
        text.parse()
            .map(Self::Pod)
            .map_err(|_| "must be NAMESPACE/POD, svc/NAMESPACE/NAME, node/NAME or an IP address".to_owned())
    }
}

/// Who an end is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Place {
    /// A pod.
    Pod {
        /// Its name.
        pod: PodId,
        /// Where it runs; absent until that is decided.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        /// Its addresses.
        addresses: BTreeSet<IpAddr>,
    },
    /// A pod of its node's network: for all that matters, the node.
    HostPod {
        /// Its name.
        pod: PodId,
        /// Where it runs.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
    /// A node itself.
    Node {
        /// Its name.
        node: String,
    },
    /// An address of a node's range of pods that no pod is known to have.
    UnknownPod {
        /// It.
        address: IpAddr,
        /// The node.
        node: String,
    },
    /// An address of the mesh's ranges of pods that is of no node's.
    UnownedPod {
        /// It.
        address: IpAddr,
    },
    /// An address of the mesh's ranges of nodes that no node is known to have.
    NoNode {
        /// It.
        address: IpAddr,
    },
    /// An address outside of the mesh's ranges.
    Outside {
        /// It.
        address: IpAddr,
    },
}

impl Place {
    /// The node that it is on, or is.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Pod { node, .. } | Self::HostPod { node, .. } => node.as_deref(),
            Self::Node { node } | Self::UnknownPod { node, .. } => Some(node),
            Self::UnownedPod { .. } | Self::NoNode { .. } | Self::Outside { .. } => None,
        }
    }

    pub(super) fn is_host(&self) -> bool {
        matches!(self, Self::HostPod { .. } | Self::Node { .. })
    }

    pub(super) fn is_outside(&self) -> bool {
        matches!(self, Self::NoNode { .. } | Self::Outside { .. })
    }
}
