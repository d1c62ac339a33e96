//! What each command does.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubeveil_api::{
    rotation::{DEADLINE_SECONDS, Deed, DeedKind, MOST_WORDS, request},
    selector::LabelSelector,
};
use kubeveil_core::rotation::progress::Phase;
use kubeveil_keys::PublicKey;
use serde_json::json;

use super::{Desk, End, Look, Rotate, Stop, interrupt, records, show, wait};
use crate::source::on_record;

/// Asks for new keys of all nodes, or for one node's.
pub(super) fn rotate(desk: &mut Desk, arguments: &Rotate) -> Result<End, Stop> {
    if arguments.reason.chars().count() > MOST_WORDS {
        return Err(Stop::Usage(format!("--reason: at most {MOST_WORDS} characters")));
    }
    match arguments.compromised.clone() {
        Some(node) => interrupt::watch(move || interrupt::revocation(&node)),
        None => interrupt::watch(interrupt::rotation),
    }
    let look = desk.look()?;
    if look.progress.speaking() == 0 {
        return Err(Stop::Finding(format!(
            "no node of {} announces a key that can be believed: is kubeveild running, and is this the cluster?",
            desk.control.name()
        )));
    }
    if let Some(node) = &arguments.compromised {
        return compromised(desk, &look, node, arguments);
    }
    under_way(&look)?;
    if look.asked().paused {
        return Err(Stop::Finding("rotation is paused: `kubeveil rotate resume` first".to_owned()));
    }
    let next = look.progress.generation.next().map(|next| next.number());
    let generation = next.ok_or_else(|| Stop::Finding("2^32 rotations are all there are".to_owned()))?;
    let of = match &arguments.nodes {
        Some(selector) => selected(&look, selector)?,
        None => look.sight.nodes.len(),
    };
    let asked = asked(desk, &look, generation, arguments)?;
    desk.change(&look, asked)?;
    interrupt::has_asked();
    show::begun(desk.json, generation, of, &look);
    if arguments.no_wait {
        return Ok(End::Done);
    }
    wait::until(desk, arguments.deadline, |look| {
        look.end().filter(|_| look.progress.generation.number() >= generation)
    })
}

/// Who asks, when, why, and of which nodes: as it goes on record.
fn asked(
    desk: &mut Desk,
    look: &Look,
    generation: u32,
    arguments: &Rotate,
) -> Result<serde_json::Value, Stop> {
    let seconds = u32::try_from(arguments.deadline.as_secs()).unwrap_or(u32::MAX);
    let mut spec = request(generation, &on_record(&mut *desk.control)?, &arguments.reason, look.now);
    spec["rotation"]["nodeSelector"] = selector(look, arguments);
    spec["rotation"]["deadlineSeconds"] = json!((seconds != DEADLINE_SECONDS).then_some(seconds));
    Ok(spec)
}

/// The deeds that are on record, and this one, to be written with what it changes.
fn deeds(desk: &mut Desk, look: &Look, what: DeedKind, node: &str, reason: &str) -> Result<Vec<Deed>, Stop> {
    let deed = Deed {
        at: Timestamp::from_second(look.now.as_second()).unwrap_or(look.now),
        by: on_record(&mut *desk.control)?,
        what,
        generation: look.progress.generation.number(),
        node: node.to_owned(),
        reason: reason.to_owned(),
    };
    Ok(look.asked().deeds_and(deed))
}

/// How many nodes are meant.
fn selected(look: &Look, selector: &LabelSelector) -> Result<usize, Stop> {
    match look.sight.nodes.values().filter(|node| selector.selects(&node.labels)).count() {
        0 => Err(Stop::Usage(format!("--nodes: no Node has the labels {selector}"))),
        some => Ok(some),
    }
}

/// Of which nodes. A merge patch joins objects, so what an earlier one has and this one lacks is named too.
fn selector(look: &Look, arguments: &Rotate) -> serde_json::Value {
    let Some(selector) = &arguments.nodes else { return serde_json::Value::Null };
    let asked = look.sight.mesh.spec.rotation.as_ref();
    let earlier = asked.and_then(|asked| asked.node_selector.as_ref());
    let gone = earlier.into_iter().flat_map(|earlier| earlier.match_labels.keys());
    let mut labels: serde_json::Map<_, _> = gone.map(|key| (key.clone(), serde_json::Value::Null)).collect();
    labels.extend(selector.match_labels.iter().map(|(key, value)| (key.clone(), json!(value))));
    json!({ "matchLabels": labels, "matchExpressions": selector.match_expressions })
}

/// One at a time: a node has room for two generations.
fn under_way(look: &Look) -> Result<(), Stop> {
    let progress = &look.progress;
    if look.is_over() {
        return Ok(());
    }
    let asked = look.asked();
    let by = if asked.requested_by.is_empty() {
        String::new()
    } else {
        format!(", which {} asked for", asked.requested_by)
    };
    Err(Stop::Finding(format!(
        "the rotation to generation {}{by} is not over: {} of {} nodes are done.\n{}Wait for it; or cut off those that are left by \
         `kubeveil rotate finish --force`",
        progress.generation,
        progress.count(Phase::Done),
        progress.speaking(),
        show::stragglers(progress),
    )))
}

