//! Looks at the kernel, on the way round and between two of them.

use std::time::Duration;

use kubeveil_core::{action::Action, observed::Observed, plan, snapshot::Knowledge};
use kubeveil_linux::{Kernel, KernelError};

use super::{Node, Now};

impl<K: Kernel> Node<K> {
    /// Was the last look at the kernel longer than `age` ago?
    pub(crate) fn looked_before(&self, now: Now, age: Duration) -> bool {
        now.monotonic.saturating_sub(self.looked) > age
    }

    /// Looks at the kernel between two ways round. A look that fails leaves the last one; the next way
    /// round says why.
    pub(crate) fn look(&mut self, now: Now) {
        if let Ok(observed) = self.observe(now) {
            self.touched |= !observed.holds_as(&self.last.observed);
            self.last.observed = observed;
        }
    }

    /// Has somebody changed what holds packets back? What can't be seen is for the next way round to tell: at once if that is
    /// new, else when it is tried again.
    pub(crate) fn is_touched(&mut self) -> bool {
        let holds = self.kernel.still_holds(&self.last.observed).unwrap_or(!self.last.settled);
        self.touched || !holds
    }

    /// Looks at the kernel, and keeps count of what it forgets.
    pub(super) fn observe(&mut self, now: Now) -> Result<Observed, KernelError> {
        let observed = self.kernel.observe()?;
        self.looked = now.monotonic;
        self.tunnels.observe(&observed, now.monotonic, now.epoch);
        self.totals.add(&observed);
        Ok(observed)
    }

    /// Takes note of what is not any more as it was when nothing was left to do. In the midst of a way round, and after one that was left half
    /// done, perhaps for this very reason, only what can't be a step of our own that is left counts: that a device is gone.
    pub(super) fn notice(&mut self, observed: &Observed, knowledge: &Knowledge, now: Now, is_first: bool) {
        let synced = knowledge.synced().filter(|_| self.last.synced);
        // First of all, since not all are named.
        let mut steps: Vec<Action> = self.undone.gone(observed).collect();
        if is_first && self.last.settled {
            let mut undone = plan::undone(&self.last.desired, observed, synced, self.written.endpoints());
            undone.retain(|step| !steps.contains(step));
            steps.extend(undone);
        }
        self.undone.notice(&steps, now.monotonic);
    }
}
