//! What somebody else undid, told for a while.

use std::{collections::BTreeMap, time::Duration};

use kubeveil_core::{
    action::Action,
    desired::Desired,
    observed::Observed,
    problem::{Problem, ProblemKind, few_statements},
};

/// What is changed, for people.
pub(super) const OBJECT: &str = "what kubeveil keeps in the kernel";
/// How long it is told: a look or two of whoever watches.
const TOLD: Duration = Duration::from_secs(60);
/// So many steps are named.
const NAMED: usize = 4;

/// Deeds of somebody else, and when each was last noticed.
#[derive(Debug, Default)]
pub(super) struct Undone {
    told: BTreeMap<Problem, Duration>,
    /// Devices that packets could go by, by what was last seen of them.
    carrying: BTreeMap<String, u32>,
}

impl Undone {
    /// What follows from the last look.
    pub(super) fn look(&mut self, desired: &Desired) {
        let indices =
            desired.tunnels.iter().map(|(name, tunnel)| (name, desired.slots[tunnel.key.0.parity()]));
        self.carrying =
            indices.filter(|(_, index)| *index != 0).map(|(name, index)| (name.clone(), index)).collect();
    }

    /// Those that are not there any more, to be made again. One that goes while it is looked at is among the links still, and no WireGuard
    /// device any more.
    pub(super) fn gone(&self, observed: &Observed) -> impl Iterator<Item = Action> {
        let is_gone = |name: &String, index: &u32| match observed.links.get(index) {
            Some(link) => link.name == *name && !observed.tunnels.contains_key(name),
            None => true,
        };
        let gone = self.carrying.iter().filter(move |(name, index)| is_gone(name, index));
        gone.map(|(name, _)| Action::CreateTunnel(name.clone()))
    }

    /// `steps` lead back to what stood.
    pub(super) fn notice(&mut self, steps: &[Action], now: Duration) {
        self.told.retain(|_, at| now.saturating_sub(*at) < TOLD);
        if !steps.is_empty() {
            let problem = problem(steps);
            if self.told.contains_key(&problem) {
                // What is told already is no news to the log.
                tracing::warn!("again: {problem}");
            }
            self.told.insert(problem, now);
        }
    }

    /// What was noticed lately.
    pub(super) fn problems(&self, now: Duration) -> impl Iterator<Item = Problem> {
        self.told.iter().filter(move |(_, at)| now.saturating_sub(**at) < TOLD).map(|(p, _)| p.clone())
    }
}

fn problem(steps: &[Action]) -> Problem {
    Problem {
        kind: ProblemKind::Kernel,
        object: OBJECT.to_owned(),
        field: String::new(),
        message: format!(
            "somebody else changed it, and it is put back: {}",
            few_statements(steps.iter(), NAMED)
        ),
        advice:
            "Find out who: another network agent, a script, or somebody's hand. SECURITY.md says which of \
                 these deeds let packets pass until they are noticed"
                .to_owned(),
    }
}
