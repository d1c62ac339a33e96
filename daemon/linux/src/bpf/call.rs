//! bpf(2) itself, for what aya 0.14 lacks.

use std::{
    ffi::CString,
    io,
    mem::zeroed,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

pub(crate) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the kernel keeps within the size that it is told; what `attr` points to outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(io::Error::other)
}

/// A command that gives a descriptor.
pub(crate) fn object(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens what is pinned, whatever it is.
pub(crate) fn get(pin: &Path) -> io::Result<OwnedFd> {
    let path = c_path(pin)?;
    object(bpf_cmd::BPF_OBJ_GET, &mut at_path(0, &path))
}

/// Pins an object.
pub(crate) fn pin(object: RawFd, pin: &Path) -> io::Result<()> {
    let path = c_path(pin)?;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut at_path(object.cast_unsigned(), &path)).map(drop)
}

fn c_path(pin: &Path) -> io::Result<CString> {
    CString::new(pin.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// For both commands on pins. It points to `path`.
fn at_path(object: u32, path: &CString) -> bpf_attr {
    // SAFETY: plain data, for which zero stands for "not given".
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: the part of the union that both commands read; all of it is initialised.
    let at = unsafe { &mut attr.__bindgen_anon_4 };
    at.bpf_fd = object;
    at.pathname = path.as_ptr() as u64;
    attr
}
