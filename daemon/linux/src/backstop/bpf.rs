//! The netfilter program: loaded and linked by bpf(2), since aya 0.14 knows neither its type nor its link.
//!
//! aya makes the maps, and reads and relocates the program as it does all others.

use std::{
    collections::HashSet,
    ffi::CString,
    fs, io,
    mem::zeroed,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{
        ProgramInfo,
        links::{FdLink, LinkError, PinnedLink},
    },
};
use aya_obj::{
    Object,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type},
};
use kubeveil_abi::names;

use super::btf::Btf;
use crate::{
    KernelError,
    bpf::{Pins, call},
    error::PIN,
};

/// Steps at which a kernel shows that it can't have the program.
pub(super) use crate::error::{LINK_NETFILTER as LINK, LOAD_NETFILTER as LOAD};

/// `NF_INET_POST_ROUTING` (`include/uapi/linux/netfilter.h`).
const POST_ROUTING: u32 = 4;
/// Behind source NAT (100), before connection tracking's last step (`INT_MAX`); `enum nf_ip_hook_priorities`. Several:
/// the kernel takes one program at each (EBUSY), can't change that of a link (EOPNOTSUPP), and frees a link some time
/// after its last pin is gone.
const PRIORITIES: [i32; 3] = [200, 201, 202];
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, and how their links are called.
const FAMILIES: [(u32, &str); 2] = [(2, "v4"), (10, "v6")];
/// What the verifier says of a program that it refuses, bytes.
const LOG: u32 = 1 << 16;

/// What of it is in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Linked {
    /// A program of ours, for both families.
    pub(super) stands: bool,
    /// The one of this build.
    pub(super) is_current: bool,
}

/// What is linked, with the program of `build` in mind.
pub(super) fn observe(pins: &Pins, build: &str) -> Result<Linked, KernelError> {
    let mut linked = Linked { stands: true, is_current: true };
    let current = program_id(&pins.backstop_program(build));
    for (_, family) in FAMILIES {
        let there = linked_program(&pins.backstop_link(family))?;
        linked.stands &= there.is_some();
        linked.is_current &= there.is_some() && there == current;
    }
    Ok(linked)
}

/// Links the program of this build, loading it first where it is not pinned. A link that has another is replaced by a
/// rename, so that at no moment, and after no crash, there is none.
pub(super) fn raise(pins: &Pins, object: &[u8], build: &str) -> Result<(), KernelError> {
    let pin = pins.backstop_program(build);
    if program_id(&pin).is_none() {
        // Left over, or of no use.
        let _ = fs::remove_file(&pin);
        let program = load(pins, object)?;
        pin_object(&program, &pin)?;
    }
    let program = open(&pin)?;
    let current = program_id(&pin);
    create(&pins.backstop_links())?;
    for (family, name) in FAMILIES {
        let pin = pins.backstop_link(name);
        if linked_program(&pin)? == current {
            continue;
        }
        let new = pins.backstop_link(&format!("new-{name}"));
        // Of one who was killed before the rename. It holds a priority.
        let _ = fs::remove_file(&new);
        let link = link(&program, family)?;
        pin_object(&link, &new)?;
        fs::rename(&new, &pin).map_err(|e| KernelError::new("rename", new.display().to_string(), e))?;
    }
    Ok(())
}

/// Takes it away; says whether it was there.
pub(super) fn remove(pins: &Pins) -> Result<bool, KernelError> {
    let mut was_there = false;
    for (_, name) in FAMILIES {
        for name in [format!("new-{name}"), name.to_owned()] {
            let pin = pins.backstop_link(&name);
            match fs::remove_file(&pin) {
                Ok(()) => was_there = true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(KernelError::new("remove", pin.display().to_string(), e)),
            }
        }
    }
    Ok(was_there)
}

fn create(dir: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(dir).map_err(|e| KernelError::new("create", dir.display().to_string(), e))
}

fn program_id(pin: &Path) -> Option<u32> {
    ProgramInfo::from_pin(pin).ok().map(|info| info.id())
}

