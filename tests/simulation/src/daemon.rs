//! What a daemon has in its memory, and what it makes of it (`daemon/agent/src/node.rs`): the decisions are the production functions'.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use kubeveil_abi::{Config, DEVICE_NAMES, Mode, PeerState};
use kubeveil_api::announcement::{GenerationEntry, NotFlipped};
use kubeveil_core::{
    action::Action,
    adoption::{Adopting, GRACE, Gate, Seen},
    announced::{Heard as From, is_older},
    desired::Desired,
    observed::Observed,
    rotation::{Rotation, STILL, Said, Step, View},
    tunnels::Tunnels,
};
use kubeveil_keys::{Generation, PublicKey};

use crate::{
    api::{Mesh, Object, Publication, Saying, Store},
    kernel::{address, endpoint, index},
    rules::Rules,
    world::place,
};

/// A node's keys by generation.
pub(crate) type Keys = BTreeMap<Generation, PublicKey>;

/// What is known of the cluster; also as it is kept on disk.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) mesh: Option<Rc<Mesh>>,
    pub(crate) nodes: BTreeMap<&'static str, Object>,
}

/// What a node said last.
#[derive(Clone)]
pub(crate) struct Heard {
    uid: u32,
    pub(crate) said: Option<Rc<Saying>>,
    /// What an earlier daemon kept, until a source tells of something that is not older.
    kept: Option<Rc<Saying>>,
    /// A source has told of it since the daemon started.
    is_told: bool,
}

impl Heard {
    /// As in `core::announced`.
    pub(crate) fn from(&self) -> From {
        match (&self.kept, self.is_told) {
            (None, _) => From::Told,
            (Some(_), false) => From::Kept,
            (Some(_), true) => From::Past,
        }
    }
}

/// What a way round came to.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) observed: Observed,
    pub(crate) ways: BTreeMap<&'static str, Generation>,
    pub(crate) settled: bool,
}

/// Where a way round is.
pub(crate) enum Stage {
    /// Keys; so many steps can follow.
    Keys(usize),
    /// To look and to plan, for the n-th time.
    Round(usize),
    /// To act; whether an action has failed.
    Act(usize, VecDeque<Action>, bool),
    /// To tell the others.
    Publish,
    /// To keep what is known.
    Keep,
}

/// The memory.
#[derive(Default)]
pub(crate) struct Daemon {
    pub(crate) place: usize,
    pub(crate) name: &'static str,
    /// Which life of the daemon it is.
    pub(crate) life: u32,
    pub(crate) store: Store,
    pub(crate) known: Known,
    pub(crate) heard: BTreeMap<&'static str, Heard>,
    /// The source has told of the mesh: what is known of it is no hearsay.
    pub(crate) is_told_of_mesh: bool,
    /// Absence from `known` means something.
    pub(crate) is_whole: bool,
    pub(crate) tunnels: Tunnels,
    pub(crate) rotation: Rotation,
    pub(crate) last: Outcome,
    pub(crate) next: Outcome,
    pub(crate) publication: Publication,
    /// Which pairs are open, and what the maps are told of it.
    gate: Gate,
    /// All nodes were seen once in this life.
    is_own: bool,
    pub(crate) adopting: Adopting,
    /// The way round that is under way, and when it began.
    pub(crate) stage: Option<Stage>,
    pub(crate) began: Duration,
    /// Something stirred meanwhile.
    pub(crate) is_stirred: bool,
    /// Which of the wake-ups counts.
    pub(crate) alarm: u32,
    pub(crate) retry: Duration,
    /// For broken rules: when the newest key was made.
    pub(crate) made: Option<Duration>,
}

impl Daemon {
    pub(crate) fn new(place: usize, name: &'static str, life: u32, kept: Option<&Known>, gate: Gate) -> Self {
        let mut daemon = Self { place, name, life, gate, retry: RETRY, ..Self::default() };
        if let Some(kept) = kept {
            daemon.known = kept.clone();
            daemon.hear();
            daemon.heard.values_mut().for_each(|heard| heard.kept.clone_from(&heard.said));
        }
        daemon
    }

