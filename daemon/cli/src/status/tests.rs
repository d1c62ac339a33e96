//! Goldens: what people and programs rely on changes on purpose only.

use kubeveil_api::{
    mesh::Mode,
    problem::{Problem, ProblemKind},
    status::{
        DeviceStatus, Direction, DropCount, KeyStatus, PacketCount, PlainCount, PodsByMode, ProgramStatus,
        STATUS_VERSION, SourceStatus, TunnelState, Verdict, Way,
    },
};
use kubeveil_keys::{Generation, PublicKey};

use super::*;

fn peer(node: &str, state: TunnelState, handshake: Option<u64>) -> PeerStatus {
    PeerStatus {
        excluded: false,
        generation: Generation::FIRST,
        node: node.to_owned(),
        state,
        way: if handshake.is_some() { Way::Tunnel } else { Way::Dropped },
        reason: handshake.is_none().then(|| "no announcement".to_owned()),
        tunnelled: handshake.is_some(),
        proven: handshake.is_some(),
        public_key: handshake.map(|_| PublicKey::from_bytes([9; 32])),
        endpoint: handshake.map(|_| "192.0.2.2:51871".parse().expect("endpoint")),
        last_handshake: handshake,
        received: 148,
        sent: 5_000_000,
        path_mtu: 1440,
    }
}

pub(crate) fn example() -> Status {
    Status {
        schema_version: STATUS_VERSION,
        node: "node-1".to_owned(),
        version: "0.1.0".to_owned(),
        kernel: "6.12.0".to_owned(),
        ready: true,
        waiting_for: vec![],
        mode: Some(Mode::Require),
        policies: None,
        adoption: None,
        bypasses: vec![],
        source: SourceStatus { name: "dir:/etc/kubeveil".to_owned(), synced: true },
        key: Some(KeyStatus {
            older: vec![],
            generation: Generation::new(0),
            desired_generation: Generation::new(0),
            public_key: PublicKey::from_bytes([7; 32]),
            created: 1_700_000_000,
            age: 90_061,
            max_age: 0,
        }),
        device: Some(DeviceStatus { name: "kubeveil0".to_owned(), up: true, port: 51871, mtu: 1440 }),
        peers: vec![peer("node-2", TunnelState::Up, Some(75)), peer("node-3", TunnelState::Never, None)],
        programs: vec![
            ProgramStatus {
                program: "steer".to_owned(),
                device: "eth0".to_owned(),
                device_kind: "underlay".to_owned(),
                attached: true,
                ahead: 0,
            },
            ProgramStatus {
                program: "guard".to_owned(),
                device: "eth0".to_owned(),
                device_kind: "underlay".to_owned(),
                attached: true,
                ahead: 1,
            },
        ],
        backstop: BackstopStatus { form: BackstopForm::Bpf, refused: vec![] },
        packets: vec![PacketCount {
            direction: Direction::Egress,
            verdict: Verdict::Tunnel,
            packets: 3,
            bytes: 252,
        }],
        drops: vec![DropCount {
            direction: Direction::Egress,
            reason: "no_tunnel".to_owned(),
            packets: 12,
            observed: false,
            advice: "The peer has no proven tunnel.".to_owned(),
        }],
        plain: vec![PlainCount {
            direction: Direction::Egress,
            reason: "plain_preferred".to_owned(),
            verdict: Verdict::Pass,
            packets: 4,
            advice: "Pod traffic in plain.".to_owned(),
        }],
        problems: vec![Problem {
            kind: ProblemKind::Prefix,
            object: "Node node-3".to_owned(),
            field: "spec.podCIDRs[0]".to_owned(),
            message: "172.16.0.0/24 lies outside the mesh's podCIDRs".to_owned(),
            advice: "Add its range to spec.podCIDRs of EncryptionMesh default, if it is right".to_owned(),
        }],
        fragmented: 17,
        kernel_writes: 21,
        errors_met: 1,
    }
}

/// In an observing mesh a policy changes what is said of all.
#[test]
fn policies_say_what_is_asked_of_others() {
    let policies = Some(PolicyStatus {
        count: 2,
        namespaced: 1,
        others: Mode::Prefer,
        required: 14,
        pods: PodsByMode { prefer: 3, require: 7, ..PodsByMode::default() },
        known_by_device: 9,
        exemptions: 0,
        exemption_ends: None,
    });
    let text = table(&Status { mode: Some(Mode::Observe), policies, ..example() }, false);
    assert!(text.contains("Policies   2; encryption is required of 14 addresses of this node's pods, and for all others the mode is prefer; 9 are known by their device\n"), "{text}");
    assert!(!text.contains("nothing, since the mode is observe"), "{text}");
}