/// The program of a pinned link; `None` if there is no such pin.
fn linked_program(pin: &Path) -> Result<Option<u32>, KernelError> {
    let failed = |e: LinkError| KernelError::new("look at", pin.display().to_string(), e);
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(FdLink::from(link).info().map_err(failed)?.program_id())),
        Err(LinkError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Loads the program over the pinned maps.
fn load(pins: &Pins, object: &[u8]) -> Result<OwnedFd, KernelError> {
    let failed = |what: &'static str| {
        move |e: Box<dyn std::error::Error + Send + Sync>| KernelError::new(what, names::BACKSTOP, e)
    };
    let btf = Btf::of_kernel()?;
    let mut offsets = Vec::new();
    for (symbol, structure, fields) in names::FIELDS {
        offsets.push((symbol, btf.offset_of_any(structure, fields)?));
    }
    let mut loader = EbpfLoader::new();
    for name in names::MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    for (symbol, offset) in &offsets {
        loader.override_global(symbol, offset, true);
    }
    // Fills and freezes the constants; loads no program.
    let ebpf = loader.load(object).map_err(|e| failed("make the maps of")(e.into()))?;
    let mut object = Object::parse(object).map_err(|e| failed("read")(e.into()))?;
    relocate(&mut object, &ebpf).map_err(failed("relocate"))?;
    let missing = || failed("find")(io::Error::from(io::ErrorKind::NotFound).into());
    let program = object.programs.get(names::BACKSTOP).ok_or_else(missing)?;
    let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
    load_program(&function.instructions, &program.license)
}

fn relocate(object: &mut Object, ebpf: &Ebpf) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let definitions = object.maps.clone();
    let mut maps = Vec::new();
    for (name, map) in ebpf.maps() {
        if let Some(definition) = definitions.get(name) {
            maps.push((name, data(map)?.fd().as_fd().as_raw_fd(), definition));
        }
    }
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(maps.into_iter(), &text)?;
    object.relocate_calls(&text)?;
    Ok(())
}

fn data(map: &Map) -> io::Result<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::DevMapHash(data) => Ok(data),
        _ => Err(io::Error::other("a map of a kind that the datapath has none of")),
    }
}

fn load_program(instructions: &[bpf_insn], license: &CString) -> Result<OwnedFd, KernelError> {
    let count = u32::try_from(instructions.len()).map_err(|e| KernelError::new(LOAD, names::BACKSTOP, e))?;
    let mut log = vec![0_u8; LOG as usize];
    // SAFETY: plain data, for which zero stands for "not given".
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: the part of the union that BPF_PROG_LOAD reads; all of it is initialised.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_NETFILTER as u32;
    load.expected_attach_type = bpf_attach_type::BPF_NETFILTER as u32;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = count;
    load.license = license.as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().zip(names::BACKSTOP.bytes()) {
        *to = from.cast_signed();
    }
    // What the verifier says is wanted of a failure only: where it says more than there is room for, that is one (ENOSPC).
    call::object(bpf_cmd::BPF_PROG_LOAD, &mut attr).or_else(|refused| {
        // SAFETY: as above.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        (load.log_level, load.log_size, load.log_buf) = (1, LOG, log.as_mut_ptr() as u64);
        call::object(bpf_cmd::BPF_PROG_LOAD, &mut attr).map_err(|_| said_of(refused, &log))
    })
}

fn said_of(source: io::Error, log: &[u8]) -> KernelError {
    let text = String::from_utf8_lossy(log);
    let said = text.trim_end_matches('\0').trim_end();
    tracing::debug!("the verifier on {}:\n{said}", names::BACKSTOP);
    // Its last line but the summary says what it disliked.
    let last = said.lines().rfind(|line| !line.starts_with("processed ")).unwrap_or_default();
    let object =
        if last.is_empty() { names::BACKSTOP.to_owned() } else { format!("{} ({last})", names::BACKSTOP) };
    KernelError::new(LOAD, object, source)
}

/// Links the program at the priority that is free.
fn link(program: &OwnedFd, family: u32) -> Result<OwnedFd, KernelError> {
    let mut done = link_at(program, family, PRIORITIES[0]);
    for priority in &PRIORITIES[1..] {
        if done.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
            done = link_at(program, family, *priority);
        }
    }
    done.map_err(|e| KernelError::new(LINK, names::BACKSTOP, e))
}

fn link_at(program: &OwnedFd, family: u32, priority: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain data, for which zero stands for "not given".
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    attr.link_create.attach_type = bpf_attach_type::BPF_NETFILTER as u32;
    // SAFETY: the part of the union that BPF_LINK_CREATE reads for this type; all of it is initialised.
    let netfilter = unsafe { &mut attr.link_create.__bindgen_anon_3.netfilter };
    netfilter.pf = family;
    netfilter.hooknum = POST_ROUTING;
    netfilter.priority = priority;
    call::object(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

fn open(pin: &Path) -> Result<OwnedFd, KernelError> {
    call::get(pin).map_err(|e| KernelError::new("open", pin.display().to_string(), e))
}

fn pin_object(object: &OwnedFd, pin: &Path) -> Result<(), KernelError> {
    call::pin(object.as_raw_fd(), pin).map_err(|e| KernelError::new(PIN, pin.display().to_string(), e))
}
