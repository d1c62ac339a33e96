//! The exposition: made from a [`View`] at each scrape, nothing is copied about in between.

use std::sync::{Arc, atomic::AtomicU64};

use kubeveil_abi::{Direction, FlowMode, Reason, Verdict};
use kubeveil_api::status::{BackstopForm, PodsByMode, TunnelState};
use kubeveil_core::problem::ProblemKind;
use kubeveil_linux::Count;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::status::{View, verdict, wireguard_drops};

type Labels = Vec<(&'static str, String)>;

/// Buckets of a way round, seconds.
const DURATIONS: [f64; 7] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];

/// What is measured as it happens.
#[derive(Clone, Debug)]
pub(crate) struct Durations(Histogram);

impl Durations {
    pub(crate) fn new() -> Self {
        Self(Histogram::new(DURATIONS))
    }

    /// One way round took so long, seconds.
    pub(crate) fn observe(&self, seconds: f64) {
        self.0.observe(seconds);
    }
}

/// OpenMetrics, or the older text format where the scraper does not ask for it.
pub(crate) fn expose(
    view: &View,
    durations: &Durations,
    openmetrics: bool,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("kubeveil");
    about(&mut registry, view);
    rotation(&mut registry, view);
    peers(&mut registry, view);
    bypasses(&mut registry, view);
    packets(&mut registry, view);
    policies(&mut registry, view);
    policy_packets(&mut registry, view);
    datapath(&mut registry, view);
    let help = "One way round: read, decide, act";
    registry.register("reconcile_duration_seconds", help, durations.0.clone());
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(if openmetrics { text } else { classic(&text) })
}

fn gauge(registry: &mut Registry, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
    let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    registry.register(name, help, family);
}

fn one_gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

/// Values of the same labels add up.
fn counter(registry: &mut Registry, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
    let family = Family::<Labels, Counter>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    registry.register(name, help, family);
}

fn one_counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; 2^53 of anything is out of reach")]
fn float(number: u64) -> f64 {
    number as f64
}

fn about(registry: &mut Registry, view: &View) {
    let status = &view.status;
    let mode = status.mode.map_or_else(|| "unknown".to_owned(), |m| m.to_string());
    let labels = vec![("version", status.version.clone()), ("kernel", status.kernel.clone()), ("mode", mode)];
    gauge(registry, "build_info", "Version of the daemon, kernel and mode", [(labels, 1.0)]);
    if let Some(key) = &status.key {
        let help = "Generation of the key in use";
        one_gauge(registry, "key_generation", help, float(key.generation.number().into()));
        let help = "When the key in use was made";
        one_gauge(registry, "key_created_timestamp_seconds", help, float(key.created));
        let help = "Age above which a key is told of as too old, spec.rotation.maxKeyAge; 0: none is";
        one_gauge(registry, "key_max_age_seconds", help, float(key.max_age));
        let help = "Generation that the mesh wants";
        one_gauge(registry, "key_desired_generation", help, float(key.desired_generation.number().into()));
    }
    let seen =
        |kind: &ProblemKind| view.errors.iter().find(|(name, _)| *name == kind.name()).map_or(0, |(_, n)| *n);
    let kinds = ProblemKind::ALL.iter().map(|kind| (vec![("kind", kind.name().to_owned())], seen(kind)));
    counter(registry, "reconcile_errors", "Problems met, by kind; `kubeveil status` tells them", kinds);
    let help = "Privileged steps carried out since the daemon started";
    one_counter(registry, "kernel_writes", help, status.kernel_writes);
}

fn rotation(registry: &mut Registry, view: &View) {
    let phases =
        view.phases.iter().map(|(phase, nodes)| (vec![("phase", (*phase).to_owned())], float(*nodes as u64)));
    let help = "Nodes by how far each is with the generation that the mesh wants, as this node hears them";
    gauge(registry, "rotation_phase_nodes", help, phases);
    let result = |result: &str, count| (vec![("result", result.to_owned())], count);
    let rotations = [result("done", view.rotations.done), result("forced", view.rotations.forced)];
    let help = "Rotations after which this node gave its older key up, since the daemon started";
    counter(registry, "rotations", help, rotations);
    let help = "From this node's new key until it gave the older one up, in the last rotation whose begin it saw; else 0";
    one_gauge(registry, "rotation_duration_seconds", help, view.rotations.took);
}

