//! What becomes of packets over what the fake kernel holds, by the decision that the programs run.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use kubeveil_abi::{Mode, PeerState, PrefixValue, Verdict};
use kubeveil_core::observed::{Hook, Observed, Program};
use kubeveil_linux::fake::FakeKernel;
use kubeveil_verdict::{
    Hop, Meta, backstop, guard, steer,
    testing::{Build, Slice, Transport, World, address},
};

/// The device behind which this node's pods are, and one that nobody has heard of. Neither is in the fake kernel.
const PODS: u32 = 77;
const NEW: u32 = 78;

/// A packet, and where it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Probe {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Out of the node, from this device or the host itself.
    Out { ingress: u32 },
    /// From the wire.
    In,
}

/// What a packet meets at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing of ours looks at it, or it is let through as it is.
    Plain,
    /// Freed, or encrypted.
    Held,
}

/// The kernel's state, for packets.
pub(in crate::node::tests) struct Datapath {
    truth: Observed,
    enforced: BTreeSet<Hook>,
    world: World,
}

fn ip(text: String) -> IpAddr {
    text.parse().expect("an address")
}

/// Packets of pods that must not leave in plain, and not come in: of each of `nodes`, and of a node that is none.
pub(super) fn secret(nodes: &[u8]) -> Vec<Probe> {
    let mut probes = Vec::new();
    for n in nodes.iter().copied().chain([200]) {
        let pods = [ip(format!("10.244.{n}.7")), ip(format!("fd00:244:{n}::7"))];
        let locals = [ip("10.244.1.5".to_owned()), ip("fd00:244:1::5".to_owned())];
        let hosts = [ip("192.0.2.1".to_owned()), ip("2001:db8::1".to_owned())];
        for (family, pod) in pods.into_iter().enumerate() {
            probes.push(Probe { from: locals[family], to: pod, way: Way::Out { ingress: PODS } });
            probes.push(Probe { from: hosts[family], to: pod, way: Way::Out { ingress: 0 } });
            probes.push(Probe { from: pod, to: locals[family], way: Way::In });
        }
    }
    probes
}

/// A pod's packet to each of these addresses of nodes, behind masquerading.
pub(super) fn masqueraded(nodes: &[IpAddr]) -> Vec<Probe> {
    let own = |to: &IpAddr| ip(if to.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.to_owned());
    nodes.iter().map(|to| Probe { from: own(to), to: *to, way: Way::Out { ingress: PODS } }).collect()
}

impl Datapath {
    pub(in crate::node::tests) fn of(kernel: &FakeKernel) -> Self {
        let truth = kernel.truth();
        let mut world = World::default();
        if let Some(datapath) = &truth.datapath {
            world.config = datapath.config;
            world.slots = datapath.slots;
            world.peers = datapath.peers.clone();
            world.devices = datapath.devices.clone();
            for (net, prefix) in &datapath.prefixes {
                let length = u32::from(net.prefix_len()) + if net.network().is_ipv4() { 96 } else { 0 };
                let value = PrefixValue::new(prefix.kind, prefix.peer).asking(prefix.asked, prefix.until);
                world.prefixes.push((address(net.network()), length, value));
            }
            world.origins = datapath.origins.iter().map(|(at, origin)| (address(*at), *origin)).collect();
            world.alive = datapath.alive.clone();
        }
        Self { truth, enforced: kernel.enforced(), world }
    }

    /// Devices by which a packet could leave or come, by index and name.
    pub(in crate::node::tests) fn devices(&self) -> Vec<(u32, String)> {
        let links = self.truth.links.iter().filter(|(_, link)| link.kind.is_none());
        links.map(|(index, link)| (*index, link.name.clone())).chain([(NEW, "unknown".to_owned())]).collect()
    }

    /// Stands all that belongs at `device`, in the strictest mode?
    pub(super) fn is_guarded(&self, device: u32) -> bool {
        [Program::Steer, Program::Guard].iter().all(|program| self.enforced.contains(&(*program, device)))
            && Mode::from_raw(self.world.config.mode) == Mode::Require
    }

    /// An address of another node is one as soon as it is in the map; pods' ranges are there from the first moment.
    pub(super) fn knows(&self, probe: &Probe) -> bool {
        let net = IpNet::from(probe.to);
        node_of(&net).is_none_or(|n| n == 1)
            || self.truth.datapath.as_ref().is_some_and(|datapath| datapath.prefixes.contains_key(&net))
    }

    /// Do packets to its other end go into a tunnel?
    pub(super) fn is_proven(&self, probe: &Probe) -> bool {
        let remote = if let Way::Out { .. } = probe.way { probe.to } else { probe.from };
        let Some(datapath) = &self.truth.datapath else { return false };
        let holder = datapath.prefixes.iter().filter(|(net, _)| net.contains(&remote));
        let holder = holder.max_by_key(|(net, _)| net.prefix_len());
        let value = holder.and_then(|(_, prefix)| datapath.peers.get(&prefix.peer));
        value.is_some_and(|value| value.state() == PeerState::Tunnel)
    }

    /// Is a packet that came in by `ingress` kept from leaving in plain by `device`?
    pub(in crate::node::tests) fn holds_out(
        &self,
        from: IpAddr,
        to: IpAddr,
        ingress: u32,
        device: u32,
    ) -> bool {
        self.holds(&Probe { from, to, way: Way::Out { ingress } }, device)
    }

