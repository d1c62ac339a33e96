//! The status document, from the last way round and the last look at the kernel.

mod policies;

use kubeveil_abi::{DEVICE_NAMES, DeviceKind, Reason};
use kubeveil_api::status::{
    BackstopForm, BackstopStatus, BypassStatus, DeviceStatus, Direction, DropCount, KeyStatus, OlderKey,
    PacketCount, PeerStatus, PlainCount, ProgramStatus, STATUS_VERSION, SourceStatus, Status, Verdict, Way,
};
use kubeveil_core::{
    backstop::{Form, Standing},
    desired::Remote,
    observed::{Hook, Program},
    policy::FlowMode,
    rotation::progress::Phase,
    tunnels::Health,
};
use kubeveil_keys::Generation;
use kubeveil_linux::{Count, Kernel, preflight::kernel_release};

use crate::{
    node::{Node, Now, Rotations},
    totals::Totals,
};

/// What the HTTP side is given: plain data, made by the thread that owns the node.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) status: Status,
    /// What the wall clock showed, seconds since 1970.
    pub(crate) epoch: u64,
    pub(crate) counts: Vec<Count>,
    pub(crate) totals: Totals,
    pub(crate) errors: Vec<(&'static str, u64)>,
    pub(crate) map_entries: Vec<(&'static str, usize, usize)>,
    /// Nodes by how far each is with the generation that is wanted.
    pub(crate) phases: [(&'static str, usize); Phase::ALL.len()],
    pub(crate) rotations: Rotations,
}

/// Tells of the last look at the kernel, with the counters of this moment.
pub(crate) fn view<K: Kernel>(node: &mut Node<K>, now: Now) -> View {
    node.count();
    let counts = node.counts.clone();
    View {
        status: status(node, &counts, now),
        epoch: now.epoch.as_secs(),
        totals: node.totals.clone(),
        errors: node.errors.iter().map(|(kind, n)| (*kind, *n)).collect(),
        map_entries: map_entries(node),
        phases: node.phases(),
        rotations: node.rotations.clone(),
        counts,
    }
}

fn status<K: Kernel>(node: &Node<K>, counts: &[Count], now: Now) -> Status {
    let waiting_for = waiting_for(node);
    let peers =
        node.last.desired.remotes.iter().map(|(name, remote)| peer(node, name, remote, now)).collect();
    Status {
        schema_version: STATUS_VERSION,
        node: node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel_release(),
        ready: waiting_for.is_empty(),
        waiting_for,
        mode: node.mesh().map(|mesh| mesh.mode),
        policies: policies::of(node, now),
        adoption: node.adoption(),
        bypasses: node.bypassed(now),
        source: SourceStatus { name: node.source.name(), synced: node.last.synced },
        key: key(node, now),
        device: device(node),
        peers,
        programs: programs(node),
        backstop: backstop(&node.last.observed.backstop),
        packets: packets(counts),
        drops: drops(counts, &node.totals),
        plain: plain(counts),
        fragmented: fragmented(counts),
        problems: node.last.problems.clone(),
        kernel_writes: node.writes,
        errors_met: node.errors.values().sum(),
    }
}

/// What stands between this node and readiness: that policy is enforced on all it knows.
pub(crate) fn waiting_for<K: Kernel>(node: &Node<K>) -> Vec<String> {
    let last = &node.last;
    let attached = last.observed.datapath.as_ref().map(|d| &d.attached);
    let hooks = &last.desired.hooks;
    // Pods come and go, and a port without its program is held to more, not to less.
    let mut matters = hooks.iter().filter(|hook| hook.0 != Program::Origin);
    let attached_to_all = matters.all(|hook| attached.is_some_and(|a| a.contains_key(hook)));
    let conditions = [
        (node.mesh().is_some(), "EncryptionMesh default"),
        // What an earlier daemon kept is enforced all the same; but who can't read any more is no one to go on to the next node by.
        (node.told.all, "the source to be read to its end, once since the daemon began"),
        (node.keeper.info().is_some(), "this node's Node object, to whose UID its key is bound"),
        // The tunnel's own hook guards nothing of what leaves the node.
        (hooks.iter().any(|(program, _)| *program == Program::Steer), "an underlay device to guard"),
        (attached_to_all, "programs attached to every underlay device"),
        (last.settled, "the kernel to be as desired (see problems)"),
        (
            !node.is_misled(),
            "pods to have addresses of this node's podCIDRs (PodAddressesUnknown, see problems)",
        ),
    ];
    let unmet = conditions.into_iter().filter(|(met, _)| !met).map(|(_, what)| what.to_owned());
    let absent = absent(node).map(|name| format!("device {name} (--underlay)"));
    unmet.chain(absent).collect()
}

/// Devices that were named and do not exist.
fn absent<K: Kernel>(node: &Node<K>) -> impl Iterator<Item = &str> {
    let exists = |name: &&String| node.last.observed.links.values().any(|link| link.name == **name);
    node.underlay.iter().filter(move |name| !exists(name)).map(String::as_str)
}

fn key<K: Kernel>(node: &Node<K>, now: Now) -> Option<KeyStatus> {
    let info = node.keeper.info()?;
    Some(KeyStatus {
        generation: info.generation,
        desired_generation: Generation::new(
            node.mesh().map_or(info.generation.number(), |m| m.key_generation),
        ),
        public_key: info.public,
        created: info.created,
        age: now.epoch.as_secs().saturating_sub(info.created),
        max_age: node.max_key_age().map_or(0, |(_, most)| most.seconds()),
        older: older(node, now),
    })
}

fn older<K: Kernel>(node: &Node<K>, now: Now) -> Vec<OlderKey> {
    let held = node.holdups(now).into_iter();
    held.filter_map(|(generation, holdups)| {
        let (_, public_key) = *node.keeper.publics().iter().find(|(of, _)| *of == generation)?;
        Some(OlderKey { generation, public_key, held_for: holdups.iter().map(ToString::to_string).collect() })
    })
    .collect()
}

/// That of the newest key.
fn device<K: Kernel>(node: &Node<K>) -> Option<DeviceStatus> {
    let name = DEVICE_NAMES[node.keeper.info()?.generation.parity()];
    let tunnel = node.last.observed.tunnels.get(name)?;
    let link = node.last.observed.links.get(&tunnel.ifindex)?;
    Some(DeviceStatus { name: name.to_owned(), up: link.up, port: tunnel.port, mtu: link.mtu })
}

/// How packets to a peer go.
pub(crate) struct Going {
    pub(crate) way: Way,
    health: Health,
    /// By the tunnel, or they would if the mode let them.
    proven: bool,
    /// In plain, until the pair closes.
    is_open: bool,
    /// In plain, though there may be a tunnel.
    is_bypassed: bool,
    /// It can have no agent, and nobody waits for it.
    pub(crate) is_excluded: bool,
}

pub(crate) fn going<K: Kernel>(node: &Node<K>, name: &str, remote: &Remote, now: Now) -> Going {
    let value = node.last.observed.datapath.as_ref().and_then(|d| d.peers.get(&remote.index));
    let proven = value.is_some_and(|value| value.has_tunnel());
    let second = u32::try_from(now.monotonic.as_secs()).unwrap_or(u32::MAX);
    let is_bypassed = value.is_some_and(|value| value.is_bypassed(second));
    let is_open = value.is_some_and(|value| {
        value.state() == kubeveil_abi::PeerState::Adopting && second < value.bypass_until()
    });
    let way = if is_open || is_bypassed { Way::Plain } else { way(node, proven) };
    let health =
        remote.key.map_or(remote.health, |key| node.tunnels.health(&remote.device, &key, now.monotonic));
    let is_excluded = node.snapshot().excludes(name).is_some();
    Going { way, health, proven, is_open, is_bypassed, is_excluded }
}

fn peer<K: Kernel>(node: &Node<K>, name: &str, remote: &Remote, now: Now) -> PeerStatus {
    let tunnel = node.last.observed.tunnels.get(&remote.device);
    let peer = remote.key.and_then(|key| tunnel?.peers.get(&key));
    let link = tunnel.and_then(|t| node.last.observed.links.get(&t.ifindex));
    let going = going(node, name, remote, now);
    let Going { way, health, proven, is_open, is_excluded, .. } = going;
    PeerStatus {
        node: name.to_owned(),
        state: health.state(),
        excluded: is_excluded,
        way,
        reason: (way != Way::Tunnel).then(|| {
            let mut why = why(node, name, remote, &going, now);
            if let Health::Never(since) = health
                && why == NO_HANDSHAKE
            {
                why = format!("{why}, in {} s", since.as_secs());
            }
            if is_open { format!("adopting; {why}") } else { why }
        }),
        generation: remote.generation,
        tunnelled: way == Way::Tunnel,
        proven,
        public_key: remote.key,
        endpoint: peer.and_then(|p| p.endpoint),
        last_handshake: match health {
            Health::Never(_) => None,
            Health::Up(age) | Health::Idle(age) | Health::Stale(age) => Some(age.as_secs()),
        },
        received: peer.map_or(0, |p| p.received),
        sent: peer.map_or(0, |p| p.sent),
        path_mtu: link.map_or(0, |l| l.mtu),
    }
}

/// What the programs that stand make of packets to a peer.
fn way<K: Kernel>(node: &Node<K>, proven: bool) -> Way {
    use kubeveil_abi::Mode::{Observe, Prefer, Require};
    let observed = &node.last.observed;
    let datapath = observed.datapath.as_ref();
    let steered = datapath.is_some_and(|d| d.attached.keys().any(|(program, _)| *program == Program::Steer));
    let mode = datapath.map_or(Require, |d| kubeveil_abi::Mode::from_raw(d.config.mode));
    match mode {
        Observe => Way::Plain,
        Prefer | Require if steered && proven => Way::Tunnel,
        Require if steered || observed.backstop.in_force().is_some() => Way::Dropped,
        Prefer | Require => Way::Plain,
    }
}

const EXCLUDED: &str = "it can have no agent (spec.excludedNodes)";
const NO_HANDSHAKE: &str = "no handshake yet";

/// Why packets to a peer do not go by its tunnel.
pub(crate) fn why<K: Kernel>(node: &Node<K>, name: &str, remote: &Remote, going: &Going, now: Now) -> String {
    let Going { health, proven, is_bypassed, is_excluded, .. } = *going;
    let tunnel = node.last.observed.tunnels.get(&remote.device);
    match (remote.key, health) {
        _ if is_excluded => EXCLUDED.to_owned(),
        _ if is_bypassed => bypassed(node, name, now),
        _ if proven && node.snapshot().mode() == Some(FlowMode::Observe) => "the mode is observe".to_owned(),
        _ if proven => "no program is attached".to_owned(),
        (None, _) if node.announced.of(name).is_none() => "no announcement".to_owned(),
        (None, _) => "its announcement is not used (see problems)".to_owned(),
        (Some(_), _) if tunnel.is_none() => format!("no device {} here", remote.device),
        (Some(_), Health::Never(_)) => NO_HANDSHAKE.to_owned(),
        (Some(_), Health::Stale(_)) => "no answer to what was sent".to_owned(),
        (Some(_), Health::Up(_) | Health::Idle(_)) => "proven a moment ago".to_owned(),
    }
}

/// Who says so, until when and why: nothing that changes while it is on.
fn bypassed<K: Kernel>(node: &Node<K>, name: &str, now: Now) -> String {
    match node.bypassed(now).into_iter().find(|bypass| bypass.node == name) {
        Some(BypassStatus { until, by, reason, .. }) if !by.is_empty() => {
            format!("bypassed until {until} by {by}: {reason}")
        }
        // The program goes on until the daemon has told it something else.
        _ => "bypassed".to_owned(),
    }
}

fn programs<K: Kernel>(node: &Node<K>) -> Vec<ProgramStatus> {
    let observed = &node.last.observed;
    let attached = observed.datapath.as_ref().map(|d| &d.attached);
    let is_attached = |hook: &Hook| attached.is_some_and(|a| a.contains_key(hook));
    node.last
        .desired
        .hooks
        .iter()
        // A node has as many ports as pods: only what is not as it should be is told of them.
        .filter(|hook| hook.0 != Program::Origin || !is_attached(hook))
        .map(|hook| {
            let kind = node.last.desired.devices.get(&hook.1);
            ProgramStatus {
                program: hook.0.name().to_owned(),
                device: observed
                    .links
                    .get(&hook.1)
                    .map_or_else(|| format!("#{}", hook.1), |l| l.name.clone()),
                device_kind: match (hook.0, kind) {
                    (Program::Origin, _) => "port",
                    (_, Some(DeviceKind::Tunnel)) => "tunnel",
                    _ => "underlay",
                }
                .to_owned(),
                attached: is_attached(hook),
                ahead: attached.and_then(|a| a.get(hook)).map_or(0, Vec::len),
            }
        })
        .collect()
}

fn backstop(standing: &Standing) -> BackstopStatus {
    BackstopStatus {
        form: match standing.in_force() {
            Some(Form::Bpf) => BackstopForm::Bpf,
            Some(Form::Nftables) => BackstopForm::Nftables,
            None => BackstopForm::None,
        },
        refused: standing.refused.iter().map(|(form, why)| format!("{}: {why}", form.name())).collect(),
    }
}

/// Which way the packets of a counter went.
pub(crate) fn direction(of: kubeveil_abi::Direction) -> Direction {
    match of {
        kubeveil_abi::Direction::Egress => Direction::Egress,
        kubeveil_abi::Direction::Ingress => Direction::Ingress,
        kubeveil_abi::Direction::Tunnel => Direction::Tunnel,
        kubeveil_abi::Direction::Backstop => Direction::Backstop,
    }
}

/// What packets are held to.
pub(crate) fn flow_mode(of: kubeveil_abi::FlowMode) -> FlowMode {
    match of {
        kubeveil_abi::FlowMode::Observe => FlowMode::Observe,
        kubeveil_abi::FlowMode::Exempt => FlowMode::Exempt,
        kubeveil_abi::FlowMode::Prefer => FlowMode::Prefer,
        kubeveil_abi::FlowMode::Require | kubeveil_abi::FlowMode::Insist => FlowMode::Require,
    }
}

/// What was done; where the mode did not carry it out, what would have been.
pub(crate) fn verdict(count: &Count) -> Verdict {
    let (done, would) = match count.reason.verdict() {
        kubeveil_abi::Verdict::Pass => (Verdict::Pass, Verdict::Pass),
        kubeveil_abi::Verdict::Tunnel => (Verdict::Tunnel, Verdict::WouldTunnel),
        kubeveil_abi::Verdict::Drop => (Verdict::Drop, Verdict::WouldDrop),
        kubeveil_abi::Verdict::Wrap => (Verdict::Wrap, Verdict::WouldWrap),
        kubeveil_abi::Verdict::Replace => (Verdict::Replace, Verdict::WouldReplace),
    };
    if count.observed() { would } else { done }
}

fn packets(counts: &[Count]) -> Vec<PacketCount> {
    let mut out: Vec<PacketCount> = Vec::new();
    for count in counts {
        let (direction, verdict) = (direction(count.direction), verdict(count));
        match out.iter_mut().find(|p| p.direction == direction && p.verdict == verdict) {
            Some(sum) => {
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
            None => {
                out.push(PacketCount { direction, verdict, packets: count.packets, bytes: count.bytes });
            }
        }
    }
    out
}

/// Each direction and reason once, carried out or not, whatever the packets were held to.
fn merged(counts: &[Count]) -> Vec<Count> {
    let place = |count: &Count| (count.direction as u32, count.observed(), count.reason);
    let mut out: Vec<Count> = Vec::new();
    for count in counts {
        match out.iter_mut().find(|sum| place(sum) == place(count)) {
            Some(sum) => {
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
            None => out.push(*count),
        }
    }
    out.sort_by_key(place);
    out
}

/// What passed in plain; in `observe`, what would have been encrypted or dropped.
pub(crate) fn plain(counts: &[Count]) -> Vec<PlainCount> {
    let passed = |count: &&Count| {
        let kept_from = count.observed() && count.reason.verdict() != kubeveil_abi::Verdict::Pass;
        kept_from || count.reason.is_plain()
    };
    let one = |count: &Count| PlainCount {
        direction: direction(count.direction),
        reason: count.reason.name().to_owned(),
        verdict: verdict(count),
        packets: count.packets,
        advice: count.reason.advice().to_owned(),
    };
    merged(counts).iter().filter(passed).map(one).collect()
}

/// What crossed the wire in fragments.
pub(crate) fn fragmented(counts: &[Count]) -> u64 {
    let crossed = |count: &&Count| count.reason == Reason::TunnelledInFragments && !count.observed();
    counts.iter().filter(crossed).map(|count| count.packets).sum()
}

/// The datapath's drops, and those that WireGuard itself makes without a word.
fn drops(counts: &[Count], totals: &Totals) -> Vec<DropCount> {
    let dropped = |count: &&Count| count.reason.verdict() == kubeveil_abi::Verdict::Drop;
    let counts = merged(counts);
    let ours = counts.iter().filter(dropped).map(|count| DropCount {
        direction: direction(count.direction),
        reason: count.reason.name().to_owned(),
        packets: count.packets,
        observed: count.observed(),
        advice: count.reason.advice().to_owned(),
    });
    ours.chain(wireguard_drops(totals).into_iter().filter(|drop| drop.packets > 0)).collect()
}

/// What the WireGuard devices dropped, of each sort, though it be none.
pub(crate) fn wireguard_drops(totals: &Totals) -> [DropCount; 5] {
    let refused = &totals.refused;
    let sorts = [
        (
            Direction::Egress,
            "wireguard_tx_dropped",
            refused.tx_dropped,
            "WireGuard had no room to keep packets while a handshake was outstanding. Is the peer up, and UDP 51871 and 51872 open both ways?",
        ),
        (
            Direction::Egress,
            "wireguard_tx_errors",
            refused.tx_errors,
            "WireGuard had no peer or no endpoint for a packet: somebody removed a peer from the device. The daemon adds it again; is it running?",
        ),
        (
            Direction::Tunnel,
            "wireguard_rx_dropped",
            refused.rx_dropped,
            "Decrypted packets were dropped at this node's door: there was no room, since it can't keep up, or no protocol takes them.",
        ),
        (
            Direction::Tunnel,
            "wireguard_rx_errors",
            refused.rx_errors,
            "WireGuard decrypted packets and refused them: wireguard_rx_frame_errors are among them, the others have a wrong length. (What it can't authenticate it counts nowhere.)",
        ),
        (
            Direction::Tunnel,
            "wireguard_rx_frame_errors",
            refused.rx_frame_errors,
            "Decrypted packets came from an address that the peer does not own: compare podCIDRs and InternalIPs of both nodes.",
        ),
    ];
    sorts.map(|(direction, reason, packets, advice)| DropCount {
        direction,
        reason: reason.to_owned(),
        packets,
        observed: false,
        advice: advice.to_owned(),
    })
}

fn map_entries<K: Kernel>(node: &Node<K>) -> Vec<(&'static str, usize, usize)> {
    use kubeveil_abi::{MAX_DEVICES, MAX_FLOWS, MAX_PEERS, MAX_PREFIXES, names};
    let Some(datapath) = &node.last.observed.datapath else { return Vec::new() };
    vec![
        (names::PREFIXES, datapath.prefixes.len(), MAX_PREFIXES),
        (names::PEERS, node.last.desired.remotes.len(), MAX_PEERS),
        (names::DEVICES, datapath.devices.len(), MAX_DEVICES),
        (names::FLOWS, node.flows, MAX_FLOWS),
    ]
}
