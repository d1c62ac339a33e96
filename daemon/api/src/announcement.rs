//! What a node says of itself: the annotation [`names::ANNOUNCEMENT`](crate::names::ANNOUNCEMENT) of its own Node.
//!
//! ```json
//! {"version":1,"generations":[{"generation":0,"publicKey":"…","port":51871,"state":"active","signature":"…"}],"notFlipped":[]}
//! ```
//!
//! Each generation's key signs the whole statement, node name and UID included ([`statement`]), so
//! whoever may write annotations can neither claim another node's key nor replay or alter what it said.
//!
//! **Compatibility.** A version fixes its fields, and the words that `state` may have: what a reader does
//! not know it could not check a signature over, so an unknown field is refused and a new one is a new version.
//! An unknown version is reported as such, before anything else is looked at.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;

use kubeveil_keys::{Generation, PrivateKey, PublicKey, Signature, VerifyError};

use crate::{names::is_node_name, words::words};

mod wire;

/// Version of the format.
pub const VERSION: u32 = 1;
/// Longest JSON, in bytes.
pub const MAX_BYTES: usize = 8 * 1024;
/// Generations that one node can have at a time; a rotation needs two.
pub const MAX_GENERATIONS: usize = 4;
/// Nodes that [`NotFlipped::Nodes`] can name; more are [`NotFlipped::Many`].
pub const MAX_NOT_FLIPPED: usize = 32;
/// Bytes of names that [`NotFlipped::of`] lists, so that the rest has room within [`MAX_BYTES`].
const MAX_NAME_BYTES: usize = 4 * 1024;

/// A node's announcement whose every signature holds: there is no way to have one that was not checked or made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    generations: Vec<GenerationEntry>,
    not_flipped: NotFlipped,
    /// One for each of `generations`.
    signatures: Vec<Signature>,
}

/// One generation of the node that speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationEntry {
    /// Its number.
    pub generation: Generation,
    /// Public half of the key of its device.
    pub public_key: PublicKey,
    /// UDP port that the device listens on.
    pub port: NonZeroU16,
    /// What it is good for.
    pub state: GenerationState,
}

words! {
    /// What a generation is good for. Its word stands in the signed statement too.
    pub enum GenerationState {
        /// Its device stands: handshakes are answered and packets received.
        Active = "active",
        /// The same, but it goes when nobody sends to it any more: send to a newer one where that works.
        Retiring = "retiring",
    }
}

/// The peers to which a node still sends by an older generation than its newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFlipped {
    /// These, by name of their Node; at most [`MAX_NOT_FLIPPED`].
    Nodes(BTreeSet<String>),
    /// Too many to list. Counts as every node.
    Many,
}

impl NotFlipped {
    /// Nobody: all peers get their packets by the newest generation.
    pub const fn nobody() -> Self {
        Self::Nodes(BTreeSet::new())
    }

    /// Is `node` among them?
    pub fn names(&self, node: &str) -> bool {
        match self {
            Self::Nodes(names) => names.contains(node),
            Self::Many => true,
        }
    }

    /// These nodes, or [`NotFlipped::Many`] where they are too many to list.
    pub fn of(names: impl IntoIterator<Item = String>) -> Self {
        let mut listed = BTreeSet::new();
        let mut bytes = 0;
        for name in names {
            let length = name.len();
            if listed.insert(name) {
                bytes += length;
            }
            if listed.len() > MAX_NOT_FLIPPED || bytes > MAX_NAME_BYTES {
                return Self::Many;
            }
        }
        Self::Nodes(listed)
    }
}

/// Why an announcement is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// Longer than [`MAX_BYTES`].
    #[error("announcement of {bytes} bytes: at most {MAX_BYTES} are read")]
    TooLarge {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Of a version that this program does not know.
    #[error(
        "announcement of version {0}: this program knows version {VERSION}; are the nodes of one release?"
    )]
    Version(u64),
    /// A field is wrong.
    #[error("{field}: {problem}")]
    Field {
        /// Its path, for example `generations[0].signature`; of the JSON as a whole, `announcement`.
        field: String,
        /// What is wrong with it.
        problem: FieldProblem,
    },
}

