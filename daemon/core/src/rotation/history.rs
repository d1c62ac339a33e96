//! The last rotations, as the mesh's status tells of them.

use jiff::Timestamp;
use kubeveil_api::{
    mesh::MeshSpec,
    rotation::{MOST_RECORDS, MOST_STRAGGLERS, RotationRecord, RotationResult},
};

use super::progress::Progress;

/// The records from now on. A rotation begins with the first look that sees its generation wanted; a cluster that was never rotated
/// has none.
pub fn records(
    before: &[RotationRecord],
    mesh: &MeshSpec,
    progress: &Progress,
    now: Timestamp,
) -> Vec<RotationRecord> {
    let mut records = before.to_vec();
    let wanted = mesh.key_generation;
    let asked = mesh.asked();
    for record in records.iter_mut().filter(|record| record.generation < wanted) {
        if record.result == RotationResult::Running {
            (record.result, record.finished_at) = (RotationResult::Superseded, Some(now));
        }
    }
    let is_known = records.iter().any(|record| record.generation == wanted);
    if !is_known && wanted > 0 {
        records.push(RotationRecord {
            generation: wanted,
            requested_by: asked.requested_by.clone(),
            reason: asked.reason.clone(),
            nodes: asked.node_selector.as_ref().map(ToString::to_string).unwrap_or_default(),
            // By the clock of whoever asked, which may be ahead.
            started_at: asked.requested_at.map_or(now, |at| at.min(now)),
            finished_at: None,
            result: RotationResult::Running,
            stragglers: Vec::new(),
        });
    }
    // How far it is with another generation says nothing of this one.
    let is_of_it = progress.generation.number() == wanted;
    let running = records
        .iter_mut()
        .find(|record| is_of_it && record.generation == wanted && record.result == RotationResult::Running);
    if let Some(record) = running {
        let is_forced = asked.retire_before >= wanted;
        if (is_forced || is_late(record, asked.deadline(), now)) && record.stragglers.is_empty() {
            record.stragglers = progress.stragglers.keys().take(MOST_STRAGGLERS).cloned().collect();
        }
        if progress.is_over(asked.retire_before) {
            record.result = if is_forced { RotationResult::Forced } else { RotationResult::Done };
            record.finished_at = Some(now);
        }
    }
    let more = records.len().saturating_sub(MOST_RECORDS);
    records.drain(..more);
    records
}

/// Is a rotation under way for longer than its deadline, in seconds?
pub fn is_late(record: &RotationRecord, deadline: u32, now: Timestamp) -> bool {
    now.as_second().saturating_sub(record.started_at.as_second()) >= i64::from(deadline)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kubeveil_api::rotation::RotationSpec;
    use kubeveil_keys::Generation;

    use super::*;
    use crate::{rotation::progress::Phase, testing::mesh};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn wants(generation: u32, retire_before: u32) -> MeshSpec {
        let rotation = RotationSpec {
            requested_by: "alice".to_owned(),
            reason: "audit".to_owned(),
            requested_at: Some(at(100)),
            deadline_seconds: Some(60),
            retire_before,
            ..RotationSpec::default()
        };
        MeshSpec { key_generation: generation, rotation: Some(rotation), ..mesh() }
    }

    fn progress(generation: u32, is_done: bool) -> Progress {
        let late = BTreeMap::from([("b".to_owned(), "why".to_owned())]);
        Progress {
            generation: Generation::new(generation),
            nodes: [("a".to_owned(), Phase::Done)].into(),
            flipped: 0,
            ways: 0,
            stragglers: if is_done { BTreeMap::new() } else { late },
            behind: BTreeMap::new(),
        }
    }

    #[test]
    fn a_rotation_is_told_of_from_begin_to_end() {
        assert_eq!(records(&[], &mesh(), &progress(0, true), at(1)), [], "none took place");
        let asked = records(&[], &wants(1, 0), &progress(0, true), at(110));
        assert_eq!(
            asked[0].result,
            RotationResult::Running,
            "that the last one is done says nothing of this"
        );
        let begun = records(&[], &wants(1, 0), &progress(1, false), at(110));
        assert_eq!(begun.len(), 1);
        assert_eq!((begun[0].requested_by.as_str(), begun[0].reason.as_str()), ("alice", "audit"));
        assert_eq!((begun[0].started_at, begun[0].result), (at(100), RotationResult::Running));
        assert_eq!(begun[0].stragglers, [""; 0], "it is not late");
        let late = records(&begun, &wants(1, 0), &progress(1, false), at(160));
        assert_eq!(late[0].stragglers, ["b"]);
        let done = records(&late, &wants(1, 0), &progress(1, true), at(170));
        assert_eq!((done[0].result, done[0].finished_at), (RotationResult::Done, Some(at(170))));
        assert_eq!(done[0].stragglers, ["b"], "who was late stays named");
        assert_eq!(
            records(&done, &wants(1, 0), &progress(1, true), at(999)),
            done,
            "nothing changes after that"
        );
        let forced = records(&late, &wants(1, 1), &progress(1, true), at(170));
        assert_eq!(forced[0].result, RotationResult::Forced);
        // Who is cut off before it was late is named too, and by whose clock it began is no matter.
        let at_once = records(&begun, &wants(1, 1), &progress(1, false), at(120));
        assert_eq!(at_once[0].stragglers, ["b"]);
        let ahead = records(&[], &wants(1, 0), &progress(1, false), at(90));
        assert_eq!(ahead[0].started_at, at(90));
        // Who was cut off, and never comes back, does not hold the next one up.
        let mut without = progress(1, false);
        without.nodes.insert("b".to_owned(), Phase::Behind);
        without.behind.insert("b".to_owned(), Generation::FIRST);
        let forced = records(&late, &wants(1, 1), &without, at(170));
        assert_eq!((forced[0].result, forced[0].finished_at), (RotationResult::Forced, Some(at(170))));
        assert_eq!(records(&late, &wants(1, 0), &without, at(170))[0].result, RotationResult::Running);
        // Nor any further one, since it is not asked for by each that people are told of who was cut off.
        let further = Progress { generation: Generation::new(2), ..without.clone() };
        assert_eq!(records(&[], &wants(2, 1), &further, at(170))[0].result, RotationResult::Done);
        without.nodes.insert("b".to_owned(), Phase::Announced);
        without.behind.clear();
        assert_eq!(records(&late, &wants(1, 1), &without, at(170))[0].result, RotationResult::Running);
    }

    /// Somebody raises the generation by hand, and leaves what an earlier request says.
    #[test]
    fn a_request_is_of_one_generation() {
        let mut spec = wants(2, 0);
        let asked = spec.rotation.as_mut().expect("asked");
        asked.for_generation = Some(1);
        let by_hand = records(&[], &spec, &progress(2, false), at(999));
        assert_eq!((by_hand[0].requested_by.as_str(), by_hand[0].started_at), ("", at(999)));
        spec.rotation.as_mut().expect("asked").for_generation = Some(2);
        assert_eq!(records(&[], &spec, &progress(2, false), at(999))[0].requested_by, "alice");
    }

    #[test]
    fn another_one_ends_what_went_on_and_twenty_are_kept() {
        let mut all = Vec::new();
        for generation in 1..=30 {
            all = records(&all, &wants(generation, 0), &progress(generation, false), at(110));
        }
        assert_eq!(all.len(), MOST_RECORDS);
        assert_eq!((all[0].generation, all[0].result), (11, RotationResult::Superseded));
        assert_eq!((all[19].generation, all[19].result), (30, RotationResult::Running));
    }
}
