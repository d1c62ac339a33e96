//! The operating system's randomness.

use std::io;

use rustix::{
    io::retry_on_intr,
    rand::{GetRandomFlags, getrandom},
};

/// Fills `bytes`, waiting until the kernel's pool is ready.
///
/// By the system call itself: a wait on `/dev/random`, to which the crate `getrandom` falls back in a
/// static binary, never ends on a machine where nothing stirs the pool, while the call makes the
/// kernel stir it (`drivers/char/random.c`, `wait_for_random_bytes`).
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += retry_on_intr(|| getrandom(&mut bytes[filled..], GetRandomFlags::empty()))?;
    }
    Ok(())
}
