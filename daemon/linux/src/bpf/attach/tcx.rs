//! Attaching programs by tcx links (kernel 6.6 and later), pinned, at the head of their hook.

use std::{fs, io, mem::zeroed};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier,
    links::{FdLink, LinkError, PinnedLink},
    loaded_programs,
    tc::{TcAttachOptions, TcAttachType},
};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};
use kubeveil_core::observed::{Ahead, Hook, Program};

use super::direction;
use crate::{
    KernelError,
    bpf::{Pins, call::bpf},
    error::{ATTACH, PIN},
};

/// What runs before program `id` at the hook of `device`; `None` if it is not there.
pub(in crate::bpf) fn ahead(
    (program, index): Hook,
    device: &str,
    id: u32,
) -> Result<Option<Vec<Ahead>>, KernelError> {
    let there = all(program, (index, device))?;
    let at = there.iter().position(|one| one.program == id);
    Ok(at.map(|at| there[..at].to_vec()))
}

/// What runs at the hook of `program` at a device, in that order.
pub(in crate::bpf) fn all(program: Program, (index, device): (u32, &str)) -> Result<Vec<Ahead>, KernelError> {
    let told = |program: &u32| Ahead { program: *program, name: name_of(*program), priority: None };
    match there(program, index) {
        Ok(there) => Ok(there.iter().map(told).collect()),
        // Gone since the devices were listed, and its attachments with it.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(Vec::new()),
        Err(e) => Err(KernelError::new("list the programs of device", device, e)),
    }
}

/// Ids of the programs at a hook, in the order in which they run. Not by aya, which opens each of them: that takes
/// CAP_SYS_ADMIN (kernel `kernel/bpf/syscall.c`, `bpf_prog_get_fd_by_id`), the list itself CAP_NET_ADMIN.
fn there(program: Program, index: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST as usize];
    // SAFETY: plain data, for which zero stands for "not given".
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.query.__bindgen_anon_1.target_ifindex = index;
    attr.query.attach_type = match direction(program) {
        TcAttachType::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        _ => bpf_attach_type::BPF_TCX_INGRESS,
    } as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = MOST;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel has written the number of programs here, of all that there are.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    Ok(ids.into_iter().take(count).collect())
}

/// Name of a program; empty if it is gone or we lack CAP_SYS_ADMIN, see [`there`].
fn name_of(program: u32) -> String {
    let mut names = loaded_programs().filter_map(Result::ok).filter(|info| info.id() == program);
    names.next().and_then(|info| info.name_as_str().map(str::to_owned)).unwrap_or_default()
}

/// Programs that one hook can have (kernel `include/linux/bpf_mprog.h`, `BPF_MPROG_MAX`).
const MOST: u32 = 64;

/// Attaches `program`, whose number is `id`, ahead of all others. Where a link is pinned already its program is
/// replaced in place, without a gap; a link whose device is gone is thrown away first.
pub(in crate::bpf) fn attach(
    (program, id): (&mut SchedClassifier, u32),
    hook: Hook,
    device: &str,
    pins: &Pins,
) -> Result<(), KernelError> {
    let pin = pins.link(hook);
    if replace(program, hook, pins)? {
        if ahead(hook, device, id)?.is_some() {
            return Ok(());
        }
        // Its device lives in another network namespace, and this one has got the index that it had here.
        detach(hook, pins)?;
    }
    let failed = |e: ProgramError| KernelError::new(ATTACH, format!("{device} program {}", hook.0.name()), e);
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(device, direction(hook.0), order).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link: FdLink = link
        .try_into()
        .map_err(|e: LinkError| KernelError::new("attach by tcx (kernel 6.6 or later) to", device, e))?;
    link.pin(&pin).map_err(|e| KernelError::new(PIN, pin.display().to_string(), e))?;
    Ok(())
}

/// Puts `program` into the link that is pinned for `hook`; `false` if there is none that lives.
fn replace(program: &mut SchedClassifier, hook: Hook, pins: &Pins) -> Result<bool, KernelError> {
    let pin = pins.link(hook);
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        KernelError::new("replace", pin.display().to_string(), e)
    };
    let old = match PinnedLink::from_pin(&pin) {
        Ok(old) => FdLink::from(old),
        Err(LinkError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed(e.into())),
    };
    let link = old.try_into().map_err(|e: LinkError| failed(e.into()))?;
    match program.attach_to_link(link) {
        // The pin holds it.
        Ok(id) => program.take_link(id).map(|_| true).map_err(|e| failed(e.into())),
        // ENOLINK: the device is gone, the link is an empty shell (kernel `kernel/bpf/tcx.c`).
        Err(ProgramError::SyscallError(e)) if is_defunct(&e.io_error) => {
            fs::remove_file(&pin).map_err(|e| failed(e.into()))?;
            Ok(false)
        }
        Err(e) => Err(failed(e.into())),
    }
}

fn is_defunct(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOLINK.raw_os_error())
}

/// Takes a program off: the pin was the last reference to its link.
pub(in crate::bpf) fn detach(hook: Hook, pins: &Pins) -> Result<(), KernelError> {
    let pin = pins.link(hook);
    match fs::remove_file(&pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::new("remove", pin.display().to_string(), e))
        }
        _ => Ok(()),
    }
}
