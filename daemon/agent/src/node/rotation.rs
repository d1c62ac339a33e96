//! This node's keys: which it makes and gives up, and what it tells the others of them.

use std::collections::BTreeSet;
use std::time::Duration;

use kubeveil_abi::DEVICE_NAMES;
use kubeveil_api::{mesh::MeshSpec, rotation::RotationSpec, schedule::Period};
use kubeveil_core::{
    announced::Heard,
    policy::PolicyId,
    problem::Problem,
    rotation::{Holdup, Said, Step, View, holdups, progress::Phase},
    snapshot::Knowledge,
};
use kubeveil_keys::{Generation, KeyInfo};
use kubeveil_linux::Kernel;

use super::{Node, Now, Outcome, problems};

/// Rotations that this node went through since the daemon started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rotations {
    /// When the one that is under way began, monotonic.
    began: Option<Duration>,
    /// By all others having moved.
    pub(crate) done: u64,
    /// By somebody's word.
    pub(crate) forced: u64,
    /// How long the last one took whose begin was seen, seconds.
    pub(crate) took: f64,
}

impl Rotations {
    fn begins(&mut self, now: Duration) {
        self.began = Some(now);
    }

    fn ends(&mut self, is_forced: bool, now: Duration) {
        *(if is_forced { &mut self.forced } else { &mut self.done }) += 1;
        if let Some(began) = self.began.take() {
            self.took = now.saturating_sub(began).as_secs_f64();
        }
    }
}

/// Steps that can follow from one another: a key goes for which another comes, and once more.
const STEPS: usize = 4;

impl<K: Kernel> Node<K> {
    /// Makes the key that is wanted, and gives up what nobody needs any more.
    pub(super) fn renew_keys(&mut self, knowledge: &Knowledge, now: Now) {
        // What came since the last look is no silence.
        if self.rotation.waits_for_silence() {
            self.look(now);
        }
        for _ in 0..STEPS {
            if !self.keeper.is_open() {
                return;
            }
            let mut rotation = std::mem::take(&mut self.rotation);
            let step = rotation.keys(&self.view_of(knowledge, &self.last, now));
            self.rotation = rotation;
            let is_done = match step {
                None => return,
                Some(Step::Make(generation))
                    if self.is_left_out() && self.keeper.info().is_some() && !self.has_room(generation) =>
                {
                    return;
                }
                // By labels that are not known yet nobody is left out; who has no key, since its own was revoked, waits for nothing.
                Some(Step::Make(_))
                    if self.asked().node_selector.is_some()
                        && knowledge.synced().is_none()
                        && self.keeper.info().is_some() =>
                {
                    return;
                }
                Some(Step::Make(generation)) => {
                    self.rotations.begins(now.monotonic);
                    self.keeper.make(generation, self.is_left_out(), now.epoch.as_secs())
                }
                Some(Step::Retire(generation)) => {
                    let is_forced = generation.number() < self.asked().retire_before;
                    let is_done = self.keeper.retire(generation);
                    if is_done && self.keeper.publics().len() == 1 {
                        self.rotations.ends(is_forced, now.monotonic);
                    }
                    is_done
                }
            };
            if !is_done {
                return;
            }
        }
    }

    /// Is there no device by that generation's name? One has to go before the next comes: with the same key, that would take over its
    /// sessions, and they pass for proof. An earlier daemon may have died before it went.
    fn has_room(&self, generation: Generation) -> bool {
        let seen = &self.last.observed;
        !seen.links.is_empty() && !seen.tunnels.contains_key(DEVICE_NAMES[generation.parity()])
    }

    /// What was asked for of the generation that the mesh wants.
    fn asked(&self) -> RotationSpec {
        self.mesh().map(MeshSpec::asked).unwrap_or_default()
    }

    /// Does the rotation leave this node its key?
    fn is_left_out(&self) -> bool {
        let own = self.known.snapshot.nodes.get(&self.name);
        let selector = self.asked().node_selector;
        selector.zip(own).is_some_and(|(selector, own)| !selector.selects(&own.labels))
    }

    /// Tells the others, once a device that we speak of stands. Returns how long until something is to be done about keys though
    /// nothing stirs.
    pub(super) fn publish(
        &mut self,
        knowledge: &Knowledge,
        outcome: &Outcome,
        now: Now,
        problems: &mut Vec<Problem>,
    ) -> Option<Duration> {
        let mut rotation = std::mem::take(&mut self.rotation);
        let view = self.view_of(knowledge, outcome, now);
        let says = rotation.says(&view);
        let wait = rotation.next_look(&view);
        self.rotation = rotation;
        // It would take the place of what was said before, which is not known yet.
        if let Some((generations, not_flipped)) = says.filter(|_| self.keeper.has_been_told()) {
            let published = self.announced.of(&self.name);
            let announcement = self.keeper.announcement(&generations, &not_flipped, published);
            let done = announcement.map(|(uid, json)| self.source.announce(&self.name, &uid, Some(&json)));
            problems.extend(done.and_then(Result::err));
        }
        wait
    }

