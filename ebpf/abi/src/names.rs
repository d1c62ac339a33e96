//! Names of maps, programs and pins.

/// Array of one [`Config`](crate::Config).
pub const CONFIG: &str = "CONFIG";
/// LPM trie: mapped address -> [`PrefixValue`](crate::PrefixValue). Whoever changes it moves [`EPOCH`].
pub const PREFIXES: &str = "PREFIXES";
/// Array, mapped into the daemon's memory: peer index -> [`PeerValue`](crate::PeerValue).
pub const PEERS: &str = "PEERS";
/// Array: slot -> ifindex of a WireGuard device, 0 if there is none.
pub const SLOTS: &str = "SLOTS";
/// Hash: ifindex -> [`DeviceKind`](crate::DeviceKind).
pub const DEVICES: &str = "DEVICES";
/// Hash: [`FlowKey`](crate::FlowKey) -> [`FlowValue`](crate::FlowValue).
pub const FLOWS: &str = "FLOWS";
/// Per-CPU array of [`Counter`](crate::Counter), see [`counter_index`](crate::counter_index).
pub const COUNTERS: &str = "COUNTERS";
/// Array of one word: which state of [`PREFIXES`] this is, see [`is_settled`](crate::is_settled).
pub const EPOCH: &str = "EPOCH";
/// Every map, in the order in which they are opened.
pub const MAPS: [&str; 8] = [CONFIG, PREFIXES, PEERS, SLOTS, DEVICES, FLOWS, COUNTERS, EPOCH];

/// Egress of underlay devices.
pub const STEER: &str = "steer";
/// Ingress of underlay devices.
pub const GUARD: &str = "guard";
/// Ingress of our WireGuard devices.
pub const DELIVER: &str = "deliver";
/// Every program.
pub const PROGRAMS: [&str; 3] = [STEER, GUARD, DELIVER];
