//! What the kernel should hold.

mod asked;
mod part;
mod peers;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use kubeveil_abi::{
    Asked, BASE_PORT, Config, DEVICE_NAMES, DeviceKind, ENVELOPE_PORTS, FWMARK, MAX_SLOTS, Origin, PeerState,
    PeerValue, PrefixKind,
};
use kubeveil_api::{
    mesh::{ExcludedTraffic, MeshSpec},
    policy::PolicyMode,
};
use kubeveil_keys::{Generation, PublicKey};

use crate::{
    adoption::{Adopting, unhurried},
    announced::{Announced, Heard},
    backstop,
    bypass::Bypassing,
    index, mtu,
    observed::{Datapath, Hook, Observed, Prefix, Program},
    origin,
    ownership::{Assignment, Class},
    policy::FlowMode,
    problem::{Problem, ProblemKind},
    rotation::{self, Rotation, Said},
    snapshot::{Knowledge, Told},
    tunnels::{Health, Tunnels},
    underlay::{self, Addresses},
};
pub use asked::{AddressPart, HeldBack, held};
pub use part::Part;
use peers::Peers;

/// Idle time of an established TCP flow, seconds (kernel `net/netfilter/nf_conntrack_proto_tcp.c`,
/// `TCP_CONNTRACK_ESTABLISHED`): we must remember a flow as long as masquerading does.
const FLOW_TCP_SECONDS: u32 = 5 * 24 * 3600;
/// The same for all others (`nf_conntrack_proto_generic.c`, `nf_ct_generic_timeout`: 600 s, the longest).
const FLOW_OTHER_SECONDS: u32 = 600;
/// Seconds by which two clocks differ that go differently, and are read one after the other.
const SLACK: u32 = 2;
/// MTU assumed while no underlay device is known, bytes.
const USUAL_MTU: u32 = 1500;

/// Everything that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Name of this node.
    pub node: &'a str,
    /// This node's keys, the oldest generation first; none until the node's UID is known, to which they are bound.
    pub keys: &'a [(Generation, PublicKey)],
    /// The cluster.
    pub knowledge: &'a Knowledge,
    /// What of it is no hearsay.
    pub told: Told,
    /// Whose prefix is it.
    pub assignment: &'a Assignment,
    /// What the nodes say of themselves.
    pub announced: &'a Announced,
    /// What this node remembers of having said.
    pub rotation: &'a Rotation,
    /// How the tunnels are.
    pub tunnels: &'a Tunnels,
    /// What the kernel holds.
    pub observed: &'a Observed,
    /// Underlay devices named by the operator; empty: find them.
    pub underlay: &'a [String],
    /// Which form of the backstop the operator wants.
    pub backstop: backstop::Choice,
    /// Hash of the programs that we bring.
    pub build: &'a str,
    /// Which nodes may be spoken to in plain.
    pub adopting: &'a Adopting,
    /// Which nodes are bypassed.
    pub bypassing: &'a Bypassing,
    /// What was steered is steered on, though nobody asks for it any more.
    pub steers_on: bool,
    /// Peer indices that were given back a moment ago.
    pub resting: &'a BTreeSet<u32>,
    /// Since boot, as the programs count.
    pub now: Duration,
    /// Wall clock, since 1970.
    pub epoch: Duration,
}

/// The state to reach.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Hash of the programs.
    pub build: String,
    /// Settings of the programs.
    pub config: Config,
    /// Prefixes.
    pub prefixes: BTreeMap<IpNet, Prefix>,
    /// Devices by ifindex.
    pub devices: BTreeMap<u32, DeviceKind>,
    /// The devices of this node's pods, by their addresses.
    pub origins: BTreeMap<IpAddr, Origin>,
    /// Addresses of this node's pods that are held to more than policies ask of those pods.
    pub held_back: BTreeMap<IpAddr, HeldBack>,
    /// Where programs are attached.
    pub hooks: BTreeSet<Hook>,
    /// Which form of the backstop stands.
    pub backstop: backstop::Choice,
    /// WireGuard devices by name.
    pub tunnels: BTreeMap<String, DesiredTunnel>,
    /// ifindex by slot.
    pub slots: [u32; MAX_SLOTS],
    /// How packets to each peer index travel, other than [`PeerValue::NO_TUNNEL`].
    pub values: BTreeMap<u32, PeerValue>,
    /// The other nodes, for people.
    pub remotes: BTreeMap<String, Remote>,
    /// What stands in the way.
    pub problems: Vec<Problem>,
}

