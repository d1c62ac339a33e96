use crate::Address;

/// A flow that reached this node's own address through a tunnel from a remote node's address (a pod
/// behind masquerading, or a Service's SNAT), seen from here: its replies go back through the tunnel.
///
/// The entry with both ports zero stands for every fragment but the first, which has no ports. Whatever
/// goes in either direction refreshes a flow: a stream that only goes out does not fall out of the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowKey {
    /// The remote node's address.
    pub remote: Address,
    /// This node's address, or a Service's that may end at this node.
    pub local: Address,
    /// IP protocol number.
    pub protocol: u32,
    /// Remote port in the upper, local port in the lower half, host order; for ICMP echo the
    /// identifier in both halves; else 0.
    pub ports: u32,
}

/// When a flow was last seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowValue {
    /// Seconds since boot.
    pub seen: u32,
    /// Not used; keeps the value a whole number of 64-bit words.
    pub reserved: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<FlowValue>() == 8);
