//! Which keys a node has, and had.

use kubeveil_keys::{Generation, PublicKey};
use serde::{Deserialize, Serialize};

/// Tells a key that was given up from those in use: a file of one can come back, out of a backup or a snapshot. It names those that there
/// are, so that it does not grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Record {
    /// UID of the Node whose keys they are.
    uid: String,
    /// The public halves of those that it has.
    held: Vec<(Generation, PublicKey)>,
    /// The newest generation that it ever had one of.
    newest: Option<Generation>,
}

impl Record {
    /// The node with `uid` has these keys now.
    pub(super) fn set_held(&mut self, uid: &str, held: &[(Generation, PublicKey)]) {
        let before = self.newest.filter(|_| self.uid == uid);
        let newest = held.iter().map(|(generation, _)| *generation).max().max(before);
        *self = Self { uid: uid.to_owned(), held: held.to_vec(), newest };
    }

    /// Did the node with `uid` have this key, and has it no more? One of a newer generation than any before was made by a daemon that ended
    /// before it could say so.
    pub(super) fn has_given_up(&self, uid: &str, generation: Generation, key: PublicKey) -> bool {
        self.uid == uid && Some(generation) <= self.newest && !self.held.contains(&(generation, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_had_and_has_not_is_given_up() {
        let [g4, g5, g6] = [4, 5, 6].map(Generation::new);
        let [old, key, other] = [4, 5, 6].map(|byte| PublicKey::from_bytes([byte; 32]));
        let mut record = Record::default();
        assert!(!record.has_given_up("u", g4, old), "nothing is known");
        record.set_held("u", &[(g4, old), (g5, key)]);
        record.set_held("u", &[(g5, key)]);
        assert!(record.has_given_up("u", g4, old));
        assert!(!record.has_given_up("u", g5, key));
        assert!(record.has_given_up("u", g5, other), "another one of the same generation");
        assert!(!record.has_given_up("u", g6, other), "just made");
        assert!(!record.has_given_up("v", g4, old), "another node's keys are told apart by the UID in them");
        // All are lost: none of them is used again.
        record.set_held("u", &[]);
        assert!(record.has_given_up("u", g5, key));
        // A new one of an older generation brings back none between.
        record.set_held("u", &[(g4, other)]);
        assert!(!record.has_given_up("u", g4, other));
        assert!(record.has_given_up("u", g5, key));
        record.set_held("v", &[]);
        assert!(!record.has_given_up("v", g4, old), "another Node begins anew");
    }
}
