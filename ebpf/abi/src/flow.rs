use crate::{Address, Config};

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

/// When a flow was last seen, and how far a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowValue {
    /// Seconds since boot.
    pub seen: u32,
    /// Of TCP: what was seen of the connection, in the upper five bits; below them the second in which its SYN came out of the tunnel.
    pub state: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<FlowValue>() == 8);

/// `IPPROTO_TCP` (kernel `include/uapi/linux/in.h`).
const TCP: u32 = 6;

impl FlowValue {
    /// How long a connection is remembered that has not been established, or has ended, since it was last seen: longer than what is left of it may wait to
    /// be sent again (`TCP_RTO_MAX` in `include/net/tcp.h`: 120 s, and a timer may be late), than a SYN is answered again and again (`tcp_synack_retries`
    /// in Documentation/networking/ip-sysctl.rst), and than the kernel's connection tracking remembers it (`tcp_timeouts` in
    /// `net/netfilter/nf_conntrack_proto_tcp.c`).
    pub const BRIEF_SECONDS: u32 = 240;
    /// Its SYN came out of the tunnel, and nothing after it.
    pub const OPENING: u32 = 1 << 31;
    /// Its far end has sent all that it will.
    pub const ENDED_THERE: u32 = 1 << 30;
    /// So has this node.
    pub const ENDED_HERE: u32 = 1 << 29;
    /// It was reset.
    pub const RESET: u32 = 1 << 28;
    /// This host itself has spoken: what it answers must not become plain. Else answers are a pod's, and forwarded.
    pub const SPOKE_HERE: u32 = 1 << 27;
    /// What is left for the second.
    pub const SECOND: u32 = Self::SPOKE_HERE - 1;
    /// One that is over: what has its addresses and ports now is another.
    pub const OVER: Self = Self { seen: 0, state: Self::RESET };

    /// Is it over, by how long nothing was seen of it at `now`? A limit of 0 is a configuration that nobody has written to yet: nothing expires.
    #[inline(always)]
    pub const fn is_over(&self, protocol: u32, config: &Config, now: u32) -> bool {
        let all_is_said = self.state & Self::ENDED_HERE != 0 || self.state & Self::SPOKE_HERE == 0;
        let is_brief = self.state & (Self::OPENING | Self::RESET) != 0
            || self.state & Self::ENDED_THERE != 0 && all_is_said;
        let limit = match protocol {
            TCP if is_brief && config.flow_tcp_seconds > Self::BRIEF_SECONDS => Self::BRIEF_SECONDS,
            TCP => config.flow_tcp_seconds,
            _ => config.flow_other_seconds,
        };
        // A clock read before another CPU's is no age.
        let is_old = limit != 0 && now.saturating_sub(self.seen) > limit;
        is_old || self.seen == 0 && self.state == Self::OVER.state
    }
}