    /// Is one from the wire refused at `device`?
    pub(in crate::node::tests) fn holds_in(&self, from: IpAddr, to: IpAddr, device: u32) -> bool {
        self.holds(&Probe { from, to, way: Way::In }, device)
    }

    /// Is the packet kept from being seen, or from being believed, at `device`?
    pub(super) fn holds(&self, probe: &Probe, device: u32) -> bool {
        let build = Build::new(probe.from, probe.to, Transport::Udp(40_000, 53));
        let bytes = build.network();
        let ingress_ifindex = if let Way::Out { ingress } = probe.way { ingress } else { device };
        let meta = Meta { protocol: build.ether_type(), ingress_ifindex, mark: 0 };
        let (bytes, config) = (Slice::new(&bytes), &self.world.config);
        let fate = match probe.way {
            Way::Out { .. } if self.enforced.contains(&(Program::Steer, device)) => {
                let decision = steer(&meta, &bytes, &self.world, config);
                self.fate(decision.verdict(), decision.ifindex)
            }
            Way::Out { ingress } => self.backstop(&bytes, probe.to, ingress, device),
            Way::In if self.enforced.contains(&(Program::Guard, device)) => {
                self.fate(guard(&meta, &bytes, &self.world, config).verdict(), 0)
            }
            Way::In => Fate::Plain,
        };
        fate == Fate::Held
    }

    fn fate(&self, verdict: Verdict, ifindex: u32) -> Fate {
        match verdict {
            Verdict::Drop => Fate::Held,
            Verdict::Pass => Fate::Plain,
            // WireGuard by whatever name encrypts; to a device that is gone it is freed.
            Verdict::Tunnel | Verdict::Wrap | Verdict::Replace => match self.truth.links.get(&ifindex) {
                Some(link) if link.kind.as_deref() != Some("wireguard") => Fate::Plain,
                _ => Fate::Held,
            },
        }
    }

    fn backstop(&self, bytes: &Slice<'_>, to: IpAddr, ingress_ifindex: u32, egress_ifindex: u32) -> Fate {
        let standing = &self.truth.backstop;
        let by_program = || {
            let has_programs = self.enforced.contains(&(Program::Steer, egress_ifindex));
            let hop = Hop { ingress_ifindex, egress_ifindex, has_programs };
            backstop(hop, bytes, &self.world, &self.world.config)
                .map_or(Fate::Plain, |decision| self.fate(decision.verdict(), 0))
        };
        let by_table = |rules: &kubeveil_core::backstop::Rules| {
            let is_remote = rules.remote.iter().any(|range| (range.first..=range.last).contains(&to));
            let drops = is_remote && rules.mode == Mode::Require && !rules.guarded.contains(&egress_ifindex);
            if drops { Fate::Held } else { Fate::Plain }
        };
        let program = if standing.bpf { by_program() } else { Fate::Plain };
        let table = standing.nftables.as_ref().map_or(Fate::Plain, by_table);
        if [program, table].contains(&Fate::Held) { Fate::Held } else { Fate::Plain }
    }

    /// What of the host's own affairs is cut off: other nodes, and this node's own pods.
    pub(super) fn cut_off(&self, nodes: &[IpAddr]) -> Vec<String> {
        let own = |to: &IpAddr| ip(if to.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.to_owned());
        let to_nodes = nodes.iter().flat_map(|to| {
            let probe = Probe { from: own(to), to: *to, way: Way::Out { ingress: 0 } };
            self.devices().into_iter().map(move |(index, name)| (probe, index, name))
        });
        let to_pods = ["10.244.1.5", "fd00:244:1::5"].map(|pod| {
            let to = ip(pod.to_owned());
            (Probe { from: own(&to), to, way: Way::Out { ingress: 0 } }, PODS, "the pods' bridge".to_owned())
        });
        to_nodes
            .chain(to_pods)
            .filter(|(probe, index, _)| self.holds(probe, *index))
            .map(|(probe, _, name)| format!("the host is cut off from {} by {name}", probe.to))
            .collect()
    }

    /// Nodes by peer index, as the maps have it.
    pub(super) fn node_of(&self, index: u32) -> Option<u8> {
        let prefixes = self.truth.datapath.iter().flat_map(|datapath| &datapath.prefixes);
        prefixes.filter(|(_, prefix)| prefix.peer == index && index != 0).find_map(|(net, _)| node_of(net))
    }
}

/// The number of the node that has `net`, by the plan of addresses.
pub(super) fn node_of(net: &IpNet) -> Option<u8> {
    match net {
        IpNet::V4(v4) => match (v4.network().octets(), v4.prefix_len()) {
            ([10, 244, n, _], 24) | ([192, 0, 2, n], 32) => Some(n % 100),
            _ => None,
        },
        // As they are written: `fd00:244:3::`, `2001:db8::3`.
        IpNet::V6(v6) => match (v6.network().segments(), v6.prefix_len()) {
            ([0xfd00, 0x244, n, ..], 64) | ([0x2001, 0xdb8, .., n], 128) => {
                u8::try_from(n).ok().map(|n| n % 100)
            }
            _ => None,
        },
    }
}