/// What is wrong with a field of an announcement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// Not the JSON that it should be. Another node wrote it: control characters are escaped, the length is bounded.
    #[error("{0}")]
    Malformed(String),
    /// No generation, so nobody signed.
    #[error("must list at least one generation")]
    NoGeneration,
    /// More than [`MAX_GENERATIONS`].
    #[error("must list at most {MAX_GENERATIONS} generations, not {0}")]
    TooManyGenerations(usize),
    /// A generation twice, or out of order.
    #[error("generations must ascend, each named once")]
    NotAscending,
    /// More than [`MAX_NOT_FLIPPED`] names.
    #[error("must list at most {MAX_NOT_FLIPPED} nodes, not {0}; more are \"many\"")]
    TooManyNames(usize),
    /// Not a node's name.
    #[error("not the name of a Node")]
    NotAName,
    /// The public key is one that proves nothing.
    #[error("{}", VerifyError::UnusableKey)]
    UnusableKey,
    /// It was made by another key, for another node, or over something else.
    #[error(
        "the signature does not fit key, node name, node UID and content: altered, or copied from another node"
    )]
    Signature,
    /// To be signed, but the private key was not given.
    #[error("the private key is not among those given")]
    NoPrivateKey,
}

impl AnnouncementError {
    fn field(field: impl Into<String>, problem: FieldProblem) -> Self {
        Self::Field { field: field.into(), problem }
    }
}

impl Announcement {
    /// Says `generations` and `not_flipped` for the node `node_name` with UID `node_uid`, signed with `keys`,
    /// which hold the private key of each generation in any order. Generations are sorted.
    ///
    /// # Errors
    /// If a generation has no key among `keys`, or if [`Announcement::parse_and_verify`] would refuse the result.
    pub fn sign(
        node_name: &str,
        node_uid: &str,
        mut generations: Vec<GenerationEntry>,
        not_flipped: NotFlipped,
        keys: &[&PrivateKey],
    ) -> Result<Self, AnnouncementError> {
        generations.sort_by_key(|entry| entry.generation);
        check(&generations, &not_flipped)?;
        let statement = statement(node_name, node_uid, &generations, &not_flipped);
        let mut signatures = Vec::with_capacity(generations.len());
        for (index, entry) in generations.iter().enumerate() {
            let Some(key) = keys.iter().find(|key| key.public() == entry.public_key) else {
                return Err(AnnouncementError::field(path(index, "publicKey"), FieldProblem::NoPrivateKey));
            };
            signatures.push(key.sign(&statement));
        }
        let announcement = Self { generations, not_flipped, signatures };
        match announcement.to_json().len() {
            bytes if bytes > MAX_BYTES => Err(AnnouncementError::TooLarge { bytes }),
            _ => Ok(announcement),
        }
    }

    /// The value of the annotation.
    pub fn to_json(&self) -> String {
        wire::render(self)
    }

    /// Reads the annotation of the node `node_name` with UID `node_uid`.
    ///
    /// # Errors
    /// If it is not whole, not of a known version, not that node's own, or altered: which field, and why.
    pub fn parse_and_verify(json: &str, node_name: &str, node_uid: &str) -> Result<Self, AnnouncementError> {
        let announcement = wire::parse(json)?;
        let Self { generations, not_flipped, signatures } = &announcement;
        check(generations, not_flipped)?;
        let statement = statement(node_name, node_uid, generations, not_flipped);
        for (index, (entry, signature)) in generations.iter().zip(signatures).enumerate() {
            entry.public_key.verify(&statement, signature).map_err(|error| match error {
                VerifyError::UnusableKey => {
                    AnnouncementError::field(path(index, "publicKey"), FieldProblem::UnusableKey)
                }
                VerifyError::Mismatch => {
                    AnnouncementError::field(path(index, "signature"), FieldProblem::Signature)
                }
            })?;
        }
        Ok(announcement)
    }

