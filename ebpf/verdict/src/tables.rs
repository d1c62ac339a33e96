use kubeveil_abi::{
    Address, BYPASS_GRACE, Config, DeviceKind, FlowKey, FlowMode, FlowValue, Origin, PeerState, PeerValue,
    PrefixValue, Reason,
};

use crate::{
    Ask, Held, Owner,
    flow::{Sight, follow},
    held,
};

/// What is known of the cluster: the maps.
pub trait Tables {
    /// The longest prefix that holds the address.
    fn prefix(&self, address: &Address) -> Option<PrefixValue>;
    /// Who has the address.
    #[inline(always)]
    fn owner(&self, address: &Address) -> Option<Owner>
    where
        Self: Sized,
    {
        // In this order: the daemon says who has an address now, and then by which device.
        let origin = self.origin(address);
        Some(Owner::of(self.prefix(address)?, origin, self))
    }
    /// The device of the pod of this node that has the address; [`Origin::NONE`] if it was not found.
    fn origin(&self, address: &Address) -> Origin;
    /// Whether that device is still there.
    fn is_alive(&self, origin: &Origin) -> bool;
    /// How strict a flow is of whose ends this is asked for.
    #[inline(always)]
    fn held(&self, ask: Ask, config: &Config) -> Held {
        held(ask, config)
    }
    /// How packets to a peer travel; [`PeerValue::NO_TUNNEL`] for an index out of range.
    fn peer(&self, index: u32) -> PeerValue;
    /// How a packet to a peer travels now, of whose ends this is asked for.
    #[inline(always)]
    fn route(&self, index: u32, ask: Ask, config: &Config) -> Route
    where
        Self: Sized,
    {
        Route::of(self.peer(index), self.held(ask, config), self)
    }
    /// The device of a slot, 0 if there is none.
    fn slot(&self, slot: u8) -> u32;
    /// What a device is to us.
    fn device(&self, ifindex: u32) -> Option<DeviceKind>;
    /// A flow whose replies are tunnelled.
    fn flow(&self, key: &FlowKey) -> Option<FlowValue>;
    /// Notes that a flow was seen; false if there is no room for it.
    fn remember(&self, key: &FlowKey, value: FlowValue) -> bool;
    /// Notes a packet of a flow ([`follow`]).
    #[inline(always)]
    fn follow(&self, key: &FlowKey, sight: Sight, config: &Config) -> bool
    where
        Self: Sized,
    {
        follow(key, sight, self, config)
    }
    /// Seconds since boot.
    fn now(&self) -> u32;
}

/// How a packet to a peer travels: a number, as a global function of the programs can return it, so that the verifier does not walk on
/// once for each state of a peer: `{ifindex:32, course:8, others-in-plain:1}` from the lowest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route(pub u64);

/// What a [`Route`] comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Into this device.
    Tunnel(u32),
    /// In plain, for this reason.
    Plain(Reason),
    /// Nowhere, for this reason.
    Nowhere(Reason),
}

impl Route {
    const TUNNEL: u64 = 1 << 32;
    const BYPASSED: u64 = 2 << 32;
    const ADOPTING: u64 = 3 << 32;
    const DEVICE_GONE: u64 = 4 << 32;
    const NO_TUNNEL: u64 = 5 << 32;
    /// Beside what it is: others may go in plain, though there is a tunnel.
    const OTHERS_IN_PLAIN: u64 = 1 << 40;

    /// Of a packet that is held to so much. What policies require encryption of never goes in plain for the sake of a bypass, or of adoption.
    #[inline(always)]
    pub fn of(peer: PeerValue, held: Held, tables: &impl Tables) -> Self {
        let in_plain = match peer.state() {
            PeerState::Bypass | PeerState::BypassedTunnel => Self::BYPASSED,
            PeerState::Adopting => Self::ADOPTING,
            PeerState::NoTunnel | PeerState::Tunnel | PeerState::BypassHeard => 0,
        };
        // Most peers are in no such state, and nobody looks at the clock for them.
        let is_on = in_plain != 0 && tables.now() < peer.bypass_until();
        if is_on && !matches!(held.mode(), FlowMode::Insist) {
            return Self(in_plain);
        }
        let others = if is_on { Self::OTHERS_IN_PLAIN } else { 0 };
        if !peer.has_tunnel() {
            return Self(Self::NO_TUNNEL);
        }
        match tables.slot(peer.slot()) {
            0 => Self(Self::DEVICE_GONE),
            ifindex => Self(Self::TUNNEL | others | ifindex as u64),
        }
    }

    /// Into the tunnel, whatever the packet is held to.
    #[inline(always)]
    pub(crate) const fn is_for_all(self) -> bool {
        self.0 >> 32 == Self::TUNNEL >> 32
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the word is taken apart")]
    pub(crate) const fn course(self) -> Course {
        match self.0 & 7 << 32 {
            Self::TUNNEL => Course::Tunnel(self.0 as u32),
            Self::BYPASSED => Course::Plain(Reason::Bypassed),
            Self::ADOPTING => Course::Plain(Reason::Adopting),
            Self::DEVICE_GONE => Course::Nowhere(Reason::DeviceGone),
            _ => Course::Nowhere(Reason::NoTunnel),
        }
    }
}

/// Why packets of such a flow from a peer pass in plain now, if they may: for a moment also where ours go into its tunnel already, or still.
#[inline(always)]
pub(crate) fn heard_in_plain(tables: &impl Tables, peer: PeerValue, held: Held) -> Option<Reason> {
    let until = peer.bypass_until();
    let (until, reason) = match peer.state() {
        PeerState::Bypass | PeerState::BypassedTunnel => {
            (until.saturating_add(BYPASS_GRACE), Reason::Bypassed)
        }
        PeerState::BypassHeard => (until, Reason::Bypassed),
        PeerState::Adopting => (until, Reason::Adopting),
        // Most peers have no such moment, and nobody looks at the clock for them.
        PeerState::Tunnel if until != 0 => (until, Reason::Adopting),
        PeerState::NoTunnel | PeerState::Tunnel => return None,
    };
    unless_over(tables, held, until, reason)
}

/// What policies require encryption of is never among what passes so.
#[inline(always)]
fn unless_over(tables: &impl Tables, held: Held, until: u32, reason: Reason) -> Option<Reason> {
    (!matches!(held.mode(), FlowMode::Insist) && tables.now() < until).then_some(reason)
}