#[test]
fn the_table() {
    insta::assert_snapshot!(table(&example(), false));
}

/// In `observe` everything passes as it is, whatever the tunnels are like.
#[test]
fn the_table_of_one_that_only_observes() {
    let mut status = example();
    status.mode = Some(Mode::Observe);
    for peer in &mut status.peers {
        (peer.way, peer.tunnelled) = (Way::Plain, false);
        peer.reason.get_or_insert_with(|| "the mode is observe".to_owned());
    }
    status.drops.iter_mut().for_each(|drop| drop.observed = true);
    let would = |reason: &str, verdict| PlainCount {
        direction: Direction::Egress,
        reason: reason.to_owned(),
        verdict,
        packets: 12,
        advice: "What it means.".to_owned(),
    };
    status.plain = vec![would("tunnelled", Verdict::WouldTunnel), would("no_tunnel", Verdict::WouldDrop)];
    insta::assert_snapshot!(table(&status, false));
}

#[test]
fn the_document() {
    insta::assert_json_snapshot!(example());
}

#[test]
fn units() {
    assert_eq!(
        (age(5), age(75), age(90_061)),
        ("5 s".to_owned(), "1 min 15 s".to_owned(), "1 d 1 h".to_owned())
    );
    assert_eq!((bytes(1023), bytes(1536)), ("1023 B".to_owned(), "1.5 KiB".to_owned()));
}

#[test]
fn a_backstop_that_is_not_the_best_says_why() {
    let row = |form, refused: &[&str]| {
        let refused = refused.iter().map(|why| (*why).to_owned()).collect();
        backstop(&BackstopStatus { form, refused })
    };
    assert_eq!(row(BackstopForm::Bpf, &["nftables: no"]), "netfilter program");
    assert_eq!(row(BackstopForm::Nftables, &[]), "nftables");
    assert_eq!(row(BackstopForm::Nftables, &["bpf: too old"]), "nftables (bpf: too old)");
    assert_eq!(row(BackstopForm::None, &["bpf: a", "nftables: b"]), "NONE (bpf: a; nftables: b)");
}

#[test]
fn open_pairs_are_named_with_their_deadline() {
    let row = |over, open: &[&str]| {
        let open = open.iter().map(|name| (*name).to_owned()).collect();
        adopting(&AdoptionStatus { deadline: "2027-01-31T12:00:00Z".to_owned(), over, open }, 3)
    };
    assert_eq!(
        row(false, &["node-2", "node-3"]),
        "2 of 3 pairs open, in plain until proven, at most until 2027-01-31T12:00:00Z: node-2, node-3"
    );
    assert_eq!(row(true, &[]), "over, every pair is closed (deadline 2027-01-31T12:00:00Z)");
}

/// Somebody left it on: nobody who looks fails to see it.
#[test]
fn a_bypass_is_red_on_a_terminal() {
    let bypass = BypassStatus {
        node: "node-2".to_owned(),
        until: "2027-01-31T12:10:00Z".parse().expect("a time"),
        ends_in: 543,
        by: "alice".to_owned(),
        reason: "INC-1: slow".to_owned(),
    };
    let status = Status { bypasses: vec![bypass], ..example() };
    let line = |colour| {
        let text = table(&status, colour);
        text.lines().find(|line| line.starts_with("BYPASSED")).expect("told").to_owned()
    };
    let words = "to node-2 in plain until 2027-01-31T12:10:00Z, another 9 min 3 s, by alice: INC-1: slow (what policies require stays encrypted)";
    assert_eq!(line(false), format!("BYPASSED   {words}"));
    assert_eq!(line(true), format!("BYPASSED   \u{1b}[31m{words}\u{1b}[0m"));
}

/// Whoever may write the mesh does not move the cursor of who looks.
#[test]
fn no_control_character_of_a_bypass_reaches_the_terminal() {
    let (by, reason) = ("\u{9b}eve\r".to_owned(), "a\u{1b}[2J\nb".to_owned());
    let mut status = example();
    status.peers[0].reason = Some(format!("bypassed by {by}: {reason}"));
    let until = "2027-01-31T12:10:00Z".parse().expect("a time");
    status.bypasses = vec![BypassStatus { node: "node-2".to_owned(), until, ends_in: 543, by, reason }];
    let text = table(&status, false);
    assert_eq!(text.matches("\u{fffd}eve\u{fffd}: a\u{fffd}[2J\u{fffd}b").count(), 2, "{text:?}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}
