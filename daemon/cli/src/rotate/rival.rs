//! What somebody else has done to the mesh since it was seen.

use kubeveil_api::{mesh::MeshSpec, problem::readable, rotation::Deed};

/// In words: who, what, when and why. `None` if it has nothing to do with keys.
pub(super) fn deed(before: &MeshSpec, now: &MeshSpec) -> Option<String> {
    if now.key_generation != before.key_generation {
        return Some(rotation(now));
    }
    let deeds = |spec: &MeshSpec| spec.asked().deeds;
    let before = deeds(before);
    deeds(now).into_iter().rfind(|deed| !before.contains(deed)).map(|deed| other(&deed))
}

fn rotation(now: &MeshSpec) -> String {
    let asked = now.asked();
    let by =
        if asked.requested_by.is_empty() { "somebody".to_owned() } else { readable(&asked.requested_by) };
    let at = asked.requested_at.map(|at| format!(" at {at:.0}")).unwrap_or_default();
    let why = if asked.reason.is_empty() { String::new() } else { format!(": {}", readable(&asked.reason)) };
    format!("{by} has asked for generation {} meanwhile{at}{why}", now.key_generation)
}

fn other(Deed { at, by, what, generation, node, reason }: &Deed) -> String {
    let of = if node.is_empty() { String::new() } else { format!(", Node {}", readable(node)) };
    let why = if reason.is_empty() { String::new() } else { format!(": {}", readable(reason)) };
    format!(
        "{} has done something else to the keys meanwhile: {what}, generation {generation}{of}, at {at:.0}{why}",
        readable(by)
    )
}
