//! Attaching programs as filters of a clsact qdisc, ahead of all others as far as priorities go.
//!
//! A filter holds its program by itself, so nothing is pinned for it: what is attached is read from the device.

use std::mem;

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use kubeveil_core::observed::{Ahead, Program};
use rustix::io::Errno;

use super::direction;
use crate::{
    KernelError,
    error::{ATTACH, ATTACH_FIRST},
    link::{Filter, Links},
};

/// Handle of our filters, which tells them from others' with a program of the same name ("kv").
const HANDLE: u32 = 0x6b76;
/// Priority where there are no other filters: the kernel's own choice (`net/sched/cls_api.c`, `tcf_auto_prio`).
const PRIORITY: u16 = 0xc000;

/// Before it there is none, and at it filters of one kind and one protocol only (`tcf_chain_tp_find`).
const FIRST: u16 = 1;

/// What comes before our filter at the hook of a device, and which program ours holds; `None` if it is not there.
pub(in crate::bpf) fn ahead(
    program: Program,
    index: u32,
    links: &Links,
) -> Result<Option<(Vec<Ahead>, u32)>, KernelError> {
    let filters = filters(program, index, links)?;
    let at = filters.iter().position(|filter| is_ours(filter, program));
    Ok(at.map(|at| (filters[..at].iter().map(told).collect(), filters[at].program)))
}

/// The filters at the hook of `program` at a device, in the order in which they run.
pub(in crate::bpf) fn all(program: Program, index: u32, links: &Links) -> Result<Vec<Ahead>, KernelError> {
    Ok(filters(program, index, links)?.iter().map(told).collect())
}

fn told(filter: &Filter) -> Ahead {
    Ahead { program: filter.program, name: filter.name.clone(), priority: Some(filter.priority) }
}

/// Attaches `program` ahead of all others; where ours is there already its program is replaced in place.
pub(in crate::bpf) fn attach(
    program: &mut SchedClassifier,
    which: Program,
    (index, device): (u32, &str),
    links: &Links,
) -> Result<(), KernelError> {
    match qdisc_add_clsact(device) {
        Err(e) if errno(&e) != Some(Errno::EXIST.raw_os_error()) => {
            return Err(KernelError::new("add a clsact qdisc to", device, e));
        }
        _ => {}
    }
    let there = filters(which, index, links)?;
    let is_first_taken = there.first().is_some_and(|first| first.priority == FIRST);
    let operation = if is_first_taken { ATTACH_FIRST } else { ATTACH };
    let failed =
        |e: ProgramError| KernelError::new(operation, format!("{device} program {}", which.name()), e);
    let id = match there.iter().find(|filter| is_ours(filter, which)) {
        Some(ours) => {
            let handle = TcHandle::from(HANDLE);
            let old = SchedClassifierLink::attached(device, direction(which), ours.priority, handle, None);
            let old = old.map_err(|e| KernelError::new("find device", device, e))?;
            program.attach_to_link(old)
        }
        None => {
            // Of two at one priority the older comes first: the status says that somebody is ahead.
            let priority =
                there.first().map_or(PRIORITY, |first| first.priority.saturating_sub(1).max(FIRST));
            let options = NlOptions { priority, handle: TcHandle::from(HANDLE), classid: None };
            program.attach_with_options(device, direction(which), TcAttachOptions::Netlink(options))
        }
    };
    let link = program.take_link(id.map_err(failed)?).map_err(failed)?;
    // Dropped, it would take the filter away.
    mem::forget(link);
    Ok(())
}

/// Takes all that is ours off a device.
pub(super) fn detach_all(index: u32, device: &str, links: &Links) -> Result<(), KernelError> {
    for program in Program::ALL {
        for filter in filters(program, index, links)?.iter().filter(|filter| is_ours(filter, program)) {
            let handle = TcHandle::from(HANDLE);
            let failed =
                |e: Box<dyn std::error::Error + Send + Sync>| KernelError::new("detach from", device, e);
            let link =
                SchedClassifierLink::attached(device, direction(program), filter.priority, handle, None);
            aya::programs::links::Link::detach(link.map_err(|e| failed(e.into()))?)
                .map_err(|e| failed(e.into()))?;
        }
    }
    Ok(())
}

fn is_ours(filter: &Filter, program: Program) -> bool {
    filter.handle == HANDLE && filter.name == program.name()
}

fn filters(program: Program, index: u32, links: &Links) -> Result<Vec<Filter>, KernelError> {
    links.filters(index, matches!(direction(program), TcAttachType::Egress))
}

fn errno(error: &TcError) -> Option<i32> {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = at {
        if let Some(number) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return Some(number);
        }
        at = error.source();
    }
    None
}
