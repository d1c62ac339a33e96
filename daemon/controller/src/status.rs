//! The mesh's status, from what the agents say.

use jiff::Timestamp;
use kubeveil_api::{
    condition::{BYPASSED, Condition, ConditionStatus, READY, ROTATING, ROTATION_LATE, keep_transitions},
    mesh::{Adopted, MeshSpec, MeshStatus, Mode},
    problem::few_statements,
    rotation::{RotationRecord, RotationResult},
    status::Way,
    veil_node::VeilNodeStatus,
};

use kubeveil_core::{
    agent::{self, Life},
    rotation::{
        history::{is_late, records},
        progress::Progress,
        schedule::is_too_old,
    },
};

use crate::{
    ranges::ranges,
    schedule,
    seen::{Mesh, Seen},
};

/// Most names in a message.
const MOST_NAMED: usize = 5;

/// The status from now on, where agents can go by so many slices of nodes; `None` while there is no mesh.
pub(crate) fn status(
    seen: &Seen,
    progress: &Progress,
    peer_slices: Option<u32>,
    now: Timestamp,
) -> Option<MeshStatus> {
    let Mesh { object: mesh, generation, .. } = seen.mesh.as_ref()?;
    let before = mesh.status.clone().unwrap_or_default();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let not_ready: Vec<String> = seen
        .nodes
        .keys()
        .filter_map(|name| why_not_ready(seen, name).map(|why| format!("{name} ({why})")))
        .collect();
    let ways = Ways::of(seen);
    let rotations = records(&before.rotations, &mesh.spec, progress, now);
    let mut conditions = vec![
        all_nodes(READY, ["AllNodesReady", "NodesNotReady"], &not_ready, "enforce", now),
        fully_connected(mesh.spec.mode, &ways, seen.excluded.len(), now),
        keys_current(seen, &mesh.spec, now),
        rotating(&mesh.spec, rotations.last(), progress, now),
        bypassed(&mesh.spec, now),
    ];
    let next = schedule::next(mesh, &rotations, progress, now);
    if let Err(why) = &next {
        let not_rotating = conditions.iter_mut().filter(|c| c.kind == ROTATING && !c.holds());
        not_rotating.for_each(|c| (c.reason, c.message) = ("ScheduleUnreadable".to_owned(), why.clone()));
    }
    if seen.nodes.is_empty() {
        conditions.iter_mut().for_each(|c| c.status = ConditionStatus::Unknown);
    }
    keep_transitions(&mut conditions, &before.conditions);
    Some(MeshStatus {
        observed_generation: *generation,
        ranges: ranges(&mesh.spec, before.ranges.as_ref(), seen),
        nodes: count(seen.nodes.len()),
        ready_nodes: count(seen.nodes.len() - not_ready.len()),
        encrypted_pairs: format!("{}/{}", ways.encrypted, ways.all),
        rotations,
        next_rotation: next.ok().flatten().map(|next| next.at),
        // Where all is taken away all begins anew.
        adoption: before
            .adoption
            .or_else(|| adopted(&mesh.spec, &ways, &not_ready, now))
            .filter(|_| !mesh.spec.uninstall),
        peer_slices,
        conditions,
    })
}

fn said<'a>(seen: &'a Seen, node: &str) -> Option<&'a VeilNodeStatus> {
    seen.veil_nodes.get(node)?.as_ref()
}

fn why_not_ready(seen: &Seen, node: &str) -> Option<String> {
    agent::why_not_ready(Life::of_pod(seen.agents.get(node).copied()), said(seen, node))
}

/// Ordered pairs of nodes: from one to another.
struct Ways {
    all: usize,
    encrypted: usize,
    /// Some of the others, in words.
    others: Vec<String>,
}

