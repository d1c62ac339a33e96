//! What is said of a rotation: lines for people, objects for programs.

#![expect(clippy::print_stdout, reason = "standard output is where data goes")]

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use kubeveil_api::rotation::{Deed, RotationRecord, RotationResult, RotationSpec};
use kubeveil_core::rotation::progress::{Phase, Progress};
use kubeveil_keys::PublicKey;
use serde_json::{Value, json};

use super::{Look, records};
use crate::status::grid;

/// Stragglers that are told by name.
const MOST_NAMED: usize = 20;

/// Tells people, or programs.
fn tell(to_programs: bool, object: impl FnOnce() -> Value, words: impl FnOnce() -> String) {
    if to_programs {
        println!("{}", object());
    } else {
        println!("{}", words());
    }
}

/// New keys are asked for, of so many of the nodes.
pub(super) fn begun(json: bool, generation: u32, of: usize, look: &Look) {
    let (all, speaking) = (look.sight.nodes.len(), look.progress.speaking());
    tell(
        json,
        || json!({"event": "begun", "generation": generation, "nodes": speaking, "renewed": of}),
        || {
            let some = if of < all { format!("; {of} of {all} nodes take new ones") } else { String::new() };
            format!("generation {generation} is asked for; {speaking} nodes have keys{some}")
        },
    );
}

pub(super) fn revoked(json: bool, node: &str, keys: &[PublicKey]) {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    tell(
        json,
        || json!({"event": "revoked", "node": node, "keys": keys}),
        || format!("refused from now on, whoever announces them: {} of {node}", keys.join(", ")),
    );
}

pub(super) fn replaced(json: bool, node: &str, keys: &[PublicKey]) {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    tell(
        json,
        || json!({"event": "replaced", "node": node, "keys": keys}),
        || format!("{node} has announced {}", keys.join(", ")),
    );
}

pub(super) fn paused(json: bool, paused: bool) {
    tell(
        json,
        || json!({"event": if paused { "paused" } else { "resumed" }}),
        || {
            let words = if paused {
                "no node makes or gives up a key until `kubeveil rotate resume`"
            } else {
                "nodes make and give up keys again"
            };
            words.to_owned()
        },
    );
}

pub(super) fn cut_off(json: bool, nodes: &[String], apart: &[String]) {
    tell(
        json,
        || json!({"event": "forced", "cutOff": nodes, "notMoved": apart}),
        || {
            let mut words = "every node gives its older keys up now".to_owned();
            for (what, nodes) in [
                ("cut off until they have newer ones", nodes),
                ("without a tunnel to some until that is proven by the new keys", apart),
            ] {
                if !nodes.is_empty() {
                    words += &format!("; {what}: {}", nodes.join(", "));
                }
            }
            words
        },
    );
}

pub(super) fn step(json: bool, progress: &Progress, after: Duration) {
    tell(
        json,
        || {
            let mut object = document(progress);
            object["event"] = json!("progress");
            object["seconds"] = json!(after.as_secs());
            object
        },
        || format!("{:>5} s  {}", after.as_secs(), in_short(progress)),
    );
}

/// Who is not done, before the end. Programs are told with each step.
pub(super) fn waits(json: bool, progress: &Progress) {
    if !json {
        println!("not done:\n{}", stragglers(progress).trim_end());
    }
}

pub(super) fn ended(json: bool, progress: &Progress, done: bool, after: Duration) {
    tell(
        json,
        || {
            let mut object = document(progress);
            object["event"] = json!(if done { "done" } else { "deadline" });
            object["seconds"] = json!(after.as_secs());
            object
        },
        || {
            if done {
                let left = progress.stragglers.len();
                let but =
                    if left == 0 { String::new() } else { format!(", but for {left} that were cut off") };
                return format!(
                    "done in {} s: every node has a key of generation {} and no older one{but}",
                    after.as_secs(),
                    progress.generation
                );
            }
            format!(
                "not done after {} s; it goes on. {}\n{}",
                after.as_secs(),
                in_short(progress),
                stragglers(progress).trim_end()
            )
        },
    );
}

pub(super) fn status(json: bool, look: &Look) {
    let asked = look.asked();
    tell(
        json,
        || {
            let mut object = document(&look.progress);
            object["rotation"] = json!(asked);
            object["done"] = json!(look.is_over());
            object["nextRotation"] = json!(next_of(look));
            object
        },
        || {
            let told = in_words(&look.progress, &asked, records(look).last());
            format!("{told}{}", scheduled(&asked, next_of(look), look.keeps_status)).trim_end().to_owned()
        },
    );
}

