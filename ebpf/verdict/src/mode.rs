//! How strict a flow is: as strict as the stricter of its two ends.
//!
//! The verifier walks through a program once for each number that it was told apart by. So what ends ask for is carried along as it
//! was found ([`Ask`]), and becomes a mode in one place ([`Tables::held`]), of which only the outcome matters.

use kubeveil_abi::{Asked, Config, FlowMode, Mode, Origin, PrefixKind, PrefixValue};

use crate::Tables;

/// Who has an address, and what happens without a tunnel to what they send and are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Whose it is.
    pub kind: PrefixKind,
    /// The peer's index if it is a peer's; of a pod of this node the number of the bridge's port that what it sends comes in by, where that
    /// matters and there is one; else 0.
    pub peer: u32,
    /// What this end asks for now.
    pub(crate) end: End,
    /// The device that what it sends comes in by, where that matters and is known; else 0.
    pub(crate) via: u32,
}

/// What one end asks for: a [`FlowMode`], or what is only to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End(u8);

/// What the two ends of a flow ask for: a number, as a global function of the programs can take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask(pub u32);

/// The mode of a flow: a number, as a global function of the programs can return it; one that is none is the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held(pub u32);

impl Owner {
    /// What a value of the prefixes comes to now. A kind that this program does not know counts as a pod's that nobody
    /// owns: it must not pass.
    ///
    /// Of a pod of this node it holds only while the device lives that it was found to have: who has the address then is
    /// somebody else, of whom nothing is known. Less than the mesh asks for is said of no pod whose device was not found, and of no
    /// packet that did not come in by it.
    #[inline(always)]
    pub fn of(value: PrefixValue, origin: Origin, tables: &impl Tables) -> Self {
        let kind = PrefixKind::from_raw(value.kind).unwrap_or(PrefixKind::UnownedPods);
        let asked = Asked::from_raw(value.asked as u32);
        let is_over = value.until != 0 && tables.now() >= value.until;
        let said = if is_over { End::MESH } else { End::of(asked) };
        let is_loose = matches!(asked, Asked::Exempt | Asked::Prefer);
        let is_known = origin.device != 0;
        let end = match (kind, asked) {
            (PrefixKind::LocalPods, Asked::Mesh | Asked::Exempt | Asked::Prefer) if is_known => {
                if tables.is_alive(&origin) { said } else { End::UNKNOWN }
            }
            (PrefixKind::LocalPods, Asked::Exempt | Asked::Prefer) => End::UNKNOWN,
            _ => said,
        };
        match kind {
            PrefixKind::LocalPods if is_loose => {
                Self { kind, peer: origin.port() as u32, end, via: origin.via }
            }
            _ => Self { kind, peer: value.peer as u32, end, via: 0 },
        }
    }

    /// What it asks for as the source of a packet that came in by `ingress`, 0: by none that the kernel remembers, and there by `port`.
    #[inline(always)]
    pub(crate) const fn end_by(&self, ingress: u32, port: u16) -> End {
        let is_another = self.via != ingress || self.peer != 0 && self.peer != port as u32;
        if self.via != 0 && is_another { End::UNKNOWN } else { self.end }
    }

    /// In one word, as a global function of the programs can return it: never 0, and the lower [`Owner::BITS`] of it are
    /// all but the device.
    #[inline(always)]
    pub const fn pack(owner: Option<Self>) -> u64 {
        match owner {
            None => 0,
            // Peer indices are below `MAX_PEERS`, 2^14.
            Some(Self { kind, peer, end: End(end), via }) => {
                kind as u64 | (end as u64) << 4 | (peer as u64 & 0xffff) << 8 | (via as u64) << Self::BITS
            }
        }
    }

    /// Bits of what is packed, but for the device.
    pub(crate) const BITS: u32 = 24;

    /// What [`Owner::pack`] has packed.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the word is taken apart")]
    pub const fn unpack(word: u64) -> Option<Self> {
        match PrefixKind::from_raw(word as u8 & 15) {
            Some(kind) => {
                let (end, via) = (End((word >> 4) as u8 & 15), (word >> Self::BITS) as u32);
                Some(Self { kind, peer: (word >> 8) as u32 & 0xffff, end, via })
            }
            None => None,
        }
    }
}

impl End {
    /// Nothing of its own.
    pub(crate) const MESH: Self = Self(5);
    /// As much as anybody might: nobody can tell who it is.
    pub(crate) const UNKNOWN: Self = Self(6);

    #[inline(always)]
    const fn of(asked: Asked) -> Self {
        match asked {
            Asked::Mesh => Self::MESH,
            Asked::Exempt => Self(FlowMode::Exempt as u8),
            Asked::Prefer => Self(FlowMode::Prefer as u8),
            Asked::Require => Self(FlowMode::Insist as u8),
        }
    }

    /// That of who has an address; who is nobody's asks for nothing of his own.
    #[inline(always)]
    pub(crate) fn at(owner: Option<Owner>) -> Self {
        owner.map_or(Self::MESH, |owner| owner.end)
    }

    #[inline(always)]
    fn mode(self, config: &Config) -> FlowMode {
        match self {
            Self::MESH => base(config),
            Self::UNKNOWN => unknown(config),
            Self(mode) => FlowMode::from_raw(mode),
        }
    }
}

// Four bits hold an end ([`Owner::pack`]), and a mode is none of the two others.
const _: () = assert!((FlowMode::Insist as u8) < End::MESH.0 && End::UNKNOWN.0 < 1 << 4);

impl Ask {
    /// Nobody can tell who the ends are.
    pub(crate) const UNKNOWN: Self = Self::of(End::UNKNOWN, End::UNKNOWN);
    /// No end asks for anything.
    pub(crate) const NOTHING: Self = Self::of(End::MESH, End::MESH);

    #[inline(always)]
    pub(crate) const fn of(one: End, other: End) -> Self {
        Self(one.0 as u32 | (other.0 as u32) << 8)
    }
}

impl Held {
    /// What happens to the flow.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a byte in a word")]
    pub const fn mode(self) -> FlowMode {
        FlowMode::from_raw(self.0 as u8)
    }
}

/// How strict a flow is of whose ends this is asked for. Where nothing is steered nobody is held to anything.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the word is taken apart")]
pub fn held(ask: Ask, config: &Config) -> Held {
    let [one, other] = [ask.0 as u8, (ask.0 >> 8) as u8].map(|end| End(end).mode(config));
    let mode = match base(config) {
        FlowMode::Observe => FlowMode::Observe,
        _ => one.and(other),
    };
    Held(mode as u32)
}

/// The mode of whom no policy selects.
#[inline(always)]
fn base(config: &Config) -> FlowMode {
    Mode::from_raw(config.mode).into()
}

/// That of whom nobody can tell from any other.
#[inline(always)]
fn unknown(config: &Config) -> FlowMode {
    match End::of(Asked::from_raw(config.unknown)) {
        End::MESH => base(config),
        End(mode) => base(config).and(FlowMode::from_raw(mode)),
    }
}