impl Ways {
    fn of(seen: &Seen) -> Self {
        let others = seen.nodes.len().saturating_sub(1);
        let mut ways = Self { all: seen.nodes.len() * others, encrypted: 0, others: Vec::new() };
        for from in seen.nodes.keys() {
            let Some(said) = said(seen, from) else {
                ways.others.push(format!("{from} to all: its agent has said nothing yet"));
                continue;
            };
            // What an agent has not heard of yet is not encrypted.
            ways.encrypted += usize::try_from(said.encrypted).unwrap_or(usize::MAX).min(others);
            let known = |to: &&kubeveil_api::veil_node::Unencrypted| seen.nodes.contains_key(&to.node);
            ways.others.extend(said.not_encrypted.iter().filter(known).map(|to| {
                let way = if to.way == Way::Plain { "in plain" } else { "dropped" };
                format!("{from} to {}: {way}, {}", to.node, to.reason)
            }));
            if usize::try_from(said.peers).unwrap_or(usize::MAX) < others {
                ways.others.push(format!("{from}: knows {} of {others} other nodes", said.peers));
            }
        }
        ways
    }
}

fn fully_connected(mode: Mode, ways: &Ways, excluded: usize, now: Timestamp) -> Condition {
    if mode == Mode::Observe {
        let message = "the mode is observe: nothing is encrypted".to_owned();
        return Condition::new("FullyConnected", false, "Observing", message, now);
    }
    let holds = ways.encrypted == ways.all;
    let message = if holds && excluded > 0 {
        format!(
            "all pod traffic between nodes is encrypted, but for {excluded} nodes that can have no agent (spec.excludedNodes)"
        )
    } else if holds {
        "all pod traffic between nodes is encrypted".to_owned()
    } else {
        format!(
            "{} of {} ways between nodes are not encrypted: {}",
            ways.all - ways.encrypted,
            ways.all,
            few_statements(ways.others.iter(), MOST_NAMED)
        )
    };
    let reason = if holds { "AllPairsEncrypted" } else { "PairsNotEncrypted" };
    Condition::new("FullyConnected", holds, reason, message, now)
}

/// Is adoption over, since all pairs are closed? Each is by its own nodes, once it is encrypted, unless one does not know its pods' addresses, and is not
/// ready for that; that is never undone.
fn adopted(mesh: &MeshSpec, ways: &Ways, not_ready: &[String], now: Timestamp) -> Option<Adopted> {
    let goes_on = mesh.mode == Mode::Require && mesh.adoption.is_some();
    let all_closed = ways.all > 0 && ways.encrypted == ways.all && not_ready.is_empty();
    (goes_on && all_closed).then_some(Adopted { closed_at: now })
}

/// All have the key that is wanted, and none is too old.
fn keys_current(seen: &Seen, mesh: &MeshSpec, now: Timestamp) -> Condition {
    let wanted = mesh.key_generation;
    let behind: Vec<String> = seen
        .nodes
        .keys()
        .filter_map(|node| match said(seen, node).and_then(|said| said.generation) {
            Some(at) if at == wanted => None,
            Some(at) => Some(format!("{node} (at {at})")),
            None => Some(format!("{node} (no key yet)")),
        })
        .collect();
    let asked = mesh.asked();
    let too_old = |node: &&String| {
        let created = said(seen, node).and_then(|said| said.key_created_at);
        created.is_some_and(|created| is_too_old(asked.max_key_age, created, now))
    };
    let too_old: Vec<String> = seen.nodes.keys().filter(too_old).cloned().collect();
    if let Some(most) = asked.max_key_age.filter(|_| behind.is_empty() && !too_old.is_empty()) {
        let doing = format!("have a key that is at most {most} old (`kubeveil rotate`)");
        return all_nodes("KeysCurrent", ["AllKeysCurrent", "KeysTooOld"], &too_old, &doing, now);
    }
    let doing = format!("have a key of generation {wanted}");
    all_nodes("KeysCurrent", ["AllKeysCurrent", "KeysBehind"], &behind, &doing, now)
}