    pub(crate) fn mesh(&self) -> Mesh {
        self.known.mesh.as_deref().cloned().unwrap_or_default()
    }

    /// Takes in what the source has.
    pub(crate) fn read(&mut self, rules: Rules) {
        let told = self.store.nodes.iter().filter(|(_, node)| node.said.is_some());
        let told: Vec<&str> = told.map(|(name, _)| *name).collect();
        let has_us = self.store.nodes.contains_key(self.name);
        self.is_whole = self.store.is_listed() && has_us && self.store.mesh.is_some();
        self.is_told_of_mesh |= self.store.mesh.is_some() || rules == Rules::LoosensByTheDisk;
        if let Some(mesh) = &self.store.mesh {
            self.known.mesh = Some(Rc::clone(mesh));
        }
        if self.is_whole {
            self.known.nodes.clone_from(&self.store.nodes);
        } else {
            self.known.nodes.extend(self.store.nodes.iter().map(|(name, object)| (*name, object.clone())));
        }
        self.hear();
        let revoked = self.known.mesh.as_deref().map_or(&[][..], |mesh| &mesh.revoked);
        for name in told {
            if let Some(heard) = self.heard.get_mut(name) {
                heard.is_told = true;
                let said = heard.said.as_deref().map_or(&[][..], |said| &said.generations);
                heard.kept.take_if(|kept| {
                    rules == Rules::BelievesThePast
                        || !is_older(said, &kept.generations, |key| revoked.contains(key))
                });
            }
        }
    }

    /// What is kept on disk: never what is older than what was.
    pub(crate) fn keeps(&self) -> Known {
        let mut known = self.known.clone();
        for (name, heard) in &self.heard {
            if let (Some(kept), Some(node)) = (&heard.kept, known.nodes.get_mut(name)) {
                node.said = Some(Rc::clone(kept));
            }
        }
        known
    }

    fn hear(&mut self) {
        let known = &self.known.nodes;
        self.heard.retain(|name, heard| known.get(name).is_some_and(|node| node.uid == heard.uid));
        for (name, node) in known {
            let heard = self.heard.entry(name).or_insert(Heard {
                uid: node.uid,
                said: None,
                kept: None,
                is_told: false,
            });
            if node.said.is_some() {
                heard.said.clone_from(&node.said);
            }
        }
    }

    /// Is nothing without a proven tunnel to pass, for all that is known?
    pub(crate) fn requires(&self) -> bool {
        self.known.mesh.as_ref().is_none_or(|mesh| !mesh.prefers)
    }

    /// What adoption goes by.
    fn seen(&self, observed: &Observed, desired: &Desired, epoch: Duration) -> Seen {
        let mesh = self.known.mesh.as_ref().filter(|_| self.requires());
        let others = self.known.nodes.iter().filter(|(name, _)| **name != self.name);
        let datapath = observed.datapath.as_ref();
        let requires = |config: Config| Mode::from_raw(config.mode) == Mode::Require;
        let required = datapath.filter(|datapath| datapath.written().is_some_and(requires));
        let bars = |name: &str| {
            let datapath = required.filter(|datapath| datapath.prefixes.contains_key(&address(place(name))));
            datapath.is_some_and(|datapath| {
                let value = datapath.peers.get(&index(place(name)));
                value.is_none_or(|value| value.state() != PeerState::Adopting)
            })
        };
        let remotes = desired.remotes.iter().filter(|(_, remote)| remote.tunnelled);
        Seen {
            adoption: mesh.and_then(|mesh| mesh.adoption),
            requires: mesh.is_some(),
            barred: others
                .clone()
                .map(|(name, _)| *name)
                .filter(|name| bars(name))
                .map(str::to_owned)
                .collect(),
            others: others.map(|(name, node)| ((*name).to_owned(), node.uid.to_string())).collect(),
            whole: self.is_whole,
            proven: remotes.map(|(name, _)| name.clone()).collect(),
            is_own: self.is_own,
            is_misled: false,
            epoch,
        }
    }

