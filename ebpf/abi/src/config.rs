/// What happens to pod traffic that has no proven tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// It is dropped. Zero, so that a map nobody has written to yet fails closed.
    Require = 0,
    /// It passes, and is counted.
    Prefer = 1,
    /// Nothing is steered or dropped; what would be is counted.
    Observe = 2,
}

impl Mode {
    /// The mode of a stored number; what is unknown is the strictest.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Prefer,
            2 => Self::Observe,
            _ => Self::Require,
        }
    }

    /// The stricter of both.
    #[must_use]
    pub const fn stricter(self, other: Self) -> Self {
        if (other as u32) < self as u32 { other } else { self }
    }
}

/// What happens to a flow that has no proven tunnel, from the loosest: the stricter of what its two ends ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FlowMode {
    /// Nothing is steered or dropped; what would be is counted.
    Observe = 0,
    /// It passes: somebody has said why it may.
    Exempt = 1,
    /// It passes, and is counted.
    Prefer = 2,
    /// It is dropped.
    Require = 3,
    /// It is dropped also where the mesh, while it is being adopted, lets others pass.
    Insist = 4,
}

impl FlowMode {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Observe, Self::Exempt, Self::Prefer, Self::Require, Self::Insist];

    /// That of a stored number; what is unknown is the strictest.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            0 => Self::Observe,
            1 => Self::Exempt,
            2 => Self::Prefer,
            3 => Self::Require,
            _ => Self::Insist,
        }
    }

    /// The value of the metrics' label: whether policies require it or the mesh is all one to a packet that is dropped.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Exempt => "exempt",
            Self::Prefer => "prefer",
            Self::Require | Self::Insist => "require",
        }
    }

    /// The stricter of both.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        if (self as u8) < other as u8 { other } else { self }
    }
}

impl From<Mode> for FlowMode {
    #[inline(always)]
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Require => Self::Require,
            Mode::Prefer => Self::Prefer,
            Mode::Observe => Self::Observe,
        }
    }
}

/// The one entry of [`names::CONFIG`](crate::names::CONFIG). Zeroed memory is the strictest configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// A [`Mode`].
    pub mode: u32,
    /// What is [`Asked`](crate::Asked) for of those whom nobody can tell from any other: the most that is of anybody.
    pub unknown: u32,
    /// Firewall mark of WireGuard's own packets ([`crate::FWMARK`]); 0 marks none.
    pub fwmark: u32,
    /// UDP ports of WireGuard's own packets, host order: those of even and of odd generations; 0 is none.
    pub ports: [u32; 2],
    /// Largest TCP MSS over the tunnel, IPv4; 0 leaves it alone.
    pub mss_v4: u32,
    /// Largest TCP MSS over the tunnel, IPv6; 0 leaves it alone.
    pub mss_v6: u32,
    /// Seconds after which a silent flow of [`names::FLOWS`](crate::names::FLOWS) is over: TCP. 0: never.
    pub flow_tcp_seconds: u32,
    /// The same for all other protocols.
    pub flow_other_seconds: u32,
    /// Largest packet that goes into the tunnel, bytes from the IP header on; 0: it is not known, and nothing is
    /// too big.
    pub mtu: u32,
    /// UDP ports of overlays' envelopes, host order; VXLAN, or with [`GENEVE`] set Geneve. 0 is none.
    pub envelope_ports: [u32; ENVELOPE_PORTS],
    /// Not used; keeps it a whole number of 64-bit words.
    pub reserved: u32,
}

/// Different UDP ports of overlays that are looked for.
pub const ENVELOPE_PORTS: usize = 7;
/// Beside a port in [`Config::envelope_ports`]: what arrives there is Geneve.
pub const GENEVE: u32 = 1 << 16;

const _: () = assert!(size_of::<Config>() == 72);
