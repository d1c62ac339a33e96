//! What can be wrong with a way round, in the words that people read.

use std::{collections::BTreeSet, io, path::Path};

use kubeveil_api::schedule::Period;
use kubeveil_core::{
    observed::{Ahead, Observed, Program},
    policy::PolicyId,
    problem::{Problem, ProblemKind, few_statements},
    rotation::Holdup,
};
use kubeveil_keys::Generation;
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

pub(super) fn bypasses_unreadable(path: &Path, message: String) -> Problem {
    Problem {
        advice: "It told until when packets to other nodes may go in plain by a bypass; as it is lost, none lasts longer than what stands in the kernel. `kubeveil bypass` begins another".to_owned(),
        ..pairs_unreadable(path, message)
    }
}

pub(super) fn bypasses_unwritable(path: &Path, error: &io::Error) -> Problem {
    Problem {
        advice: "So no bypass begins on this node: it could not be told after a restart when it ends. Make room on the disk"
            .to_owned(),
        ..kept_unwritable(path, error)
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

pub(super) fn kept_unremovable(path: &Path, error: &io::Error) -> Problem {
    Problem {
        message: format!("can't be removed: {error}"),
        advice: "It is tried again; remove it by hand if that goes on".to_owned(),
        ..kept_unwritable(path, error)
    }
}

/// Pods whose addresses are none of their node's.
pub(super) fn strangers(node: &str, strangers: &BTreeSet<String>) -> Option<Problem> {
    let first = strangers.first()?;
    Some(Problem {
        kind: ProblemKind::Prefix,
        object: format!("Node {node}"),
        field: "spec.podCIDRs".to_owned(),
        message: format!(
            "{first}, which is in none of them, and so for {} pods: the CNI gives addresses that Kubernetes does not know of",
            strangers.len()
        ),
        advice: "No pair of nodes closes, and the deadline of adoption does not run, as traffic of such pods can't be told from \
                 others'. Have the CNI give each node's pods addresses of its podCIDRs (Calico: host-local IPAM; Cilium: \
                 ipam.mode=kubernetes)"
            .to_owned(),
    })
}

pub(super) fn other_generation(ours: u32, wanted: u32) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: "EncryptionMesh default".to_owned(),
        field: "spec.keyGeneration".to_owned(),
        message: format!(
            "is {wanted}, but this node has a key of generation {ours} already, which stays in use"
        ),
        advice: if wanted.checked_add(1) == Some(ours) {
            format!(
                "Was the mesh put back as it was before a rotation? `kubeveil rotate` asks for generation {ours} again; a key that was given up is never used again"
            )
        } else {
            format!(
                "A key that was given up is never used again: delete the mesh and create it with keyGeneration: {ours}; its last spec stands meanwhile"
            )
        },
    }
}

/// An older key that a rotation should have ended.
pub(super) fn late_rotation(newest: Generation, older: Generation, why: &BTreeSet<Holdup>) -> Problem {
    const NAMED: usize = 3;
    Problem {
        kind: ProblemKind::Rotation,
        object: "EncryptionMesh default".to_owned(),
        field: "spec.keyGeneration".to_owned(),
        message: format!("the rotation to generation {newest} is not over: this node keeps its key of generation {older}, since {}", few_statements(why.iter(), NAMED)),
        advice: "`kubeveil rotate status` tells all of it. Mend what it names; where a node never comes back, delete its Node, or \
                 `kubeveil rotate finish --force`"
            .to_owned(),
    }
}

pub(super) fn key_too_old(
    generation: Generation,
    age: u64,
    asking: Option<&PolicyId>,
    most: Period,
) -> Problem {
    const DAY: u64 = 24 * 3600;
    let (object, field) = match asking {
        None => ("EncryptionMesh default".to_owned(), "spec.rotation.maxKeyAge"),
        Some(policy) => (policy.to_string(), "spec.maxKeyAge"),
    };
    Problem {
        kind: ProblemKind::Rotation,
        object,
        field: field.to_owned(),
        message: format!(
            "this node's key of generation {generation} is {} days old, and {most} are the most; it goes on being used",
            age / DAY
        ),
        advice: "`kubeveil rotate`; spec.rotation.every has that done by itself".to_owned(),
    }
}