    /// Which pairs are open, by what was observed and what follows from it; true if something else follows now. As in
    /// `daemon/agent/src/node/adoption.rs`, with the record on disk and whether that is full.
    pub(crate) fn adopts(
        &mut self,
        observed: &Observed,
        desired: &Desired,
        epoch: Duration,
        (record, is_full): (&mut Gate, bool),
        rules: Rules,
    ) -> bool {
        let mut seen = self.seen(observed, desired, epoch);
        if rules == Rules::ForgetsWhoWasClosed {
            seen.barred.clear();
        }
        self.is_own |= seen.whole && seen.requires;
        let next = self.gate.step(&seen);
        let is_refused = next != *record && is_full;
        if !is_refused {
            record.clone_from(&next);
        }
        let mut told = Adopting { heard: self.adopting.heard.clone(), ..Adopting::default() };
        if !is_refused || next.is_over() || self.gate.is_begun() {
            told.open = next.open(&seen);
            self.gate = next;
        }
        let boot = self.began.as_secs();
        let seconds = |all: u64| u32::try_from(all).unwrap_or(u32::MAX);
        let left = seen.adoption.map(|adoption| self.gate.deadline(&adoption).saturating_sub(epoch));
        if let Some(left) = left.filter(|_| !told.open.is_empty()) {
            told.until = seconds(boot + left.as_secs());
        }
        let closed = self.adopting.open.difference(&told.open).filter(|name| seen.proven.contains(*name));
        told.heard.extend(closed.map(|name| (name.clone(), seconds(boot + GRACE.as_secs()))));
        told.heard.retain(|_, until| u64::from(*until) > boot);
        let changes = told != self.adopting;
        self.adopting = told;
        changes
    }

    /// When something of it ends by itself.
    fn adoption_ends(&self) -> Option<Duration> {
        let open = (!self.adopting.open.is_empty()).then_some(&self.adopting.until);
        let until = self.adopting.heard.values().chain(open).min()?;
        Some(Duration::from_secs(u64::from(*until) + 1).saturating_sub(self.began))
    }

    /// The node's own UID is known, so that it can open its keys.
    pub(crate) fn is_open(&self) -> bool {
        self.known.nodes.contains_key(self.name)
    }

    /// Is there no device by that generation's name, for all that was seen?
    pub(crate) fn has_room(&self, generation: Generation) -> bool {
        let is_there = self.last.observed.tunnels.contains_key(DEVICE_NAMES[generation.parity()]);
        self.last.observed.datapath.is_some() && !is_there
    }

    pub(crate) fn is_told_of_itself(&self) -> bool {
        self.heard.get(self.name).is_some_and(|heard| heard.from() == From::Told)
    }

