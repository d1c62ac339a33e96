//! Bytes that nobody has read.

use std::net::IpAddr;

use super::MARKER;

/// Whether `bytes` hold `wanted`.
pub(super) fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    memchr::memmem::find(bytes, wanted).is_some()
}

/// Of which load the first payload is, if a marker is there and that is behind it.
pub(super) fn load(bytes: &[u8]) -> Option<u64> {
    let start = memchr::memmem::find(bytes, MARKER)? + MARKER.len();
    bytes.get(start..)?.first_chunk().map(|load| u64::from_be_bytes(*load))
}

/// The addresses whose bytes are there.
pub(super) fn addresses(bytes: &[u8], wanted: &[IpAddr]) -> Vec<IpAddr> {
    let there = |address: &&IpAddr| match address {
        IpAddr::V4(address) => contains(bytes, &address.octets()),
        IpAddr::V6(address) => contains(bytes, &address.octets()),
    };
    wanted.iter().filter(there).copied().collect()
}

/// Whether two addresses of one family share their first `length` bits.
pub(super) fn same_prefix(one: IpAddr, other: IpAddr, length: u8) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            let differing = one.to_bits() ^ other.to_bits();
            differing.leading_zeros() >= u32::from(length)
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let differing = one.to_bits() ^ other.to_bits();
            differing.leading_zeros() >= u32::from(length)
        }
        _ => false,
    }
}
