use kubeveil_abi::{
    Address, DeviceKind, FlowKey, FlowValue, PeerState, PeerValue, PrefixKind, PrefixValue, Reason,
};

/// What is known of the cluster: the maps.
pub trait Tables {
    /// The longest prefix that holds the address.
    fn prefix(&self, address: &Address) -> Option<PrefixValue>;
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

/// Whose an address is, and the peer's index if it is a peer's.
///
/// A kind that this program does not know counts as a pod's that nobody owns: it must not pass.
#[inline(always)]
pub(crate) fn owner(tables: &impl Tables, address: &Address) -> Option<(PrefixKind, u32)> {
    let value = tables.prefix(address)?;
    let kind = PrefixKind::from_raw(value.kind).unwrap_or(PrefixKind::UnownedPods);
    Some((kind, value.peer))
}

/// Why packets to a peer pass in plain now, if they may.
#[inline(always)]
pub(crate) fn plain(tables: &impl Tables, peer: PeerValue) -> Option<Reason> {
    let reason = match peer.state() {
        PeerState::Bypass => Reason::Bypassed,
        PeerState::Adopting => Reason::Adopting,
        PeerState::NoTunnel | PeerState::Tunnel => return None,
    };
    (tables.now() < peer.bypass_until()).then_some(reason)
}

/// The same of packets from it: for a moment also where ours go into its tunnel already.
#[inline(always)]
pub(crate) fn heard_in_plain(tables: &impl Tables, peer: PeerValue) -> Option<Reason> {
    match peer.state() {
        PeerState::Tunnel if peer.bypass_until() != 0 && tables.now() < peer.bypass_until() => {
            Some(Reason::Adopting)
        }
        _ => plain(tables, peer),
    }
}