/// A WireGuard device.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredTunnel {
    /// Its key, by the public half.
    pub key: (Generation, PublicKey),
    /// UDP port.
    pub port: u16,
    /// Bytes.
    pub mtu: u32,
    /// Peers by key.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
    /// Keys of standing peers that no peer may have: to refuse them nobody else has to be known.
    pub revoked: BTreeSet<PublicKey>,
}

/// A peer of a WireGuard device.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredPeer {
    /// Where its packets go; `None`: leave it as it is.
    pub endpoint: Option<SocketAddr>,
    /// Inner sources and destinations.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub keepalive: u16,
}

impl DesiredTunnel {
    /// The same device, and nobody at it.
    fn without_peers(&self) -> Self {
        Self { peers: BTreeMap::new(), revoked: self.revoked.clone(), ..*self }
    }
}

impl DesiredPeer {
    fn is_by_v6(&self) -> bool {
        self.endpoint.is_some_and(|endpoint| endpoint.is_ipv6())
    }
}

/// Another node.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// Its index in the kernel's maps.
    pub index: u32,
    /// The generation by which packets go to it, or would; that of `key`, `device` and `health`.
    pub generation: Generation,
    /// Its key.
    pub key: Option<PublicKey>,
    /// The device that it is a peer of.
    pub device: String,
    /// How its tunnel is.
    pub health: Health,
    /// Do packets to it travel in the tunnel?
    pub tunnelled: bool,
}

/// Computes it. Pure; calling it again gives the same.
pub fn desired(inputs: &Inputs<'_>) -> Desired {
    let mut out = Desired { build: inputs.build.to_owned(), backstop: inputs.backstop, ..Desired::default() };
    let mesh = inputs.knowledge.snapshot().mesh.as_ref();
    missing(inputs, mesh, &mut out.problems);
    out.problems.extend(backstop::problems(inputs.backstop, &inputs.observed.backstop));

    let indices =
        index::allocate(inputs.assignment, inputs.node, prefixes_in_map(inputs.observed), inputs.resting);
    out.prefixes = prefixes(inputs, mesh, &indices);
    let origins = origin::origins(inputs.node, inputs.knowledge, inputs.observed);
    asked::ask(inputs, &origins, prefixes_in_map(inputs.observed), &mut out);
    out.origins = origins.known;
    port_hooks(inputs, &mut out);
    out.problems.extend(underlay::absent(&inputs.observed.links, inputs.underlay));
    let underlay = underlay_of(inputs, mesh);
    let underlay_mtu = mtu_of(&underlay, inputs.observed);
    underlay_hooks(underlay, &mut out);
    overlays(inputs, &mut out);
    // Without a key the tunnel that stands, if one does, says what fits into it.
    let standing = inputs.observed.links.values().find(|l| DEVICE_NAMES.contains(&l.name.as_str()) && l.up);
    let mut mtu = standing.map_or_else(|| mtu::tunnel_mtu(underlay_mtu, false), |l| l.mtu);
    let mut carriers: Vec<Carrier> = Vec::new();
    for key in inputs.keys.iter().rev() {
        let (carrier, tunnel) = tunnel(inputs, *key, mesh, &carriers, underlay_mtu, &mut out.problems);
        mtu = if carriers.is_empty() { tunnel.mtu } else { mtu.min(tunnel.mtu) };
        tunnel_hooks(inputs, &carrier.name, &mut out);
        out.tunnels.insert(carrier.name.clone(), tunnel);
        carriers.push(carrier);
    }
    travel(inputs, &indices, &carriers, &mut out);
    excluded(inputs, &indices, &mut out);
    adopting(inputs, &indices, &mut out);
    bypassing(inputs, &indices, &mut out);
    out.config = config(inputs, mtu, out.config.envelope_ports);
    out
}

fn prefixes_in_map(observed: &Observed) -> &BTreeMap<IpNet, Prefix> {
    static NONE: BTreeMap<IpNet, Prefix> = BTreeMap::new();
    observed.datapath.as_ref().map_or(&NONE, |d| &d.prefixes)
}