fn peers(registry: &mut Registry, view: &View) {
    let status = &view.status;
    let wanted = || status.peers.iter().filter(|peer| !peer.excluded);
    let count = |state: TunnelState| wanted().filter(|peer| peer.state == state).count() as u64;
    let values =
        TunnelState::ALL.iter().map(|state| (vec![("state", state.to_string())], float(count(*state))));
    gauge(registry, "peers", "Other nodes by the state of their tunnel", values);
    let help = "Other nodes that this node should have a tunnel to";
    one_gauge(registry, "peers_desired", help, float(wanted().count() as u64));
    let help = "Bytes received through tunnels, of all peers there ever were";
    one_counter(registry, "wireguard_received_bytes", help, view.totals.received);
    let help = "Bytes sent through tunnels, of all peers there ever were";
    one_counter(registry, "wireguard_sent_bytes", help, view.totals.sent);
}

fn bypasses(registry: &mut Registry, view: &View) {
    let bypasses = &view.status.bypasses;
    let help = "Other nodes to which packets travel in plain by a bypass (`kubeveil bypass list`)";
    one_gauge(registry, "bypasses", help, float(bypasses.len() as u64));
    if let Some(first) = bypasses.iter().map(|bypass| bypass.ends_in).min() {
        let help = "When the first bypass ends by itself; absent where there is none";
        let at = view.epoch.saturating_add(first);
        one_gauge(registry, "bypass_expires_timestamp_seconds", help, float(at));
    }
}

/// Every drop reason of a direction is there from the start, so that a rule on its rate sees the first.
fn packets(registry: &mut Registry, view: &View) {
    let labels = |count: &Count| {
        vec![("direction", count.direction.name().to_owned()), ("verdict", verdict(count).to_string())]
    };
    let values = view.counts.iter().map(|c| (labels(c), c.packets));
    counter(registry, "packets", "Packets that the programs looked at", values);

    let labels = |direction: &str, reason: &str| {
        vec![("direction", direction.to_owned()), ("reason", reason.to_owned())]
    };
    let zeros = Reason::ALL.iter().filter(|r| r.verdict() == Verdict::Drop).flat_map(|reason| {
        directions(*reason).iter().map(|direction| (labels(direction.name(), reason.name()), 0))
    });
    let done = view.counts.iter().filter(|c| !c.observed() && c.reason.verdict() == Verdict::Drop);
    let done = done.map(|c| (labels(c.direction.name(), c.reason.name()), c.packets));
    let wireguard = wireguard_drops(&view.totals).map(|d| (labels(d.direction.name(), &d.reason), d.packets));
    counter(
        registry,
        "drops",
        "Packets dropped, by reason; `kubeveil status` says what to do",
        zeros.chain(done).chain(wireguard),
    );

    let help = "Packets that went into a tunnel bigger than its MTU, and crossed the wire in fragments";
    one_counter(registry, "fragmented_packets", help, view.status.fragmented);

    let zeros = PLAIN.map(|direction| (labels(direction.name(), Reason::Preferred.name()), 0));
    let passed = view.counts.iter().filter(|c| c.reason.is_plain() && PLAIN.contains(&c.direction));
    let passed = passed.map(|c| (labels(c.direction.name(), c.reason.name()), c.packets));
    let help = "Pod packets that passed in plain since there was no tunnel and the mode, adoption or an exemption allows it, or by a bypass, by reason";
    counter(registry, "plain_packets", help, zeros.into_iter().chain(passed));
}

/// Where packets can pass in plain.
const PLAIN: [Direction; 3] = [Direction::Egress, Direction::Ingress, Direction::Backstop];

/// Where a drop reason can occur.
fn directions(reason: Reason) -> &'static [Direction] {
    match reason {
        Reason::Other
        | Reason::NonIp
        | Reason::Outer
        | Reason::Host
        | Reason::Preferred
        | Reason::Bypassed
        | Reason::Tunnelled
        | Reason::Delivered
        | Reason::Wrapped
        | Reason::Replaced
        | Reason::TunnelledInFragments
        | Reason::Adopting
        | Reason::Exempted => &[],
        Reason::Unparsable => &Direction::ALL,
        Reason::PlainFromPod | Reason::PlainToPod | Reason::SpoofedLocal => &[Direction::Ingress],
        Reason::FlowTableFull | Reason::EnvelopeSpoofed => &[Direction::Tunnel],
        Reason::UnguardedDevice => &[Direction::Backstop],
        Reason::TunnelToPlain => &[Direction::Egress, Direction::Backstop],
        Reason::NoTunnel
        | Reason::DeviceGone
        | Reason::NoOwner
        | Reason::SourceNotOurs
        | Reason::LocalPodOutward
        | Reason::TooBig
        | Reason::EnvelopeAstray => &[Direction::Egress],
    }
}

