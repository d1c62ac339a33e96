use kubeveil_abi::{Config, DeviceKind, PrefixKind, Reason};

use crate::{
    Ask, Decision, MssClamp, Owner,
    envelope::{self, Content},
    fit::{Fit, Fitting},
    flow::{self, Flow, Sight},
    mode::End,
    packet::{Bytes, Meta, Packet, Parsed, parse},
    tables::{Course, Tables},
    transport::{Transport, UDP, is_extension},
};

/// Where a packet goes: a reason, and the device if that is a tunnel.
type Way = (Reason, u32);

/// Egress of an underlay device: the last hop, after DNAT and routing.
#[inline(always)]
pub fn steer(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    decide(meta, bytes, tables, config, Reason::Tunnelled)
}

/// Egress of an overlay's device whose envelopes carry nothing that the far end would miss: the packet is taken
/// before it is put into one.
#[inline(always)]
pub fn replace(meta: &Meta, bytes: &impl Bytes, tables: &impl Tables, config: &Config) -> Decision {
    decide(meta, bytes, tables, config, Reason::Replaced)
}

#[inline(always)]
fn decide(
    meta: &Meta,
    bytes: &impl Bytes,
    tables: &impl Tables,
    config: &Config,
    tunnelled: Reason,
) -> Decision {
    let packet = match Decision::or_ip(meta, bytes, tables, config) {
        Ok(packet) => packet,
        Err(decided) => return decided,
    };
    let step = Step { meta, bytes, tables, config, packet: &packet, tunnelled };
    let ((mut reason, ifindex), ask) = step.way();
    let held = tables.held(ask, config);
    // What an envelope holds is as big as its overlay allows, and nobody here could tell the sender.
    if !matches!(reason, Reason::Tunnelled | Reason::Replaced) {
        let mut decision = Decision::new(held, reason, packet.length);
        decision.ifindex = ifindex;
        return decision;
    }
    let fitting = bytes.fitting(&packet, config);
    let mut tell_mtu = 0;
    match fitting.fit {
        Fit::Fits => {}
        Fit::InFragments => reason = Reason::TunnelledInFragments,
        Fit::TooBig { tell } => {
            reason = Reason::TooBig;
            tell_mtu = if tell { config.mtu } else { 0 };
        }
    }
    let mut decision = Decision::new(held, reason, packet.length);
    decision.ifindex = ifindex;
    decision.tell_mtu = tell_mtu;
    decision.clamp = fitting.clamp;
    decision
}

/// The clamp that a packet needs which goes in plain by a bypass: a connection that outlives it has to fit into the tunnel. None for one with
/// tags, which nobody takes off on this way: they would have to be counted along.
///
/// Apart from [`steer`], which the verifier walks through for every packet: bypasses are rare.
#[inline(always)]
pub fn clamp_of_bypassed(meta: &Meta, bytes: &impl Bytes, config: &Config) -> MssClamp {
    match parse(meta.protocol, bytes) {
        Parsed::Ip(packet) if packet.tags == 0 => bytes.fitting(&packet, config).clamp,
        Parsed::Ip(_) | Parsed::NonIp | Parsed::Unparsable => Fitting::NOT.clamp,
    }
}

struct Step<'a, B, T> {
    meta: &'a Meta,
    bytes: &'a B,
    tables: &'a T,
    config: &'a Config,
    packet: &'a Packet,
    /// What it is called when a packet goes into a tunnel.
    tunnelled: Reason,
}

/// What a packet of this host itself is.
enum Own {
    /// The host's affair, for this reason.
    Affair(Reason),
    /// It answers a flow that came out of the tunnel, or may be a pod's.
    Pods,
    /// An overlay's envelope.
    Envelope,
    /// One with a packet for a pod of the cluster, to where no node is.
    Astray,
}

