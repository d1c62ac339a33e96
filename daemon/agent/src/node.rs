//! The one-way flow, once round: read, decide, act, publish.

mod adoption;
mod bypass;
mod changes;
mod conclude;
mod ebbing;
mod hear;
mod leave;
mod look;
mod pods;
mod problems;
mod quiet;
mod resting;
mod rotation;
#[cfg(test)]
mod tests;
mod undone;
mod written;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use kubeveil_abi::Mode;
use kubeveil_api::status::AdoptionStatus;
use kubeveil_core::{
    action::Action,
    adoption::Seen,
    announced::Announced,
    backstop,
    desired::{Desired, Inputs, desired},
    observed::{Datapath, Observed},
    ownership::{Assignment, assign},
    plan::plan,
    problem::{Problem, ProblemKind},
    rotation::Rotation,
    snapshot::{Knowledge, Snapshot, Told},
    source::Source,
    tunnels::Tunnels,
};
use kubeveil_linux::{Count, Kernel, KernelError};

use crate::{
    keeper::Keeper,
    kept::{KNOWN, Kept, KeptFile},
    totals::Totals,
};
use adoption::Pairs;
use bypass::Bypasses;
use ebbing::Ebbing;
use leave::Leaving;
use pods::Pods;
use quiet::Quiet;
use resting::Resting;
pub(crate) use rotation::Rotations;
use undone::Undone;
use written::Written;

/// Look at everything this often, whether anything stirred or not.
const RESYNC: Duration = Duration::from_secs(10);
/// How long a node that has just joined waits to be told of all before it goes by less.
const EARLY: Duration = Duration::from_secs(60);
/// After a failure, first and longest wait.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A plan can depend on what an earlier one made (a device has no index before it exists): four
/// rounds from nothing, so more mean that somebody undoes what we do.
const ROUNDS: usize = 8;

/// Both clocks, read by the caller.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic.
    pub monotonic: Duration,
    /// Since 1970.
    pub epoch: Duration,
}

/// What one way round came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) observed: Observed,
    pub(crate) desired: Desired,
    pub(crate) synced: bool,
    /// Nothing is left to do.
    pub(crate) settled: bool,
    pub(crate) problems: Vec<Problem>,
}

/// Everything that this node's daemon is.
pub struct Node<K> {
    pub(crate) name: String,
    pub(crate) underlay: Vec<String>,
    /// Which form of the backstop the operator wants.
    pub(crate) backstop: backstop::Choice,
    build: String,
    pub(crate) kernel: K,
    pub(crate) source: Box<dyn Source>,
    pub(crate) keeper: Keeper,
    kept: KeptFile<Kept>,
    pairs: Pairs,
    bypasses: Bypasses,
    /// As of the last way round.
    known: Kept,
    knowledge: Knowledge,
    pub(crate) told: Told,
    /// But for the owners on record, which are in `known`.
    assignment: Assignment,
    /// When the first way round began, monotonic.
    began: Option<Duration>,
    /// When the next way round is due, monotonic.
    due: Duration,
    /// When to look whether peers answer, if any is to.
    look_at: Option<Duration>,
    pub(crate) announced: Announced,
    pub(crate) tunnels: Tunnels,
    written: Written,
    resting: Resting,
    ebbing: Ebbing,
    rotation: Rotation,
    pub(crate) rotations: Rotations,
    retry: Duration,
    looked: Duration,
    pods: Pods,
    /// A look found that what holds packets back is not as the last way round saw it.
    touched: bool,
    undone: Undone,
    quiet: Quiet,
    pub(crate) counts: Vec<Count>,
    /// Flows that were remembered when they were last swept.
    pub(crate) flows: usize,
    /// What failed beside the way round, by what it was; over as soon as it succeeds.
    beside: BTreeMap<&'static str, Problem>,
    standing: Vec<Problem>,
    /// What the last way round met with.
    met: Vec<Problem>,
    pub(crate) last: Outcome,
    /// As last told.
    ready: bool,
    pub(crate) totals: Totals,
    leaving: Leaving,
    pub(crate) writes: u64,
    pub(crate) errors: BTreeMap<&'static str, u64>,
}

fn knows(snapshot: &Snapshot, node: &str) -> bool {
    snapshot.nodes.contains_key(node)
}

