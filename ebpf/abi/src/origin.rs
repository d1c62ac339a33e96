/// The device of a pod of this node: what is said of its address holds as long as that device lives, and of packets that came in by it.
///
/// An address means nothing for long: the pod may be gone, and another have it, while nobody is there to tell. The device of the host
/// that a pod is behind goes with the pod, and the kernel knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Origin {
    /// ifindex of the host's end.
    pub device: u32,
    /// ifindex of the device that its packets are seen to come in by: the same, or the bridge that it is a port of.
    pub via: u32,
    /// Which pod it is, in few words: by its UID, and by when its network was made.
    pub pod: [u32; 2],
}

impl Origin {
    /// That of an address of which no device is known.
    pub const NONE: Self = Self { device: 0, via: 0, pod: [0; 2] };

    /// What the program `origin` writes into a packet that comes in by the device, where that is a port of a bridge: of what a bridge hands on
    /// nothing else tells by which port it came. 0: its packets come in by the device itself.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        if self.via == self.device { 0 } else { port_number(self.device) }
    }

    /// Under which [`names::ALIVE`](crate::names::ALIVE) has the device as long as it lives. An index is given to another device sooner or later,
    /// which then speaks for another pod: so both tell. Of two that come to one key only the later
    /// is there.
    #[inline(always)]
    pub const fn key(&self) -> u32 {
        self.device ^ self.pod[0] ^ self.pod[1].rotate_left(16)
    }
}

/// The number of a bridge's port, never 0: what fits into `skb->tc_index` of its ifindex. Two ports of one
/// bridge may come to one number: then one of them has none.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "what is left of the division fits")]
pub const fn port_number(ifindex: u32) -> u16 {
    (ifindex % u16::MAX as u32) as u16 + 1
}

const _: () = assert!(size_of::<Origin>() == 16);
