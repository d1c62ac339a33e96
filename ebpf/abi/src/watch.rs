use crate::Address;

/// Word of [`names::WATCH`](crate::names::WATCH): how many flows are watched; 0, and nobody looks further.
pub const WATCH_FLOWS: u32 = 0;
/// Word of [`names::WATCH`](crate::names::WATCH): not 0 where a packet was seen and could not be noted.
pub const WATCH_LOST: u32 = 1;
/// Words of [`names::WATCH`](crate::names::WATCH).
pub const WATCH_WORDS: u32 = 2;

/// Key of [`names::WATCHED`](crate::names::WATCHED): packets that somebody wants to see, by what their IP header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WatchKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

/// Key of [`names::SEEN`](crate::names::SEEN).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SeenKey {
    /// The number that [`names::WATCHED`](crate::names::WATCHED) gives to a flow.
    pub watch: u32,
    /// Which program saw it, what it was held to and why: [`counter_index`](crate::counter_index).
    pub counter: u32,
}

/// What was seen of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    /// Packets.
    pub packets: u64,
    /// Bytes, as of [`Counter`](crate::Counter).
    pub bytes: u64,
    /// When the last one was, nanoseconds since boot.
    pub last: u64,
}

const _: () = assert!(size_of::<WatchKey>() == 32);
const _: () = assert!(size_of::<SeenKey>() == 8);
const _: () = assert!(size_of::<Seen>() == 24);
