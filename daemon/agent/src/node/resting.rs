//! Peer indices that nobody has for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long a peer index rests before it stands for another node: longer than any program runs.
const REST: Duration = Duration::from_secs(10);

/// Indices in use, and those that were until lately. Times are monotonic.
#[derive(Debug, Default)]
pub(super) struct Resting {
    used: BTreeSet<u32>,
    until: BTreeMap<u32, Duration>,
}

impl Resting {
    /// Those that must not be given to anybody.
    pub(super) fn at(&self, now: Duration) -> BTreeSet<u32> {
        self.until.iter().filter(|(_, until)| **until > now).map(|(index, _)| *index).collect()
    }

    /// These are in use; what was and is no more begins to rest.
    pub(super) fn uses(&mut self, used: BTreeSet<u32>, now: Duration) {
        self.until.retain(|_, until| *until > now);
        self.until.extend(self.used.difference(&used).map(|index| (*index, now + REST)));
        self.used = used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_rests_after_its_last_use() {
        let seconds = Duration::from_secs;
        let mut resting = Resting::default();
        resting.uses([1, 2].into(), seconds(0));
        assert_eq!(resting.at(seconds(0)), [].into());
        resting.uses([1].into(), seconds(5));
        resting.uses([1].into(), seconds(9));
        assert_eq!(resting.at(seconds(14)), [2].into());
        assert_eq!(resting.at(seconds(15)), [].into());
    }
}
