use kubeveil_api::veil_node::Unencrypted;
use kubeveil_core::rotation::progress::Phase;
use kubeveil_keys::Generation;
use serde_json::json;

use super::*;
use crate::seen::Node;

/// Three nodes, all connected.
fn cluster() -> Seen {
    let mesh = json!({
        "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionMesh", "metadata": {"name": "default"},
        "spec": {"mode": "require", "podCIDRs": ["10.0.0.0/8"], "nodeCIDRs": ["192.0.2.0/24"]},
    });
    let object = serde_json::from_value(mesh).expect("a mesh");
    let mesh = Mesh { object, generation: 7, version: "11".to_owned() };
    let mut seen = Seen { mesh: Some(mesh), ..Seen::default() };
    for name in ["a", "b", "c"] {
        let ready = Condition::new("Ready", true, "Enforcing", String::new(), Timestamp::default());
        let said = VeilNodeStatus {
            generation: Some(0),
            peers: 2,
            encrypted: 2,
            conditions: vec![ready],
            ..VeilNodeStatus::default()
        };
        seen.nodes.insert(name.to_owned(), Node::default());
        seen.veil_nodes.insert(name.to_owned(), Some(said));
        seen.agents.insert(name.to_owned(), true);
    }
    seen
}

fn said<'a>(seen: &'a mut Seen, node: &str) -> &'a mut VeilNodeStatus {
    seen.veil_nodes.get_mut(node).and_then(Option::as_mut).expect("said")
}

fn spec(seen: &mut Seen) -> &mut MeshSpec {
    &mut seen.mesh.as_mut().expect("a mesh").object.spec
}

fn told(seen: &Seen) -> MeshStatus {
    told_at(seen, &progress(&[]), 9)
}

fn told_at(seen: &Seen, progress: &Progress, second: i64) -> MeshStatus {
    status(seen, progress, None, Timestamp::from_second(second).expect("a time")).expect("a status")
}

/// Adoption is over when all are encrypted while it goes on, and that is never undone.
#[test]
fn adoption_is_over_once() {
    let mut seen = cluster();
    assert_eq!(told(&seen).adoption, None, "there is none");
    spec(&mut seen).adoption = serde_json::from_value(json!({"deadline": "2100-01-01T00:00:00Z"})).ok();
    said(&mut seen, "b").encrypted = 1;
    assert_eq!(told(&seen).adoption, None, "one pair is open");
    said(&mut seen, "b").encrypted = 2;
    spec(&mut seen).mode = Mode::Prefer;
    assert_eq!(told(&seen).adoption, None, "nothing closes");
    spec(&mut seen).mode = Mode::Require;
    said(&mut seen, "b").conditions[0].status = ConditionStatus::False;
    assert_eq!(told(&seen).adoption, None, "its pods' addresses are not known: it closes nothing");
    said(&mut seen, "b").conditions[0].status = ConditionStatus::True;
    let over = told_at(&seen, &progress(&[]), 9);
    let closed_at = Timestamp::from_second(9).expect("a time");
    assert_eq!(over.adoption, Some(Adopted { closed_at }));
    seen.mesh.as_mut().expect("a mesh").object.status = Some(over);
    said(&mut seen, "b").encrypted = 0;
    assert_eq!(told_at(&seen, &progress(&[]), 20).adoption, Some(Adopted { closed_at }));
    spec(&mut seen).uninstall = true;
    assert_eq!(told_at(&seen, &progress(&[]), 20).adoption, None, "who begins anew is adopted anew");
}

/// Of a rotation to generation 1, in which these nodes are not done.
fn progress(late: &[&str]) -> Progress {
    Progress {
        generation: Generation::new(1),
        nodes: [("a".to_owned(), Phase::Done)].into(),
        flipped: 0,
        ways: 0,
        behind: Default::default(),
        stragglers: late.iter().map(|name| ((*name).to_owned(), "is slow".to_owned())).collect(),
    }
}

/// Type, status, reason and message of a condition.
fn condition(seen: &Seen, kind: &str) -> (ConditionStatus, String, String) {
    let conditions = told(seen).conditions;
    let found = conditions.into_iter().find(|c| c.kind == kind).expect("the condition");
    (found.status, found.reason, found.message)
}

#[test]
fn all_is_well() {
    let status = told(&cluster());
    assert_eq!((status.observed_generation, status.nodes, status.ready_nodes), (7, 3, 3));
    assert_eq!(status.encrypted_pairs, "6/6");
    let well = |c: &Condition| {
        (c.status == ConditionStatus::True) != ["Rotating", "Bypassed"].contains(&c.kind.as_str())
    };
    assert!(status.conditions.iter().all(well), "{status:?}");
    assert_eq!(status.ranges, None, "people gave them");
}

