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

    /// Under which [`names::ALIVE`](crate::names::ALIVE) has the device as long as it lives. An index is given to another device sooner or later,
    /// which then speaks for another pod: so both tell. Of two that come to one key only the later
    /// is there.
    #[inline(always)]
    pub const fn key(&self) -> u32 {
        self.device ^ self.pod[0] ^ self.pod[1].rotate_left(16)
    }
}

const _: () = assert!(size_of::<Origin>() == 16);
