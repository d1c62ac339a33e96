use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::{Generation, RandomnessError};

/// Why a key file can't be trusted. None of them repeats a text out of the file:
/// any of its lines might be the secret in a wrong place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Group or others may read or write it, so somebody else may know the key.
    #[error("others can read or write it (mode {mode:04o}, must be 0600)")]
    TooOpen {
        /// Its permission bits.
        mode: u32,
    },
    /// A symbolic link, a folder, a pipe or a device.
    #[error("it is {0}, not a regular file")]
    NotAFile(&'static str),
    /// Owned by another user.
    #[error("it belongs to user {owner}, not to user {expected} that this program runs as")]
    NotOurs {
        /// Owner of the file.
        owner: u32,
        /// User of this process.
        expected: u32,
    },
    /// It ends early.
    #[error("it is truncated")]
    Truncated,
    /// Something else.
    #[error("it is not a key file (line {line})")]
    NotAKey {
        /// The first line that is wrong, counted from 1.
        line: usize,
    },
    /// Written by another version.
    #[error("it has format version {found}; this program knows {}", super::format::VERSION)]
    OtherVersion {
        /// Version in the file.
        found: u32,
    },
    /// Bound to another node: the disk was cloned, or the node was deleted and made anew.
    #[error("it is bound to another node than this one, whose UID is {expected}")]
    OtherNode {
        /// UID of this node.
        expected: String,
    },
    /// Bound to another generation than its name says.
    #[error("it holds the key of generation {found}")]
    OtherGeneration {
        /// Generation in the file.
        found: Generation,
    },
    /// The public key written beside it is not that of the private key.
    #[error("its public and its private key do not belong together")]
    Mismatch,
}

impl Problem {
    /// The value of a metric's label.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::TooOpen { .. } => "too_open",
            Self::NotAFile(_) => "not_a_file",
            Self::NotOurs { .. } => "not_ours",
            Self::Truncated => "truncated",
            Self::NotAKey { .. } => "not_a_key",
            Self::OtherVersion { .. } => "other_version",
            Self::OtherNode { .. } => "other_node",
            Self::OtherGeneration { .. } => "other_generation",
            Self::Mismatch => "mismatch",
        }
    }

    /// What an operator does about it.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::TooOpen { .. } => {
                "treat the old key as known to others; find out what changed the mode, then delete the file"
            }
            Self::NotAFile(_) | Self::NotOurs { .. } => "find out who put it there, then delete it",
            Self::Truncated | Self::NotAKey { .. } | Self::Mismatch => {
                "check the disk and what else writes to this folder, then delete the file"
            }
            Self::OtherVersion { .. } => {
                "if the program was rolled back on purpose, delete the file; to return to the old key, stop the daemon and rename it back under the version that wrote it"
            }
            Self::OtherNode { .. } => "expected on a cloned or re-registered node: delete the file",
            Self::OtherGeneration { .. } => "somebody renamed it: delete the file",
        }
    }
}

/// A key file that was moved aside because it can't be trusted. A new key took its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAside {
    /// Where it was.
    pub path: PathBuf,
    /// Where it is: beside it, 0600 where it is a file of ours.
    pub moved_to: PathBuf,
    /// Why.
    pub problem: Problem,
}

impl fmt::Display for KeptAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, moved_to, problem } = self;
        let (path, moved_to, advice) = (path.display(), moved_to.display(), problem.advice());
        write!(
            f,
            "key file {path} cannot be trusted: {problem}; moved to {moved_to} and a new key made; {advice}"
        )
    }
}

/// The store could not do what was asked. Nothing half-done is left where a key is looked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The folder belongs to another user.
    #[error("key folder {} belongs to user {owner}: `chown {expected} {}`, or choose another folder", path.display(), path.display())]
    FolderNotOurs {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// User of this process.
        expected: u32,
    },
    /// Others may put files into the folder or take them away.
    #[error("others can write to key folder {} (mode {mode:04o}): see what is in it, then `chmod 0700 {}`", path.display(), path.display())]
    FolderWritable {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The node's UID is empty, longer than 128 characters, or holds a character that none has.
    #[error("the node's UID must be 1 to 128 letters, digits, '-', '.' or '_'")]
    NodeUid,
    /// The file can't be trusted, and the call was not one that makes a new key.
    #[error("key file {} cannot be trusted: {problem}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: Problem,
    },
    /// No randomness for a new key.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
}
