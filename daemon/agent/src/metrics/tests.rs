//! The exposition keeps its budget and its grammar.

use kubeveil_abi::counter_index;
use kubeveil_api::mesh::Mode;
use kubeveil_api::status::{
    BackstopStatus, BypassStatus, KeyStatus, PeerStatus, PolicyStatus, STATUS_VERSION, SourceStatus, Status,
    Way,
};
use kubeveil_keys::{Generation, PublicKey};

use super::*;
use kubeveil_core::rotation::progress::Phase;

use crate::node::Rotations;
use crate::totals::Totals;

/// Series that one node may have, however many peers it has: thousands of nodes are scraped.
const BUDGET: usize = 150;

/// Every counter that there can be: a drop is counted where a program can make it, and only `steer` and `replace` send into a tunnel.
fn counts() -> Vec<Count> {
    let mut counts = Vec::new();
    for direction in Direction::ALL {
        for mode in FlowMode::ALL {
            let can_be = |r: &Reason| match r.verdict() {
                Verdict::Pass => true,
                Verdict::Drop => directions(*r).contains(&direction),
                Verdict::Tunnel | Verdict::Wrap | Verdict::Replace => direction == Direction::Egress,
            };
            for reason in Reason::ALL.iter().copied().filter(can_be) {
                let packets = u64::from(counter_index(direction, mode, reason)) + 1;
                counts.push(Count { direction, mode, reason, packets, bytes: packets });
            }
        }
    }
    counts
}

fn policies_in_force() -> PolicyStatus {
    PolicyStatus {
        count: 5,
        namespaced: 3,
        others: Mode::Prefer,
        required: 4,
        pods: PodsByMode { observe: 0, exempt: 1, prefer: 20, require: 2 },
        known_by_device: 0,
        exemptions: 2,
        exemption_ends: Some(1_800_000_000),
    }
}

/// A busy node: 5,000 peers, and every counter that there can be has counted.
fn view() -> View {
    let peer = |n: u32| PeerStatus {
        excluded: false,
        generation: Generation::FIRST,
        node: format!("node-{n}"),
        state: TunnelState::ALL[n as usize % 4],
        way: Way::Tunnel,
        reason: None,
        tunnelled: true,
        proven: true,
        public_key: None,
        endpoint: None,
        last_handshake: Some(1),
        received: 1,
        sent: 1,
        path_mtu: 1440,
    };
    let program = |program: &str, kind: &str| kubeveil_api::status::ProgramStatus {
        program: program.to_owned(),
        device: "eth0".to_owned(),
        device_kind: kind.to_owned(),
        attached: true,
        ahead: 0,
    };
    let mut totals = Totals::default();
    (totals.received, totals.sent) = (11, 12);
    let mut rotations = Rotations::default();
    (rotations.done, rotations.forced, rotations.took) = (3, 1, 17.5);
    View {
        phases: Phase::ALL.map(|phase| (phase.name(), 3)),
        rotations,
        epoch: 1_800_000_000,
        status: Status {
            schema_version: STATUS_VERSION,
            node: "node-0".to_owned(),
            version: "0.1.0".to_owned(),
            kernel: "6.12".to_owned(),
            ready: true,
            waiting_for: vec![],
            mode: None,
            policies: Some(policies_in_force()),
            adoption: None,
            bypasses: vec![BypassStatus {
                node: "node-1".to_owned(),
                until: jiff::Timestamp::UNIX_EPOCH,
                ends_in: 600,
                by: "alice".to_owned(),
                reason: "INC-1".to_owned(),
            }],
            source: SourceStatus { name: "test".to_owned(), synced: true },
            key: Some(KeyStatus {
                older: vec![],
                generation: Generation::FIRST,
                desired_generation: Generation::new(1),
                public_key: PublicKey::from_bytes([7; 32]),
                created: 1_700_000_000,
                age: 1,
                max_age: 1,
            }),
            device: None,
            peers: (0..5000).map(peer).collect(),
            programs: vec![
                program("steer", "underlay"),
                program("guard", "underlay"),
                program("deliver", "tunnel"),
            ],
            backstop: BackstopStatus { form: BackstopForm::Nftables, refused: vec![] },
            packets: vec![],
            drops: vec![],
            plain: vec![],
            fragmented: 6,
            problems: vec![],
            kernel_writes: 7,
            errors_met: 0,
        },
        counts: counts(),
        totals,
        errors: vec![("manifest", 3)],
        map_entries: ["PREFIXES", "PEERS", "DEVICES", "FLOWS"].map(|map| (map, 20_000, 65_536)).to_vec(),
    }
}

