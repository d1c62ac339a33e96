//! Tests of the store, and the faults that they inject.

use std::sync::atomic::{AtomicI64, Ordering};

use rustix::io::{Errno, Result};

/// Makes system calls fail.
#[derive(Debug, Default)]
pub(super) struct Faults {
    calls: AtomicI64,
}

impl Faults {
    pub(super) fn next(&self) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let _ = Errno::IO;
        Ok(())
    }
}
