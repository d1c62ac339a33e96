/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Verdict {
    /// Left alone: the next program of the device decides (`TCX_NEXT`).
    Pass = 0,
    /// Into a WireGuard device.
    Tunnel = 1,
    /// Freed.
    Drop = 2,
    /// An envelope of somebody's overlay to a peer node, into a WireGuard device as a whole.
    Wrap = 3,
    /// Taken at an overlay device before that one encapsulates it, into a WireGuard device.
    Replace = 4,
}

impl Verdict {
    /// The value of the metrics' label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Tunnel => "tunnel",
            Self::Drop => "drop",
            Self::Wrap => "wrap",
            Self::Replace => "replace",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $verdict:ident, $label:literal, $advice:literal;)*) => {
        /// Why a packet met its verdict. The numbers are counters in pinned maps: never reuse one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What is done with the packet.
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }

            /// The value of the metrics' label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// Does it say that pods' packets passed in plain between nodes?
            pub const fn is_plain(self) -> bool {
                matches!(self, Self::Preferred | Self::Bypassed | Self::Adopting | Self::Exempted)
            }

            /// What it means, and for a drop what an operator does about it.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }
        }
    };
}

reasons! {
    /// No pod's traffic between nodes.
    Other = 0, Pass, "other",
        "Not pod traffic between nodes; left alone.";
    /// Neither IPv4 nor IPv6.
    NonIp = 1, Pass, "non_ip",
        "Neither IPv4 nor IPv6 (ARP, LLDP and the like); left alone.";
    /// WireGuard's own packet.
    Outer = 2, Pass, "outer",
        "An encrypted packet of one of our own tunnels.";
    /// The host's own traffic with another node.
    Host = 3, Pass, "host",
        "Between the nodes themselves; never steered, so that encryption can't cut a node off from the API server.";
    /// Plain, since the mode prefers a tunnel and there is none.
    Preferred = 4, Pass, "plain_preferred",
        "Pod traffic in plain: the mode is prefer and the peer has no proven tunnel. The peer's REASON in `kubeveil status` says why.";
    /// Plain, since a timed bypass is in force.
    Bypassed = 5, Pass, "bypassed",
        "Pod traffic in plain: a timed bypass for this peer is in force, or spec.excludedNodes lets it pass with a node that can have no agent.";
    /// Into the tunnel.
    Tunnelled = 6, Tunnel, "tunnelled",
        "Pod traffic to another node, encrypted.";
    /// Out of a tunnel.
    Delivered = 7, Pass, "delivered",
        "Pod traffic from another node, decrypted.";
    /// An overlay's envelope to a peer node, into the tunnel.
    Wrapped = 8, Wrap, "wrapped",
        "An overlay's envelope (VXLAN, Geneve, IPIP, GRE, SIT) to another node, encrypted as a whole.";
    /// Taken from an overlay's device, into the tunnel.
    Replaced = 9, Replace, "replaced",
        "Pod traffic to another node that an overlay would have put into an envelope, encrypted instead.";
    /// Into the tunnel, which will need two packets on the wire for it.
    TunnelledInFragments = 10, Tunnel, "tunnelled_in_fragments",
        "Encrypted, but too big for the tunnel's MTU and without \"don't fragment\": it crosses the wire in fragments. Lower the MTU of the pods' network to the tunnel's.";
    /// Plain, since the mesh is being adopted and the peer's tunnel was never proven.
    Adopting = 11, Pass, "plain_adopting",
        "Pod traffic in plain: spec.adoption lets it pass until the peer's tunnel is proven for the first time, or the deadline is over. `kubeveil status` says why it is not.";
    /// Plain, since policies exempt both ends and there is no tunnel.
    Exempted = 12, Pass, "plain_exempted",
        "Pod traffic in plain: ClusterEncryptionPolicies exempt both ends, and the peer has no proven tunnel.";
    /// The header can't be read.
    Unparsable = 16, Drop, "unparsable",
        "An IP header could not be read, so nobody can say that the packet may pass. Capture on the device named in `kubeveil status`; look for a broken sender or offload.";
    /// No proven tunnel to the peer.
    NoTunnel = 17, Drop, "no_tunnel",
        "The peer has no proven tunnel. The peer's REASON in `kubeveil status` says why: no announcement (does kubeveild run there, and does its file reach this node?), or no handshake (are UDP 51871 and 51872 open between the nodes?).";
    /// The tunnel's device is gone or down.
    DeviceGone = 18, Drop, "device_gone",
        "The WireGuard device was deleted or set down by somebody. The daemon makes it again; is it running?";
    /// In the cluster's pod range, but no node owns the address.
    NoOwner = 19, Drop, "no_owner",
        "The destination lies in the mesh's podCIDRs, but no known node owns it. Is the node's spec.podCIDRs set, and has this node heard of it?";
    /// The source is neither a pod nor an address of this node.
    SourceNotOurs = 20, Drop, "source_not_ours",
        "A packet to a remote pod came from a source that this node does not own; the far end would refuse it. Look for a pod with an address outside its node's podCIDRs, or a router in front of pods.";
    /// Out of a tunnel and about to leave again, for a pod or a node. Dropped under prefer too: what was
    /// encrypted on its way here does not become plain.
    TunnelToPlain = 21, Drop, "tunnel_to_plain",
        "A packet that came out of a tunnel was about to leave for another node. The pod it was for is gone, or routes of this node and the pods' addresses disagree.";
    /// To a pod of this node, out of the node.
    LocalPodOutward = 22, Drop, "local_pod_outward",
        "A packet for a pod of this node was about to leave by an underlay device: the pod is gone and the CNI has no route for its address.";
    /// Plain from the wire, with a remote pod's source.
    PlainFromPod = 23, Drop, "plain_from_pod",
        "A packet in plain claimed to come from a pod of another node. Either it is forged, or that node does not encrypt: look at `kubeveil status` there.";
    /// Plain from the wire, from a peer node to a pod of this node.
    PlainToPod = 24, Drop, "plain_to_pod",
        "A packet in plain from another node was meant for a pod of this node. Either it is forged, or that node does not encrypt: look at `kubeveil status` there.";
    /// Plain from the wire, with the source of a pod of this node, or this node's own for one of its pods.
    SpoofedLocal = 25, Drop, "spoofed_local",
        "A packet from the wire carried an address of this node or of one of its pods as its source: forged, or a loop in the network.";
    /// The table of flows that need their replies tunnelled is full.
    FlowTableFull = 26, Drop, "flow_table_full",
        "Too many flows from remote pods to this node's own address are open at once. Their replies could not be sent encrypted, so new ones are refused.";
    /// Bigger than the tunnel's MTU, and must not be fragmented: its sender is told the MTU.
    TooBig = 27, Drop, "too_big",
        "A packet did not fit into the tunnel and its sender was told so (\"packet too big\"); it will send smaller ones. If the count goes on rising, lower the MTU of the pods' network to the tunnel's (`kubeveil status`).";
    /// An overlay's envelope with a pod's packet inside, to an address that is no known node's.
    EnvelopeAstray = 28, Drop, "envelope_astray",
        "An overlay's envelope held a packet for a pod, and went to an address that is no node's InternalIP. Point the overlay at the nodes' InternalIPs, or add the address to the Node's status.";
    /// Out of one node's tunnel, an envelope with a packet of another's pod, or of one of ours.
    EnvelopeSpoofed = 29, Drop, "envelope_spoofed",
        "An overlay's envelope out of a node's tunnel held a packet that claims another node's pod as its source. That node forges packets, or forwards for others without masquerading them.";
    /// To a remote pod, by a device at which no `steer` stands.
    UnguardedDevice = 32, Drop, "unguarded_device",
        "A packet for a pod of another node was about to leave in plain by a device that kubeveil does not guard. `ip route get` with the pod's address names the device: if it leads to other nodes, name it (and all others that do) with --underlay; if not, the route is wrong.";
}

const _: () = {
    let mut i = 1;
    while i < Reason::ALL.len() {
        assert!((Reason::ALL[i - 1] as u32) < Reason::ALL[i] as u32, "numbers must rise");
        i += 1;
    }
    assert!((Reason::ALL[Reason::ALL.len() - 1] as u32) < crate::counter::ROOM);
};
