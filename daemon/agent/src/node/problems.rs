//! What can be wrong with a way round, in the words that people read.

use std::{io, path::Path};

use kubeveil_core::{
    observed::Observed,
    problem::{Problem, ProblemKind},
};
use kubeveil_linux::KernelError;

use super::ROUNDS;

pub(super) fn kept_unreadable(path: &Path, message: String) -> Problem {
    Problem {
        kind: ProblemKind::State,
        object: format!("file {}", path.display()),
        field: String::new(),
        message,
        advice: "What it held is learnt anew from the source; until then nothing is removed".to_owned(),
    }
}

pub(super) fn pairs_unreadable(path: &Path, message: String) -> Problem {
    Problem {
        kind: ProblemKind::State,
        object: format!("file {}", path.display()),
        field: String::new(),
        message,
        advice: "It told to which nodes packets might still go in plain; as it is lost, to none".to_owned(),
    }
}

pub(super) fn kept_unwritable(path: &Path, error: &io::Error) -> Problem {
    Problem {
        kind: ProblemKind::State,
        object: format!("file {}", path.display()),
        field: String::new(),
        message: format!("can't be written: {error}"),
        advice: "After a reboot without its source this node would know less; make room on the disk"
            .to_owned(),
    }
}

pub(super) fn other_generation(ours: u32, wanted: u32) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: "EncryptionMesh default".to_owned(),
        field: "spec.keyGeneration".to_owned(),
        message: format!("is {wanted}, but this node's key is of generation {ours}"),
        advice: "This version does not rotate keys; set it back".to_owned(),
    }
}

pub(super) fn mesh_deleted() -> Problem {
    Problem {
        kind: ProblemKind::Missing,
        object: "EncryptionMesh default".to_owned(),
        field: String::new(),
        message: "it was deleted; its last spec stands".to_owned(),
        advice: "Create it again. To switch encryption off, set its mode".to_owned(),
    }
}

pub(super) fn not_seen(node: &str) -> Problem {
    Problem {
        kind: ProblemKind::Missing,
        object: format!("Node {node}"),
        field: String::new(),
        message: "the source does not have this very node, so it can't be whole: what was known stands and \
                  nothing is removed"
            .to_owned(),
        advice: "Put this node's Node back into the source".to_owned(),
    }
}

pub(super) fn of_kernel(error: &KernelError) -> Problem {
    Problem {
        kind: ProblemKind::Kernel,
        object: error.object.clone(),
        field: String::new(),
        message: format!("could not {}: {}", error.operation, error.cause()),
        advice: error.advice.unwrap_or("It is tried again; see the log of kubeveild").to_owned(),
    }
}

pub(super) fn unsettled(left: usize) -> Problem {
    Problem {
        kind: ProblemKind::Kernel,
        object: "this node".to_owned(),
        field: String::new(),
        message: format!("the kernel is not as it should be after {ROUNDS} rounds; {left} steps were planned in the last"),
        advice: "Somebody undoes what kubeveild does: look for another network agent that changes WireGuard devices or tc programs".to_owned(),
    }
}

pub(super) fn ahead(observed: &Observed) -> Vec<Problem> {
    let Some(datapath) = &observed.datapath else { return Vec::new() };
    let name = |index: &u32| observed.links.get(index).map_or("?", |l| l.name.as_str());
    datapath
        .attached
        .iter()
        .filter(|(_, ahead)| **ahead > 0)
        .map(|((program, index), ahead)| Problem {
            kind: ProblemKind::Position,
            object: format!("device {}", name(index)),
            field: program.name().to_owned(),
            message: format!(
                "{ahead} program(s) of others run before ours and may take packets away from it"
            ),
            advice: format!(
                "`bpftool net show dev {}` names them; load kubeveil after them or make them come later",
                name(index)
            ),
        })
        .collect()
}
