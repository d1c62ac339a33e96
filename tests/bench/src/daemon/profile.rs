//! A kernel that keeps count of what it is asked, and how long that took.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kubeveil_core::{
    action::Action,
    observed::{Neighbours, Observed, TunnelDevice},
};
use kubeveil_linux::{Count, Flow, Kernel, KernelError, Removed, Secrets, Sightings};

/// Since it was last taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) looks: u32,
    pub(super) looking: Duration,
    pub(super) writes: u32,
    pub(super) writing: Duration,
    /// When the last write was done.
    pub(super) written: Option<Instant>,
}

/// What was spent, for who does not own the kernel.
#[derive(Clone, Default)]
pub(super) struct Profile(Arc<Mutex<Spent>>);

impl Profile {
    pub(super) fn take(&self) -> Spent {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, add: impl FnOnce(&mut Spent)) {
        add(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The kernel.
pub(super) struct Profiled<K>(K, Profile);

impl<K> Profiled<K> {
    pub(super) fn new(kernel: K) -> (Self, Profile) {
        let profile = Profile::default();
        (Self(kernel, profile.clone()), profile)
    }
}

impl<K: Kernel> Kernel for Profiled<K> {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        let start = Instant::now();
        let observed = self.0.observe();
        self.1.add(|spent| {
            spent.looks += 1;
            spent.looking += start.elapsed();
        });
        observed
    }

    fn tunnels(&mut self, last: &Observed) -> Result<BTreeMap<String, TunnelDevice>, KernelError> {
        self.0.tunnels(last)
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.0.neighbours()
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        self.0.still_holds(last)
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        self.execute_all(std::slice::from_ref(action), secrets).into_iter().collect()
    }

    fn execute_all(&mut self, actions: &[Action], secrets: &dyn Secrets) -> Vec<Result<(), KernelError>> {
        let start = Instant::now();
        let done = self.0.execute_all(actions, secrets);
        if !actions.is_empty() {
            self.1.add(|spent| {
                spent.writes += u32::try_from(actions.len()).unwrap_or(u32::MAX);
                spent.writing += start.elapsed();
                spent.written = Some(Instant::now());
            });
        }
        done
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        self.0.counters()
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        self.0.watch(flows)
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        self.0.seen()
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        self.0.sweep_flows()
    }

    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        self.0.remove_everything()
    }
}
