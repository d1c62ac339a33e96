//! The status document: what the daemon answers on its socket, and `kubeveil status -o json` prints.

use std::net::SocketAddr;

use jiff::Timestamp;
use kubeveil_keys::{Generation, PublicKey};
use serde::{Deserialize, Serialize};

use crate::{mesh::Mode, problem::Problem, words::words};

/// Version of [`Status`]: raised when a field changes its meaning or goes, not when one is added.
pub const STATUS_VERSION: u32 = 1;

/// One node's view.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`STATUS_VERSION`].
    pub schema_version: u32,
    /// Name of the node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// Enforcement stands, and everything that is known has been carried out.
    pub ready: bool,
    /// Why not, or what it waits for; empty if it is ready.
    pub waiting_for: Vec<String>,
    /// The mesh's mode; `None` while no mesh is known.
    pub mode: Option<Mode>,
    /// What policies ask for; `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<PolicyStatus>,
    /// Which pairs may still speak in plain; `None` where the mesh has no `spec.adoption`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption: Option<AdoptionStatus>,
    /// Nodes that are bypassed: packets to them travel in plain, but for those of which policies require encryption.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bypasses: Vec<BypassStatus>,
    /// Where the cluster is read from, and whether all of it has been.
    pub source: SourceStatus,
    /// This node's key; `None` until there is one.
    pub key: Option<KeyStatus>,
    /// The WireGuard device; `None` until there is one.
    pub device: Option<DeviceStatus>,
    /// Other nodes.
    pub peers: Vec<PeerStatus>,
    /// Where programs should be attached.
    pub programs: Vec<ProgramStatus>,
    /// What holds at devices at which no program stands.
    pub backstop: BackstopStatus,
    /// Packets by direction and verdict.
    pub packets: Vec<PacketCount>,
    /// Dropped packets by direction and reason, those with any; what WireGuard itself refused is among them.
    pub drops: Vec<DropCount>,
    /// Pods' packets that passed in plain, by direction and reason, those with any; in `observe` what would have been encrypted or dropped.
    pub plain: Vec<PlainCount>,
    /// Packets that went into a tunnel bigger than its MTU, and crossed the wire in fragments: of IPv4, without "don't fragment".
    #[serde(default)]
    pub fragmented: u64,
    /// What is wrong, and what to do about it.
    pub problems: Vec<Problem>,
    /// Privileged steps carried out since the daemon started; a quiet node makes none.
    pub kernel_writes: u64,
    /// Problems met since then, of every kind.
    pub errors_met: u64,
}

/// What policies ask for, beside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// How many there are.
    pub count: usize,
    /// How many of them are of one namespace; the others are the cluster's.
    #[serde(default)]
    pub namespaced: usize,
    /// What is asked for of whom none of them selects: more than the mesh's mode, where that only observes.
    pub others: Mode,
    /// Addresses of this node's pods of which encryption is required.
    pub required: usize,
    /// This node's own pods.
    #[serde(default)]
    pub pods: PodsByMode,
    /// Addresses of this node's pods that are known by the pods' devices, and so are nobody else's when a pod is gone.
    #[serde(default)]
    pub known_by_device: usize,
    /// Exemptions that are written and have not ended.
    #[serde(default)]
    pub exemptions: usize,
    /// When the first of them ends, seconds since the epoch; `None` where none has an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exemption_ends: Option<u64>,
}

/// Pods by the mode that each is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodsByMode {
    /// Nothing is steered.
    pub observe: usize,
    /// What has no tunnel passes: somebody has said why it may.
    pub exempt: usize,
    /// It passes, and is counted.
    pub prefer: usize,
    /// It is dropped.
    pub require: usize,
}

/// A node that is bypassed (`spec.bypasses` of the mesh).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BypassStatus {
    /// Its name.
    pub node: String,
    /// Until when, as the mesh says.
    pub until: Timestamp,
    /// Seconds after which the programs end it: what counts, whatever a wall clock shows meanwhile.
    pub ends_in: u64,
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// How far `spec.adoption` has come on this node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AdoptionStatus {
    /// `spec.adoption.deadline`, as RFC 3339 has it.
    pub deadline: String,
    /// Every pair is closed for good.
    pub over: bool,
    /// Nodes to which packets go in plain until their tunnel is proven, at most until the deadline.
    pub open: Vec<String>,
}

/// Where the cluster is read from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// As given by `--source`, and by what other nodes are known where it is not by Nodes.
    pub name: String,
    /// All of it has been read; only then is anything removed.
    pub synced: bool,
}

/// This node's key, its public half.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Its generation.
    pub generation: Generation,
    /// The generation that the mesh wants.
    pub desired_generation: Generation,
    /// The public key.
    pub public_key: PublicKey,
    /// Seconds since the epoch.
    pub created: u64,
    /// Seconds.
    pub age: u64,
    /// Age above which it is too old, seconds: `spec.rotation.maxKeyAge`; 0 where there is none.
    #[serde(default)]
    pub max_age: u64,
    /// Keys of older generations, which some packets still go by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<OlderKey>,
}

