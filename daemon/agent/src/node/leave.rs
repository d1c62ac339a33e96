//! The mesh says that kubeveil goes: this node's kernel, files and announcement are left as if it had never been there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use kubeveil_api::veil_node::VeilNodeStatus;
use kubeveil_core::{problem::Problem, snapshot::Knowledge};
use kubeveil_linux::Kernel;

use super::{Node, Now, Outcome, RESYNC, RETRY, problems};
use crate::{kept, veil_node};

/// What there was of us.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Files and folders of ours.
    files: Vec<PathBuf>,
    /// Kernel and files hold nothing any more.
    is_gone: bool,
    /// It said so once; what the mesh says since is for another daemon, which starts from nothing.
    is_over: bool,
    /// The mesh wants it back.
    is_wanted_again: bool,
}

impl Leaving {
    pub(super) fn of(state_dir: &Path) -> Self {
        let files = kept::FILES.iter().map(|name| state_dir.join(name)).collect();
        Self { files, is_gone: false, is_over: false, is_wanted_again: false }
    }
}

impl<K: Kernel> Node<K> {
    /// Leaves if the mesh says so; `None` if it does not. Returns how long nothing has to be done then. Only a source that has told
    /// all is believed: what is on disk is no reason to open.
    pub(super) fn leave_if_told(&mut self, told: &Knowledge, now: Now) -> Option<Duration> {
        let mesh = told.snapshot().mesh.as_ref();
        if mesh.is_some_and(|mesh| mesh.uninstall) {
            if told.synced().is_some() {
                return Some(self.leave(told, now));
            }
            if self.known.snapshot.mesh.is_none() {
                // Nothing begins that is about to end.
                return Some(RETRY);
            }
        }
        if self.leaving.is_over {
            self.leaving.is_wanted_again = mesh.is_some();
            return Some(RESYNC);
        }
        None
    }

    /// Takes away what is there, as often as it is called, and tells what stays.
    fn leave(&mut self, told: &Knowledge, now: Now) -> Duration {
        let mut problems = Vec::new();
        if !self.leaving.is_gone {
            tracing::warn!(
                "EncryptionMesh default spec.uninstall: programs, maps, tunnels and keys are removed"
            );
            let (removed, errors) = self.kernel.remove_everything();
            tracing::info!(devices = ?removed.devices, pins = removed.pins, "removed");
            problems.extend(errors.iter().map(problems::of_kernel));
            for path in &self.leaving.files {
                problems.extend(remove(path).err().map(|e| problems::kept_unremovable(path, &e)));
            }
            self.leaving.is_gone = problems.is_empty();
        }
        let own = told.snapshot().nodes.get(&self.name);
        if let Some(own) = own {
            problems.extend(self.source.announce(&self.name, &own.uid, None).err());
        }
        let is_silent = own.is_none_or(|own| own.announcement.is_none());
        self.leaving.is_over = self.leaving.is_gone && is_silent;
        let report = veil_node::gone(self.leaving.is_over, &problems, now);
        self.report(report);
        self.conclude_leaving(problems, now);
        let wait = if self.leaving.is_over { RESYNC } else { RETRY };
        self.due = now.monotonic + wait;
        self.look_at = None;
        wait
    }

    /// Nothing of what was known counts any more.
    fn conclude_leaving(&mut self, problems: Vec<Problem>, now: Now) {
        self.known = Default::default();
        self.knowledge = Knowledge::default();
        self.last = Outcome { problems: std::mem::take(&mut self.last.problems), ..Outcome::default() };
        self.met = problems;
        self.tell(now);
    }

    /// Tells people; what is wrong with that is told by the next way round.
    pub(super) fn report(&mut self, status: VeilNodeStatus) {
        /// See [`Node::beside`].
        const REPORT: &str = "report";
        match self.source.report(&self.name, status) {
            Ok(()) => drop(self.beside.remove(REPORT)),
            Err(problem) => drop(self.beside.insert(REPORT, problem)),
        }
    }

    /// Nothing of it is here any more.
    pub(crate) fn has_left(&self) -> bool {
        self.leaving.is_over
    }

    /// It has left, and the mesh wants it back.
    pub(crate) fn is_wanted_again(&self) -> bool {
        self.leaving.is_wanted_again
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}