    pub(crate) fn own(&self) -> Option<Said<'_>> {
        self.heard.get(self.name)?.said.as_deref().map(Saying::said)
    }

    /// What rotation goes by.
    pub(crate) fn view<'a>(
        &'a self,
        held: &Keys,
        outcome: &'a Outcome,
        revoked: &[PublicKey],
        rules: Rules,
    ) -> View<'a> {
        static NOBODY: NotFlipped = NotFlipped::nobody();
        let mesh = self.known.mesh.as_deref();
        let of = |is_so: &dyn Fn(&PublicKey) -> bool| -> BTreeSet<Generation> {
            held.iter().filter(|(_, key)| is_so(key)).map(|(generation, _)| *generation).collect()
        };
        let stands =
            |key: &PublicKey| outcome.observed.tunnels.values().any(|device| device.public_key == Some(*key));
        let others = self.heard.iter().filter(|(name, _)| **name != self.name);
        let said = others.clone().filter_map(|(name, heard)| Some((*name, heard.said.as_deref()?.said())));
        let is_told = others.clone().all(|(_, heard)| heard.from() == From::Told);
        let quiet = |generation: &Generation| {
            let quiet = self.tunnels.quiet(DEVICE_NAMES[generation.parity()], self.began);
            (
                *generation,
                if matches!(rules, Rules::NoQuietTime | Rules::DoesNotWait) { STILL } else { quiet },
            )
        };
        let mut view = View {
            node: self.name,
            wanted: mesh.map(|mesh| Generation::new(mesh.generation)),
            paused: mesh.is_some_and(|mesh| mesh.paused),
            retire_before: Generation::new(mesh.map_or(0, |mesh| mesh.retire_before)),
            held: held.keys().copied().collect(),
            revoked: of(&|key| revoked.contains(key)),
            standing: of(&stands),
            own: self.own(),
            others: said.collect(),
            is_told: self.heard.get(self.name).is_none_or(|heard| heard.from() == From::Told),
            complete: self.is_whole,
            whole: self.is_whole && is_told || rules == Rules::RemovesBeforeSync,
            ways: outcome.settled.then(|| outcome.ways.iter().map(|(name, by)| (*name, *by)).collect()),
            quiet: held.keys().map(quiet).collect(),
            now: self.began,
        };
        let newest = view.held.last().copied().unwrap_or_default();
        match rules {
            Rules::IgnoresTheList => {
                view.others.values_mut().for_each(|said| said.not_flipped = &NOBODY);
            }
            Rules::IgnoresWhoHasNotBegun => {
                view.others.retain(|_, said| said.generations.last().is_some_and(|e| e.generation >= newest));
            }
            Rules::IgnoresOwnWays => {
                view.ways.iter_mut().flatten().for_each(|(_, by)| *by = newest);
            }
            _ => {}
        }
        view
    }

    /// What is to be done about keys.
    pub(crate) fn step(&mut self, held: &Keys, rules: Rules) -> Option<Step> {
        let revoked = self.mesh().revoked;
        let mut rotation = std::mem::take(&mut self.rotation);
        let view = self.view(held, &self.last, &revoked, rules);
        if rules == Rules::DoesNotWait {
            rotation.keys(&view);
            rotation = rotation.with_times(|_| Duration::ZERO);
        }
        let newest = view.held.last().copied();
        let oldest = view.held.first().copied();
        let step = rotation.keys(&view);
        self.rotation = rotation;
        match (rules, step) {
            (Rules::RetiresOnATimer, None) if held.len() > 1 => {
                let is_over = self.made.is_some_and(|at| self.began >= at + STILL * 2);
                oldest.filter(|_| is_over).map(Step::Retire)
            }
            (Rules::NeverByWayOfTheOneBetween, Some(Step::Make(next)))
                if next.number() != self.mesh().generation =>
            {
                newest.map(Step::Retire)
            }
            (_, step) => step,
        }
    }

    /// What it says from now on.
    pub(crate) fn says(&mut self, held: &Keys, rules: Rules) -> Option<Saying> {
        let mut rotation = std::mem::take(&mut self.rotation);
        let view = self.view(held, &self.next, &[], rules);
        let says = match rules {
            Rules::TellsWithoutEnd => Rotation::default().says(&View { own: None, ..view }),
            _ => rotation.says(&view),
        };
        self.rotation = rotation;
        let (generations, not_flipped) = says?;
        let entry = |(generation, state): (Generation, _)| {
            let port = endpoint(self.place, generation).port().try_into().ok()?;
            Some(GenerationEntry { generation, public_key: *held.get(&generation)?, port, state })
        };
        let generations = generations.into_iter().filter_map(entry).collect();
        let not_flipped = if rules == Rules::ListsNobody { NotFlipped::nobody() } else { not_flipped };
        Some(Saying { generations, not_flipped })
    }

    /// How long nothing has to be done after the way round that is over, if nothing stirs.
    pub(crate) fn wait(&mut self, held: &Keys, rules: Rules) -> Duration {
        let regular = if self.last.settled {
            self.retry = RETRY;
            RESYNC
        } else {
            let wait = self.retry;
            self.retry = (wait * 2).min(RETRY_MAX);
            wait
        };
        let rotates = self.rotation.next_look(&self.view(held, &self.last, &[], rules));
        let answers = self.tunnels.next_look(self.began);
        rotates.into_iter().chain(answers).chain(self.adoption_ends()).fold(regular, Duration::min)
    }
}

/// As in `daemon/agent/src/node.rs`.
const RESYNC: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
