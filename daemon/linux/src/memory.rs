//! Memory that is needed for a moment only.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, which overwrites what is freed.
///
/// WireGuard tells a device's private key whenever it is asked for the device, and `wireguard-control`, with the netlink crates
/// below it, frees what that was read into as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forgetful;

// SAFETY: memory comes from the system's allocator and goes back to it with the layout that it was asked for. It is written to only
// where its owner has just given it up. (What moves when it grows is copied and freed here: that is the trait's own `realloc`.)
unsafe impl GlobalAlloc for Forgetful {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as our caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` are so many bytes, as our caller promises, that nobody reads any more. A plain write would be left out, since
        // they are freed next.
        unsafe {
            libc::explicit_bzero(at.cast(), layout.size());
            System.dealloc(at, layout);
        }
    }
}

/// Gives the system back what is free: to load programs takes some tens of MiB, mostly the kernel's types, and glibc keeps
/// what lies between what is in use. (Other C libraries have no such call.)
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing that is in use, and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use super::*;

    /// What is freed is nothing but zeros by then.
    #[test]
    fn what_is_freed_is_overwritten() {
        const SIZE: usize = 4096;
        // Over the first bytes the system's allocator writes its own notes.
        const NOTES: usize = 64;
        let memory = File::open("/proc/self/mem").expect("own memory");
        let layout = Layout::from_size_align(SIZE, 8).expect("a layout");
        let left = |free: &dyn Fn(*mut u8)| {
            let mut seen = vec![0; SIZE];
            // SAFETY: the layout is not empty, and what it gives out is written within its size.
            let at = unsafe {
                let at = Forgetful.alloc(layout);
                at.write_bytes(0x5a, SIZE);
                at
            };
            free(at);
            memory.read_exact_at(&mut seen, at.addr() as u64).expect("read");
            seen[NOTES..].iter().filter(|byte| **byte == 0x5a).count()
        };
        // SAFETY: it was allocated so, and nobody uses it any more.
        let by_system = |at| unsafe { System.dealloc(at, layout) };
        // SAFETY: the same.
        let by_ours = |at| unsafe { Forgetful.dealloc(at, layout) };
        assert_eq!(left(&by_system), SIZE - NOTES, "the control");
        assert_eq!(left(&by_ours), 0);
    }
}
