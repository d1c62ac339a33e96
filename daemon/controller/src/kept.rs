//! What a watch told of objects, each made small as it comes: of 100,000 pods little may be kept.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kube::runtime::watcher::Event;

/// What is known of the objects of one kind, by their names.
#[derive(Debug)]
pub(crate) struct Kept<T>(Arc<Mutex<State<T>>>);

#[derive(Debug)]
struct State<T> {
    known: BTreeMap<String, T>,
    /// A list that is on its way.
    listing: BTreeMap<String, T>,
    is_listed: bool,
    /// When the watch failed last, if nothing came since.
    failed: Option<Instant>,
}

/// How long a watch that failed may be blind: it is begun anew within half a minute (kube, `default_backoff`), and an event is not due even then.
const BLIND: Duration = Duration::from_secs(120);

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        let state =
            State { known: BTreeMap::new(), listing: BTreeMap::new(), is_listed: false, failed: None };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl<T: Clone> Kept<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what happened: of an object that is there `read` gives what is to be kept, if anything, and is told what was.
    pub(crate) fn take<K>(
        &self,
        event: Event<K>,
        name: impl FnOnce(&K) -> String,
        read: impl FnOnce(K, Option<&T>) -> Option<T>,
    ) {
        let mut guard = self.lock();
        let state = &mut *guard;
        // Half a list says nothing yet.
        if matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_)) {
            state.failed = None;
        }
        let (is_listing, object) = match event {
            Event::Init => return state.listing.clear(),
            Event::InitDone => {
                (state.known, state.is_listed) = (std::mem::take(&mut state.listing), true);
                return;
            }
            Event::InitApply(object) => (true, object),
            Event::Apply(object) => (false, object),
            Event::Delete(object) => {
                state.known.remove(&name(&object));
                return;
            }
        };
        let name = name(&object);
        let kept = read(object, state.known.get(&name));
        let place = if is_listing { &mut state.listing } else { &mut state.known };
        match kept {
            Some(kept) => place.insert(name, kept),
            None => place.remove(&name),
        };
    }

    /// Would nothing be left of what is known, if the list that is on its way were whole?
    pub(crate) fn would_be_emptied(&self) -> bool {
        let state = self.lock();
        !state.known.is_empty() && state.listing.is_empty()
    }

    /// The watch failed.
    pub(crate) fn fail(&self) {
        self.lock().failed = Some(Instant::now());
    }

    /// May something have happened that is not known yet?
    pub(crate) fn is_blind(&self) -> bool {
        self.lock().failed.is_some_and(|at| at.elapsed() < BLIND)
    }

    /// All of them; `None` until they were listed once.
    pub(crate) fn all(&self) -> Option<BTreeMap<String, T>> {
        let state = self.lock();
        state.is_listed.then(|| state.known.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_takes_the_place_of_what_was_known_when_it_is_whole() {
        let kept = Kept::default();
        let take = |event: Event<(&str, Option<u8>)>| {
            kept.take(event, |(name, _)| (*name).to_owned(), |(_, kept), _| kept);
        };
        let names = || {
            kept.all().map(|all| all.into_iter().map(|(name, n)| format!("{name}{n}")).collect::<Vec<_>>())
        };
        take(Event::Init);
        take(Event::InitApply(("a", Some(1))));
        assert_eq!(names(), None);
        take(Event::InitDone);
        take(Event::Apply(("b", Some(1))));
        take(Event::Apply(("c", None)));
        assert_eq!(names().unwrap_or_default(), ["a1", "b1"]);
        take(Event::Init);
        take(Event::InitApply(("a", Some(2))));
        assert_eq!(names().unwrap_or_default(), ["a1", "b1"], "half a list says nothing");
        assert!(!kept.would_be_emptied());
        take(Event::Init);
        assert!(kept.would_be_emptied());
        take(Event::InitApply(("a", Some(2))));
        take(Event::InitDone);
        assert_eq!(names().unwrap_or_default(), ["a2"]);
        // What is of no interest any more is as if it were gone.
        take(Event::Apply(("a", None)));
        take(Event::Delete(("never", Some(1))));
        assert_eq!(names().unwrap_or_default(), [] as [&str; 0]);
        assert!(!kept.would_be_emptied());
    }

    #[test]
    fn a_watch_that_failed_is_blind_until_it_tells_again() {
        let kept: Kept<()> = Kept::default();
        let take = |event: Event<()>| kept.take(event, |()| "a".to_owned(), |(), _| Some(()));
        for (event, is_blind) in [
            (Event::Apply(()), false),
            (Event::Init, true),
            (Event::InitApply(()), true),
            (Event::InitDone, false),
            (Event::Delete(()), false),
        ] {
            kept.fail();
            assert!(kept.is_blind());
            take(event);
            assert_eq!(kept.is_blind(), is_blind);
        }
    }
}