impl<K: Kernel> Node<K> {
    /// `build` names the programs that `kernel` brings.
    pub fn new(
        name: &str,
        underlay: &[String],
        build: &str,
        kernel: K,
        source: Box<dyn Source>,
        state_dir: &Path,
    ) -> Self {
        let (kept, known, unreadable) = KeptFile::<Kept>::open(state_dir, KNOWN);
        let told = Told { kept: known.snapshot.mesh.is_some(), ..Told::default() };
        let (pairs, unknown) = Pairs::open(state_dir);
        let (bypasses, forgotten) = Bypasses::open(state_dir);
        let unreadable = unreadable.map(|message| problems::kept_unreadable(kept.path(), message));
        Self {
            name: name.to_owned(),
            underlay: underlay.to_vec(),
            backstop: backstop::Choice::default(),
            build: build.to_owned(),
            kernel,
            source,
            keeper: Keeper::new(state_dir, name),
            kept,
            pairs,
            bypasses,
            known,
            knowledge: Knowledge::default(),
            told,
            assignment: Assignment::default(),
            began: None,
            due: Duration::ZERO,
            look_at: None,
            announced: Announced::default(),
            tunnels: Tunnels::default(),
            written: Written::default(),
            resting: Resting::default(),
            ebbing: Ebbing::default(),
            rotation: Rotation::default(),
            rotations: Rotations::default(),
            retry: RETRY,
            looked: Duration::ZERO,
            pods: Pods::default(),
            touched: false,
            undone: Undone::default(),
            quiet: Quiet::default(),
            counts: Vec::new(),
            flows: 0,
            beside: BTreeMap::new(),
            standing: unreadable.into_iter().chain(unknown).chain(forgotten).collect(),
            met: Vec::new(),
            last: Outcome::default(),
            ready: false,
            totals: Totals::default(),
            leaving: Leaving::of(state_dir),
            writes: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Was nothing left to do after the last way round?
    pub fn is_settled(&self) -> bool {
        self.last.settled
    }

    /// What was wrong with the last way round.
    pub fn problems(&self) -> &[Problem] {
        &self.last.problems
    }

    /// The mesh as last known.
    pub(crate) fn mesh(&self) -> Option<&kubeveil_api::mesh::MeshSpec> {
        self.known.snapshot.mesh.as_ref()
    }

    /// All that is known of the cluster, the last one where a source tells of less.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.known.snapshot
    }

    /// Pods of this node have addresses that its Node does not have.
    pub(crate) fn is_misled(&self) -> bool {
        !self.known.snapshot.strangers.is_empty()
    }

    /// Once round. Returns how long nothing has to be done then, unless something stirs.
    pub fn pass(&mut self, now: Now) -> Duration {
        if !self.written.remembers() {
            let before = self.desired_before(now);
            self.written.remember(&before);
        }
        self.touched = false;
        let read = self.source.read(now.monotonic);
        if let Some(wait) = self.leave_if_told(&read.knowledge, now) {
            return wait;
        }
        let deleted = read.knowledge.synced().is_some() && read.knowledge.snapshot().mesh.is_none();
        let lacks_us = read.knowledge.synced().is_some_and(|_| !knows(read.knowledge.snapshot(), &self.name));
        let told: Vec<String> = read.knowledge.snapshot().nodes.keys().cloned().collect();
        let knowledge = read.knowledge.as_seen_by(&self.name);
        self.told.hear(&knowledge);
        self.told.is_early = now.monotonic < *self.began.get_or_insert(now.monotonic) + EARLY;
        let mut knowledge = knowledge.or_before(&self.known.snapshot);
        let earlier = self.forget_earlier_pods(&mut knowledge, now);
        self.known.snapshot.clone_from(knowledge.snapshot());
        let mut assignment = self.learn(&knowledge, now);
        self.known.owners = std::mem::take(&mut assignment.owners);
        for node in &told {
            self.announced.confirm(node, self.known.snapshot.mesh.as_ref());
        }
        let Snapshot { mesh, nodes, .. } = &mut self.known.snapshot;
        self.announced.restore(mesh.as_ref(), nodes);
        if told.contains(&self.name) {
            self.keeper.hear_own(self.announced.of(&self.name), now.epoch.as_secs());
        }
        self.renew_keys(&knowledge, now);

        let mut outcome = Outcome { synced: knowledge.synced().is_some(), ..Outcome::default() };
        let mut problems = read.problems;
        // Where it was never known there is another problem.
        problems.extend(
            (lacks_us && knows(&self.known.snapshot, &self.name)).then(|| problems::not_seen(&self.name)),
        );
        problems.extend(problems::strangers(&self.name, &self.known.snapshot.strangers));
        problems.extend((deleted && self.known.snapshot.mesh.is_some()).then(problems::mesh_deleted));
        for round in 0.. {
            let is_first = round == 0;
            match self.round(&knowledge, &assignment, now, is_first, &mut outcome) {
                Ok(0) => outcome.settled = true,
                Ok(_) if round < ROUNDS => continue,
                Ok(left) => problems.push(problems::unsettled(left)),
                Err(errors) => problems.extend(errors.iter().map(problems::of_kernel)),
            }
            break;
        }
        problems.extend(self.hold_back(&outcome.desired, earlier, now));
        problems.append(&mut outcome.problems);
        let rotates_in = self.publish(&knowledge, &outcome, now, &mut problems);
        if outcome.synced {
            self.keep(&mut problems);
        }
        problems.append(&mut assignment.problems);
        (self.knowledge, self.assignment) = (knowledge, assignment);
        self.conclude(outcome, problems, now);
        let ends =
            [self.pairs.next_look(now), self.bypasses.next_look(now), self.ebbing.next_look(now.monotonic)];
        let wait = [Some(self.wait(now)), read.look_again, rotates_in].into_iter().chain(ends);
        self.due = now.monotonic + wait.flatten().min().unwrap_or(RESYNC);
        self.await_answers(now);
        self.until_next(now)
    }

    /// When peers that have not answered yet may have.
    fn await_answers(&mut self, now: Now) {
        self.look_at = self.tunnels.next_look(now.monotonic).map(|wait| now.monotonic + wait);
    }

    /// How long there is nothing to do, if nothing stirs.
    fn until_next(&self, now: Now) -> Duration {
        self.look_at.into_iter().fold(self.due, Duration::min).saturating_sub(now.monotonic)
    }

    /// What follows from what an earlier daemon kept.
    fn desired_before(&mut self, now: Now) -> Desired {
        let knowledge = Knowledge::Partial(self.known.snapshot.clone());
        let assignment = self.learn(&knowledge, now);
        self.announced.all_is_kept();
        self.desire(&knowledge, &assignment, &Observed::default(), now)
    }

    /// Takes in what `knowledge` says of this node and of the others; whose each prefix is.
    fn learn(&mut self, knowledge: &Knowledge, now: Now) -> Assignment {
        let snapshot = knowledge.snapshot();
        self.announced.update(&snapshot.nodes);
        if let Some(own) = snapshot.nodes.get(&self.name) {
            self.keeper.unlock(&own.uid, now.epoch.as_secs());
        }
        match &snapshot.mesh {
            Some(mesh) => assign(knowledge, mesh, &self.known.owners),
            None => Assignment::default(),
        }
    }

    fn desire(
        &self,
        knowledge: &Knowledge,
        assignment: &Assignment,
        observed: &Observed,
        now: Now,
    ) -> Desired {
        desired(&self.inputs(knowledge, assignment, observed, &self.resting.at(now.monotonic), now))
    }

    fn inputs<'a>(
        &'a self,
        knowledge: &'a Knowledge,
        assignment: &'a Assignment,
        observed: &'a Observed,
        resting: &'a BTreeSet<u32>,
        now: Now,
    ) -> Inputs<'a> {
        Inputs {
            node: &self.name,
            keys: self.keeper.publics(),
            knowledge,
            told: self.told,
            assignment,
            announced: &self.announced,
            rotation: &self.rotation,
            tunnels: &self.tunnels,
            observed,
            underlay: &self.underlay,
            backstop: self.backstop,
            build: &self.build,
            adopting: &self.pairs.adopting,
            bypassing: &self.bypasses.bypassing,
            steers_on: self.ebbing.steers_on(now.monotonic),
            resting,
            now: now.monotonic,
            epoch: now.epoch,
        }
    }

    /// Observes, plans, acts. Returns the number of actions carried out.
    fn round(
        &mut self,
        knowledge: &Knowledge,
        assignment: &Assignment,
        now: Now,
        is_first: bool,
        outcome: &mut Outcome,
    ) -> Result<usize, Vec<KernelError>> {
        outcome.observed = self.observe(now).map_err(|e| vec![e])?;
        self.look_for_pods(knowledge, &mut outcome.observed, now);
        self.notice(&outcome.observed, knowledge, now, is_first);
        // What nobody has written yet steers nothing.
        let written = outcome.observed.datapath.as_ref().and_then(Datapath::written);
        let stands = written.map(|config| Mode::from_raw(config.mode));
        self.ebbing.look(knowledge.snapshot().mode(), stands, now.monotonic);
        outcome.desired = self.desire(knowledge, assignment, &outcome.observed, now);
        let adopts = self.adopt(knowledge, assignment, outcome, now);
        if self.bypass(knowledge, assignment, outcome, now) || adopts {
            outcome.desired = self.desire(knowledge, assignment, &outcome.observed, now);
        }
        self.resting.uses(outcome.desired.remotes.values().map(|r| r.index).collect(), now.monotonic);
        self.undone.look(&outcome.desired);
        self.written.look(&outcome.desired, &outcome.observed);
        let written = self.written.endpoints();
        let actions = plan(&outcome.desired, &outcome.observed, knowledge.synced(), written);
        self.execute(&actions)?;
        Ok(actions.len())
    }

    /// Which pairs are open, by what was observed and what follows from it; true if something else follows now.
    fn adopt(
        &mut self,
        knowledge: &Knowledge,
        assignment: &Assignment,
        outcome: &mut Outcome,
        now: Now,
    ) -> bool {
        // What the maps keep closed counts: so not before they are seen.
        let Some(datapath) = &outcome.observed.datapath else { return false };
        let remotes = outcome.desired.remotes.iter();
        let proven = remotes.filter(|(_, remote)| remote.tunnelled).map(|(name, _)| name.clone()).collect();
        let seen = Seen::of(&self.name, knowledge, assignment, datapath, proven, now.epoch);
        let (changes, problem) = self.pairs.look(seen, now);
        outcome.problems.extend(problem);
        changes
    }

    /// How far `spec.adoption` has come, for people.
    pub(crate) fn adoption(&self) -> Option<AdoptionStatus> {
        let adoption = self.mesh()?.adoption?;
        Some(AdoptionStatus {
            deadline: adoption.deadline.to_string(),
            over: self.pairs.is_over(),
            open: self.pairs.adopting.open.iter().cloned().collect(),
        })
    }

    /// Reads the counters. Those that can't be read now are as they were: none ever falls.
    pub(crate) fn count(&mut self) {
        let read = self.kernel.counters();
        if let Some(counts) = self.beside("counters", read) {
            self.counts = counts;
        }
    }

    /// Forgets flows that are over.
    pub(crate) fn sweep_flows(&mut self) {
        let left = self.kernel.sweep_flows();
        if let Some(left) = self.beside("flows", left) {
            self.flows = left;
        }
    }

    /// What came of a call that is no part of the way round; the next one tells that it failed.
    fn beside<T>(&mut self, what: &'static str, done: Result<T, KernelError>) -> Option<T> {
        match done {
            Ok(value) => {
                self.beside.remove(what);
                Some(value)
            }
            Err(error) => {
                self.beside.insert(what, problems::of_kernel(&error));
                None
            }
        }
    }

    /// Carries out all of `actions`: one that fails doesn't stop the others, which concern other nodes.
    fn execute(&mut self, actions: &[Action]) -> Result<(), Vec<KernelError>> {
        let mut errors = Vec::new();
        self.writes += actions.len() as u64;
        for together in actions.chunk_by(Action::goes_with) {
            // Each step is told before it is taken: whoever reads a log that ends knows where.
            for action in together {
                tracing::debug!(%action, "execute");
            }
            let done = self.kernel.execute_all(together, &self.keeper);
            for (action, done) in together.iter().zip(done) {
                match done {
                    Ok(()) => self.written.carried_out(action),
                    Err(e) => {
                        // Told once, at its level, as a problem.
                        tracing::debug!(%action, "{e}");
                        errors.push(e);
                    }
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn keep(&mut self, problems: &mut Vec<Problem>) {
        match self.kept.keep(&self.known) {
            Ok(()) => self.standing.retain(|p| p.kind != ProblemKind::State),
            Err(e) => problems.push(problems::kept_unwritable(self.kept.path(), &e)),
        }
    }

    fn wait(&mut self, now: Now) -> Duration {
        if self.last.settled {
            self.retry = RETRY;
            return self.pods.resync(now);
        }
        let wait = self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        wait
    }
}
