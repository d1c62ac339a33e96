//! What the eBPF programs and the daemon agree upon: map layouts, names, verdicts, reasons.
//!
//! Every type that lies in a map is `#[repr(C)]`, made of unsigned words, without padding, and its
//! size is asserted. A change of any of them is a new [`ABI_VERSION`]: maps are pinned under it, so
//! that two versions never read each other's memory.
#![no_std]

mod address;
mod config;
mod counter;
mod device;
mod epoch;
mod flow;
pub mod names;
mod origin;
mod peer;
mod prefix;
mod reason;
mod watch;

pub use address::{Address, is_v4_mapped, v4, v4_mapped_length};
pub use config::{Config, ENVELOPE_PORTS, FlowMode, GENEVE, Mode};
pub use counter::{COUNTERS, Counter, Direction, counted, counter_index, is_observed};
pub use device::DeviceKind;
pub use epoch::is_settled;
pub use flow::{FlowKey, FlowValue};
pub use origin::{Origin, port_number};
pub use peer::{BYPASS_GRACE, PeerState, PeerValue};
pub use prefix::{Asked, PrefixKind, PrefixValue};
pub use reason::{Reason, Verdict};
pub use watch::{Seen, SeenKey, WATCH_FLOWS, WATCH_LOST, WATCH_WORDS, WatchKey};

/// Version of everything in this crate. Maps are pinned under `kubeveil/v<ABI_VERSION>/`.
pub const ABI_VERSION: u32 = 3;

/// Prefixes that [`names::PREFIXES`] can hold: 5,000 dual-stack nodes have 20,000.
pub const MAX_PREFIXES: usize = 65_536;
/// Peers (other nodes) that [`names::PEERS`] can hold. A peer index is below this.
pub const MAX_PEERS: usize = 16_384;
/// Slots of [`names::SLOTS`]: two generations of up to eight lanes each.
pub const MAX_SLOTS: usize = 16;
/// Devices that [`names::DEVICES`] can hold.
pub const MAX_DEVICES: usize = 1_024;
/// Addresses of this node's pods that [`names::ORIGINS`] can hold, and devices that [`names::ALIVE`] can: a node has 110 pods unless somebody says
/// otherwise (Kubernetes, `maxPods` of the kubelet's configuration).
pub const MAX_ORIGINS: usize = 4_096;
/// Flows from pods behind a remote node's own address that [`names::FLOWS`] can hold.
pub const MAX_FLOWS: usize = 65_536;
/// Flows that [`names::WATCHED`] can hold.
pub const MAX_WATCHED: usize = 256;
/// What [`names::SEEN`] can hold: of each flow a few programs, modes and reasons.
pub const MAX_SEEN: usize = 4_096;

/// Name of the WireGuard device of an even (`0`) or odd (`1`) key generation.
pub const DEVICE_NAMES: [&str; 2] = ["kubeveil0", "kubeveil1"];
/// UDP port of generation parity 0; parity 1 has the next one.
pub const BASE_PORT: u16 = 51_871;
/// Firewall mark of WireGuard's own packets. It avoids the bits of kube-proxy (0x4000, 0x8000),
/// Cilium (0x0f00 and the upper half), Calico (0xffff0000) and Tailscale (0xff0000).
pub const FWMARK: u32 = 0x2000;
