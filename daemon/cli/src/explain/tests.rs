use kubeveil_api::{
    mesh::Mode,
    status::{BypassStatus, Direction, Verdict},
    watch::{self, Seen, Watched},
};
use kubeveil_manifests::gather;

use super::*;
use crate::status::tests::example;

const MANIFESTS: &str = "apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: n}}
- {apiVersion: v1, kind: Pod, metadata: {name: one, namespace: n}, spec: {nodeName: node-1}}
- {apiVersion: v1, kind: Pod, metadata: {name: two, namespace: n}, spec: {nodeName: node-2}}
- {apiVersion: v1, kind: Pod, metadata: {name: three, namespace: n, labels: {app: ledger}}, spec: {nodeName: node-3}}
- apiVersion: kubeveil.io/v1alpha1
  kind: EncryptionPolicy
  metadata: {name: p, namespace: n}
  spec: {podSelector: {matchLabels: {app: ledger}}, mode: require}
";

fn explained(from: &str, to: &str, knows_all: bool) -> Explanation {
    explained_in(Mode::Prefer, from, to, knows_all)
}

fn explained_in(mode: Mode, from: &str, to: &str, knows_all: bool) -> Explanation {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("all.yaml");
    std::fs::write(&file, MANIFESTS).expect("written");
    let gathered = gather(&[file]).expect("read");
    let mut census = gathered.census(Some(mode)).expect("a mesh's mode");
    census.told = (!knows_all).then(Default::default);
    let who = |name: &str| format!("n/{name}").parse().expect("a pod");
    Desk::at(&census, Timestamp::UNIX_EPOCH).explain(&who(from), &who(to)).expect("both exist")
}

/// The daemon of node-1, without a tunnel to node-3.
fn status() -> Status {
    let mut status = example();
    status.mode = Some(Mode::Prefer);
    status.peers[1].way = Way::Plain;
    status
}

fn way(explanation: &Explanation, status: Status) -> Option<Way> {
    let nodes = [&explanation.from, &explanation.to].map(|end| end.place.node().expect("a node"));
    match carried(nodes[0], nodes[1], explanation, Ok(&status)) {
        Carried::Known { way, .. } => Some(way),
        Carried::NotKnown { .. } => None,
    }
}

/// Who has to be encrypted does not go in plain as others of the node do, unless nothing stands there to stop it, or its node does not
/// know of it.
#[test]
fn the_daemon_says_how_packets_go_now() {
    let required = explained("one", "three", true);
    assert_eq!(way(&explained("one", "two", true), status()), Some(Way::Tunnel));
    assert_eq!(way(&explained("two", "one", true), status()), Some(Way::Tunnel));
    assert_eq!(way(&required, status()), Some(Way::Dropped));
    assert_eq!(way(&explained("one", "three", false), status()), Some(Way::Plain));
    let mut open = status();
    open.programs.clear();
    assert_eq!(way(&required, open), Some(Way::Plain));
    let mut loose = required;
    loose.flow.as_mut().expect("it crosses").mode = FlowMode::Prefer;
    assert_eq!(way(&loose, status()), Some(Way::Plain));
}

/// What the mesh alone requires may pass to a peer that its daemon has open still: it knows better than who reads the mesh.
#[test]
fn what_the_mesh_alone_requires_goes_as_the_daemon_says() {
    for (from, to, goes) in [("one", "three", Way::Dropped), ("two", "one", Way::Tunnel)] {
        assert_eq!(way(&explained_in(Mode::Require, from, to, true), status()), Some(goes));
    }
    let mut open = status();
    open.peers[0].way = Way::Plain;
    open.peers[0].proven = false;
    assert_eq!(way(&explained_in(Mode::Require, "one", "two", true), open), Some(Way::Plain));
}

/// By a bypass others of the node go in plain, and who has to be encrypted by the tunnel beneath.
#[test]
fn who_has_to_be_encrypted_is_not_bypassed() {
    let bypassed = |proven| {
        let mut status = status();
        let peer = &mut status.peers[1];
        (peer.proven, peer.reason) = (proven, Some("bypassed".to_owned()));
        status.bypasses = vec![BypassStatus {
            node: "node-3".to_owned(),
            until: Timestamp::UNIX_EPOCH,
            ends_in: 60,
            by: "alice".to_owned(),
            reason: "INC-1".to_owned(),
        }];
        status
    };
    let required = explained("one", "three", true);
    assert_eq!(way(&required, bypassed(true)), Some(Way::Tunnel));
    assert_eq!(way(&required, bypassed(false)), Some(Way::Dropped));
    let Carried::Known { reason, .. } = carried("node-1", "node-3", &required, Ok(&bypassed(true))) else {
        panic!("it is known")
    };
    assert_eq!(reason, None);
    let mut open = required;
    open.notes.push(Note::Bypassed {
        until: Timestamp::UNIX_EPOCH,
        by: "alice".to_owned(),
        reason: "INC-1".to_owned(),
    });
    assert_eq!(way(&open, bypassed(true)), Some(Way::Plain));
}

#[test]
fn where_no_daemon_of_an_end_answers_nothing_is_guessed() {
    let explanation = explained("two", "three", true);
    let told =
        |status: Result<Status, String>| match carried("node-2", "node-3", &explanation, status.as_ref()) {
            Carried::NotKnown { ask_on, why } => (ask_on, why),
            known @ Carried::Known { .. } => panic!("{known:?}"),
        };
    let both = vec!["node-2".to_owned(), "node-3".to_owned()];
    assert_eq!(told(Ok(status())), (both.clone(), "the daemon here is that of node-1".to_owned()));
    assert_eq!(told(Err("only root may ask".to_owned())), (both, "only root may ask".to_owned()));
}