#[test]
fn the_failing_pair_is_named() {
    let mut seen = cluster();
    let to_c = Unencrypted { node: "c".to_owned(), way: Way::Dropped, reason: "no handshake yet".to_owned() };
    let gone = Unencrypted { node: "z".to_owned(), ..to_c.clone() };
    let b = said(&mut seen, "b");
    (b.encrypted, b.not_encrypted) = (1, vec![to_c, gone]);
    let (holds, reason, message) = condition(&seen, "FullyConnected");
    assert_eq!((holds, reason.as_str()), (ConditionStatus::False, "PairsNotEncrypted"));
    assert_eq!(message, "1 of 6 ways between nodes are not encrypted: b to c: dropped, no handshake yet");
    assert_eq!(told(&seen).encrypted_pairs, "5/6");
}

/// A node that has just come: the others don't know it, or it has said nothing.
#[test]
fn who_is_not_known_is_not_encrypted() {
    let mut seen = cluster();
    seen.nodes.insert("d".to_owned(), Node::default());
    let (holds, _, message) = condition(&seen, "FullyConnected");
    assert_eq!(holds, ConditionStatus::False);
    assert!(message.starts_with("6 of 12 ways") && message.contains("a: knows 2 of 3"), "{message}");
    assert!(message.contains("d to all: its agent has said nothing yet"), "{message}");
    let (holds, reason, message) = condition(&seen, "Ready");
    assert_eq!((holds, reason.as_str()), (ConditionStatus::False, "NodesNotReady"));
    assert_eq!(message, "1 nodes don't enforce: d (no agent)");
}

/// What its agent said last does not stand for an agent that is gone; an agent may say more than is true.
#[test]
fn an_agent_that_is_gone_is_not_ready() {
    let mut seen = cluster();
    seen.agents.insert("a".to_owned(), false);
    assert_eq!(condition(&seen, "Ready").2, "1 nodes don't enforce: a (its agent's pod is not ready)");
    seen.agents.insert("a".to_owned(), true);
    said(&mut seen, "a").conditions[0].status = ConditionStatus::False;
    said(&mut seen, "a").conditions[0].message = "waits for x".to_owned();
    assert_eq!(condition(&seen, "Ready").2, "1 nodes don't enforce: a (waits for x)");
    said(&mut seen, "b").encrypted = 1000;
    said(&mut seen, "c").encrypted = 0;
    assert_eq!(told(&seen).encrypted_pairs, "4/6");
}

#[test]
fn keys_behind_are_named() {
    let mut seen = cluster();
    spec(&mut seen).key_generation = 1;
    said(&mut seen, "b").generation = Some(1);
    said(&mut seen, "c").generation = None;
    let (holds, _, message) = condition(&seen, "KeysCurrent");
    assert_eq!(holds, ConditionStatus::False);
    assert_eq!(message, "2 nodes don't have a key of generation 1: a (at 0); c (no key yet)");
}

