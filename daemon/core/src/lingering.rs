//! What is gone for a moment only is still there.

use std::{collections::BTreeMap, time::Duration};

/// How long something must be gone before it counts as removed: editors write anew what they edit, and of what goes together one watch
/// tells before the other.
pub const SETTLE: Duration = Duration::from_secs(1);

/// What was there as of the last reading, or is gone for a moment only, and since when.
#[derive(Debug)]
pub struct Lingering<K, V> {
    known: BTreeMap<K, V>,
    gone: BTreeMap<K, Duration>,
}

impl<K, V> Default for Lingering<K, V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), gone: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone> Lingering<K, V> {
    /// What vanished from `found` less than `settle` before `now` is put back into it. True if there is any.
    pub fn keep_in(&mut self, found: &mut BTreeMap<K, V>, settle: Duration, now: Duration) -> bool {
        self.gone.retain(|key, _| !found.contains_key(key));
        let mut waiting = false;
        for (key, value) in &self.known {
            if found.contains_key(key) {
                continue;
            }
            let gone = self.gone.entry(key.clone()).or_insert(now);
            // As long as nobody can see, it is not over by any time.
            if settle == Duration::MAX {
                *gone = now;
            }
            let since = *gone;
            if now.saturating_sub(since) < settle {
                waiting = true;
                found.insert(key.clone(), value.clone());
            }
        }
        self.known.clone_from(found);
        waiting
    }

    /// Nothing was there as of the last reading.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_was_never_gone() {
        let mut lingering = Lingering::default();
        let at = |millis| Duration::from_millis(millis);
        let mut read = |found: &[&str], now| {
            let mut found = found.iter().map(|key| ((*key).to_owned(), ())).collect();
            let waits = lingering.keep_in(&mut found, SETTLE, at(now));
            (found.into_keys().collect::<Vec<_>>().concat(), waits)
        };
        let is = |keys: &str, waits| (keys.to_owned(), waits);
        assert_eq!(read(&["a", "b"], 0), is("ab", false));
        assert_eq!(read(&["a"], 100), is("ab", true));
        assert_eq!(read(&["a", "b"], 900), is("ab", false));
        // From when it was missing for the first time, and not from the last look.
        assert_eq!(read(&["a"], 1_000), is("ab", true));
        assert_eq!(read(&["a"], 1_999), is("ab", true));
        assert_eq!(read(&["a"], 2_000), is("a", false));
        assert_eq!(read(&["a"], 2_001), is("a", false));
    }

    /// From when somebody can see again.
    #[test]
    fn while_nobody_can_see_nothing_is_gone() {
        let mut lingering = Lingering::default();
        let mut read = |found: &[&str], settle, now| {
            let mut found = found.iter().map(|key| ((*key).to_owned(), ())).collect::<BTreeMap<_, _>>();
            let waits = lingering.keep_in(&mut found, settle, Duration::from_millis(now));
            (found.len(), waits)
        };
        assert_eq!(read(&["a"], SETTLE, 0), (1, false));
        assert_eq!(read(&[], SETTLE, 100), (1, true));
        assert_eq!(read(&[], Duration::MAX, 90_000), (1, true));
        assert_eq!(read(&[], SETTLE, 90_900), (1, true));
        assert_eq!(read(&[], SETTLE, 91_000), (0, false));
    }
}