    /// The generations, ascending; at least one.
    pub fn generations(&self) -> &[GenerationEntry] {
        &self.generations
    }

    /// The peers to which the node still sends by an older generation.
    pub const fn not_flipped(&self) -> &NotFlipped {
        &self.not_flipped
    }

    /// Whether both say the same. Signatures differ each time they are made: compare by this, or every
    /// look at the annotation finds a change to write.
    pub fn says(&self, generations: &[GenerationEntry], not_flipped: &NotFlipped) -> bool {
        self.generations == generations && self.not_flipped == *not_flipped
    }
}

/// The rules that no single field can hold.
fn check(generations: &[GenerationEntry], not_flipped: &NotFlipped) -> Result<(), AnnouncementError> {
    match generations.len() {
        0 => {
            return Err(AnnouncementError::field("generations", FieldProblem::NoGeneration));
        }
        1..=MAX_GENERATIONS => {}
        many => {
            return Err(AnnouncementError::field("generations", FieldProblem::TooManyGenerations(many)));
        }
    }
    for (index, entry) in generations.iter().enumerate() {
        let before = &generations[..index];
        if before.last().is_some_and(|last| last.generation >= entry.generation) {
            return Err(AnnouncementError::field(path(index, "generation"), FieldProblem::NotAscending));
        }
    }
    let NotFlipped::Nodes(names) = not_flipped else {
        return Ok(());
    };
    if names.len() > MAX_NOT_FLIPPED {
        return Err(AnnouncementError::field("notFlipped", FieldProblem::TooManyNames(names.len())));
    }
    if !names.iter().all(|name| is_node_name(name)) {
        return Err(AnnouncementError::field("notFlipped", FieldProblem::NotAName));
    }
    Ok(())
}

fn path(index: usize, field: &str) -> String {
    format!("generations[{index}].{field}")
}

/// What is signed: every field, in one possible way only.
///
/// Numbers are 32 bits, big endian; texts and keys are their length in bytes, then their bytes; a list is
/// the number of its items, then the items. In order: `"kubeveil announcement"`, version, node name, node
/// UID; the list of generations, each as number, public key, port, state; then the text `"nodes"` and the list of
/// names in ascending order, or the text `"many"` and nothing more.
pub fn statement(
    node_name: &str,
    node_uid: &str,
    generations: &[GenerationEntry],
    not_flipped: &NotFlipped,
) -> Vec<u8> {
    let mut statement = Statement(Vec::with_capacity(256));
    statement
        .text("kubeveil announcement")
        .number(VERSION)
        .text(node_name)
        .text(node_uid)
        .length(generations.len());
    for entry in generations {
        statement
            .number(entry.generation.number())
            .bytes(entry.public_key.as_bytes())
            .number(entry.port.get().into())
            .text(entry.state.name());
    }
    match not_flipped {
        NotFlipped::Many => {
            statement.text("many");
        }
        NotFlipped::Nodes(names) => {
            statement.text("nodes").length(names.len());
            for name in names {
                statement.text(name);
            }
        }
    }
    statement.0
}

struct Statement(Vec<u8>);

impl Statement {
    fn number(&mut self, number: u32) -> &mut Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Lengths past 32 bits can't be told apart, and can't occur: a statement of 4 GiB has no annotation.
    fn length(&mut self, length: usize) -> &mut Self {
        self.number(u32::try_from(length).unwrap_or(u32::MAX))
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.length(bytes.len());
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }
}

impl fmt::Display for NotFlipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Many => f.write_str("many"),
            Self::Nodes(names) => {
                for (index, name) in names.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    f.write_str(name)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