fn missing(inputs: &Inputs<'_>, mesh: Option<&MeshSpec>, problems: &mut Vec<Problem>) {
    if mesh.is_none() {
        problems.push(Problem {
            kind: ProblemKind::Missing,
            object: "EncryptionMesh default".to_owned(),
            field: String::new(),
            message: "it does not exist and none was seen before, so no address is known to be a pod's"
                .to_owned(),
            advice: "Create it: mode, podCIDRs and nodeCIDRs in its spec".to_owned(),
        });
    }
    let own = inputs.knowledge.snapshot().nodes.get(inputs.node);
    let nothing_owned = inputs.assignment.of(inputs.node).is_empty();
    if own.is_none() || (mesh.is_some() && nothing_owned) {
        problems.push(Problem {
            kind: ProblemKind::Missing,
            object: format!("Node {}", inputs.node),
            field: if own.is_some() { "spec.podCIDRs".to_owned() } else { String::new() },
            message: "this node's own addresses are not known, so nothing of it can be encrypted; its pods' traffic to other nodes is dropped where the mesh requires encryption".to_owned(),
            advice: "Check --node against the Node's name, and that the Node has podCIDRs and an InternalIP within the mesh's ranges".to_owned(),
        });
    }
}

fn prefixes(
    inputs: &Inputs<'_>,
    mesh: Option<&MeshSpec>,
    indices: &BTreeMap<String, u32>,
) -> BTreeMap<IpNet, Prefix> {
    let unowned = Prefix::new(PrefixKind::UnownedPods, 0);
    let ranges = mesh.iter().flat_map(|m| &m.pod_cidrs).map(|range| (range.trunc(), unowned));
    let owned = inputs.assignment.prefixes.iter().filter_map(|(prefix, (node, class))| {
        let local = node == inputs.node;
        let kind = match (local, class) {
            (true, Class::Pods) => PrefixKind::LocalPods,
            (true, Class::Node) => PrefixKind::LocalNode,
            (false, Class::Pods) => PrefixKind::RemotePods,
            (false, Class::Node) => PrefixKind::RemoteNode,
        };
        let peer = if local { 0 } else { *indices.get(node)? };
        Some((*prefix, Prefix::new(kind, peer)))
    });
    // Peer 0 stands for no node and never has a tunnel.
    let nobodys = Prefix::new(PrefixKind::RemoteNode, 0);
    let contested = inputs.assignment.contested.iter().map(|address| (*address, nobodys));
    ranges.chain(contested).chain(owned).collect()
}

/// A device of ours that packets can go by.
struct Carrier {
    generation: Generation,
    name: String,
    /// ifindex; `None` as long as it is not up with its key.
    up: Option<u32>,
    /// The key of each node that is a peer there.
    keys: BTreeMap<String, PublicKey>,
}

impl Carrier {
    fn new(inputs: &Inputs<'_>, (generation, own_key): (Generation, PublicKey)) -> Self {
        let name = DEVICE_NAMES[generation.parity()].to_owned();
        let device = inputs.observed.tunnels.get(&name).filter(|device| device.public_key == Some(own_key));
        let is_up = |index: &u32| inputs.observed.links.get(index).is_some_and(|link| link.up);
        let up = device.map(|device| device.ifindex).filter(is_up);
        Self { generation, name, up, keys: BTreeMap::new() }
    }

    fn slot(&self) -> u8 {
        u8::from(self.generation.parity() == 1)
    }

    fn health(&self, inputs: &Inputs<'_>, node: &str) -> Health {
        let never = Health::Never(Duration::ZERO);
        self.keys.get(node).map_or(never, |key| inputs.tunnels.health(&self.name, key, inputs.now))
    }
}

/// The device of one key and its peers; `newer` are those of newer ones.
fn tunnel(
    inputs: &Inputs<'_>,
    key: (Generation, PublicKey),
    mesh: Option<&MeshSpec>,
    newer: &[Carrier],
    underlay_mtu: u32,
    problems: &mut Vec<Problem>,
) -> (Carrier, DesiredTunnel) {
    let carrier = Carrier::new(inputs, key);
    let peers = Peers::of(inputs, mesh, &carrier.name, key, newer, inputs.assignment.nodes());
    problems.extend(peers.problems);
    let outer_v6 = peers.by_key.values().any(DesiredPeer::is_by_v6);
    let mtu = mtu::tunnel_mtu(underlay_mtu, outer_v6);
    let port = key.0.port(BASE_PORT).unwrap_or(BASE_PORT);
    let standing =
        inputs.observed.tunnels.get(&carrier.name).into_iter().flat_map(|device| device.peers.keys());
    let revoked = standing.filter(|key| mesh.is_some_and(|mesh| mesh.revokes(key))).copied().collect();
    (Carrier { keys: peers.keys, ..carrier }, DesiredTunnel { key, port, mtu, peers: peers.by_key, revoked })
}