/// A key that goes when nobody needs it any more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OlderKey {
    /// Its generation.
    pub generation: Generation,
    /// The public key.
    pub public_key: PublicKey,
    /// Why it is still here.
    pub held_for: Vec<String>,
}

/// The WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Name.
    pub name: String,
    /// It exists and is up.
    pub up: bool,
    /// UDP port.
    pub port: u16,
    /// Largest inner packet, bytes.
    pub mtu: u32,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Name of the node.
    pub node: String,
    /// How the tunnel to it is.
    pub state: TunnelState,
    /// How packets to it go now.
    pub way: Way,
    /// Why not by the tunnel; `None` where they do.
    pub reason: Option<String>,
    /// It can have no agent (`spec.excludedNodes`), and is not waited for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// The key generation by which they do, or would.
    #[serde(default)]
    pub generation: Generation,
    /// Packets to it travel in the tunnel.
    pub tunnelled: bool,
    /// They do, or would if the mode let them.
    pub proven: bool,
    /// Its key; `None` if it has announced none.
    pub public_key: Option<PublicKey>,
    /// Where its packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake.
    pub last_handshake: Option<u64>,
    /// Bytes, of the peer's life in the device.
    pub received: u64,
    /// Bytes.
    pub sent: u64,
    /// Largest inner packet, bytes, that reaches it in one piece, by the kernel's route to its endpoint.
    pub path_mtu: u32,
}

words! {
    /// How a tunnel is.
    pub enum TunnelState {
        /// A handshake lately.
        Up = "up",
        /// None lately, and nothing that was sent waits for an answer.
        Idle = "idle",
        /// None lately, and what was sent has had no answer.
        Stale = "stale",
        /// No handshake yet.
        Never = "never",
    }
}

words! {
    /// How packets to a node go.
    pub enum Way {
        /// Encrypted.
        Tunnel = "tunnel",
        /// As they are.
        Plain = "plain",
        /// Not at all.
        Dropped = "dropped",
    }
}

/// A program at a device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// `steer`, `replace`, `guard` or `deliver`; `origin` only where it is missing.
    pub program: String,
    /// Name of the device.
    pub device: String,
    /// `underlay`, `tunnel` or, of a bridge that pods are behind, `port`.
    pub device_kind: String,
    /// It is there.
    pub attached: bool,
    /// Programs of others that run before it.
    pub ahead: usize,
}

/// What keeps a packet for another node's pod from leaving by a device that nobody guards.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackstopStatus {
    /// The form that is in force.
    pub form: BackstopForm,
    /// What this kernel refused, and why.
    pub refused: Vec<String>,
}

words! {
    /// A form of the backstop.
    pub enum BackstopForm {
        /// A netfilter program.
        Bpf = "bpf",
        /// A table of nftables.
        Nftables = "nftables",
        /// There is none.
        None = "none",
    }
}

words! {
    /// Which way a packet went.
    pub enum Direction {
        /// Out of the node.
        Egress = "egress",
        /// Into the node, as it lies on the wire.
        Ingress = "ingress",
        /// Into the node, out of a tunnel.
        Tunnel = "tunnel",
        /// Out of the node, by a device that nobody guards.
        Backstop = "backstop",
    }
}

words! {
    /// What was done with a packet, or would have been, where the mode did not carry it out.
    pub enum Verdict {
        /// Left alone.
        Pass = "pass",
        /// Into a tunnel.
        Tunnel = "tunnel",
        /// Dropped.
        Drop = "drop",
        /// Somebody's envelope, into a tunnel.
        Wrap = "wrap",
        /// Into a tunnel instead of an envelope.
        Replace = "replace",
        /// It passed.
        WouldTunnel = "would_tunnel",
        /// It passed.
        WouldDrop = "would_drop",
        /// It passed.
        WouldWrap = "would_wrap",
        /// It passed.
        WouldReplace = "would_replace",
    }
}

/// Packets of one direction and verdict.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketCount {
    /// Which way they went.
    pub direction: Direction,
    /// What was done with them.
    pub verdict: Verdict,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Dropped packets of one direction and reason.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DropCount {
    /// Which way they went.
    pub direction: Direction,
    /// The reason's name.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Not dropped, since the mode is observe or prefer.
    pub observed: bool,
    /// What it means and what to do.
    pub advice: String,
}

/// Packets of one direction and reason that passed in plain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlainCount {
    /// Which way they went.
    pub direction: Direction,
    /// The reason's name.
    pub reason: String,
    /// What would have been done with them in another mode; `pass` for what `prefer` let pass for want of a tunnel.
    pub verdict: Verdict,
    /// Packets.
    pub packets: u64,
    /// What it means and what to do.
    pub advice: String,
}
