//! What `kubeveild probe` finds on a node.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::words::words;

/// Version of [`Probe`].
pub const PROBE_VERSION: u32 = 1;

/// Most entries of each list in a [`Probe`]: of a large cluster where nothing answers a person needs some.
pub const MOST_LISTED: usize = 64;

words! {
    /// How programs are attached to devices.
    pub enum Attachment {
        /// By links (Linux 6.6 and later).
        Tcx = "tcx",
        /// As filters of a clsact qdisc.
        Clsact = "clsact",
    }
}

words! {
    /// Who has a UDP port.
    pub enum PortState {
        /// Nobody had; the probe answers there.
        Free = "free",
        /// A WireGuard device of ours.
        Ours = "ours",
        /// Somebody else.
        Taken = "taken",
        /// The probe can't listen there, for another reason.
        Refused = "refused",
    }
}

/// A node, as `kubeveild probe` sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// [`PROBE_VERSION`].
    pub schema_version: u32,
    /// Its name.
    pub node: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Why it has no WireGuard; `None` if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_wireguard: Option<String>,
    /// Why our programs can't be loaded into its kernel; `None` if they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_programs: Option<String>,
    /// How they would be attached.
    pub attachment: Attachment,
    /// Its kernel tells of its own types (/sys/kernel/btf/vmlinux).
    pub btf: bool,
    /// A BPF file system is mounted where it was looked for.
    pub bpffs: bool,
    /// Programs that are not ours, at devices that lead to other nodes.
    pub programs: Vec<ForeignProgram>,
    /// Our UDP ports.
    pub ports: Vec<Port>,
    /// Other nodes' addresses and ports that were asked for an answer.
    pub asked: u32,
    /// Those of them that have not answered, up to [`MOST_LISTED`].
    pub silent: Vec<Target>,
    /// How many have not.
    pub unanswered: u32,
    /// Nodes whose clock shows another time, by more than a second, up to [`MOST_LISTED`].
    pub clocks: Vec<Clock>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// Somebody else's program at a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct ForeignProgram {
    /// The device.
    pub device: String,
    /// `tc ingress`, `tc egress` or `xdp`.
    pub hook: String,
    /// Number and name of the program, as far as the kernel tells them.
    pub program: String,
}

/// A UDP port of this node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Port {
    /// Its number.
    pub port: u16,
    /// Who has it.
    pub state: PortState,
    /// Who that is, or why it is refused; may be empty.
    pub by: String,
}

/// Somebody who was asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Target {
    /// The node.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
    /// The UDP port.
    pub port: u16,
}

/// Another node's clock.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    /// The node.
    pub node: String,
    /// How far it is ahead of ours, milliseconds.
    pub ahead: i64,
}