fn next_of(look: &Look) -> Option<Timestamp> {
    look.sight.mesh.status.as_ref()?.next_rotation
}

/// When the next one begins by itself.
fn scheduled(asked: &RotationSpec, next: Option<Timestamp>, is_ours_alone: bool) -> String {
    let Some(every) = asked.every else { return String::new() };
    match next {
        Some(at) => format!("the next begins by itself at {at}, every {every}"),
        None if is_ours_alone => format!(
            "spec.rotation.every ({every}) needs the controller, which a folder has not: run `kubeveil rotate` by a timer instead"
        ),
        None => format!("one begins by itself every {every}; when the next does is not known yet"),
    }
}

pub(super) fn history(json: bool, records: &[RotationRecord], deeds: &[Deed], now: Timestamp) {
    tell(
        json,
        || json!({"rotations": records, "deeds": deeds}),
        || match deeds {
            [] => table(records, now),
            deeds => format!("{}\n\n{}", table(records, now), table_of(deeds)),
        },
    );
}

/// What programs are told of how far it has got.
fn document(progress: &Progress) -> Value {
    let phases: serde_json::Map<_, _> =
        Phase::ALL.iter().map(|phase| (phase.name().to_owned(), json!(progress.count(*phase)))).collect();
    json!({
        "generation": progress.generation,
        "phases": phases,
        "flippedWays": progress.flipped,
        "ways": progress.ways,
        "stragglers": progress.stragglers,
    })
}

fn in_short(progress: &Progress) -> String {
    let all = progress.speaking();
    format!(
        "new key: {}/{all} nodes; moved to it: {}/{} ways; no old key: {}/{all} nodes",
        progress.at_least(Phase::Announced),
        progress.flipped,
        progress.ways,
        progress.count(Phase::Done),
    )
}

fn in_words(progress: &Progress, asked: &RotationSpec, last: Option<&RotationRecord>) -> String {
    let mut out = format!("generation {}", progress.generation);
    if !asked.requested_by.is_empty() {
        let _ = write!(out, ", asked for by {}", asked.requested_by);
    }
    if let Some(at) = asked.requested_at {
        let _ = write!(out, " at {at}");
    }
    if !asked.reason.is_empty() {
        let _ = write!(out, ": {}", asked.reason);
    }
    let _ = writeln!(out, "\n{}", in_short(progress));
    let silent = progress.count(Phase::Silent);
    if silent > 0 {
        let _ = writeln!(out, "{silent} nodes announce nothing and are not waited for");
    }
    if asked.paused {
        out.push_str("paused: `kubeveil rotate resume` has it go on\n");
    }
    if progress.stragglers.is_empty() {
        let forced = last.is_some_and(|record| record.result == RotationResult::Forced);
        out.push_str(if forced { "done, by force\n" } else { "done\n" });
    } else {
        if progress.is_over(asked.retire_before) {
            out.push_str("done, but for those that were cut off:\n");
        }
        out.push_str(&stragglers(progress));
    }
    out
}

/// A line for each node that is not done.
pub(super) fn stragglers(progress: &Progress) -> String {
    named(progress, MOST_NAMED).iter().map(|line| format!("{line}\n")).collect()
}

/// The same, of so many by name.
pub(super) fn named(progress: &Progress, most: usize) -> Vec<String> {
    let lines = progress.stragglers.iter().take(most).map(|(node, why)| format!("  {node} {why}"));
    let more = progress.stragglers.len().saturating_sub(most);
    lines.chain((more > 0).then(|| format!("  and {more} more"))).collect()
}

fn table(records: &[RotationRecord], now: Timestamp) -> String {
    if records.is_empty() {
        return "keys were never rotated".to_owned();
    }
    let row = |record: &RotationRecord| {
        let end = record.finished_at.unwrap_or(now);
        let seconds = end.as_second().saturating_sub(record.started_at.as_second());
        vec![
            record.generation.to_string(),
            record.result.to_string(),
            format!("{:.0}", record.started_at),
            format!("{seconds} s"),
            record.requested_by.clone(),
            record.reason.clone(),
            if record.nodes.is_empty() { "all".to_owned() } else { record.nodes.clone() },
            record.stragglers.join(", "),
        ]
    };
    let header = ["GENERATION", "RESULT", "STARTED", "TOOK", "BY", "REASON", "NODES", "STRAGGLERS"];
    grid(&header, records.iter().rev().map(row)).trim_end().to_owned()
}