/// Whoever may write the mesh does not move the cursor of who asks.
#[test]
fn no_control_character_of_a_bypass_reaches_the_terminal() {
    let (by, reason) = ("\u{9b}eve\r".to_owned(), "a\u{1b}[2J\nb".to_owned());
    let mut status = status();
    let peer = status.peers.iter_mut().find(|peer| peer.node == "node-3").expect("there");
    (peer.way, peer.reason) = (Way::Plain, Some(format!("bypassed by {by}: {reason}")));
    let mut explanation = explained("one", "three", false);
    let now = Some(carried("node-1", "node-3", &explanation, Ok(&status)));
    explanation.notes.push(Note::Bypassed { until: Timestamp::UNIX_EPOCH, by, reason });
    let text = table::table(&Flows::One(Box::new(Flow { explanation, now, seen: None })));
    assert_eq!(text.matches("\u{fffd}eve\u{fffd}: a\u{fffd}[2J\u{fffd}b").count(), 2, "{text:?}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn a_person_reads_it() {
    let explanation = explained("one", "three", false);
    let now = Some(carried("node-1", "node-3", &explanation, Ok(&status())));
    insta::assert_snapshot!(
        "explain_table",
        table::table(&Flows::One(Box::new(Flow { explanation, now, seen: None })))
    );
}

/// Packets from node-1's pod, and back, as its daemon saw them.
fn watched(seen: &[(&str, Direction, Verdict, &str)]) -> Observed {
    let one = |(way, direction, verdict, reason): &(&str, Direction, Verdict, &str)| {
        let ends = ["10.244.1.2", "10.244.3.2"].map(|text| text.parse().expect("an address"));
        let [source, destination] = if *way == "there" { ends } else { [ends[1], ends[0]] };
        Seen {
            flow: watch::Flow { source, destination },
            direction: *direction,
            verdict: *verdict,
            reason: (*reason).to_owned(),
            advice: "Look there.".to_owned(),
            mode: FlowMode::Require,
            packets: 12,
            bytes: 12_288,
            age_ms: 1_212,
        }
    };
    let of = |way: &str| seen.iter().filter(|seen| seen.0 == way).map(one).collect();
    Observed::Watched {
        on: "node-1".to_owned(),
        seconds: 5,
        there: of("there"),
        back: of("back"),
        is_short: false,
        blind_spot: None,
    }
}

/// What is on the wire is not encrypted because it should be.
#[test]
fn what_was_seen_in_plain_counts() {
    use Direction::{Backstop, Egress, Ingress, Tunnel};
    use Verdict::{Drop, Pass, Replace, WouldDrop, WouldTunnel, Wrap};
    for (way, direction, verdict, is_plain) in [
        ("there", Egress, Verdict::Tunnel, false),
        ("there", Egress, Wrap, false),
        ("there", Egress, Replace, false),
        ("there", Egress, Drop, false),
        ("there", Egress, Pass, true),
        ("there", Egress, WouldTunnel, true),
        ("there", Egress, WouldDrop, true),
        ("there", Backstop, Drop, false),
        ("there", Backstop, WouldDrop, true),
        ("back", Tunnel, Pass, false),
        ("back", Ingress, Drop, true),
        ("back", Ingress, Pass, true),
    ] {
        let seen =
            watched(&[("there", Egress, Verdict::Tunnel, "tunnelled"), (way, direction, verdict, "x")]);
        assert_eq!(seen.is_plain(), is_plain, "{direction} {verdict}");
        let flow = Flow { explanation: explained("one", "three", true), now: None, seen: Some(seen) };
        assert_eq!(flow.can_be_plain(), is_plain, "{direction} {verdict}");
    }
    let now = carried("node-1", "node-3", &explained("one", "three", false), Ok(&status()));
    assert!(Flow { explanation: explained("one", "three", true), now: Some(now), seen: None }.can_be_plain());
}

#[test]
fn a_person_reads_what_was_seen() {
    let told = |seen: Observed| seen.lines().join("\n");
    insta::assert_snapshot!(told(watched(&[
        ("there", Direction::Egress, Verdict::Tunnel, "tunnelled"),
        ("there", Direction::Egress, Verdict::Drop, "too_big"),
    ])));
    assert!(told(watched(&[])).ends_with("(ask with node/NAME)"));
    let Observed::Watched { on, seconds, there, back, .. } = watched(&[]) else { panic!("it is watched") };
    let short =
        Observed::Watched { on, seconds, there, back, is_short: true, blind_spot: Some("nothing here") };
    assert!(told(short).ends_with("there were more than could be noted\nnothing here"));
}

/// One that is neither end's has seen nothing of it, and does not say that nobody spoke.
#[test]
fn a_daemon_of_neither_end_saw_nothing() {
    let of = |node: &str| {
        let watched = Watched { schema_version: 1, node: node.to_owned(), seen: Vec::new(), is_short: false };
        seen::of(&watched, 5, &explained("two", "three", true), &[Vec::new(), Vec::new()])
    };
    assert!(matches!(of("node-2"), Observed::Watched { .. }));
    assert!(
        matches!(of("node-1"), Observed::NotObserved { why } if why == "the daemon here is that of node-1")
    );
}
