//! Memory that is needed for a moment only.

/// Gives the system back what is free: to load programs takes some tens of MiB, mostly the kernel's types, and glibc keeps
/// what lies between what is in use. (Other C libraries have no such call.)
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing that is in use, and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