impl<B: Bytes, T: Tables> Step<'_, B, T> {
    /// Where the packet goes, and what happens where it can't.
    #[inline(always)]
    fn way(&self) -> (Way, Ask) {
        use PrefixKind::{LocalNode, LocalPods, RemoteNode, RemotePods, UnownedPods};
        let destination = self.tables.owner(&self.packet.destination);
        let kind = destination.map(|owner| owner.kind);
        // All that the host's own packets may be is told apart in one place: the verifier walks through every copy.
        let own = if self.is_own() { self.own(kind) } else { Own::Pods };
        let source = match (kind, &own) {
            (Some(RemoteNode | RemotePods | UnownedPods | LocalPods), _)
            | (_, Own::Affair(Reason::Outer)) => self.tables.owner(&self.packet.source),
            _ => None,
        };
        let source_kind = source.map(|owner| owner.kind);
        // Pods on macvlan or ipvlan have not come in by any device of ours: their address tells them.
        let own = if matches!(source_kind, Some(LocalPods)) { Own::Pods } else { own };
        let ask = Ask::of(self.source_end(source, kind), End::at(destination));
        let mut tunnelled = self.tunnelled;
        match own {
            Own::Affair(reason @ Reason::Outer) => return ((reason, 0), ask),
            Own::Affair(reason) if matches!(kind, Some(RemoteNode)) => return ((reason, 0), ask),
            Own::Astray => return ((Reason::EnvelopeAstray, 0), Ask::UNKNOWN),
            Own::Envelope => tunnelled = Reason::Wrapped,
            Own::Affair(_) | Own::Pods => {}
        }
        let Some(Owner { kind, peer, .. }) = destination else {
            return ((Reason::Other, 0), ask);
        };
        match kind {
            LocalNode => ((Reason::Other, 0), ask),
            LocalPods => ((self.unless_from_tunnel(Reason::LocalPodOutward), 0), ask),
            UnownedPods => ((self.unless_from_tunnel(Reason::NoOwner), 0), ask),
            RemoteNode | RemotePods => self.to_peer(peer, source_kind, tunnelled, ask),
        }
    }

    /// What the source asks for. Behind the node's own address may be any of its pods, but for what the host sends itself
    /// to a pod; and what it sends to a node as somebody's answer, or for somebody, is as good as that one's.
    #[inline(always)]
    fn source_end(&self, source: Option<Owner>, destination: Option<PrefixKind>) -> End {
        // Some plugins masquerade behind an address that is none of the Node's.
        let is_node = matches!(source, None | Some(Owner { kind: PrefixKind::LocalNode, .. }));
        // The kernel's slow path of IPv6 fragmentation forgets that a packet was forwarded.
        let may_be_forwarded = !self.is_own() || is_extension(self.packet.next);
        if is_node && (may_be_forwarded || matches!(destination, Some(PrefixKind::RemoteNode))) {
            return End::UNKNOWN;
        }
        source.map_or(End::MESH, |owner| owner.end_by(self.meta.ingress_ifindex, self.bytes.port()))
    }

    /// What the ends of the flow ask for that an envelope without a tunnel carries.
    #[inline(always)]
    fn envelope_ask(&self) -> Ask {
        let Some(transport) = self.packet.transport(self.bytes) else { return Ask::UNKNOWN };
        match self.bytes.inside(&transport, self.tables, self.config) {
            Content::NonIp => Ask::NOTHING,
            Content::Ip(ends) => ends.ask(),
            // Nobody looks deeper, and a later fragment does not show it.
            Content::Nested(_) | Content::Unreadable | Content::None => Ask::UNKNOWN,
        }
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
        self.config.fwmark != 0 && self.meta.mark == self.config.fwmark
    }

    /// What the packet is, as far as that matters for its destination.
    #[inline(always)]
    fn own(&self, destination: Option<PrefixKind>) -> Own {
        let is_for_node = matches!(destination, Some(PrefixKind::RemoteNode));
        if !is_for_node && destination.is_some() && !self.is_marked() {
            return Own::Pods;
        }
        let Some(transport) = self.packet.transport(self.bytes) else {
            return Own::Affair(Reason::Unparsable);
        };
        if self.is_outer(&transport, is_for_node || destination.is_none()) {
            return Own::Affair(Reason::Outer);
        }
        match envelope::is_envelope(&transport, self.bytes, self.config) {
            Some(false) => {}
            Some(true) if is_for_node => return Own::Envelope,
            Some(true) => return self.envelope_elsewhere(&transport),
            None => return Own::Affair(Reason::Unparsable),
        }
        if !is_for_node {
            return Own::Pods;
        }
        // The kernel's slow path of IPv6 fragmentation makes new packets that have forgotten that they came in
        // (`net/ipv6/ip6_output.c`, `ip6_copy_metadata`): nobody can say that this one is the host's.
        if transport.is_v6_fragment && !self.is_marked() {
            return Own::Pods;
        }
        self.flow(&transport)
    }

    /// WireGuard's own packet, or where the underlay's MTU is too small for it a later fragment, which shows no
    /// port. Its port alone would prove nothing: pods can send from it.
    #[inline(always)]
    fn is_outer(&self, transport: &Transport, may_be_endpoint: bool) -> bool {
        if !self.is_marked() || transport.protocol != UDP {
            return false;
        }
        transport.later_fragment && may_be_endpoint
            || transport
                .ports(self.bytes)
                .is_some_and(|ports| flow::is_tunnel_port(self.config, UDP, ports >> 16))
    }

    /// An overlay must not carry pods' packets to where no node is. What can't be read is no pod's.
    #[inline(always)]
    fn envelope_elsewhere(&self, transport: &Transport) -> Own {
        use PrefixKind::{LocalPods, RemoteNode, RemotePods, UnownedPods};
        let (Content::Ip(ends) | Content::Nested(ends)) =
            self.bytes.inside(transport, self.tables, self.config)
        else {
            return Own::Envelope;
        };
        match (ends.source.map(|owner| owner.kind), ends.destination.map(|owner| owner.kind)) {
            (_, Some(RemotePods | UnownedPods)) | (Some(LocalPods), Some(RemoteNode)) => Own::Astray,
            _ => Own::Envelope,
        }
    }

    /// Whether a packet to a node answers a flow that came out of the tunnel.
    #[inline(always)]
    fn flow(&self, transport: &Transport) -> Own {
        let key = match flow::outgoing(self.packet, transport, self.bytes, self.tables, self.config) {
            Flow::Of(key) => key,
            Flow::Pods => return Own::Pods,
            Flow::Link => return Own::Affair(Reason::Host),
            Flow::Unreadable => return Own::Affair(Reason::Unparsable),
        };
        let sight = Sight::answers(&key, transport, self.bytes);
        if !self.tables.follow(&key, sight, self.config) {
            return Own::Affair(Reason::Host);
        }
        Own::Pods
    }

    #[inline(always)]
    fn to_peer(&self, index: u32, source: Option<PrefixKind>, tunnelled: Reason, ask: Ask) -> (Way, Ask) {
        let is_ours = matches!(source, Some(PrefixKind::LocalPods | PrefixKind::LocalNode));
        // Out of one tunnel into another is right for a Service only, and then the source was
        // translated to our own. Anything else is on its way to the wrong node.
        if !is_ours && self.is_from_tunnel() {
            return ((Reason::TunnelToPlain, 0), ask);
        }
        let route = self.tables.route(index, ask, self.config);
        // What an envelope holds matters where not everything goes into the tunnel.
        let (route, ask) = if matches!(tunnelled, Reason::Wrapped) && !route.is_for_all() {
            let ask = self.envelope_ask();
            (self.tables.route(index, ask, self.config), ask)
        } else {
            (route, ask)
        };
        let way = match route.course() {
            // The far end takes out of it only what this node owns.
            Course::Tunnel(_) if !is_ours => (Reason::SourceNotOurs, 0),
            Course::Tunnel(ifindex) => (tunnelled, ifindex),
            Course::Plain(reason) | Course::Nowhere(reason) => (reason, 0),
        };
        (way, ask)
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
