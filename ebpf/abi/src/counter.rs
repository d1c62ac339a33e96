use crate::{FlowMode, Reason, Verdict};

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
/// The modes are numbered from 0.
const MODES: u32 = FlowMode::Insist as u32 + 1;
/// Entries of [`names::COUNTERS`](crate::names::COUNTERS): every direction, and every mode that a packet can be held to.
pub const COUNTERS: usize = Direction::ALL.len() * (MODES * ROOM) as usize;

/// Where a packet is counted that was held to `mode`.
#[inline(always)]
pub const fn counter_index(direction: Direction, mode: FlowMode, reason: Reason) -> u32 {
    (direction as u32 * MODES + mode as u32) * ROOM + reason as u32
}

/// What [`counter_index`] was made of.
pub fn counted(index: u32) -> Option<(Direction, FlowMode, Reason)> {
    let direction = *Direction::ALL.get((index / (MODES * ROOM)) as usize)?;
    let mode = *FlowMode::ALL.get((index / ROOM % MODES) as usize)?;
    let reason = Reason::ALL.iter().find(|reason| **reason as u32 == index % ROOM)?;
    Some((direction, mode, *reason))
}

/// Was the verdict of what is counted there not carried out, so that the packet passed? In the mode observe that is every
/// packet; in prefer, and of what is exempt, one that require would have dropped, where [`Reason::Preferred`] or
/// [`Reason::Exempted`] does not say so by itself.
///
/// What came out of a tunnel is dropped all the same: it does not become plain again. So is what is too big for one: its
/// sender will send it anew.
#[inline(always)]
pub const fn is_observed(mode: FlowMode, reason: Reason) -> bool {
    match mode {
        FlowMode::Require | FlowMode::Insist => false,
        FlowMode::Observe => true,
        FlowMode::Prefer | FlowMode::Exempt => {
            matches!(reason.verdict(), Verdict::Drop)
                && !matches!(reason, Reason::TunnelToPlain | Reason::TooBig)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_place_of_its_own() {
        let mut taken = [false; COUNTERS];
        for direction in Direction::ALL {
            for mode in FlowMode::ALL {
                for reason in Reason::ALL {
                    let index = counter_index(direction, mode, *reason);
                    assert_eq!(counted(index), Some((direction, mode, *reason)));
                    let place = &mut taken[index as usize];
                    assert!(!core::mem::replace(place, true), "{direction:?} {mode:?} {reason:?}");
                }
            }
        }
    }

    #[test]
    fn modes_stand_in_the_order_of_their_numbers() {
        for (number, mode) in (0..).zip(FlowMode::ALL) {
            assert_eq!((mode as u8, FlowMode::from_raw(number)), (number, mode));
        }
    }
}
