//! Attaching programs to devices: by tcx links where the kernel has them, else as filters of a clsact qdisc.

pub(super) mod clsact;
pub(super) mod tcx;

use std::collections::BTreeMap;

use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use kubeveil_core::observed::{Link, Program};
use rustix::io::Errno;

use crate::{KernelError, link::Links};

/// How programs are attached here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// By links, which are pinned (Linux 6.6 and later).
    Tcx,
    /// As filters, which stand for themselves.
    Clsact,
}

impl Form {
    /// Tries.
    pub(super) fn find() -> Self {
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(INVAL) => Self::Clsact,
            // Whatever else is wrong shows when something is attached.
            _ => Self::Tcx,
        }
    }
}

/// Takes our filters off all devices, where programs are attached as such; says what failed.
pub fn remove_filters(links: &BTreeMap<u32, Link>, netlink: &Links) -> Vec<KernelError> {
    match Form::find() {
        Form::Tcx => Vec::new(),
        Form::Clsact => {
            links.iter().filter_map(|(i, link)| clsact::detach_all(*i, &link.name, netlink).err()).collect()
        }
    }
}

const INVAL: i32 = Errno::INVAL.raw_os_error();

const fn direction(program: Program) -> TcAttachType {
    match program {
        Program::Steer | Program::Replace => TcAttachType::Egress,
        Program::Guard | Program::Deliver | Program::Origin => TcAttachType::Ingress,
    }
}