fn text(openmetrics: bool) -> String {
    let durations = Durations::new();
    durations.observe(0.01);
    expose(&view(), &durations, openmetrics).expect("exposition")
}

fn samples(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

#[test]
fn five_thousand_peers_stay_within_the_budget() {
    let n = samples(&text(false)).count();
    assert!(n <= BUDGET, "{n} series:\n{}", text(false));
}

#[test]
fn every_drop_is_a_series_of_its_own() {
    let text = text(false);
    for reason in Reason::ALL.iter().filter(|r| r.verdict() == Verdict::Drop) {
        let label = format!("reason=\"{}\"", reason.name());
        assert!(
            samples(&text).any(|s| s.starts_with("kubeveil_drops_total") && s.contains(&label)),
            "{label}"
        );
    }
}

/// In the text format every sample belongs to a family that was announced, and counters end in `_total`.
#[test]
fn the_text_format_names_its_families() {
    let text = text(false);
    let families: Vec<(&str, &str)> =
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for sample in samples(&text) {
        let name = sample.split(['{', ' ']).next().unwrap_or_default();
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(families.iter().any(|(family, _)| *family == name || *family == base), "{sample}");
    }
    assert!(
        families.iter().all(|(name, kind)| (*kind == "counter") == name.ends_with("_total")),
        "{families:?}"
    );
    assert!(!text.contains("# EOF") && self::text(true).ends_with("# EOF\n"));
}

#[test]
fn values_are_those_of_the_view() {
    let text = text(false);
    for line in [
        "kubeveil_peers{state=\"idle\"} 1250.0",
        "kubeveil_wireguard_received_bytes_total 11",
        "kubeveil_peers_desired 5000.0",
        "kubeveil_reconcile_errors_total{kind=\"manifest\"} 3",
        "kubeveil_datapath_attached{program=\"steer\",device_kind=\"underlay\"} 1.0",
        "kubeveil_datapath_attached{program=\"backstop\",device_kind=\"host\"} 1.0",
        "kubeveil_map_entries{map=\"prefixes\"} 20000.0",
        "kubeveil_key_generation 0.0",
        "kubeveil_key_desired_generation 1.0",
        "kubeveil_key_created_timestamp_seconds 1700000000.0",
        "kubeveil_rotations_total{result=\"done\"} 3",
        "kubeveil_rotations_total{result=\"forced\"} 1",
        "kubeveil_rotation_duration_seconds 17.5",
        "kubeveil_rotation_phase_nodes{phase=\"behind\"} 3.0",
        "kubeveil_policies{scope=\"namespace\"} 3.0",
        "kubeveil_policies{scope=\"cluster\"} 2.0",
        "kubeveil_policy_pods{mode=\"prefer\"} 20.0",
        "kubeveil_exemptions 2.0",
        "kubeveil_bypasses 1.0",
        "kubeveil_fragmented_packets_total 6",
        "kubeveil_bypass_expires_timestamp_seconds 1800000600.0",
        "kubeveil_exemption_expires_timestamp_seconds 1800000000.0",
    ] {
        assert!(samples(&text).any(|s| s == line), "no {line} in\n{text}");
    }
}

fn counted(mode: FlowMode, reason: Reason, direction: Direction, packets: u64) -> Count {
    Count { direction, mode, reason, packets, bytes: 60 }
}

/// By what they were held to, whoever asks for it; not what nobody asks about.
#[test]
fn pods_packets_are_told_by_the_mode_that_they_were_held_to() {
    use Direction::{Backstop, Egress, Ingress, Tunnel};
    let counts = vec![
        counted(FlowMode::Require, Reason::NoTunnel, Egress, 3),
        counted(FlowMode::Insist, Reason::NoTunnel, Egress, 4),
        counted(FlowMode::Insist, Reason::DeviceGone, Egress, 1),
        counted(FlowMode::Insist, Reason::Tunnelled, Egress, 50),
        counted(FlowMode::Insist, Reason::PlainToPod, Ingress, 2),
        counted(FlowMode::Prefer, Reason::NoOwner, Egress, 6),
        counted(FlowMode::Exempt, Reason::Exempted, Backstop, 9),
        counted(FlowMode::Observe, Reason::NoTunnel, Egress, 70),
        counted(FlowMode::Insist, Reason::Delivered, Tunnel, 70),
        counted(FlowMode::Require, Reason::Other, Egress, 70),
        counted(FlowMode::Require, Reason::Outer, Ingress, 70),
    ];
    let text = expose(&View { counts, ..view() }, &Durations::new(), false).expect("exposition");
    let name = "kubeveil_policy_packets_total";
    let mut told: Vec<&str> = samples(&text).filter_map(|s| s.strip_prefix(name)).collect();
    told.sort_unstable();
    let expected = [
        "{mode=\"exempt\",verdict=\"pass\",direction=\"backstop\"} 9",
        "{mode=\"prefer\",verdict=\"would_drop\",direction=\"egress\"} 6",
        "{mode=\"require\",verdict=\"drop\",direction=\"egress\"} 8",
        "{mode=\"require\",verdict=\"drop\",direction=\"ingress\"} 2",
        "{mode=\"require\",verdict=\"tunnel\",direction=\"egress\"} 50",
    ];
    assert_eq!(told, expected);
}

/// What can't be said is not there, rather than 0.
#[test]
fn what_is_not_asked_for_is_absent() {
    let of = |policies| {
        let status = Status { policies, bypasses: vec![], ..view().status };
        expose(&View { status, ..view() }, &Durations::new(), false).expect("exposition")
    };
    let endless = of(Some(PolicyStatus { exemption_ends: None, ..policies_in_force() }));
    let without = of(None);
    for text in [&endless, &without] {
        let is_end = |s: &str| s.contains("_expires_timestamp_seconds");
        assert!(!samples(text).any(is_end), "{text}");
    }
    assert!(!samples(&without).any(|s| s.starts_with("kubeveil_policy_pods")), "{without}");
    for line in
        ["kubeveil_policies{scope=\"cluster\"} 0.0", "kubeveil_exemptions 0.0", "kubeveil_bypasses 0.0"]
    {
        assert!(samples(&without).any(|s| s == line), "no {line} in\n{without}");
    }
}

/// The labels that a matcher names, each as it stands in a sample: several for a `=~` of alternatives.
fn labels(matcher: &str) -> Vec<String> {
    match matcher.split_once("=~") {
        Some((label, values)) => {
            values.trim_matches('"').split('|').map(|value| format!("{label}=\"{value}\"")).collect()
        }
        None => vec![matcher.to_owned()],
    }
}

/// What the chart's alerts ask for is there, by name and label.
#[test]
fn alerts_ask_for_what_is_there() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/kubeveil/rules/alerts.yaml");
    let rules = std::fs::read_to_string(path).expect("alerts.yaml");
    let text = text(false);
    let mut asked = 0;
    for (at, _) in rules.match_indices("kubeveil_") {
        let rest = &rules[at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, rest) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
        let matcher =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(matcher, _)| matcher);
        for label in labels(matcher) {
            let is_there = |s: &str| s.split(['{', ' ']).next() == Some(name) && s.contains(&label);
            assert!(samples(&text).any(is_there), "no {name}{{{label}}} in\n{text}");
        }
        asked += 1;
    }
    assert!(asked > 5, "{asked}");
}
