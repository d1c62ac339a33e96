//! bpf(2) itself, for the commands that aya 0.14 lacks.

use std::{io, os::fd::RawFd};

use aya_obj::generated::{bpf_attr, bpf_cmd};

pub(crate) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the kernel keeps within the size that it is told; what `attr` points to outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(io::Error::other)
}
