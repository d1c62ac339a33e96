use kubeveil_abi::{Config, Mode, Reason, Verdict};

use crate::{
    MssClamp,
    packet::{Bytes, Meta, Packet, Parsed, parse},
};

/// What is to become of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why, and by [`Reason::verdict`] what.
    pub reason: Reason,
    /// The mode does not carry the verdict out: the packet passes and is counted in the bank of
    /// what was only observed.
    pub observed: bool,
    /// Device that a tunnelled packet goes into, else 0.
    pub ifindex: u32,
    /// A TCP segment size that has to be lowered first.
    pub clamp: Option<MssClamp>,
    /// Bytes from the IP header on, for the counters.
    pub length: u32,
}

impl Decision {
    /// `reason` under the mode of `config`.
    ///
    /// `observe` carries nothing out. `prefer` never drops what would have travelled without us;
    /// but what was encrypted on its way here does not become plain again.
    #[inline(always)]
    pub(crate) fn new(config: &Config, reason: Reason, length: u32) -> Self {
        let (reason, observed) = match Mode::from_raw(config.mode) {
            Mode::Require => (reason, false),
            Mode::Observe => (reason, true),
            Mode::Prefer => match reason {
                Reason::NoTunnel
                | Reason::DeviceGone
                | Reason::PlainFromPod
                | Reason::PlainToPod
                | Reason::UnguardedDevice => (Reason::Preferred, false),
                Reason::TunnelToPlain => (reason, false),
                _ => (reason, matches!(reason.verdict(), Verdict::Drop)),
            },
        };
        Self { reason, observed, ifindex: 0, clamp: None, length }
    }

    /// `judge`'s decision on an IP packet; what is none, or can't be read, is decided for every program alike.
    #[inline(always)]
    pub(crate) fn on_ip(
        meta: &Meta,
        bytes: &impl Bytes,
        config: &Config,
        judge: impl FnOnce(&Packet) -> Self,
    ) -> Self {
        match parse(meta.protocol, bytes) {
            Parsed::NonIp => Self::new(config, Reason::NonIp, bytes.length()),
            Parsed::Unparsable => Self::new(config, Reason::Unparsable, bytes.length()),
            Parsed::Ip(packet) => judge(&packet),
        }
    }

    /// What is really done.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        if self.observed { Verdict::Pass } else { self.reason.verdict() }
    }
}
