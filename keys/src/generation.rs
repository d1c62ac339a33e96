use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of a key generation. Each has a WireGuard device, a UDP port and a key of its own on every node.
///
/// Two generations live side by side during a rotation, so the parity picks name and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u32);

impl Generation {
    /// The generation of a new cluster.
    pub const FIRST: Self = Self(0);

    /// Generation `number`.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The one that follows; `None` after 2^32 rotations.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// 0 for an even, 1 for an odd generation: the index among the two device names.
    pub const fn parity(self) -> usize {
        (self.0 & 1) as usize
    }

    /// The UDP port of this generation, given that of even ones: `base + parity`. `None` past 65535.
    pub const fn port(self, base: u16) -> Option<u16> {
        base.checked_add((self.0 & 1) as u16)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_never_share_a_device_or_a_port() {
        for number in [0, 1, 2, 7, u32::MAX - 1] {
            let generation = Generation::new(number);
            let next = generation.next().expect("not the last");
            assert_ne!(generation.parity(), next.parity());
            assert_ne!(generation.port(51871), next.port(51871));
        }
        assert_eq!(Generation::new(u32::MAX).next(), None);
        assert_eq!(Generation::new(4).port(51871), Some(51871));
        assert_eq!(Generation::new(5).port(51871), Some(51872));
        assert_eq!(Generation::new(5).port(u16::MAX), None);
    }

    #[test]
    fn it_reads_as_a_number() {
        assert_eq!(Generation::new(12).to_string(), "12");
        assert_eq!(serde_json::to_string(&Generation::new(12)).expect("json"), "12");
        assert_eq!(serde_json::from_str::<Generation>("12").expect("json"), Generation::new(12));
    }
}