#[test]
fn keys_that_grew_too_old_are_named() {
    let mut seen = cluster();
    spec(&mut seen).rotation = Some(serde_json::from_str(r#"{"maxKeyAge": "1m"}"#).expect("asked"));
    for (node, second) in [("a", 100), ("b", 130)] {
        said(&mut seen, node).key_created_at = Timestamp::from_second(second).ok();
    }
    let at = |second| {
        let conditions = told_at(&seen, &progress(&[]), second).conditions;
        let found = conditions.into_iter().find(|c| c.kind == "KeysCurrent").expect("told");
        (found.status, found.reason, found.message)
    };
    assert_eq!(at(160).0, ConditionStatus::True);
    let (holds, reason, message) = at(170);
    assert_eq!((holds, reason.as_str()), (ConditionStatus::False, "KeysTooOld"));
    assert!(
        message.starts_with("1 nodes don't have a key that is at most 1m old") && message.ends_with(": a"),
        "{message}"
    );
    assert!(at(191).2.ends_with(": a; b"));
}

/// When the schedule begins the next one, counted from the last, or from the mesh's birth.
#[test]
fn the_next_rotation_is_told() {
    let mut seen = cluster();
    let asks = |seen: &mut Seen, text: &str| {
        spec(seen).rotation = Some(serde_json::from_str(text).expect("asked"));
    };
    // Of generation 1, which all have: the last rotation went there, or none did.
    spec(&mut seen).key_generation = 1;
    let done = |seen: &mut Seen, second| {
        let status = told_at(seen, &progress(&[]), second);
        let next = status.next_rotation.map(Timestamp::as_second);
        seen.mesh.as_mut().expect("a mesh").object.status = Some(status);
        next
    };
    assert_eq!(done(&mut seen, 50), None, "nothing is scheduled");
    asks(&mut seen, r#"{"every": "1h"}"#);
    assert_eq!(done(&mut seen, 60), Some(50 + 3600));
    assert_eq!(done(&mut seen, 9999), Some(50 + 3600), "it does not move");
    asks(&mut seen, r#"{"every": "1h", "paused": true}"#);
    assert_eq!(done(&mut seen, 60), None);
    asks(&mut seen, r#"{"every": "1h"}"#);
    let late = told_at(&seen, &Progress { generation: Generation::new(0), ..progress(&[]) }, 60);
    assert_eq!(late.next_rotation, None, "of another generation nobody knows how far it is");
    spec(&mut seen).key_generation = 2;
    let goes_on = told_at(&seen, &Progress { generation: Generation::new(2), ..progress(&["b"]) }, 70);
    assert_eq!(goes_on.next_rotation, None, "one goes on");

    // Those of some nodes put off nothing for the others.
    let of_some = Progress { generation: Generation::new(2), ..progress(&[]) };
    spec(&mut seen).rotation = Some(
        serde_json::from_str(r#"{"every": "1h", "nodeSelector": {"matchLabels": {"a": "b"}}}"#)
            .expect("asked"),
    );
    assert_eq!(told_at(&seen, &of_some, 90).next_rotation.map(Timestamp::as_second), Some(50 + 3600));

    let mut seen = cluster();
    seen.mesh.as_mut().expect("a mesh").object.metadata.creation_timestamp = Timestamp::from_second(7).ok();
    asks(&mut seen, r#"{"every": "1h"}"#);
    let first = |seen: &Seen| told_at(seen, &Progress { generation: Generation::FIRST, ..progress(&[]) }, 60);
    assert_eq!(first(&seen).next_rotation.map(Timestamp::as_second), Some(7 + 3600));
    asks(
        &mut seen,
        r#"{"every": "1h", "window": {"start": "02:00", "end": "03:00", "timeZone": "Mars/One"}}"#,
    );
    assert_eq!(first(&seen).next_rotation, None);
    let told = first(&seen).conditions.into_iter().find(|c| c.kind == "Rotating").expect("told");
    assert_eq!(told.reason, "ScheduleUnreadable");
    assert!(told.message.contains("Mars/One"), "{}", told.message);
}

/// From its begin to its end, by way of being late; each word once, and nothing that changes with every node.
#[test]
fn a_rotation_is_told_of() {
    let mut seen = cluster();
    assert_eq!(condition(&seen, "Rotating").1, "NeverRotated");
    spec(&mut seen).key_generation = 1;
    let asked = r#"{"requestedBy": "alice", "requestedAt": "1970-01-01T00:00:10Z", "reason": "audit", "deadlineSeconds": 60}"#;
    spec(&mut seen).rotation = Some(serde_json::from_str(asked).expect("asked"));
    let mut at = |second, late: &[&str]| {
        let told = told_at(&seen, &progress(late), second);
        let last = told.conditions.iter().find(|c| c.kind == "Rotating").expect("told").clone();
        seen.mesh.as_mut().expect("a mesh").object.status = Some(told);
        (last.status, last.reason, last.message)
    };
    let (holds, reason, message) = at(12, &["b", "c"]);
    assert_eq!((holds, reason.as_str()), (ConditionStatus::True, "RotationUnderWay"));
    assert!(message.starts_with("to generation 1, asked for by alice (audit);"), "{message}");
    assert_eq!(at(15, &["b"]).2, message, "it changes with no node");
    let (_, reason, message) = at(70, &["b"]);
    assert_eq!(reason, "RotationLate");
    assert!(message.contains("1 nodes are late: b is slow"), "{message}");
    let (holds, reason, message) = at(75, &[]);
    assert_eq!((holds, reason.as_str()), (ConditionStatus::False, "RotationOver"));
    assert_eq!(message, "generation 1, asked for by alice (audit): done in 65 s; late were b");
    assert_eq!(at(500, &[]).2, message);
}

#[test]
fn observing_is_not_encrypting() {
    let mut seen = cluster();
    spec(&mut seen).mode = Mode::Observe;
    assert_eq!(condition(&seen, "FullyConnected").1, "Observing");
}

#[test]
fn without_nodes_nobody_knows() {
    let seen = Seen { mesh: cluster().mesh, ..Seen::default() };
    assert!(told(&seen).conditions.iter().all(|c| c.status == ConditionStatus::Unknown));
    assert!(status(&Seen::default(), &progress(&[]), None, Timestamp::default()).is_none());
}
