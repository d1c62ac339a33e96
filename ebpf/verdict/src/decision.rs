use kubeveil_abi::{Config, FlowMode, Reason, Verdict, is_observed};

use crate::{
    Ask, Held, MssClamp, Tables,
    packet::{Bytes, Meta, Packet, Parsed, parse},
};

/// What is to become of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why, and by [`Reason::verdict`] what.
    pub reason: Reason,
    /// What the packet was held to.
    pub mode: FlowMode,
    /// Decided at once: the verifier walks further where the mode is asked about again later.
    observed: bool,
    /// Device that a tunnelled packet goes into, or that the answer to one too big comes out of; else 0.
    pub ifindex: u32,
    /// What the sender of a packet too big is told, bytes; 0: nobody is told anything.
    pub tell_mtu: u32,
    /// A TCP segment size that has to be lowered first.
    pub clamp: MssClamp,
    /// Bytes from the IP header on, for the counters.
    pub length: u32,
}

impl Decision {
    /// `reason` in a flow that is so strict.
    ///
    /// `prefer` never drops what would have travelled without us; nor does what is exempt.
    #[inline(always)]
    pub(crate) fn new(held: Held, reason: Reason, length: u32) -> Self {
        let mode = held.mode();
        let reason = match mode {
            FlowMode::Observe | FlowMode::Require | FlowMode::Insist => reason,
            FlowMode::Prefer | FlowMode::Exempt => match reason {
                Reason::NoTunnel
                | Reason::DeviceGone
                | Reason::PlainFromPod
                | Reason::PlainToPod
                | Reason::UnguardedDevice => plain(mode),
                _ => reason,
            },
        };
        let clamp = MssClamp { offset: 0, checksum: 0, old: 0, new: 0 };
        let observed = is_observed(mode, reason);
        Self { reason, mode, observed, ifindex: 0, tell_mtu: 0, clamp, length }
    }

    /// An IP packet; or what is decided, by every program alike, on what is none or can't be read.
    #[inline(always)]
    pub(crate) fn or_ip(
        meta: &Meta,
        bytes: &impl Bytes,
        tables: &impl Tables,
        config: &Config,
    ) -> Result<Packet, Self> {
        let reason = match parse(meta.protocol, bytes) {
            Parsed::NonIp => Reason::NonIp,
            Parsed::Unparsable => Reason::Unparsable,
            Parsed::Ip(packet) => return Ok(packet),
        };
        Err(Self::new(tables.held(Ask::UNKNOWN, config), reason, bytes.length()))
    }

    /// The mode does not carry the verdict out: the packet passes.
    #[inline(always)]
    pub const fn observed(&self) -> bool {
        self.observed
    }

    /// What is really done.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        if self.observed() { Verdict::Pass } else { self.reason.verdict() }
    }
}

/// Why a flow without a tunnel passes.
#[inline(always)]
const fn plain(mode: FlowMode) -> Reason {
    match mode {
        FlowMode::Exempt => Reason::Exempted,
        _ => Reason::Preferred,
    }
}