pub(super) fn mesh_deleted() -> Problem {
    Problem {
        kind: ProblemKind::Missing,
        object: "EncryptionMesh default".to_owned(),
        field: String::new(),
        message: "it was deleted; its last spec stands".to_owned(),
        advice: "Create it again, with the keyGeneration that the nodes have (`kubeveil status`). To switch encryption off, set its mode".to_owned(),
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

/// Somebody's firewall drops what comes out of our tunnels.
pub(super) fn route_checks(observed: &Observed) -> Vec<Problem> {
    let problem = |chain: &String| {
        Problem {
        kind: ProblemKind::Kernel,
        object: format!("nftables chain {chain}"),
        field: String::new(),
        message: "it takes only packets that come in by the device that their answers leave by (`fib saddr . iif`), so \
                  it drops what comes out of a tunnel"
            .to_owned(),
        advice: "With firewalld: IPv6_rpfilter=loose (before 2.2: no) in /etc/firewalld/firewalld.conf. Else let \
                 `iifname \"kubeveil*\"` pass before that rule"
            .to_owned(),
    }
    };
    observed.route_checks.iter().map(problem).collect()
}

/// Somebody who runs before ours can take packets away from it.
pub(super) fn ahead(observed: &Observed) -> Vec<Problem> {
    let Some(datapath) = &observed.datapath else { return Vec::new() };
    let name = |index: &u32| observed.links.get(index).map_or("?", |l| l.name.as_str());
    let some = datapath.attached.iter().filter(|(_, ahead)| !ahead.is_empty());
    some.map(|((program, index), ahead)| in_front(*program, name(index), ahead)).collect()
}

fn in_front(program: Program, device: &str, ahead: &[Ahead]) -> Problem {
    let taken = match program {
        Program::Steer | Program::Replace => "leaves in plain if it is a pod's",
        Program::Guard => "comes in unchecked, a pod's plain packet too",
        Program::Deliver => "is not remembered, so that its reply may leave in plain",
        Program::Origin => {
            "is held to what policies ask of those whom nobody knows, though its pod be exempt"
        }
    };
    let names: Vec<String> = ahead.iter().map(Ahead::to_string).collect();
    let advice = if ahead.iter().any(|one| one.priority.is_some()) {
        format!(
            "`tc filter show dev {device} ingress` (or egress) shows them: have their owner give them a later \
             priority than ours"
        )
    } else {
        format!(
            "`bpftool prog show id {}` says whose it is: it must answer TCX_NEXT (-1) to every packet, or be \
             attached behind ours",
            ahead[0].program
        )
    };
    Problem {
        kind: ProblemKind::Position,
        object: format!("device {device}"),
        field: program.name().to_owned(),
        message: format!("before ours runs {}; what it takes away {taken}", names.join(", ")),
        advice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who, and what to do: by tcx, and as a filter.
    #[test]
    fn who_runs_before_ours_is_named() {
        let taker = Ahead { program: 57, name: "taker".to_owned(), priority: None };
        let nameless = Ahead { name: String::new(), program: 58, ..taker.clone() };
        let problem = in_front(Program::Steer, "eth0", &[taker.clone(), nameless]);
        assert_eq!(
            problem.message,
            "before ours runs program 57 (taker), program 58; what it takes away leaves in plain if it is a pod's"
        );
        assert!(problem.advice.starts_with("`bpftool prog show id 57`"), "{problem}");
        let filter = Ahead { priority: Some(9), ..taker };
        let police = Ahead { program: 0, name: "matchall".to_owned(), priority: Some(10) };
        let problem = in_front(Program::Guard, "eth0", &[filter, police]);
        assert!(
            problem
                .message
                .contains("program 57 (taker) at priority 9, a filter of kind matchall at priority 10")
        );
        assert!(problem.advice.starts_with("`tc filter show dev eth0 ingress`"), "{problem}");
    }
}
