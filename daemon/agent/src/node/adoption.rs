//! Which pairs are open, kept on disk before the kernel hears of it.

use std::{path::Path, time::Duration};

use kubeveil_core::{
    adoption::{Adopting, GRACE, Gate, Seen, unhurried},
    problem::Problem,
};

use super::{Now, problems};
use crate::kept::{ADOPTION, KeptFile};

/// This node's pairs.
#[derive(Debug)]
pub(super) struct Pairs {
    file: KeptFile<Gate>,
    gate: Gate,
    /// All nodes were seen once: from then on the record is this daemon's own.
    is_own: bool,
    /// What the datapath is told.
    pub(super) adopting: Adopting,
}

impl Pairs {
    /// As the daemon before left them. A record that can't be read closes every pair.
    pub(super) fn open(state_dir: &Path) -> (Self, Option<Problem>) {
        let (file, gate, unreadable) = KeptFile::open(state_dir, ADOPTION);
        let gate = if unreadable.is_some() { Gate::closed() } else { gate };
        let problem = unreadable.map(|message| problems::pairs_unreadable(file.path(), message));
        (Self { file, gate, is_own: false, adopting: Adopting::default() }, problem)
    }

    /// Takes in what is seen; true if the datapath has to be told something else.
    pub(super) fn look(&mut self, seen: Seen, now: Now) -> (bool, Option<Problem>) {
        let seen = &Seen { is_own: self.is_own, ..seen };
        self.is_own |= seen.whole && seen.requires;
        let next = self.gate.step(seen);
        let mut told = Adopting { heard: self.adopting.heard.clone(), ..Adopting::default() };
        let refused = self.file.keep(&next).err();
        // What closes never waits for the disk; what opens does.
        if refused.is_none() || next.is_over() || self.gate.is_begun() {
            told.open = next.open(seen);
            if !seen.requires {
                told.left = next.left().cloned().collect();
            }
            self.gate = next;
        }
        let is_misled = seen.adoption.is_some() && self.gate.is_misled(seen);
        told.misled = is_misled && !self.gate.has_closed();
        let boot = now.monotonic.as_secs();
        let left = seen.adoption.map(|adoption| {
            if is_misled {
                unhurried(now.monotonic).saturating_sub(Duration::from_secs(boot))
            } else {
                self.gate.deadline(&adoption).saturating_sub(now.epoch)
            }
        });
        let seconds = |all: u64| u32::try_from(all).unwrap_or(u32::MAX);
        if let Some(left) = left.filter(|_| !told.open.is_empty()) {
            told.until = seconds(boot.saturating_add(left.as_secs()));
        }
        let closed = self.adopting.open.difference(&told.open).filter(|name| seen.proven.contains(*name));
        told.heard.extend(closed.map(|name| (name.clone(), seconds(boot.saturating_add(GRACE.as_secs())))));
        told.heard.retain(|_, until| u64::from(*until) > boot);
        let problem = refused.map(|e| problems::kept_unwritable(self.file.path(), &e));
        let changes = told != self.adopting;
        self.adopting = told;
        (changes, problem)
    }

    /// When something ends by itself.
    pub(super) fn next_look(&self, now: Now) -> Option<Duration> {
        let open = (!self.adopting.open.is_empty()).then_some(&self.adopting.until);
        let until = self.adopting.heard.values().chain(open).min()?;
        // What ends with a second has ended after it.
        Some(Duration::from_secs(u64::from(*until) + 1).saturating_sub(now.monotonic))
    }

    /// Is every pair closed for ever?
    pub(super) fn is_over(&self) -> bool {
        self.gate.is_over()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What opens is on disk first; what closes does not wait for it.
    #[test]
    fn what_can_not_be_kept_does_not_open() {
        let dir = tempfile::tempdir().expect("temp dir");
        let now = Now { monotonic: Duration::from_secs(1), epoch: Duration::from_secs(1) };
        let mut seen = Seen {
            adoption: serde_json::from_str(r#"{"deadline":"2100-01-01T00:00:00Z"}"#).ok(),
            requires: true,
            others: [("a", "1"), ("b", "2")].map(|(name, uid)| (name.to_owned(), uid.to_owned())).into(),
            whole: true,
            ..Seen::default()
        };
        let folder = dir.path().join("state");
        let (mut pairs, _) = Pairs::open(&folder);
        let (_, problem) = pairs.look(seen.clone(), now);
        assert!(problem.is_some() && pairs.adopting.open.is_empty(), "{pairs:?}");
        std::fs::create_dir(&folder).expect("made");
        assert_eq!(pairs.look(seen.clone(), now).1, None);
        assert_eq!(pairs.adopting.open.len(), 2);
        let older = std::fs::read(folder.join(ADOPTION)).expect("kept");
        std::fs::remove_dir_all(&folder).expect("removed");
        seen.proven.insert("a".to_owned());
        assert!(pairs.look(seen.clone(), now).1.is_some());
        assert_eq!(pairs.adopting.open.iter().collect::<Vec<_>>(), ["b"]);
        // The disk has the record of when both were open; who begins anew with it goes by the maps until it has seen all.
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join(ADOPTION), older).expect("written");
        let barred: BTreeSet<String> = ["a".to_owned()].into();
        let (mut pairs, _) = Pairs::open(&folder);
        pairs.look(Seen { barred, proven: BTreeSet::new(), ..seen.clone() }, now);
        assert_eq!(pairs.adopting.open.iter().collect::<Vec<_>>(), ["b"]);
        // A hand at the maps closes nothing after that.
        let barred: BTreeSet<String> = ["b".to_owned()].into();
        pairs.look(Seen { barred, proven: BTreeSet::new(), ..seen }, now);
        assert_eq!(pairs.adopting.open.iter().collect::<Vec<_>>(), ["b"]);
    }
}
