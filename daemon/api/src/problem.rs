//! Something is wrong that a person can mend.

use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// What sort of thing is wrong; bounded, so that it can be a metric's label.
    pub enum ProblemKind {
        /// A manifest or API object can't be read.
        Manifest = "manifest",
        /// A node's prefix or address is refused.
        Prefix = "prefix",
        /// A node's announcement is refused.
        Announcement = "announcement",
        /// A file of the key store was set aside.
        KeyStore = "key_store",
        /// An older key is still in use, though a rotation should be over.
        Rotation = "rotation",
        /// The kernel refused something, or lacks it.
        Kernel = "kernel",
        /// Another program stands in front of ours.
        Position = "position",
        /// The daemon lacks something it needs: its own Node, the mesh.
        Missing = "missing",
        /// The daemon's own files can't be written or read.
        State = "state",
        /// The cluster can't be read where it is kept, or not be written to.
        Source = "source",
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

impl Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {}. {}.", self.message, self.advice)
    }
}

/// An error and its causes, what one repeats of the next left out.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// The first `most` of `names`, and how many more there are: `a, b and 3 more`.
pub fn few<T: fmt::Display>(names: impl ExactSizeIterator<Item = T>, most: usize) -> String {
    listed(names, most, [", ", " "])
}

/// The same of whole statements: `a; b; and 3 more`.
pub fn few_statements<T: fmt::Display>(all: impl ExactSizeIterator<Item = T>, most: usize) -> String {
    listed(all, most, ["; ", "; "])
}

fn listed<T: fmt::Display>(
    all: impl ExactSizeIterator<Item = T>,
    most: usize,
    [between, last]: [&str; 2],
) -> String {
    let more = all.len().saturating_sub(most);
    let named: Vec<String> = all.take(most).map(|one| one.to_string()).collect();
    let named = named.join(between);
    if more > 0 { format!("{named}{last}and {more} more") } else { named }
}

/// Somebody else's words, short and in one line: they go into a log.
pub fn readable(text: &str) -> String {
    /// Longer than any name.
    const MOST: usize = 300;
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_named_and_the_rest_counted() {
        assert_eq!(few_statements(0..7, 5), "0; 1; 2; 3; 4; and 2 more");
        assert_eq!(few_statements(0..2, 5), "0; 1");
        assert_eq!(few(0..7, 5), "0, 1, 2, 3, 4 and 2 more");
        assert_eq!(few(0..5, 5), "0, 1, 2, 3, 4");
    }
}