fn underlay_of(inputs: &Inputs<'_>, mesh: Option<&MeshSpec>) -> BTreeSet<u32> {
    let own = inputs.knowledge.snapshot().nodes.get(inputs.node);
    let others = inputs
        .assignment
        .prefixes
        .iter()
        .filter(|(_, (node, class))| node != inputs.node && *class == Class::Node);
    let addresses = Addresses {
        own: own.map_or(&[][..], |node| &node.internal_ips),
        nodes: others.map(|(prefix, _)| prefix.addr()).collect(),
        pods: mesh.map_or(&[][..], |mesh| &mesh.pod_cidrs),
    };
    underlay::underlay(&inputs.observed.links, &addresses, inputs.underlay)
}

fn mtu_of(devices: &BTreeSet<u32>, observed: &Observed) -> u32 {
    let links = devices.iter().filter_map(|index| observed.links.get(index));
    links.filter(|link| link.up).map(|link| link.mtu).min().unwrap_or(USUAL_MTU)
}

fn underlay_hooks(devices: BTreeSet<u32>, out: &mut Desired) {
    for index in devices {
        out.devices.insert(index, DeviceKind::Underlay);
        out.hooks.extend([(Program::Steer, index), (Program::Guard, index)]);
    }
}

/// What goes into an overlay's device comes out at an underlay device, in an envelope; so the backstop lets it go in.
fn overlays(inputs: &Inputs<'_>, out: &mut Desired) {
    let links = &inputs.observed.links;
    for index in underlay::overlays(links) {
        out.devices.entry(index).or_insert(DeviceKind::Overlay);
    }
    let own = inputs.assignment.of(inputs.node).iter();
    let own_pods: Vec<IpNet> = own.filter(|(_, class)| *class == Class::Pods).map(|(net, _)| *net).collect();
    out.hooks
        .extend(underlay::replaceable(links, &own_pods).into_iter().map(|index| (Program::Replace, index)));
    let (ports, left) = underlay::envelope_ports(links);
    out.config.envelope_ports = ports;
    if !left.is_empty() {
        out.problems.push(Problem {
            kind: ProblemKind::Kernel,
            object: "VXLAN and Geneve devices".to_owned(),
            field: "port".to_owned(),
            message: format!(
                "they use more than {} UDP ports; envelopes to {left:?} are not looked into",
                ports.len()
            ),
            advice: "Give the overlays' devices fewer different ports".to_owned(),
        });
    }
}

/// Only where less is asked of somebody than of all does it matter by which port of a bridge a packet came.
fn port_hooks(inputs: &Inputs<'_>, out: &mut Desired) {
    let loosest = inputs.knowledge.snapshot().policies.loosest();
    if loosest.is_some_and(|mode| mode < PolicyMode::Require) {
        let ports = origin::ports(&out.origins, &inputs.observed.links);
        out.hooks.extend(ports.into_iter().map(|port| (Program::Origin, port)));
    }
}

fn tunnel_hooks(inputs: &Inputs<'_>, tunnel: &str, out: &mut Desired) {
    if let Some(device) = inputs.observed.tunnels.get(tunnel) {
        out.devices.insert(device.ifindex, DeviceKind::Tunnel);
        out.hooks.insert((Program::Deliver, device.ifindex));
    }
    let foreign =
        inputs.observed.links.values().find(|l| l.name == tunnel && l.kind.as_deref() != Some("wireguard"));
    if foreign.is_some() {
        out.problems.push(Problem {
            kind: ProblemKind::Kernel,
            object: format!("device {tunnel}"),
            field: String::new(),
            message: "a device of this name exists that is no WireGuard device".to_owned(),
            advice: "It is not ours, so it is left alone; rename or delete it".to_owned(),
        });
    }
}

