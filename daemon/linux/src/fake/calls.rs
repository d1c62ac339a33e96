//! The calls of the port, and how they fail.

use std::io;

use kubeveil_core::{
    action::Action,
    observed::{Neighbours, Observed},
};

use super::FakeKernel;
use crate::{Count, Flow, Kernel, KernelError, Removed, Secrets, Sightings};

/// A call of the port.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// A look at everything.
    Observe,
    /// One action.
    Execute(&'a Action),
    /// The counters are read.
    Counters,
    /// Flows are swept.
    SweepFlows,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error number.
    pub errno: i32,
    /// What was asked for has been done all the same: the failure came after it.
    pub is_done: bool,
}

/// Says which calls fail, and how.
pub(super) type Fault = Box<dyn FnMut(&Call<'_>) -> Option<Failure> + Send>;

impl FakeKernel {
    /// Does what a call is for, unless it is to fail.
    fn unless_failing<T>(
        &mut self,
        call: &Call<'_>,
        (operation, object): (&'static str, String),
        answer: impl FnOnce(&mut Self) -> Result<T, i32>,
    ) -> Result<T, KernelError> {
        let done = match self.fault.as_mut().and_then(|fault| fault(call)) {
            None => answer(self),
            Some(Failure { errno, is_done }) => {
                if is_done {
                    // It fails all the same, whatever came of it.
                    drop(answer(self));
                }
                Err(errno)
            }
        };
        done.map_err(|errno| KernelError::new(operation, object, io::Error::from_raw_os_error(errno)))
    }
}

impl Kernel for FakeKernel {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        self.time_passes();
        self.unless_failing(&Call::Observe, ("look at", "the kernel".to_owned()), |fake| {
            // Time has passed: keepalives that are set repeat themselves.
            for device in fake.tunnels.keys().cloned().collect::<Vec<_>>() {
                fake.shake(&device);
            }
            let mut truth = fake.truth();
            truth.datapath = truth.datapath.filter(|_| fake.open);
            Ok(truth)
        })
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.unless_failing(&Call::Observe, ("list", "neighbours".to_owned()), |fake| {
            Ok(fake.neighbours.clone())
        })
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        self.unless_failing(&Call::Observe, ("look at", "what holds packets".to_owned()), |fake| {
            let mut truth = fake.truth();
            truth.datapath = truth.datapath.filter(|_| fake.open);
            Ok(truth.holds_as(last))
        })
    }

    fn execute(&mut self, action: &Action, _: &dyn Secrets) -> Result<(), KernelError> {
        self.tried.push(action.clone());
        let what = ("execute", action.to_string());
        self.unless_failing(&Call::Execute(action), what, |fake| fake.carry_out(action))
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        self.unless_failing(&Call::Counters, ("read", "the counters".to_owned()), |_| Ok(Vec::new()))
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        (self.watched, self.sightings) = (flows.to_vec(), Sightings::default());
        Ok(())
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        if self.watched.is_empty() {
            let lost = io::Error::other("its maps were made anew meanwhile; ask again");
            return Err(KernelError::new("read", "what is watched", lost));
        }
        Ok(self.sightings.clone())
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        self.unless_failing(&Call::SweepFlows, ("sweep", "the flows".to_owned()), |_| Ok(0))
    }

    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        (self.forget_everything(), Vec::new())
    }
}
