use crate::Reason;

/// Which program counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// `steer`: out of the node.
    Egress = 0,
    /// `guard`: into the node, as it lies on the wire.
    Ingress = 1,
    /// `deliver`: into the node, out of a tunnel.
    Tunnel = 2,
    /// `backstop`: out of the node by a device that nobody guards.
    Backstop = 3,
}

impl Direction {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Egress, Self::Ingress, Self::Tunnel, Self::Backstop];

    /// The value of the metrics' label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Tunnel => "tunnel",
            Self::Backstop => "backstop",
        }
    }
}

/// One entry of [`names::COUNTERS`](crate::names::COUNTERS), one on each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on, as it states them; of what is not IP or can't be read, the whole frame.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

/// Room for reasons of one direction; more than there are, so that a new reason moves no counter.
pub(crate) const ROOM: u32 = 64;
/// Entries of [`names::COUNTERS`](crate::names::COUNTERS): every direction, done and only observed.
pub const COUNTERS: usize = Direction::ALL.len() * 2 * ROOM as usize;

/// Where a packet is counted. `observed`: the verdict was not carried out, and the packet passed. In the
/// mode observe that is every packet; in prefer it is one that require would have dropped, where
/// [`Reason::Preferred`] does not say so by itself.
#[inline(always)]
pub const fn counter_index(direction: Direction, observed: bool, reason: Reason) -> u32 {
    (direction as u32 * 2 + observed as u32) * ROOM + reason as u32
}
