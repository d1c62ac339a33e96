//! Traffic between pods, of which each packet is accounted for.

mod ledger;
mod pace;
mod streams;
mod tcp;
mod udp;

use std::fmt;

use crate::address::{Families, Family, Pod};

pub use ledger::Ledger;
pub use pace::Pace;
pub use streams::{Counts, Streamed, Streams};
pub use tcp::{Transfer, transfer};
pub use udp::{Load, Running};

/// One stream of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who sends.
    pub from: Pod,
    /// Who receives.
    pub to: Pod,
    /// In which family.
    pub family: Family,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} by {}", self.from.name(), self.to.name(), self.family)
    }
}

/// A flow in each family.
pub fn flows(from: Pod, to: Pod, families: Families) -> Vec<Flow> {
    families.map(|family| Flow { from, to, family })
}

/// What came of a load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Of which load, as its packets say.
    pub load: u64,
    /// Packets handed to the kernel.
    pub sent: u64,
    /// Packets that the kernel did not take.
    pub refused: u64,
    /// Of those sent, how many arrived.
    pub received: u64,
    /// Of these, by IPv4 and by IPv6.
    pub by_family: [u64; 2],
    /// Stretches of packets one after the other that arrived, of all flows together.
    pub stretches: u64,
    /// More than once.
    pub duplicated: u64,
    /// After one that was sent later.
    pub reordered: u64,
    /// Packets that this machine lost itself, for lack of a buffer or of time: the receiver's queue,
    /// the network backlog.
    pub own_loss: u64,
    /// Packets a second that were really sent.
    pub rate: f64,
}

impl Tally {
    /// Sent and not received.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// Whether the machine lost packets itself: then loss can't be blamed on anybody, nor be excluded.
    pub fn inconclusive(&self) -> bool {
        self.lost() > 0 && self.own_loss > 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent at {:.0}/s, {} received, {} lost",
            self.sent,
            self.rate,
            self.received,
            self.lost()
        )?;
        let [v4, v6] = self.by_family;
        if self.lost() > 0 && self.received > 0 {
            write!(f, " ({v4} by IPv4, {v6} by IPv6 arrived)")?;
        }
        for (count, what) in [
            (self.duplicated, "duplicated"),
            (self.reordered, "reordered"),
            (self.refused, "refused by the kernel"),
            (self.own_loss, "lost by the machine itself"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}
