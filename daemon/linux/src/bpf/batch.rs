//! All entries of a map in a few calls (`BPF_MAP_LOOKUP_BATCH`, for hashes since Linux 5.6, for tries since 5.13), which aya 0.14 lacks. One by
//! one, each costs two.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::call::bpf;

/// Entries a call.
const MOST: usize = 1024;

/// Every entry of `map`, whose keys and values are of these many words.
pub(super) fn entries<const K: usize, const V: usize>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<([u32; K], [u32; V])>> {
    let mut out = Vec::new();
    let (mut keys, mut values) = (vec![[0; K]; MOST], vec![[0; V]; MOST]);
    // Where the next call goes on: a key, or for a hash the number of a bucket in its first word.
    let mut position: Option<[u32; K]> = None;
    loop {
        let mut next = [0; K];
        // SAFETY: plain integers, for all of which zero is a value.
        let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
        attr.batch.in_batch = position.as_ref().map_or(0, |key| key.as_ptr().addr() as u64);
        attr.batch.out_batch = next.as_mut_ptr().addr() as u64;
        attr.batch.keys = keys.as_mut_ptr().addr() as u64;
        attr.batch.values = values.as_mut_ptr().addr() as u64;
        attr.batch.count = u32::try_from(MOST).unwrap_or(u32::MAX);
        attr.batch.map_fd = u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
        let told = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        let is_last = match told {
            Ok(_) => false,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(e) => return Err(e),
        };
        // SAFETY: the kernel has written how many there were, also where they were the last.
        let count = unsafe { attr.batch.count } as usize;
        out.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if is_last {
            return Ok(out);
        }
        position = Some(next);
    }
}
