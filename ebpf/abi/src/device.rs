/// What a device is to the datapath: the value of [`names::DEVICES`](crate::names::DEVICES), by ifindex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Carries frames between nodes; `steer` and `guard` are attached.
    Underlay = 1,
    /// One of our WireGuard devices; `deliver` is attached.
    Tunnel = 2,
    /// Another one's encapsulating device (vxlan, geneve) that the tunnel replaces.
    Overlay = 3,
}

impl DeviceKind {
    /// The kind of a stored number.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Underlay),
            2 => Some(Self::Tunnel),
            3 => Some(Self::Overlay),
            _ => None,
        }
    }
}
