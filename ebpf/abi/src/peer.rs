/// How packets to a peer travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PeerState {
    /// No proven tunnel: the [`Mode`](crate::Mode) decides. Zero, so that an index nobody has written to
    /// fails closed under `require`.
    NoTunnel = 0,
    /// Into the device of the value's slot.
    Tunnel = 1,
    /// In plain until the value's end of bypass, then as [`PeerState::NoTunnel`].
    Bypass = 2,
    /// The same, since the mesh is being adopted and this peer's tunnel was never proven.
    Adopting = 3,
}

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
