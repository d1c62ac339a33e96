use kubeveil_abi::{Config, DeviceKind, PeerState, PrefixKind, Reason};

use crate::{
    Decision,
    flow::{self, Flow},
    packet::{Bytes, Meta, Packet},
    tables::{Tables, owner},
    tcp,
    transport::UDP,
};

/// Where a packet goes: a reason, and for [`Reason::Tunnelled`] the device.
type Way = (Reason, u32);

/// Egress of an underlay device: the last hop, after DNAT and routing.
#[inline(always)]
pub fn steer(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    Decision::on_ip(meta, bytes, config, |packet| {
        let (reason, ifindex) = Step { meta, bytes, tables, config, packet }.way();
        let mut decision = Decision::new(config, reason, packet.length);
        if matches!(reason, Reason::Tunnelled) {
            decision.ifindex = ifindex;
            decision.clamp = tcp::clamp(packet, bytes, config);
        }
        decision
    })
}

struct Step<'a, B, T> {
    meta: &'a Meta,
    bytes: &'a B,
    tables: &'a T,
    config: &'a Config,
    packet: &'a Packet,
}

impl<B: Bytes, T: Tables> Step<'_, B, T> {
    #[inline(always)]
    fn way(&self) -> Way {
        if self.is_outer() {
            return (Reason::Outer, 0);
        }
        let Some((kind, peer)) = owner(self.tables, &self.packet.destination) else {
            return (Reason::Other, 0);
        };
        match kind {
            PrefixKind::LocalNode => return (Reason::Other, 0),
            PrefixKind::LocalPods => return (self.unless_from_tunnel(Reason::LocalPodOutward), 0),
            PrefixKind::UnownedPods => return (self.unless_from_tunnel(Reason::NoOwner), 0),
            PrefixKind::RemoteNode | PrefixKind::RemotePods => {}
        }
        let source = owner(self.tables, &self.packet.source).map(|(kind, _)| kind);
        // Pods on macvlan or ipvlan have not come in by any device of ours: their address tells them.
        let is_host = self.is_own() && !matches!(source, Some(PrefixKind::LocalPods));
        if matches!(kind, PrefixKind::RemoteNode)
            && is_host
            && let Some(reason) = self.own_affair()
        {
            return (reason, 0);
        }
        self.to_peer(peer, source)
    }

    /// Sent by this host itself. What is forwarded is a pod's or a Service's, even where masquerading
    /// has given it the node's address.
    #[inline(always)]
    const fn is_own(&self) -> bool {
        self.meta.ingress_ifindex == 0
    }

    /// The host's own and with WireGuard's mark. A mark of 0 is every packet's: no configuration yet.
    #[inline(always)]
    const fn is_marked(&self) -> bool {
        self.is_own() && self.config.fwmark != 0 && self.meta.mark == self.config.fwmark
    }

    /// WireGuard's own packet, if need be the first of its fragments. Its port alone would prove
    /// nothing: pods can send from it.
    #[inline(always)]
    fn is_outer(&self) -> bool {
        if !self.is_marked() {
            return false;
        }
        match self.packet.transport(self.bytes) {
            Some(transport) if transport.protocol == UDP => match transport.ports(self.bytes) {
                Some(ports) => flow::is_tunnel_port(self.config, UDP, ports >> 16),
                None => false,
            },
            _ => false,
        }
    }

    /// Why a packet of this host to a node is left alone; `None` if it answers a flow that came out of
    /// the tunnel.
    #[inline(always)]
    fn own_affair(&self) -> Option<Reason> {
        let Some(transport) = self.packet.transport(self.bytes) else {
            return Some(Reason::Unparsable);
        };
        // WireGuard's packets, where the underlay's MTU is too small for them.
        if transport.later_fragment && transport.protocol == UDP && self.is_marked() {
            return Some(Reason::Outer);
        }
        // The kernel's slow path of IPv6 fragmentation makes new packets that have forgotten that they came in
        // (`net/ipv6/ip6_output.c`, `ip6_copy_metadata`): nobody can say that this one is the host's.
        if transport.is_v6_fragment && !self.is_marked() {
            return None;
        }
        let key = match flow::outgoing(self.packet, &transport, self.bytes, self.tables) {
            Flow::Of(key) => key,
            Flow::Pods => return None,
            Flow::Link => return Some(Reason::Host),
            Flow::Unreadable => return Some(Reason::Unparsable),
        };
        let now = self.tables.now();
        if !flow::is_live(self.tables, self.config, &key, now) {
            return Some(Reason::Host);
        }
        // A stream that only goes out keeps its flow alive, as it does in the far end's NAT. There is
        // room: the entry exists.
        flow::refresh(self.tables, &key, now);
        None
    }

    #[inline(always)]
    fn to_peer(&self, index: u32, source: Option<PrefixKind>) -> Way {
        let is_ours = matches!(source, Some(PrefixKind::LocalPods | PrefixKind::LocalNode));
        // Out of one tunnel into another is right for a Service only, and then the source was
        // translated to our own. Anything else is on its way to the wrong node.
        if !is_ours && self.is_from_tunnel() {
            return (Reason::TunnelToPlain, 0);
        }
        let peer = self.tables.peer(index);
        match peer.state() {
            PeerState::Tunnel => match self.tables.slot(peer.slot()) {
                0 => (Reason::DeviceGone, 0),
                _ if !is_ours => (Reason::SourceNotOurs, 0),
                ifindex => (Reason::Tunnelled, ifindex),
            },
            PeerState::Bypass if self.tables.now() < peer.bypass_until() => (Reason::Bypassed, 0),
            PeerState::Bypass | PeerState::NoTunnel => (Reason::NoTunnel, 0),
        }
    }

    #[inline(always)]
    fn unless_from_tunnel(&self, reason: Reason) -> Reason {
        if self.is_from_tunnel() { Reason::TunnelToPlain } else { reason }
    }

    #[inline(always)]
    fn is_from_tunnel(&self) -> bool {
        !self.is_own() && matches!(self.tables.device(self.meta.ingress_ifindex), Some(DeviceKind::Tunnel))
    }
}