    /// What holds up each older key that this node has, as of the last way round.
    pub(crate) fn holdups(&self, now: Now) -> Vec<(Generation, BTreeSet<Holdup>)> {
        let Some((_, older)) = self.keeper.publics().split_last().filter(|(_, older)| !older.is_empty())
        else {
            return Vec::new();
        };
        let view = self.view_of(&self.knowledge, &self.last, now);
        older.iter().map(|(generation, _)| (*generation, holdups(*generation, &view))).collect()
    }

    /// An older key that is still here after the time that a rotation has.
    pub(super) fn is_late(&self, now: Now) -> Option<Problem> {
        let newest = self.keeper.info().filter(|_| self.keeper.publics().len() > 1)?;
        let asked = self.asked();
        // A key that serves two generations is older than the second one.
        let begun = asked.requested_at.and_then(|at| u64::try_from(at.as_second()).ok()).unwrap_or(0);
        let by_key = now.epoch.as_secs().saturating_sub(newest.created.max(begun));
        let since =
            self.rotations.began.map_or(by_key, |began| now.monotonic.saturating_sub(began).as_secs());
        if since < u64::from(asked.deadline()) {
            return None;
        }
        let (older, why) = self.holdups(now).into_iter().next()?;
        Some(problems::late_rotation(newest.generation, older, &why))
    }

    /// A key in use that is older than the mesh allows. It goes on being used.
    pub(super) fn is_too_old(&self, now: Now) -> Option<Problem> {
        let (asking, most) = self.max_key_age()?;
        let key = self.keeper.info()?;
        let age = now.epoch.as_secs().saturating_sub(key.created);
        (age > most.seconds()).then(|| problems::key_too_old(key.generation, age, asking, most))
    }

    /// The age above which a key is told of, and the policy that asks for it if it is not the mesh.
    pub(crate) fn max_key_age(&self) -> Option<(Option<&PolicyId>, Period)> {
        let asked = self.mesh().and_then(|mesh| mesh.rotation.as_ref()).and_then(|asked| asked.max_key_age);
        let of_policies = self.snapshot().policies.max_key_age();
        let of_policies = of_policies.map(|(policy, most)| (Some(policy), most));
        asked.map(|most| (None, most)).into_iter().chain(of_policies).min_by_key(|(_, most)| *most)
    }

    /// Nodes by how far each is with the generation that the mesh wants.
    pub(crate) fn phases(&self) -> [(&'static str, usize); Phase::ALL.len()] {
        let wanted = self.mesh().map_or(Generation::FIRST, |mesh| Generation::new(mesh.key_generation));
        let mut phases = Phase::ALL.map(|phase| (phase.name(), 0));
        for name in self.known.snapshot.nodes.keys() {
            let said = self.announced.of(name).map(Said::from);
            phases[Phase::of(said.as_ref(), wanted) as usize].1 += 1;
        }
        phases
    }

    /// What rotation goes by, after a way round that came to `outcome`.
    pub(super) fn view_of<'a>(
        &'a self,
        knowledge: &'a Knowledge,
        outcome: &'a Outcome,
        now: Now,
    ) -> View<'a> {
        let mesh = knowledge.snapshot().mesh.as_ref();
        let asked = mesh.and_then(|mesh| mesh.rotation.as_ref());
        let of = |is_so: &dyn Fn(&KeyInfo) -> bool| -> BTreeSet<Generation> {
            self.keeper.infos().filter(|info| is_so(info)).map(|info| info.generation).collect()
        };
        let stands = |info: &KeyInfo| {
            let device = outcome.observed.tunnels.get(DEVICE_NAMES[info.generation.parity()]);
            device.is_some_and(|device| device.public_key == Some(info.public))
        };
        // Nobody waits for who can have no agent, whatever it said before.
        let counts = |name: &str| name != self.name && knowledge.snapshot().excludes(name).is_none();
        let others: Vec<_> = self.announced.all().filter(|(name, _)| counts(name)).collect();
        let is_told = others.iter().all(|(name, _)| self.announced.heard(name) == Heard::Told);
        let remotes = outcome.desired.remotes.iter().filter(|(_, remote)| remote.tunnelled);
        let ways = remotes.map(|(name, remote)| (name.as_str(), remote.generation));
        let quiet = |info: &KeyInfo| {
            let device = DEVICE_NAMES[info.generation.parity()];
            (info.generation, self.tunnels.quiet(device, now.monotonic))
        };
        View {
            node: &self.name,
            wanted: mesh.map(|mesh| Generation::new(mesh.key_generation)),
            paused: asked.is_some_and(|asked| asked.paused),
            retire_before: Generation::new(asked.map_or(0, |asked| asked.retire_before)),
            held: of(&|_| true),
            revoked: of(&|info| mesh.is_some_and(|mesh| mesh.revokes(&info.public))),
            standing: of(&stands),
            own: self.announced.of(&self.name).map(Said::from),
            is_told: self.announced.heard(&self.name) == Heard::Told,
            others: others.into_iter().map(|(name, said)| (name, Said::from(said))).collect(),
            complete: knowledge.synced().is_some(),
            whole: knowledge.synced().is_some() && is_told,
            ways: outcome.settled.then(|| ways.collect()),
            quiet: self.keeper.infos().map(quiet).collect(),
            now: now.monotonic,
        }
    }
}