/// While one goes on in time it says nothing that changes with every node: each change of the mesh goes to every agent.
fn rotating(
    mesh: &MeshSpec,
    last: Option<&RotationRecord>,
    progress: &Progress,
    now: Timestamp,
) -> Condition {
    let running = last.filter(|record| record.result == RotationResult::Running);
    let Some(record) = running else {
        let (reason, message) = match last {
            Some(record) => ("RotationOver", ended(record)),
            None => ("NeverRotated", "keys were never rotated".to_owned()),
        };
        return Condition::new(ROTATING, false, reason, message, now);
    };
    let asked = mesh.asked();
    let to = format!("to generation {}{}", record.generation, by(record));
    let (reason, message) = if asked.paused {
        ("RotationPaused", format!("{to}: waits for `kubeveil rotate resume`"))
    } else if is_late(record, asked.deadline(), now) {
        let late: Vec<String> =
            progress.waits_for(asked.retire_before).map(|(node, why)| format!("{node} {why}")).collect();
        let message = format!(
            "{to}: {} nodes are late: {}; `kubeveil rotate status` tells all",
            late.len(),
            few_statements(late.iter(), MOST_NAMED)
        );
        (ROTATION_LATE, message)
    } else {
        ("RotationUnderWay", format!("{to}; `kubeveil rotate status` tells how far"))
    };
    Condition::new(ROTATING, true, reason, message, now)
}

/// Whose packets people have travel in plain for a while, who and why. Whether nodes carry it out, FullyConnected says.
fn bypassed(mesh: &MeshSpec, now: Timestamp) -> Condition {
    let on = mesh.bypasses.iter().filter(|bypass| bypass.is_on(now));
    let on: Vec<String> = on
        .map(|bypass| {
            let [one, other] = &bypass.nodes;
            format!("{one} and {other} until {:.0}, by {} ({})", bypass.until, bypass.by, bypass.reason)
        })
        .collect();
    if on.is_empty() {
        let message = "no two nodes are bypassed".to_owned();
        return Condition::new(BYPASSED, false, "NoBypass", message, now);
    }
    let message = format!("in plain: {}", few_statements(on.iter(), MOST_NAMED));
    Condition::new(BYPASSED, true, "PairsBypassed", message, now)
}

/// When the first bypass that is on at `now` ends.
pub(crate) fn next_end(seen: &Seen, now: Timestamp) -> Option<Timestamp> {
    let bypasses = &seen.mesh.as_ref()?.object.spec.bypasses;
    bypasses.iter().filter(|bypass| bypass.is_on(now)).map(|bypass| bypass.until).min()
}

/// Who asked for it, and why.
fn by(record: &RotationRecord) -> String {
    let by = if record.requested_by.is_empty() {
        String::new()
    } else {
        format!(", asked for by {}", record.requested_by)
    };
    if record.reason.is_empty() { by } else { format!("{by} ({})", record.reason) }
}

fn ended(record: &RotationRecord) -> String {
    let took =
        record.finished_at.map_or(0, |end| end.as_second().saturating_sub(record.started_at.as_second()));
    let late = match &record.stragglers[..] {
        [] => String::new(),
        late => format!("; late were {}", few_statements(late.iter(), MOST_NAMED)),
    };
    format!("generation {}{}: {} in {took} s{late}", record.generation, by(record), record.result)
}

fn all_nodes(kind: &str, reasons: [&str; 2], but: &[String], doing: &str, now: Timestamp) -> Condition {
    let message = match but {
        [] => format!("all nodes {doing}"),
        some_nodes => format!(
            "{} nodes don't {doing}: {}",
            some_nodes.len(),
            few_statements(some_nodes.iter(), MOST_NAMED)
        ),
    };
    Condition::new(kind, but.is_empty(), reasons[usize::from(!but.is_empty())], message, now)
}

#[cfg(test)]
mod tests;
