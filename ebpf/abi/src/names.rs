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
/// Hash: address of a pod of this node -> [`Origin`](crate::Origin). Whoever changes it moves [`EPOCH`].
pub const ORIGINS: &str = "ORIGINS";
/// Devmap by hash: [`Origin::key`](crate::Origin::key) -> its device, as long as that lives: the kernel takes an entry out with its device (kernel
/// `kernel/bpf/devmap.c`, `dev_map_notification`), whether the daemon is running or not.
pub const ALIVE: &str = "ALIVE";
/// Per-CPU array of [`Counter`](crate::Counter), see [`counter_index`](crate::counter_index).
pub const COUNTERS: &str = "COUNTERS";
/// Array of one word: which state of [`PREFIXES`] and [`ORIGINS`] this is, see [`is_settled`](crate::is_settled).
pub const EPOCH: &str = "EPOCH";
/// Array of words: [`WATCH_FLOWS`](crate::WATCH_FLOWS), [`WATCH_LOST`](crate::WATCH_LOST).
pub const WATCH: &str = "WATCH";
/// Hash: [`WatchKey`](crate::WatchKey) -> a number of its own.
pub const WATCHED: &str = "WATCHED";
/// Per-CPU hash: [`SeenKey`](crate::SeenKey) -> [`Seen`](crate::Seen).
pub const SEEN: &str = "SEEN";
/// Every map, in the order in which they are opened.
pub const MAPS: [&str; 13] =
    [CONFIG, PREFIXES, PEERS, SLOTS, DEVICES, ORIGINS, ALIVE, FLOWS, COUNTERS, EPOCH, WATCH, WATCHED, SEEN];

/// Egress of underlay devices.
pub const STEER: &str = "steer";
/// Egress of overlays' devices that the tunnel replaces.
pub const REPLACE: &str = "replace";
/// Ingress of underlay devices.
pub const GUARD: &str = "guard";
/// Ingress of our WireGuard devices.
pub const DELIVER: &str = "deliver";
/// Ingress of bridges' ports with pods behind them.
pub const ORIGIN: &str = "origin";
/// Netfilter's POST_ROUTING, of the whole node; loaded apart from the others.
pub const BACKSTOP: &str = "backstop";
/// Every program that is attached to devices.
pub const PROGRAMS: [&str; 5] = [STEER, REPLACE, GUARD, DELIVER, ORIGIN];

/// Where fields of the kernel's own structures lie differs from build to build. The backstop has these offsets, in
/// bytes, as constants, which whoever loads it writes: symbol, structure, field; where there are several, the first that
/// the kernel has (what stands at a device's egress: from Linux 6.6, and before).
pub const FIELDS: [(&str, &str, &[&str]); 8] = [
    ("STATE_OUT", "nf_hook_state", &["out"]),
    ("DEVICE_IFINDEX", "net_device", &["ifindex"]),
    ("DEVICE_EGRESS", "net_device", &["tcx_egress", "miniq_egress"]),
    ("SKB_DATA", "sk_buff", &["data"]),
    ("SKB_LEN", "sk_buff", &["len"]),
    ("SKB_DATA_LEN", "sk_buff", &["data_len"]),
    ("SKB_IIF", "sk_buff", &["skb_iif"]),
    ("SKB_TC_INDEX", "sk_buff", &["tc_index"]),
];
