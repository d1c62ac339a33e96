//! What has changed between two ways round, in the words that a log of level info has, once each.

use std::collections::{BTreeMap, BTreeSet};

use kubeveil_core::{desired::Desired, observed::Program};

use super::Outcome;

/// Of more tunnels than these that come or go at once, the number is told and no names: a daemon that starts over
/// thousands of them is no news.
const NAMED: usize = 20;

/// The lines, from `before` to `now`.
pub(super) fn changes(before: &Outcome, now: &Outcome) -> Vec<String> {
    let mut out = Vec::new();
    let (was, is) = (attached(before), attached(now));
    for (device, programs) in &is {
        let new: Vec<_> = programs.iter().filter(|p| !has(&was, device, **p)).map(|p| p.name()).collect();
        if !new.is_empty() {
            out.push(format!("attached to {device}: {}", new.join(", ")));
        }
    }
    for (device, programs) in &was {
        let gone: Vec<_> = programs.iter().filter(|p| !has(&is, device, **p)).map(|p| p.name()).collect();
        if !gone.is_empty() {
            out.push(format!("no longer attached to {device}: {}", gone.join(", ")));
        }
    }
    let (was, is) = (tunnels(&before.desired), tunnels(&now.desired));
    tell(&mut out, "up", &is.difference(&was).copied().collect::<Vec<_>>());
    tell(&mut out, "lost", &was.difference(&is).copied().collect::<Vec<_>>());
    out
}

/// Those of the tunnels of a few nodes alone, of which `now` tells.
pub(super) fn of_tunnels(before: &Desired, now: &Desired) -> Vec<String> {
    let was = |name: &String| before.remotes.get(name).is_some_and(|remote| remote.tunnelled);
    let turned = now.remotes.iter().filter(|(name, remote)| was(name) != remote.tunnelled);
    let (up, lost): (Vec<_>, Vec<_>) = turned.partition(|(_, remote)| remote.tunnelled);
    let mut out = Vec::new();
    for (what, nodes) in [("up", up), ("lost", lost)] {
        tell(&mut out, what, &nodes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    }
    out
}

type Attached<'a> = BTreeMap<&'a str, BTreeSet<Program>>;

fn attached(outcome: &Outcome) -> Attached<'_> {
    let mut out = Attached::new();
    let hooks = outcome.observed.datapath.iter().flat_map(|datapath| datapath.attached.keys());
    for (program, index) in hooks {
        let device = outcome.observed.links.get(index).map_or("a device that is gone", |link| &link.name);
        out.entry(device).or_default().insert(*program);
    }
    out
}

fn has(attached: &Attached<'_>, device: &str, program: Program) -> bool {
    attached.get(device).is_some_and(|programs| programs.contains(&program))
}

fn tunnels(desired: &Desired) -> BTreeSet<&str> {
    let remotes = desired.remotes.iter();
    remotes.filter(|(_, remote)| remote.tunnelled).map(|(name, _)| name.as_str()).collect()
}

fn tell(out: &mut Vec<String>, what: &str, nodes: &[&str]) {
    if nodes.len() > NAMED {
        out.push(format!("tunnels to {} nodes {what}", nodes.len()));
    } else {
        out.extend(nodes.iter().map(|node| format!("tunnel to {node} {what}")));
    }
}
