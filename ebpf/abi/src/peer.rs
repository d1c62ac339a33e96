/// How packets to a peer travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PeerState {
    /// No proven tunnel: the [`Mode`](crate::Mode) decides. Zero, so that an index nobody has written to
    /// fails closed under `require`.
    NoTunnel = 0,
    /// Into the device of the value's slot.
    Tunnel = 1,
    /// In plain until the value's end of bypass, then as [`PeerState::NoTunnel`]; but for flows of which policies require
    /// encryption, which travel as if there were no bypass.
    Bypass = 2,
    /// The same, since the mesh is being adopted and this peer's tunnel was never proven.
    Adopting = 3,
    /// As [`PeerState::Bypass`], over a tunnel: it carries what requires it, and from the end of the bypass on everything.
    BypassedTunnel = 4,
    /// Into the device of the value's slot, while the peer's own packets may come in plain until the value's end of bypass: it
    /// begins a bypass a moment sooner than we do.
    BypassHeard = 5,
}

/// Seconds after the end of a bypass during which the peer's packets may still come in plain: the clocks of two nodes differ.
pub const BYPASS_GRACE: u32 = 10;

/// One entry of [`names::PEERS`](crate::names::PEERS): 64 bits, so that a change is one atomic store.
///
/// `{state:8, slot:8, generation:16, bypass-until:32}` from the lowest bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct PeerValue(pub u64);

const _: () = assert!(size_of::<PeerValue>() == 8);

impl PeerValue {
    /// No tunnel.
    pub const NO_TUNNEL: Self = Self(0);

    /// Through `slot`, which holds a device of `generation` (its low 16 bits are kept, for people).
    #[inline(always)]
    pub const fn tunnel(slot: u8, generation: u32) -> Self {
        Self(PeerState::Tunnel as u64 | (slot as u64) << 8 | ((generation & 0xffff) as u64) << 16)
    }

    /// In plain until `until`, seconds since boot.
    #[inline(always)]
    pub const fn bypass(until: u32) -> Self {
        Self(PeerState::Bypass as u64 | (until as u64) << 32)
    }

    /// The same way but in plain until `until`, seconds since boot. What is in plain already, since the mesh is being adopted,
    /// stays as it is.
    #[inline(always)]
    #[must_use]
    pub const fn bypassed(self, until: u32) -> Self {
        match self.state() {
            PeerState::Adopting => self,
            _ if self.has_tunnel() => self.over_tunnel(PeerState::BypassedTunnel, until),
            _ => Self::bypass(until),
        }
    }

    /// The same way, while until `until` the peer's own packets may come in plain by a bypass. A bypass over no tunnel needs
    /// no such beginning.
    #[inline(always)]
    #[must_use]
    pub const fn bypass_heard(self, until: u32) -> Self {
        if self.has_tunnel() { self.over_tunnel(PeerState::BypassHeard, until) } else { self }
    }

    const fn over_tunnel(self, state: PeerState, until: u32) -> Self {
        Self(state as u64 | self.0 & 0xffff_ff00 | (until as u64) << 32)
    }

    /// Whether there is a tunnel, though it be bypassed.
    #[inline(always)]
    pub const fn has_tunnel(self) -> bool {
        matches!(self.state(), PeerState::Tunnel | PeerState::BypassedTunnel | PeerState::BypassHeard)
    }

    /// Whether packets to the peer travel in plain by a bypass at `now`, seconds since boot.
    #[inline(always)]
    pub const fn is_bypassed(self, now: u32) -> bool {
        matches!(self.state(), PeerState::Bypass | PeerState::BypassedTunnel) && now < self.bypass_until()
    }

    /// In plain until `until`, seconds since boot, or until its tunnel is proven.
    #[inline(always)]
    pub const fn adopting(until: u32) -> Self {
        Self(PeerState::Adopting as u64 | (until as u64) << 32)
    }

    /// Through the tunnel, while until `until` the peer's own packets may come in plain: it learns a moment later
    /// than we do that the tunnel is proven.
    #[inline(always)]
    pub const fn heard_in_plain(self, until: u32) -> Self {
        Self(self.0 & 0xffff_ffff | (until as u64) << 32)
    }

    /// The state; what is unknown counts as no tunnel.
    #[inline(always)]
    pub const fn state(self) -> PeerState {
        match self.0 & 0xff {
            1 => PeerState::Tunnel,
            2 => PeerState::Bypass,
            3 => PeerState::Adopting,
            4 => PeerState::BypassedTunnel,
            5 => PeerState::BypassHeard,
            _ => PeerState::NoTunnel,
        }
    }

    /// Index into [`names::SLOTS`](crate::names::SLOTS).
    #[inline(always)]
    pub const fn slot(self) -> u8 {
        (self.0 >> 8 & 0xff) as u8
    }

    /// End of what passes in plain, seconds since boot.
    #[inline(always)]
    pub const fn bypass_until(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever lay on it, it is the tunnel that it was.
    #[test]
    fn a_bypass_keeps_what_is_beneath() {
        let tunnel = PeerValue::tunnel(1, 7);
        for value in [tunnel.bypassed(50), tunnel.bypass_heard(50), tunnel.bypass_heard(9).bypassed(50)] {
            assert!(value.has_tunnel());
            assert_eq!((value.slot(), value.0 >> 16 & 0xffff, value.bypass_until()), (1, 7, 50));
        }
        assert_eq!(tunnel.heard_in_plain(9).bypassed(50), tunnel.bypassed(50));
        assert_eq!(PeerValue::NO_TUNNEL.bypassed(50), PeerValue::bypass(50));
        assert_eq!(PeerValue::NO_TUNNEL.bypass_heard(50), PeerValue::NO_TUNNEL);
        assert_eq!(PeerValue::adopting(9).bypassed(50), PeerValue::adopting(9));
        assert!(!PeerValue::bypass(50).has_tunnel());
    }

    #[test]
    fn it_ends() {
        for value in [PeerValue::bypass(50), PeerValue::tunnel(0, 3).bypassed(50)] {
            assert_eq!([49, 50, 51].map(|now| value.is_bypassed(now)), [true, false, false]);
        }
        for value in [PeerValue::adopting(50), PeerValue::tunnel(0, 3).bypass_heard(50)] {
            assert!(!value.is_bypassed(49));
        }
    }
}
