//! The kernel and the source of one of two nodes, as steps: what is done about keys and announcements is one too.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    time::Duration,
};

use kubeveil_api::veil_node::VeilNodeStatus;
use kubeveil_core::{
    action::Action,
    observed::{Neighbours, Observed},
    problem::{Problem, ProblemKind},
    snapshot::Knowledge,
    source::{Changes, Source, SourceState},
};
use kubeveil_linux::{Count, Flow, Kernel, KernelError, Removed, Secrets, Sightings};

use super::pair::{Shows, files};
use crate::node::tests::bench::{Shared, World};

/// The kernel of one side.
pub(super) struct Stepped {
    shows: Shows,
    side: usize,
    /// The key files as of the last look.
    files: BTreeMap<String, Vec<u8>>,
}

impl Stepped {
    pub(super) fn new(shows: &Shows, side: usize) -> Self {
        Self { shows: shows.clone(), side, files: files(&shows.sides[side].keys) }
    }

    fn kernel(&mut self) -> &mut Shared {
        &mut self.shows.sides[self.side].kernel
    }

    /// What was done about keys since the last look are two steps: to be killed before it is whole, and when nothing has come of it yet.
    fn key_steps(&mut self) {
        let keys = self.shows.sides[self.side].keys.clone();
        let (before, now) = (std::mem::take(&mut self.files), files(&keys));
        let differs = |one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>| -> Vec<String> {
            one.keys().filter(|name| !other.contains_key(*name)).cloned().collect()
        };
        for (names, deed) in [(differs(&now, &before), "make"), (differs(&before, &now), "give up")] {
            for name in names.iter().filter(|name| !name.starts_with('.')) {
                let step = |what: &str| self.shows.step(self.side, what);
                let half = catch_unwind(AssertUnwindSafe(|| step(&format!("{deed} {name}"))));
                if let Err(ended) = half {
                    leave_half(&keys, name, now.get(name).or(before.get(name)).expect("one of them"));
                    resume_unwind(ended);
                }
                step(&format!("go on from {deed} {name}"));
            }
        }
        self.files = now;
    }
}

/// What a kill in the midst of it leaves: half a file that has not got its name yet, or a whole one that has lost it.
fn leave_half(keys: &Path, name: &str, content: &[u8]) {
    let path = keys.join(name);
    let (left, content) = if path.exists() {
        fs::remove_file(&path).expect("removed");
        (format!(".{name}.new"), &content[..content.len() / 2])
    } else {
        (format!(".{name}.removed"), content)
    };
    fs::write(keys.join(left), content).expect("written");
}

impl Kernel for Stepped {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        self.key_steps();
        self.kernel().observe()
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.kernel().neighbours()
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        self.kernel().still_holds(last)
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        self.shows.step(self.side, &action.to_string());
        let done = self.kernel().execute(action, secrets);
        self.shows.look(&action.to_string());
        done
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        self.kernel().counters()
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        self.kernel().watch(flows)
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        self.kernel().seen()
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        self.kernel().sweep_flows()
    }

    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        self.kernel().remove_everything()
    }
}

/// The source of one side: to say something else is a step.
pub(super) struct Says {
    pub(super) shows: Shows,
    pub(super) side: usize,
    pub(super) world: World,
}

impl Source for Says {
    fn name(&self) -> String {
        self.world.name()
    }

    fn read(&mut self, now: Duration) -> SourceState {
        if self.shows.is_blind(self.side) {
            return SourceState { knowledge: Knowledge::default(), problems: vec![], look_again: None };
        }
        self.world.read(now)
    }

    fn changes(&mut self) -> Changes {
        if self.shows.is_blind(self.side) { Changes::Any } else { self.world.changes() }
    }

    fn announce(&mut self, node: &str, uid: &str, json: Option<&str>) -> Result<(), Problem> {
        let said = self.world.said().snapshot.nodes[node].announcement.clone();
        if said.as_deref() == json {
            return Ok(());
        }
        self.shows.step(self.side, "say something else");
        if self.shows.refuses(self.side) || self.shows.is_blind(self.side) {
            let text = || "a test refuses it".to_owned();
            let object = format!("Node {node}");
            return Err(Problem {
                kind: ProblemKind::Source,
                object,
                field: text(),
                message: text(),
                advice: text(),
            });
        }
        self.world.announce(node, uid, json)
    }

    fn report(&mut self, node: &str, status: VeilNodeStatus) -> Result<(), Problem> {
        self.world.report(node, status)
    }
}