fn config(inputs: &Inputs<'_>, mtu: u32, envelope_ports: [u32; ENVELOPE_PORTS]) -> Config {
    let snapshot = inputs.knowledge.snapshot();
    let (mss_v4, mss_v6) = mtu::mss(mtu);
    let unknown = asked::unknown(&snapshot.policies);
    let mode = match snapshot.mode() {
        // A running cluster is not cut off for addresses that nobody can read.
        Some(FlowMode::Require) if inputs.adopting.misled && unknown == Asked::Mesh => {
            kubeveil_abi::Mode::Observe
        }
        None | Some(FlowMode::Require) => kubeveil_abi::Mode::Require,
        Some(FlowMode::Prefer | FlowMode::Exempt) => kubeveil_abi::Mode::Prefer,
        Some(FlowMode::Observe) if inputs.steers_on => kubeveil_abi::Mode::Prefer,
        Some(FlowMode::Observe) => kubeveil_abi::Mode::Observe,
    };
    // Where only policies encrypt, nothing passes for want of one that was made since this node was here last, and was not told of yet.
    let may_be_asked = asked::may_have_come(inputs) && snapshot.mode() == Some(FlowMode::Observe);
    // Hearsay loosens nothing that stands.
    let stands = inputs.observed.datapath.as_ref().and_then(Datapath::written);
    let mode = match stands {
        Some(stands) if !inputs.told.mesh => mode.stricter(kubeveil_abi::Mode::from_raw(stands.mode)),
        Some(stands) if stands.mode == kubeveil_abi::Mode::Observe as u32 => mode,
        _ if may_be_asked => kubeveil_abi::Mode::Prefer,
        _ => mode,
    };
    let unknown = match stands {
        Some(stands) if !inputs.told.all => asked::stricter(unknown, Asked::from_raw(stands.unknown)),
        None if may_be_asked => Asked::Require,
        _ => unknown,
    };
    Config {
        mode: mode as u32,
        unknown: unknown as u32,
        fwmark: FWMARK,
        ports: [u32::from(BASE_PORT), u32::from(BASE_PORT) + 1],
        mss_v4,
        mss_v6,
        flow_tcp_seconds: FLOW_TCP_SECONDS,
        flow_other_seconds: FLOW_OTHER_SECONDS,
        mtu,
        envelope_ports,
        reserved: 0,
    }
}

/// Slots, and the way to each peer: into the newest tunnel that is proven. In `prefer` a peer that
/// takes and never answers counts as unproven again; in `require` that would gain nothing.
fn travel(inputs: &Inputs<'_>, indices: &BTreeMap<String, u32>, carriers: &[Carrier], out: &mut Desired) {
    for carrier in carriers {
        out.slots[usize::from(carrier.slot())] = carrier.up.unwrap_or(0);
    }
    let Some(newest) = carriers.first() else { return };
    for (node, index) in indices {
        let slot = standing(inputs, *index).filter(|value| value.has_tunnel()).map(PeerValue::slot);
        let carrier = carrier_of(inputs, node, slot, carriers);
        if let Some(carrier) = carrier {
            let value = PeerValue::tunnel(carrier.slot(), carrier.generation.number());
            let heard = inputs.adopting.heard.get(node);
            out.values.insert(*index, heard.map_or(value, |until| value.heard_in_plain(*until)));
        }
        let tunnelled = carrier.is_some();
        // What is not proven anywhere is told of the newest that both have.
        let shown = carrier.or_else(|| carriers.iter().find(|c| c.keys.contains_key(node))).unwrap_or(newest);
        let remote = Remote {
            index: *index,
            generation: shown.generation,
            key: shown.keys.get(node).copied(),
            device: shown.name.clone(),
            health: shown.health(inputs, node),
            tunnelled,
        };
        out.remotes.insert(node.clone(), remote);
    }
}

/// The device that carries packets to `node`, if there is one; they go by `slot` now.
fn carrier_of<'c>(
    inputs: &Inputs<'_>,
    node: &str,
    slot: Option<u8>,
    carriers: &'c [Carrier],
) -> Option<&'c Carrier> {
    let own = inputs.announced.of(inputs.node).map(Said::from);
    let is_told = inputs.announced.heard(inputs.node) == Heard::Told;
    let goes_by = carriers.iter().find(|carrier| slot == Some(carrier.slot())).map(|c| c.generation);
    let may = carriers.iter().filter(|carrier| {
        carrier.up.is_some()
            && inputs.rotation.may_use(own, is_told, node, carrier.generation, goes_by)
            && carries(inputs, node, carrier.health(inputs, node))
    });
    let may: Vec<&Carrier> = may.collect();
    rotation::choose(may.iter().map(|carrier| carrier.health(inputs, node))).map(|index| may[index])
}