/// The keys of one node are refused from now on; it makes others by itself.
fn compromised(desk: &mut Desk, look: &Look, node: &str, arguments: &Rotate) -> Result<End, Stop> {
    let mut keys = keys_of(desk, node).unwrap_or_default();
    keys.extend(&arguments.keys);
    if keys.is_empty() {
        return Err(Stop::Usage(format!(
            "--compromised: Node {node} announces no key that can be believed, or there is no such Node. Other nodes may go on speaking to \
             it by the last one: `kubeveil status` there tells which; name it with --key"
        )));
    }
    let mut revoked = look.sight.mesh.spec.revoked_keys.clone();
    // Two generations may have one key.
    for key in &keys {
        if !revoked.contains(key) {
            revoked.push(*key);
        }
    }
    let deeds = deeds(desk, look, DeedKind::Compromised, node, &arguments.reason)?;
    desk.change(look, json!({ "revokedKeys": revoked, "rotation": { "deeds": deeds } }))?;
    interrupt::has_asked();
    show::revoked(desk.json, node, &keys);
    if arguments.no_wait {
        return Ok(End::Done);
    }
    let began = Instant::now();
    loop {
        let look = wait::look(desk)?;
        let now = keys_of(desk, node)
            .filter(|keys| !keys.iter().any(|key| look.sight.mesh.spec.revoked_keys.contains(key)));
        if let Some(now) = now {
            show::replaced(desk.json, node, &now);
            return Ok(End::Done);
        }
        if began.elapsed() >= arguments.deadline {
            eprintln!(
                "kubeveil: Node {node} has announced no other key: its traffic is dropped. Is kubeveild running there, and does it see the mesh? `kubeveil status` there tells what keeps it from making one"
            );
            return Ok(End::TimedOut);
        }
        std::thread::sleep(wait::LOOK);
    }
}

/// The keys that a node announces, if it announces any that can be believed.
fn keys_of(desk: &Desk, node: &str) -> Option<Vec<PublicKey>> {
    let said = desk.announced.of(node)?;
    Some(said.generations().iter().map(|entry| entry.public_key).collect())
}

/// How far it has got.
pub(super) fn status(desk: &mut Desk) -> Result<End, Stop> {
    let look = desk.look()?;
    desk.keep_history(&look);
    show::status(desk.json, &look);
    Ok(look.end().unwrap_or(End::Stragglers))
}

/// The last rotations.
pub(super) fn history(desk: &mut Desk) -> Result<End, Stop> {
    let look = desk.look()?;
    desk.keep_history(&look);
    let look = desk.look()?;
    show::history(desk.json, &records(&look), &look.asked().deeds, look.now);
    Ok(End::Done)
}

/// Has nodes wait, or go on.
pub(super) fn pause(desk: &mut Desk, paused: bool) -> Result<End, Stop> {
    let look = desk.look()?;
    let (value, what) =
        if paused { (json!(true), DeedKind::Paused) } else { (serde_json::Value::Null, DeedKind::Resumed) };
    let deeds = deeds(desk, &look, what, "", "")?;
    desk.change(&look, json!({ "rotation": { "paused": value, "deeds": deeds } }))?;
    show::paused(desk.json, paused);
    Ok(End::Done)
}

/// Cuts off those that are left.
pub(super) fn finish(desk: &mut Desk, force: bool, deadline: Duration) -> Result<End, Stop> {
    interrupt::watch(interrupt::rotation);
    let look = desk.look()?;
    let progress = &look.progress;
    if progress.stragglers.is_empty() {
        show::status(desk.json, &look);
        return Ok(End::Done);
    }
    // Some would give the old keys up, and others not make the new ones.
    if look.asked().paused {
        return Err(Stop::Finding("rotation is paused: `kubeveil rotate resume` first".to_owned()));
    }
    if !force {
        return Err(Stop::Usage(format!(
            "these nodes are not done:\n{}With --force every node gives its older keys up at once, and packets of nodes without a newer \
             one are dropped until they have it",
            show::stragglers(progress)
        )));
    }
    let at = |wanted| -> Vec<String> {
        let at = progress.nodes.iter().filter(|(_, phase)| **phase == wanted);
        at.map(|(name, _)| name.clone()).collect()
    };
    // Who has the new key and has not moved to all may have no tunnel to some.
    let [left, apart] = [Phase::Behind, Phase::Announced].map(at);
    let deeds = deeds(desk, &look, DeedKind::Forced, "", "")?;
    desk.change(&look, json!({ "rotation": { "retireBefore": progress.generation, "deeds": deeds } }))?;
    interrupt::has_asked();
    show::cut_off(desk.json, &left, &apart);
    let end = wait::until(desk, deadline, Look::end)?;
    Ok(if end == End::Done && !apart.is_empty() { End::Stragglers } else { end })
}