/// What people did beside asking for new keys.
fn table_of(deeds: &[Deed]) -> String {
    let row = |deed: &Deed| {
        vec![
            format!("{:.0}", deed.at),
            deed.what.to_string(),
            deed.by.clone(),
            deed.generation.to_string(),
            if deed.node.is_empty() { "all".to_owned() } else { deed.node.clone() },
            if deed.reason.is_empty() { "-".to_owned() } else { deed.reason.clone() },
        ]
    };
    let header = ["AT", "DEED", "BY", "GENERATION", "NODES", "REASON"];
    grid(&header, deeds.iter().rev().map(row)).trim_end().to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use kubeveil_api::rotation::DeedKind;
    use kubeveil_keys::Generation;

    use super::*;

    /// Four nodes, of which one is done.
    pub(crate) fn halfway() -> Progress {
        Progress {
            generation: Generation::new(4),
            nodes: [
                ("a", Phase::Done),
                ("b", Phase::Flipped),
                ("c", Phase::Behind),
                ("windows", Phase::Silent),
            ]
            .map(|(name, phase)| (name.to_owned(), phase))
            .into(),
            flipped: 2,
            ways: 6,
            behind: BTreeMap::new(),
            stragglers: [
                ("b", "keeps its key of generation 3 for c"),
                ("c", "has no key of generation 4, its newest is of 3"),
            ]
            .map(|(name, why)| (name.to_owned(), why.to_owned()))
            .into(),
        }
    }

    fn asked() -> RotationSpec {
        RotationSpec {
            requested_by: "alice@bastion".to_owned(),
            requested_at: "2026-11-28T10:00:00Z".parse().ok(),
            reason: "quarterly".to_owned(),
            paused: true,
            ..RotationSpec::default()
        }
    }

    #[test]
    fn a_person_reads_how_far_it_is() {
        insta::assert_snapshot!(in_words(&halfway(), &asked(), None));
        let done = Progress { stragglers: BTreeMap::new(), ..halfway() };
        assert!(in_words(&done, &RotationSpec::default(), None).ends_with("\ndone\n"));
    }

    #[test]
    fn when_the_next_one_begins_by_itself_is_told() {
        let monthly = RotationSpec { every: "30d".parse().ok(), ..RotationSpec::default() };
        let at = "2026-12-28T10:00:00Z".parse().ok();
        assert_eq!(scheduled(&RotationSpec::default(), None, true), "");
        assert_eq!(
            scheduled(&monthly, at, false),
            "the next begins by itself at 2026-12-28T10:00:00Z, every 30d"
        );
        assert!(scheduled(&monthly, None, true).contains("by a timer instead"));
        assert!(scheduled(&monthly, None, false).contains("not known yet"));
    }

    #[test]
    fn a_program_reads_it_too() {
        insta::assert_json_snapshot!(document(&halfway()));
    }

    #[test]
    fn the_history_is_a_table() {
        let record = |generation, result, finished: Option<&str>, stragglers: &[&str]| RotationRecord {
            generation,
            requested_by: "alice@bastion".to_owned(),
            reason: "quarterly".to_owned(),
            nodes: String::new(),
            started_at: "2026-11-28T10:00:00Z".parse().expect("a time"),
            finished_at: finished.and_then(|at| at.parse().ok()),
            result,
            stragglers: stragglers.iter().map(|name| (*name).to_owned()).collect(),
        };
        let records = [
            record(3, RotationResult::Done, Some("2026-11-28T10:00:17Z"), &[]),
            record(4, RotationResult::Running, None, &["b", "c"]),
        ];
        insta::assert_snapshot!(table(&records, "2026-11-28T10:15:00Z".parse().expect("a time")));
    }
    #[test]
    fn so_are_the_deeds() {
        let deed = |what, node: &str| Deed {
            at: "2026-11-28T10:00:00Z".parse().expect("a time"),
            by: "alice@bastion".to_owned(),
            what,
            generation: 4,
            node: node.to_owned(),
            reason: if node.is_empty() { "" } else { "laptop\u{1b}[2J lost" }.to_owned(),
        };
        let deeds = [deed(DeedKind::Paused, ""), deed(DeedKind::Compromised, "node-3")];
        insta::assert_snapshot!(table_of(&deeds));
    }
}
