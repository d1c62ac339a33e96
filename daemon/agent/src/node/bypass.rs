//! Which nodes are bypassed, kept on disk before the kernel hears of it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use jiff::Timestamp;
use kubeveil_api::status::BypassStatus;
use kubeveil_core::{
    bypass::{Bypassed, Bypassing, Kept, Record, Seen, standing},
    ownership::Assignment,
    policy::FlowMode,
    problem::{Problem, ProblemKind, readable},
    snapshot::Knowledge,
};
use kubeveil_linux::Kernel;

use super::{Node, Now, Outcome, problems};
use crate::kept::{BYPASSES, KeptFile};

/// What this node has heard of, and what the datapath is told of it.
#[derive(Debug)]
pub(super) struct Bypasses {
    file: KeptFile<Record>,
    record: Record,
    kept: Kept,
    /// The kernel's name for this boot.
    pub(super) boot: String,
    pub(super) bypassing: Bypassing,
    /// Those that are spoken to in plain, as last told to the log.
    told: BTreeMap<String, Bypassed>,
}

impl Bypasses {
    /// As the daemon before left them.
    pub(super) fn open(state_dir: &Path) -> (Self, Option<Problem>) {
        let (file, record, unreadable) = KeptFile::open(state_dir, BYPASSES);
        let record: Record = record;
        let kept = match (&unreadable, record.is_empty()) {
            (Some(_), _) => Kept::Unreadable,
            (None, true) => Kept::Absent,
            (None, false) => Kept::Whole,
        };
        let problem = unreadable.map(|message| problems::bypasses_unreadable(file.path(), message));
        // One that can't be read is the same in every boot, which the record knows how to tell.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = format!("boot {}", boot.trim());
        let (bypassing, told) = (Bypassing::default(), BTreeMap::new());
        (Self { file, record, kept, boot, bypassing, told }, problem)
    }

    /// Takes in what is seen; true if the datapath has to be told something else.
    fn look(&mut self, seen: &Seen<'_>) -> (bool, Option<Problem>) {
        let mut next = self.record.step(seen);
        let mut problem = None;
        // Most meshes never have one.
        let is_idle = !next.has_entries() && !self.record.has_entries() && self.kept != Kept::Unreadable;
        if !is_idle {
            // What closes never waits for the disk; what opens does.
            if let Err(e) = self.file.keep(&next) {
                problem = Some(problems::bypasses_unwritable(self.file.path(), &e));
                next = next.without_news(&self.record);
            } else if seen.is_whole || next.has_entries() {
                self.kept = Kept::Whole;
            }
        }
        let problem = problem.or_else(|| next.waiting().next().map(|(peer, at)| waits(peer, at)));
        let bypassing = next.bypassing(seen.now);
        self.record = next;
        let changes = bypassing != self.bypassing;
        self.bypassing = bypassing;
        (changes, problem)
    }

    /// When something begins or ends by itself.
    pub(super) fn next_look(&self, now: Now) -> Option<Duration> {
        self.record.next_look(now.monotonic)
    }
}

impl<K: Kernel> Node<K> {
    /// Which nodes are bypassed; true if something else follows now.
    pub(super) fn bypass(
        &mut self,
        knowledge: &Knowledge,
        assignment: &Assignment,
        outcome: &mut Outcome,
        now: Now,
    ) -> bool {
        // What the maps say counts where the record is lost: so not before they are seen.
        let Some(datapath) = &outcome.observed.datapath else { return false };
        let said = knowledge.snapshot().mesh.as_ref().map_or(&[][..], |mesh| &mesh.bypasses);
        let boot = self.bypasses.boot.clone();
        let seen = Seen {
            node: &self.name,
            bypasses: said,
            is_whole: knowledge.synced().is_some(),
            standing: standing(&self.name, said, assignment, datapath),
            kept: self.bypasses.kept,
            boot: &boot,
            now: now.monotonic,
            epoch: now.epoch,
        };
        let (changes, problem) = self.bypasses.look(&seen);
        outcome.problems.extend(problem);
        changes
    }

    /// Says once who is spoken to in plain from now on, and who is not any more.
    pub(super) fn tell_bypasses(&mut self, now: Now) {
        let peers = self.in_force(now);
        let current: BTreeMap<String, Bypassed> =
            peers.map(|(peer, bypassed)| (peer.clone(), bypassed.clone())).collect();
        let told = std::mem::replace(&mut self.bypasses.told, current.clone());
        for (peer, Bypassed { by, reason, end, until, .. }) in &current {
            if told.get(peer).map(|was| (was.end, &was.by)) != Some((*end, by)) {
                tracing::warn!(
                    peer,
                    by = readable(by),
                    reason = readable(reason),
                    %until,
                    "bypass: in some seconds at the latest packets to this node travel in plain, but for those of which policies require encryption"
                );
            }
        }
        for (peer, Bypassed { by, reason, .. }) in
            told.iter().filter(|(peer, _)| !current.contains_key(*peer))
        {
            tracing::info!(peer, by = readable(by), reason = readable(reason), "bypass is over");
        }
    }

    /// Nodes that are spoken to in plain, or are about to be. Where nothing is steered nothing is bypassed.
    fn in_force(&self, now: Now) -> impl Iterator<Item = (&String, &Bypassed)> {
        let is_observed = self.snapshot().mode() == Some(FlowMode::Observe);
        let is_on = move |bypassed: &Bypassed| now.monotonic.as_secs() < u64::from(bypassed.end);
        self.bypasses.bypassing.peers.iter().filter(move |(_, bypassed)| !is_observed && is_on(bypassed))
    }

    /// The nodes that are spoken to in plain, for people.
    pub(crate) fn bypassed(&self, now: Now) -> Vec<BypassStatus> {
        self.in_force(now)
            .map(|(peer, bypassed)| BypassStatus {
                node: peer.clone(),
                until: bypassed.until,
                ends_in: u64::from(bypassed.end).saturating_sub(now.monotonic.as_secs()),
                by: readable(&bypassed.by),
                reason: readable(&bypassed.reason),
            })
            .collect()
    }
}

fn waits(peer: &str, at: Timestamp) -> Problem {
    Problem {
        kind: ProblemKind::State,
        object: "EncryptionMesh default".to_owned(),
        field: "spec.bypasses".to_owned(),
        message: format!(
            "the bypass to {peer} that was written at {at} has not begun, as this node's clock shows an earlier time"
        ),
        advice: "What the other node sends in plain is dropped here: set the clock, or end the bypass"
            .to_owned(),
    }
}
