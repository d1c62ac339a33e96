//! What can be wrong with keys, in the words that people read.

use std::path::Path;

use kubeveil_core::problem::{Problem, ProblemKind};
use kubeveil_keys::{Generation, KeptAside, StoreError};

pub(super) fn key_lost(path: &Path) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", path.display()),
        field: String::new(),
        message: "somebody removed or changed it; the key in use stands as long as kubeveild runs".to_owned(),
        advice:
            "Put it back as it was, or restart kubeveild: it makes another key where it finds none that it \
                 can trust, and pods' traffic of this node is dropped until the others know that one"
                .to_owned(),
    }
}

/// A key of an older generation that can't be trusted: what others still send by it is lost, until they send by the newest.
pub(super) fn not_served(path: &Path, problem: &kubeveil_keys::Problem) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", path.display()),
        field: String::new(),
        message: format!("{problem}; it is of an older generation, which this node does not serve any more"),
        advice: problem.advice().to_owned(),
    }
}

pub(super) fn set_aside_now(kept: &KeptAside) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", kept.path.display()),
        field: String::new(),
        message: format!("{}; moved to {} and a new key made", kept.problem, kept.moved_to.display()),
        advice: kept.problem.advice().to_owned(),
    }
}

pub(super) fn set_aside_earlier(path: &Path) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", path.display()),
        field: String::new(),
        message: "was set aside by an earlier start, and may hold a key".to_owned(),
        advice: "Find out how it came to be there, then delete it".to_owned(),
    }
}

pub(super) fn store_problem(dir: &Path, error: &StoreError) -> Problem {
    let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key store {}", dir.display()),
        field: String::new(),
        message: format!("{error}{cause}"),
        advice: "Mend what the error names (a full disk: make room). Without a key this node has no tunnels, and where one can't be made or removed a rotation waits; it is tried again".to_owned(),
    }
}

/// Somebody put it back: a backup, a snapshot of the disk.
pub(super) fn given_up(path: &Path, generation: Generation, moved_to: &Path) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", path.display()),
        field: String::new(),
        message: format!(
            "it holds a key of generation {generation} that this node has given up, so somebody put it back; moved to {}, and not used",
            moved_to.display()
        ),
        advice: "A key that was given up is never used again. Find out who put it back (a backup, a snapshot of the disk), and delete it: \
                 it is a secret that nobody needs"
            .to_owned(),
    }
}

/// The same, and it can't be moved.
pub(super) fn stays(path: &Path, generation: Generation, error: &StoreError) -> Problem {
    let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    Problem {
        message: format!(
            "it holds a key of generation {generation} that this node has given up, so somebody put it back; it is not used, and stays \
             where it is: {error}{cause}"
        ),
        ..given_up(path, generation, path)
    }
}

/// What tells such a key from those in use is lost.
pub(super) fn record_unreadable(path: &Path, keys: &Path, message: String) -> Problem {
    Problem {
        kind: ProblemKind::State,
        object: format!("file {}", path.display()),
        field: String::new(),
        message,
        advice: format!(
            "It told which keys this node has given up; it is begun anew with those that are in {}. See that none is there that was put \
             back from elsewhere",
            keys.display()
        ),
    }
}

pub(super) fn record_unwritable(path: &Path, error: &std::io::Error) -> Problem {
    Problem {
        kind: ProblemKind::State,
        object: format!("file {}", path.display()),
        field: String::new(),
        message: format!("can't be written: {error}"),
        advice: "A key that this node gives up meanwhile would be used again if somebody put its file back; make room on the disk"
            .to_owned(),
    }
}
