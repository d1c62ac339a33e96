use kubeveil_abi::{
    Address, BYPASS_GRACE, Config, DeviceKind, FlowKey, FlowMode, FlowValue, Origin, PeerState, PeerValue,
    PrefixValue, Reason,
};

use crate::{Ask, Held, Owner, held};

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
    /// The device of the pod of this node that has the address, if that was found.
    fn origin(&self, address: &Address) -> Option<Origin>;
    /// Whether that device is still there.
    fn is_alive(&self, device: u32) -> bool;
    /// How strict a flow is of whose ends this is asked for.
    #[inline(always)]
    fn held(&self, ask: Ask, config: &Config) -> Held {
        held(ask, config)
    }
    /// How packets to a peer travel; [`PeerValue::NO_TUNNEL`] for an index out of range.
    fn peer(&self, index: u32) -> PeerValue;
    /// The device of a slot, 0 if there is none.
    fn slot(&self, slot: u8) -> u32;
    /// What a device is to us.
    fn device(&self, ifindex: u32) -> Option<DeviceKind>;
    /// A flow whose replies are tunnelled.
    fn flow(&self, key: &FlowKey) -> Option<FlowValue>;
    /// Notes that a flow was seen; false if there is no room for it.
    fn remember(&self, key: &FlowKey, value: FlowValue) -> bool;
    /// Seconds since boot.
    fn now(&self) -> u32;
}

/// Why packets of such a flow to a peer pass in plain now, if they may.
#[inline(always)]
pub(crate) fn plain(tables: &impl Tables, peer: PeerValue, held: Held) -> Option<Reason> {
    let reason = match peer.state() {
        PeerState::Bypass | PeerState::BypassedTunnel => Reason::Bypassed,
        PeerState::Adopting => Reason::Adopting,
        PeerState::NoTunnel | PeerState::Tunnel | PeerState::BypassHeard => return None,
    };
    unless_over(tables, held, peer.bypass_until(), reason)
}

/// The same of packets from it: for a moment also where ours go into its tunnel already, or still.
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
