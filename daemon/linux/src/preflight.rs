//! What the daemon needs, looked at before anything is touched.

use std::{
    fs,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};
use kubeveil_core::problem::{Problem, ProblemKind};

/// `BPF_FS_MAGIC` (kernel `include/uapi/linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Everything that is missing, each with the way to mend it.
pub fn preflight(bpf_dir: &Path) -> Vec<Problem> {
    [capabilities(), bpffs(bpf_dir)].into_iter().flatten().collect()
}

fn problem(object: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem {
        kind: ProblemKind::Kernel,
        object: object.into(),
        field: String::new(),
        message: message.into(),
        advice: advice.into(),
    }
}

/// The capabilities that are missing, each with what it is needed for.
pub fn capabilities() -> Vec<Problem> {
    let needed = [
        (Capability::CAP_NET_ADMIN, "make WireGuard devices and attach programs"),
        (Capability::CAP_BPF, "load programs and maps"),
        (Capability::CAP_PERFMON, "load programs that read packets as they are, the backstop among them"),
    ];
    let has = |capability| {
        // CAP_SYS_ADMIN includes the other two (kernel `include/linux/capability.h`, `bpf_capable`, `perfmon_capable`).
        let held = |c| caps::has_cap(None, CapSet::Effective, c).unwrap_or(false);
        held(capability) || (capability != Capability::CAP_NET_ADMIN && held(Capability::CAP_SYS_ADMIN))
    };
    needed
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(capability, why)| {
            problem(
                capability.to_string(),
                format!("the capability is missing, and is needed to {why}"),
                "Run kubeveild as root, or add the capability to its securityContext",
            )
        })
        .collect()
}

/// Is the folder on a BPF file system, or would it be?
pub(crate) fn is_bpffs(bpf_dir: &Path) -> bool {
    let existing: Option<PathBuf> = bpf_dir.ancestors().find(|p| p.exists()).map(Path::to_owned);
    let root = existing.unwrap_or_else(|| PathBuf::from("/"));
    rustix::fs::statfs(&root)
        .is_ok_and(|s| u64::try_from(s.f_type).is_ok_and(|t| t & 0xffff_ffff == BPF_FS_MAGIC))
}

fn bpffs(bpf_dir: &Path) -> Vec<Problem> {
    if is_bpffs(bpf_dir) {
        return Vec::new();
    }
    vec![problem(
        bpf_dir.display().to_string(),
        "it is not on a BPF file system, so programs could not outlive the daemon",
        "Mount one: `mount -t bpf bpf /sys/fs/bpf`, or give another with --bpf-dir",
    )]
}

/// Release of the running kernel.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
}