fn policies(registry: &mut Registry, view: &View) {
    let status = view.status.policies.as_ref();
    let (count, namespaced) = status.map_or((0, 0), |status| (status.count, status.namespaced));
    let scopes = [("namespace", namespaced), ("cluster", count.saturating_sub(namespaced))];
    let scopes = scopes.map(|(scope, n)| (vec![("scope", scope.to_owned())], float(n as u64)));
    gauge(registry, "policies", "Encryption policies, of a namespace or of the cluster", scopes);
    if let Some(PodsByMode { observe, exempt, prefer, require }) = status.map(|status| status.pods) {
        let pods = [
            (FlowMode::Observe, observe),
            (FlowMode::Exempt, exempt),
            (FlowMode::Prefer, prefer),
            (FlowMode::Require, require),
        ];
        let pods = pods.map(|(mode, n)| (vec![("mode", mode.name().to_owned())], float(n as u64)));
        let help = "This node's own pods by the mode that they are held to, where there are policies";
        gauge(registry, "policy_pods", help, pods);
    }
    let help = "Exemptions that are written and have not ended";
    one_gauge(registry, "exemptions", help, float(status.map_or(0, |status| status.exemptions) as u64));
    if let Some(ends) = status.and_then(|status| status.exemption_ends) {
        let help = "When the first exemption ends; absent where none has an end";
        one_gauge(registry, "exemption_expires_timestamp_seconds", help, float(ends));
    }
}

/// Not of what a mesh that observes would do, which `packets` tells; nor of what came out of tunnels, of which nobody asks whose it was.
fn policy_packets(registry: &mut Registry, view: &View) {
    let is_held = |c: &&Count| {
        let is_pods = !matches!(c.reason, Reason::Other | Reason::NonIp | Reason::Outer | Reason::Host);
        is_pods && c.mode != FlowMode::Observe && c.direction != Direction::Tunnel
    };
    let labels = |count: &Count| {
        vec![
            ("mode", count.mode.name().to_owned()),
            ("verdict", verdict(count).to_string()),
            ("direction", count.direction.name().to_owned()),
        ]
    };
    let values = view.counts.iter().filter(is_held).map(|c| (labels(c), c.packets));
    let help = "Pods' packets by the mode that they were held to, the stricter of both ends'; those that are not zero";
    counter(registry, "policy_packets", help, values);
}

fn datapath(registry: &mut Registry, view: &View) {
    let mut attached: Vec<(Labels, f64)> = Vec::new();
    for program in &view.status.programs {
        let labels = vec![("program", program.program.clone()), ("device_kind", program.device_kind.clone())];
        let one = f64::from(u8::from(program.attached));
        match attached.iter_mut().find(|(l, _)| *l == labels) {
            Some((_, n)) => *n += one,
            None => attached.push((labels, one)),
        }
    }
    let labels = vec![("program", "backstop".to_owned()), ("device_kind", "host".to_owned())];
    attached.push((labels, f64::from(u8::from(view.status.backstop.form != BackstopForm::None))));
    gauge(registry, "datapath_attached", "Devices that a program is attached to", attached);
    let label = |map: &str| vec![("map", map.to_lowercase())];
    let entries = view.map_entries.iter().map(|(map, n, _)| (label(map), float(*n as u64)));
    gauge(registry, "map_entries", "Entries in a map of the datapath", entries);
    let most = view.map_entries.iter().map(|(map, _, max)| (label(map), float(*max as u64)));
    gauge(registry, "map_max_entries", "Entries that the map has room for", most);
}

/// OpenMetrics names a counter's family without `_total`; the text format 0.0.4 names it with.
fn classic(openmetrics: &str) -> String {
    let counters: Vec<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let rename = |line: &str| {
        let named = ["# TYPE ", "# HELP "].iter().find_map(|start| {
            let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
            counters.contains(&name).then(|| format!("{start}{name}_total {rest}\n"))
        });
        named.unwrap_or_else(|| format!("{line}\n"))
    };
    openmetrics.lines().filter(|line| *line != "# EOF").map(rename).collect()
}

/// Shared with the HTTP side.
pub(crate) type SharedDurations = Arc<Durations>;

#[cfg(test)]
mod tests;
