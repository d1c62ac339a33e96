//! Does a frame on the wire show what a pod said, or to whom? Pure.
//!
//! Plaintext is a pod's address as source or destination of an IP header, on top or inside any
//! envelope, or the marker of the lab's payloads anywhere in the frame. Every frame is read by a
//! library; what it can't read is searched for the bytes of the pods' addresses instead.

mod gre;
mod scan;
mod walk;
mod wireguard;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::address::{Families, Family, pod_addresses};

pub use wireguard::PORTS as WIREGUARD_PORTS;

/// With this every payload of the lab begins, and it is repeated to its end, so that a fragment has it too. Behind the first a load says in
/// eight bytes which it is.
pub const MARKER: &[u8; 16] = b"kubeveil-payload";

/// What must not be seen.
#[derive(Clone, Debug)]
pub struct Watch {
    /// An address in one of these, in an IP header.
    ranges: Vec<(IpAddr, u8)>,
    /// The bytes of one of these, where nobody knows what they mean.
    exact: Vec<IpAddr>,
}

impl Watch {
    /// The pods of a lab.
    pub fn pods(nodes: u8, families: Families) -> Self {
        let range = |family| match family {
            Family::V4 => ([10, 244, 0, 0].into(), 16),
            Family::V6 => ([0xfd00, 0x244, 0, 0, 0, 0, 0, 0].into(), 32),
        };
        Self { ranges: families.map(range), exact: pod_addresses(nodes, families) }
    }

    fn covers(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|&(range, length)| scan::same_prefix(range, address, length))
    }
}

/// Why a frame counts as plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// What was seen.
    pub evidence: Evidence,
    /// The headers above it, outermost first.
    pub layers: Vec<&'static str>,
}

/// What was seen of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Its address in an IP header.
    Header(IpAddr),
    /// The bytes of its address in what can't be read.
    Bytes(IpAddr),
    /// The marker of a payload.
    Marker,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.evidence {
            Evidence::Header(address) => write!(f, "{address} in a header")?,
            Evidence::Bytes(address) => write!(f, "the bytes of {address}")?,
            Evidence::Marker => f.write_str("a pod's payload")?,
        }
        write!(f, " ({})", self.layers.join(" > "))
    }
}

/// What one frame is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// A packet of WireGuard.
    pub ciphertext: bool,
    /// What it shows of pods.
    pub leaks: Vec<Leak>,
}

/// Judges one frame, from its Ethernet header on.
pub fn judge(frame: &[u8], watch: &Watch) -> Judgement {
    let mut judgement = walk::walk(frame, watch);
    if scan::contains(frame, MARKER) {
        judgement.leaks.push(Leak { evidence: Evidence::Marker, layers: vec!["anywhere"] });
    }
    judgement
}

/// What many frames are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// All.
    pub frames: u64,
    /// Packets of WireGuard.
    pub ciphertext: u64,
    /// Frames that show anything of pods.
    pub plaintext: u64,
    /// Of these, those with a pod's IPv4 address, and with an IPv6 one.
    pub addresses: [u64; 2],
    /// Of these, those with the marker.
    pub markers: u64,
    /// Of these, how many are of each load.
    pub loads: BTreeMap<u64, u64>,
    /// The first few leaks.
    pub examples: Vec<String>,
}

impl Census {
    const EXAMPLES: usize = 5;

    /// Counts one frame.
    pub fn add(&mut self, frame: &[u8], watch: &Watch) {
        let judgement = judge(frame, watch);
        self.frames += 1;
        self.ciphertext += u64::from(judgement.ciphertext);
        self.plaintext += u64::from(!judgement.leaks.is_empty());
        let any = |wanted: &dyn Fn(&Evidence) -> bool| {
            u64::from(judgement.leaks.iter().any(|leak| wanted(&leak.evidence)))
        };
        let of = |family| {
            any(&|evidence| match evidence {
                Evidence::Header(address) | Evidence::Bytes(address) => Family::of(*address) == family,
                Evidence::Marker => false,
            })
        };
        self.addresses[0] += of(Family::V4);
        self.addresses[1] += of(Family::V6);
        self.markers += any(&|evidence| *evidence == Evidence::Marker);
        if let Some(load) = scan::load(frame) {
            *self.loads.entry(load).or_default() += 1;
        }
        if let Some(leak) = judgement.leaks.first().filter(|_| self.examples.len() < Self::EXAMPLES) {
            self.examples.push(format!("frame {}: {leak}", self.frames));
        }
    }

    /// Counts what another counted, too.
    pub fn merge(&mut self, other: &Self) {
        self.frames += other.frames;
        self.ciphertext += other.ciphertext;
        self.plaintext += other.plaintext;
        self.addresses[0] += other.addresses[0];
        self.addresses[1] += other.addresses[1];
        self.markers += other.markers;
        for (load, frames) in &other.loads {
            *self.loads.entry(*load).or_default() += frames;
        }
        let room = Self::EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room).cloned());
    }

    /// Frames that show what this load sent.
    pub fn of(&self, load: u64) -> u64 {
        self.loads.get(&load).copied().unwrap_or_default()
    }

    /// Frames with an address of this family.
    pub fn addresses_of(&self, family: Family) -> u64 {
        self.addresses[usize::from(family == Family::V6)]
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, ciphertext, plaintext, addresses: [v4, v6], markers, loads: _, examples } = self;
        write!(f, "{frames} frames, {ciphertext} of WireGuard, {plaintext} with plaintext")?;
        write!(f, " ({v4} IPv4, {v6} IPv6, {markers} with the marker)")?;
        for example in examples {
            write!(f, "\n  {example}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
