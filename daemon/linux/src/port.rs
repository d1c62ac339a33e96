//! The port: all that the daemon wants of a kernel.

use std::{collections::BTreeMap, time::Duration};

use kubeveil_abi::{Direction, FlowMode, Reason, is_observed};
use kubeveil_api::watch::Flow;
use kubeveil_core::{
    action::Action,
    backstop::Form,
    observed::{Neighbours, Observed, TunnelDevice},
};
use kubeveil_keys::{Generation, PrivateKey};

use crate::KernelError;

/// Packets and bytes of one direction, mode and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Which program counted.
    pub direction: Direction,
    /// What the packets were held to.
    pub mode: FlowMode,
    /// Why.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Count {
    /// The reason's verdict was not carried out, for the mode's sake.
    pub const fn observed(&self) -> bool {
        is_observed(self.mode, self.reason)
    }
}

/// What was seen of a flow that is watched, by one program and for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub flow: Flow,
    /// How many packets, and what became of them.
    pub count: Count,
    /// When the last of them was, since boot.
    pub last: Duration,
}

/// All that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sightings {
    /// In the order of flows, programs and reasons.
    pub found: Vec<Sighting>,
    /// Packets were seen that could not be noted: there were more than is told.
    pub is_short: bool,
}

/// What [`Kernel::remove_everything`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// WireGuard devices.
    pub devices: Vec<String>,
    /// Everything that was pinned.
    pub pins: bool,
    /// The backstop, in the forms that were in force.
    pub backstops: Vec<Form>,
}

/// Where the interpreter finds the private keys that actions only name.
pub trait Secrets {
    /// The key of `generation`, if this node has it.
    fn private_key(&self, generation: Generation) -> Option<&PrivateKey>;
}

/// A kernel. Calls block.
pub trait Kernel: Send {
    /// Looks at everything that is planned over.
    fn observe(&mut self) -> Result<Observed, KernelError>;

    /// The WireGuard devices that `last` holds, as they are now: most of what changes by itself.
    fn tunnels(&mut self, last: &Observed) -> Result<BTreeMap<String, TunnelDevice>, KernelError> {
        let _ = last;
        Ok(self.observe()?.tunnels)
    }

    /// Who is behind which port of a bridge. Asked for only as long as a pod is looked for.
    fn neighbours(&mut self) -> Result<Neighbours, KernelError>;

    /// Is that still so of which nobody tells when it is changed: what holds packets back, and the sysctls of tunnels? This
    /// is asked often, and costs less than a look at everything.
    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError>;

    /// Carries out one action. What is done twice is done once: a repeated action is no error.
    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError>;

    /// Carries out `actions` in their order, whatever becomes of each, and says what did: one answer for each. A kernel
    /// may take together what can be one message, and leaves what it would leave one by one.
    fn execute_all(&mut self, actions: &[Action], secrets: &dyn Secrets) -> Vec<Result<(), KernelError>> {
        actions.iter().map(|action| self.execute(action, secrets)).collect()
    }

    /// Reads the datapath's counters; those that are not zero.
    fn counters(&mut self) -> Result<Vec<Count>, KernelError>;

    /// Watches packets of these flows from now on, and of no others (at most [`kubeveil_abi::MAX_WATCHED`]); what was seen is forgotten.
    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError>;

    /// What was seen of them since.
    fn seen(&mut self) -> Result<Sightings, KernelError>;

    /// Forgets flows that have been silent too long; says how many are left.
    fn sweep_flows(&mut self) -> Result<usize, KernelError>;

    /// Takes away all that is ours, and says what there was and what stayed.
    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>);
}
