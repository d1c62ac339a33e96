//! The source as the node's own thread sees it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kubeveil_api::veil_node::VeilNodeStatus;
use kubeveil_core::{
    lingering::SETTLE,
    problem::Problem,
    source::{Changes, Source, SourceState},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, futures::Notified},
    task::JoinHandle,
};

use crate::{
    connect::Origin,
    pace::Pace,
    publish::{self, Publication, Wanted},
    report::{self, Report},
    store::{By, Store},
    watch::{Follower, Kind},
};

/// What the tasks keep, and the node's thread reads.
pub(crate) struct State {
    pub(crate) store: Store,
    /// What is wrong with following each kind.
    pub(crate) troubles: BTreeMap<Kind, Problem>,
    pub(crate) publication: Publication,
    pub(crate) report: Report,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    wake: Box<dyn Fn() + Send + Sync>,
    stirred: Notify,
    reported: Notify,
    turned: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.lock())
    }

    /// Changes the store, and wakes who reads it if that is news.
    pub(crate) fn change<E>(&self, change: impl FnOnce(&mut Store) -> Result<bool, E>) -> Result<(), E> {
        let (is_news, turns) = {
            let store = &mut self.lock().store;
            (change(store)?, store.turns())
        };
        if turns {
            self.turned.notify_one();
        }
        if is_news {
            (self.wake)();
            self.stirred.notify_one();
        }
        Ok(())
    }

    /// Over as soon as there may be something to publish.
    pub(crate) fn stirred(&self) -> Notified<'_> {
        self.stirred.notified()
    }

    /// Over as soon as other Nodes may be wanted than were asked for.
    pub(crate) fn turned(&self) -> Notified<'_> {
        self.turned.notified()
    }

    /// Over as soon as there may be something to say.
    pub(crate) fn reported(&self) -> Notified<'_> {
        self.reported.notified()
    }
}

/// An API server. Tasks keep what it tells; reading it waits for nothing.
pub struct Kubernetes {
    origin: Origin,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Kubernetes {
    /// Follows the API server of `origin` on behalf of the node called `own`, and calls `wake` whenever something that is read
    /// from here has changed. An API server that can't be reached is a problem that [`Source::read`] tells.
    pub fn open(
        origin: Origin,
        own: &str,
        pace: Pace,
        runtime: &Handle,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            store: Store::new(own),
            troubles: BTreeMap::new(),
            publication: Publication::default(),
            report: Report::default(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake: Box::new(wake),
            stirred: Notify::new(),
            reported: Notify::new(),
            turned: Notify::new(),
        });
        let follow = |kind| runtime.spawn(Follower::new(kind, shared.clone(), origin.clone(), pace).run());
        let tasks = Kind::ALL.into_iter().map(follow).chain([
            runtime.spawn(publish::run(shared.clone(), origin.clone(), pace)),
            runtime.spawn(report::run(shared.clone(), origin.clone(), pace)),
        ]);
        Self { tasks: tasks.collect(), origin, shared: shared.clone() }
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Source for Kubernetes {
    fn name(&self) -> String {
        match self.shared.with(|state| state.store.by()) {
            By::Nodes => self.origin.to_string(),
            By::Slices => format!("{}, other nodes by VeilPeerSlices", self.origin),
        }
    }

    fn read(&mut self, now: Duration) -> SourceState {
        self.shared.with(|state| {
            state.store.take_changes();
            // Which namespaces are being deleted nobody tells meanwhile.
            let settle = if state.troubles.contains_key(&Kind::Namespaces) { Duration::MAX } else { SETTLE };
            let (knowledge, waits) = state.store.knowledge(settle, now);
            let problems = state.troubles.values().chain(state.store.problems()).cloned();
            SourceState { problems: problems.collect(), knowledge, look_again: waits.then_some(SETTLE) }
        })
    }

    fn changes(&mut self) -> Changes {
        self.shared.with(|state| state.store.take_changes())
    }

    fn announce(&mut self, _: &str, uid: &str, announcement: Option<&str>) -> Result<(), Problem> {
        let wanted = Wanted { uid: uid.to_owned(), text: announcement.map(str::to_owned) };
        let (is_new, trouble) = self.shared.with(|state| {
            let is_new = state.publication.want(wanted);
            (is_new, state.publication.trouble.clone())
        });
        if is_new {
            self.shared.stirred.notify_one();
        }
        trouble.map_or(Ok(()), Err)
    }

    fn report(&mut self, _: &str, status: VeilNodeStatus) -> Result<(), Problem> {
        let (is_new, trouble) =
            self.shared.with(|state| (state.report.want(status), state.report.trouble.clone()));
        if is_new {
            self.shared.reported.notify_one();
        }
        trouble.map_or(Ok(()), Err)
    }
}