/// Do packets to `node` go into its tunnel, of this health? Not by prefixes that are known to be wrong, where the mode lets
/// them pass without.
fn carries(inputs: &Inputs<'_>, node: &str, health: Health) -> bool {
    let snapshot = inputs.knowledge.snapshot();
    let is_given_up = || matches!(health, Health::Stale(_)) && snapshot.mode() == Some(FlowMode::Prefer);
    let is_misled = || !snapshot.strangers.is_empty() && passes(inputs, node);
    health.is_proven() && !is_given_up() && !is_misled()
}

/// May packets to `node` pass without a tunnel, whoever's they are?
fn passes(inputs: &Inputs<'_>, node: &str) -> bool {
    let snapshot = inputs.knowledge.snapshot();
    // Asked last, and only of who is in question: it is a look at all policies, and there are thousands of peers.
    let by_mode = || snapshot.mode() == Some(FlowMode::Prefer);
    // What policies require of some may not pass, so all go by the tunnel that is proven.
    let requires = || asked::unknown(&snapshot.policies) != Asked::Mesh;
    let by_pair = inputs.adopting.misled || inputs.adopting.open.contains(node);
    (by_pair || by_mode()) && !requires()
}

/// Peers that packets may go to in plain, until they are proven.
fn adopting(inputs: &Inputs<'_>, indices: &BTreeMap<String, u32>, out: &mut Desired) {
    let until = inputs.adopting.until;
    for index in inputs.adopting.open.iter().filter_map(|node| indices.get(node)) {
        let is_same = |value: &PeerValue| {
            value.state() == PeerState::Adopting && value.bypass_until().abs_diff(until) <= SLACK
        };
        let value = standing(inputs, *index).filter(is_same).unwrap_or(PeerValue::adopting(until));
        out.values.entry(*index).or_insert(value);
    }
    // Another mode is hearsay, and what stands ends by itself.
    let left = inputs.adopting.left.iter().filter(|_| !inputs.told.mesh);
    for index in left.filter_map(|node| indices.get(node)) {
        if let Some(value) = standing(inputs, *index).filter(|value| value.state() == PeerState::Adopting) {
            out.values.entry(*index).or_insert(value);
        }
    }
}

/// Peers that can have no agent, where the mesh lets their packets pass for that, which ends by itself. Hearsay begins nothing, and leaves what
/// stands to its end.
fn excluded(inputs: &Inputs<'_>, indices: &BTreeMap<String, u32>, out: &mut Desired) {
    let snapshot = inputs.knowledge.snapshot();
    if snapshot.mode() == Some(FlowMode::Observe) {
        return;
    }
    let value = PeerValue::bypass(u32::try_from(unhurried(inputs.now).as_secs()).unwrap_or(u32::MAX));
    let is_plain = |node: &str| snapshot.excludes(node) == Some(ExcludedTraffic::Plain);
    for (_, index) in indices.iter().filter(|(node, _)| is_plain(node)) {
        let stands = || standing(inputs, *index).filter(|value| value.state() == PeerState::Bypass);
        if let Some(value) = if inputs.told.all { Some(value) } else { stands() } {
            out.values.entry(*index).or_insert(value);
        }
    }
}

/// What stands in the map for a peer.
fn standing(inputs: &Inputs<'_>, index: u32) -> Option<PeerValue> {
    inputs.observed.datapath.as_ref().and_then(|datapath| datapath.peers.get(&index)).copied()
}

/// What lies on the way to peers that are bypassed. Where nothing is steered nothing is bypassed.
fn bypassing(inputs: &Inputs<'_>, indices: &BTreeMap<String, u32>, out: &mut Desired) {
    if inputs.knowledge.snapshot().mode() == Some(FlowMode::Observe) {
        return;
    }
    for (node, bypassed) in &inputs.bypassing.peers {
        let Some(index) = indices.get(node) else { continue };
        // Without a key of our own we know of no tunnel, which is no reason to take one away.
        let unknown =
            || standing(inputs, *index).filter(|value| inputs.keys.is_empty() && value.has_tunnel());
        let beneath = out.values.get(index).copied().or_else(unknown).unwrap_or(PeerValue::NO_TUNNEL);
        out.values.insert(*index, bypassed.over(beneath, inputs.now));
    }
}

#[cfg(test)]
mod tests;
