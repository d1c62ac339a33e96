/// Whose addresses a prefix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
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
    pub const fn from_raw(raw: u8) -> Option<Self> {
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

/// What is asked for of whoever has an address, where no tunnel is proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Asked {
    /// What the mesh asks for of all ([`Config::mode`](crate::Config::mode)).
    #[default]
    Mesh = 0,
    /// Its packets pass: somebody has said why they may.
    Exempt = 1,
    /// They pass, and are counted.
    Prefer = 2,
    /// They are dropped.
    Require = 3,
}

impl Asked {
    /// What a stored number asks for; one that is unknown is the strictest.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Mesh,
            1 => Self::Exempt,
            2 => Self::Prefer,
            _ => Self::Require,
        }
    }
}

/// The value of [`names::PREFIXES`](crate::names::PREFIXES); the longest prefix that holds an address counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixValue {
    /// A [`PrefixKind`].
    pub kind: u8,
    /// What is [`Asked`] for.
    pub asked: u8,
    /// Index into [`names::PEERS`](crate::names::PEERS) for remote kinds, else 0.
    pub peer: u16,
    /// Seconds since boot from which on nothing is asked for but what the mesh does; 0: never.
    pub until: u32,
}

impl PrefixValue {
    /// Addresses of which the mesh's mode is asked for.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "indices are below `MAX_PEERS`")]
    pub const fn new(kind: PrefixKind, peer: u32) -> Self {
        Self { kind: kind as u8, asked: Asked::Mesh as u8, peer: peer as u16, until: 0 }
    }

    /// The same, of which this is asked for.
    #[inline(always)]
    #[must_use]
    pub const fn asking(self, asked: Asked, until: u32) -> Self {
        Self { asked: asked as u8, until, ..self }
    }
}

const _: () = assert!(size_of::<PrefixValue>() == 8 && crate::MAX_PEERS <= 1 << 16);
