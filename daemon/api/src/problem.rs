//! Something is wrong that a person can mend.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What sort of thing is wrong; bounded, so that it can be a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// A manifest or API object can't be read.
    Manifest,
    /// A node's prefix or address is refused.
    Prefix,
    /// A node's announcement is refused.
    Announcement,
    /// A file of the key store was set aside.
    KeyStore,
    /// The kernel refused something, or lacks it.
    Kernel,
    /// Another program stands in front of ours.
    Position,
    /// The daemon lacks something it needs: its own Node, the mesh.
    Missing,
    /// The daemon's own files can't be written or read.
    State,
}

impl ProblemKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Manifest,
        Self::Prefix,
        Self::Announcement,
        Self::KeyStore,
        Self::Kernel,
        Self::Position,
        Self::Missing,
        Self::State,
    ];

    /// The value of the metrics' label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Prefix => "prefix",
            Self::Announcement => "announcement",
            Self::KeyStore => "key_store",
            Self::Kernel => "kernel",
            Self::Position => "position",
            Self::Missing => "missing",
            Self::State => "state",
        }
    }
}

/// Something that is wrong, with what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Problem {
    /// What sort of thing.
    pub kind: ProblemKind,
    /// Which object, for example `Node node-2` or a file's path.
    pub object: String,
    /// Which field of it, for example `spec.podCIDRs[1]`; empty if it is the whole.
    pub field: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {}. {}", self.message, self.advice)
    }
}
