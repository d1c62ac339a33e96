//! The peer array, mapped into our memory: a change is one atomic store.

use std::{
    io,
    os::fd::AsFd as _,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use kubeveil_abi::{MAX_PEERS, PeerValue, names};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::KernelError;

const BYTES: usize = MAX_PEERS * size_of::<PeerValue>();

/// The mapping. (A map update by system call is a memcpy, which a program could see half done.)
pub(super) struct PeerArray {
    start: *mut AtomicU64,
}

// SAFETY: the memory belongs to the process, not to a thread, and is only touched by atomics.
unsafe impl Send for PeerArray {}

impl PeerArray {
    /// Maps `map`, an array of [`MAX_PEERS`] entries made with `BPF_F_MMAPABLE`.
    pub(super) fn map(map: &MapData) -> Result<Self, KernelError> {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe { mmap(ptr::null_mut(), BYTES, flags, MapFlags::SHARED, map.fd().as_fd(), 0) };
        let start =
            start.map_err(|e| KernelError::new("map into memory", names::PEERS, io::Error::from(e)))?;
        Ok(Self { start: start.cast() })
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        assert!(index < MAX_PEERS, "peer index {index} is out of range");
        // SAFETY: within the mapping, which lives as long as self; 8-byte aligned, as pages are.
        unsafe { &*self.start.add(index) }
    }

    /// Entries other than [`PeerValue::NO_TUNNEL`].
    pub(super) fn set_ones(&self) -> impl Iterator<Item = (u32, PeerValue)> {
        (0u32..).zip(0..MAX_PEERS).filter_map(|(key, index)| {
            let value = PeerValue(self.at(index).load(Ordering::Acquire));
            (value != PeerValue::NO_TUNNEL).then_some((key, value))
        })
    }

    /// Stores one entry.
    pub(super) fn store(&self, index: u32, value: PeerValue) {
        self.at(index as usize).store(value.0, Ordering::Release);
    }
}

impl Drop for PeerArray {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nobody refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), BYTES) };
    }
}
