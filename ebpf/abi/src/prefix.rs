/// Whose addresses a prefix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum PrefixKind {
    /// Pods of this node.
    LocalPods = 1,
    /// This node's own address.
    LocalNode = 2,
    /// Pods of the peer.
    RemotePods = 3,
    /// The peer's own address.
    RemoteNode = 4,
    /// Pods of the cluster, of a node that nobody has told us of.
    UnownedPods = 5,
}

impl PrefixKind {
    /// The kind of a stored number.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::LocalPods),
            2 => Some(Self::LocalNode),
            3 => Some(Self::RemotePods),
            4 => Some(Self::RemoteNode),
            5 => Some(Self::UnownedPods),
            _ => None,
        }
    }
}

/// The value of [`names::PREFIXES`](crate::names::PREFIXES); the longest prefix that holds an address counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixValue {
    /// A [`PrefixKind`].
    pub kind: u32,
    /// Index into [`names::PEERS`](crate::names::PEERS) for remote kinds, else 0.
    pub peer: u32,
}

const _: () = assert!(size_of::<PrefixValue>() == 8);
