//! What the nodes say of themselves, verified.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubeveil_api::{
    announcement::{Announcement, AnnouncementError},
    names,
};
use kubeveil_keys::{Generation, PublicKey};

use crate::{
    problem::{Problem, ProblemKind},
    snapshot::NodeFacts,
};

/// The last valid announcement of each node. A signature costs some 100 us to verify, so one that
/// did not change is not verified again.
///
/// An announcement that vanishes or is refused does not undo the one before: whoever may edit the
/// annotation could cut the node off by it. Refused is one of the past, too: a node never goes back to an older generation, so an older
/// one is what a source tells that lags behind (a cache, a restored etcd), or somebody who plays it again.
#[derive(Debug, Default)]
pub struct Announced {
    nodes: BTreeMap<String, Entry>,
    /// Announcements that were refused and not replaced since, by node.
    refused: BTreeMap<String, Problem>,
}

#[derive(Debug)]
struct Entry {
    /// What was looked at last, valid or not.
    seen: Arc<NodeFacts>,
    valid: Option<Announcement>,
    /// Nobody has told of it since the daemon started: it is what was kept on disk, and may be older than what is in the kernel.
    is_kept: bool,
    /// What was looked at last is valid, and older than `valid`.
    is_past: bool,
}

impl Entry {
    /// Did the node say something newer than `now` before? Only what can be: no generation is newer than `newest`. Else one
    /// announcement too many, by whoever could write it for a moment, would shut the node out for ever.
    fn is_older(&self, now: &Announcement, newest: Option<Generation>) -> bool {
        let before = self.valid.as_ref().and_then(newest_of);
        before.is_some_and(|before| Some(before) <= newest && newest_of(now) < Some(before))
    }
}

impl Announced {
    /// Takes in what `nodes` say. A node that is not among them is forgotten: they are all that are not known to be gone.
    /// `newest` is the newest generation that there can be, as far as is known.
    pub fn update(&mut self, nodes: &BTreeMap<String, Arc<NodeFacts>>, newest: Option<Generation>) {
        self.nodes.retain(|name, entry| nodes.get(name).is_some_and(|node| node.uid == entry.seen.uid));
        self.refused.retain(|name, _| self.nodes.contains_key(name));
        for (name, node) in nodes {
            self.hear(name, node, newest);
        }
    }

    /// All that is known so far is what an earlier daemon kept.
    pub fn all_is_kept(&mut self) {
        for entry in self.nodes.values_mut() {
            entry.is_kept = true;
        }
    }

    /// A source tells of `node` by itself; of what it says now, if that is not of the past.
    pub fn is_told(&mut self, node: &str) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.is_kept &= entry.is_past;
        }
    }

    /// Puts back what each node said last where `nodes` have something that was refused, or nothing any more: what is kept on disk
    /// has to be what is gone by.
    pub fn restore(&self, nodes: &mut BTreeMap<String, Arc<NodeFacts>>) {
        for (name, node) in nodes {
            let Some(entry) = self.nodes.get(name).filter(|entry| entry.seen.uid == node.uid) else {
                continue;
            };
            let is_refused = self.refused.contains_key(name) || node.announcement.is_none();
            if let Some(valid) = entry.valid.as_ref().filter(|_| is_refused) {
                Arc::make_mut(node).announcement = Some(valid.to_json());
            }
        }
    }

    /// Is what we know of `node` only what an earlier daemon kept?
    pub fn is_kept(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|entry| entry.is_kept)
    }

    /// Takes in what `node` says of itself; `newest` as in [`Self::update`]. True if that is something else than before.
    pub fn hear(&mut self, name: &str, node: &Arc<NodeFacts>, newest: Option<Generation>) -> bool {
        let before = self.nodes.get_mut(name).filter(|entry| entry.seen.uid == node.uid);
        let is_seen = before.map(|entry| {
            let seen = std::mem::replace(&mut entry.seen, node.clone());
            seen.announcement == node.announcement
        });
        if is_seen.is_none() {
            let entry = Entry { seen: node.clone(), valid: None, is_kept: false, is_past: false };
            self.nodes.insert(name.to_owned(), entry);
        }
        let (Some(entry), Some(json)) = (self.nodes.get_mut(name), &node.announcement) else { return false };
        // Whether it is of the past is another question when another mesh is known.
        if is_seen == Some(true) && !entry.is_past {
            return false;
        }
        let said = Announcement::parse_and_verify(json, name, &node.uid);
        entry.is_past = said.as_ref().is_ok_and(|said| entry.is_older(said, newest));
        match said {
            Ok(announcement) if entry.is_past => {
                let before = entry.valid.as_ref().and_then(newest_of);
                self.refused.insert(name.to_owned(), past(name, newest_of(&announcement), before));
                false
            }
            Ok(announcement) => {
                self.refused.remove(name);
                let is_new = entry.valid.as_ref() != Some(&announcement);
                entry.valid = Some(announcement);
                is_new
            }
            Err(error) => {
                self.refused.insert(name.to_owned(), refusal(name, &error));
                false
            }
        }
    }

    /// The last valid announcement of `node`.
    pub fn of(&self, node: &str) -> Option<&Announcement> {
        self.nodes.get(node)?.valid.as_ref()
    }

    /// The last valid announcement of each node that has one.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Announcement)> {
        self.nodes.iter().filter_map(|(name, entry)| Some((name.as_str(), entry.valid.as_ref()?)))
    }

    /// Does anybody but `nodes` announce one of `keys`?
    pub fn anybody_but(&self, nodes: &BTreeSet<String>, keys: &BTreeSet<PublicKey>) -> bool {
        let announces = |entry: &Entry| {
            let mut generations = entry.valid.iter().flat_map(Announcement::generations);
            generations.any(|generation| keys.contains(&generation.public_key))
        };
        self.nodes.iter().any(|(name, entry)| announces(entry) && !nodes.contains(name))
    }

    /// Announcements that were refused and not replaced since.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.refused.values()
    }
}

fn newest_of(announcement: &Announcement) -> Option<Generation> {
    announcement.generations().last().map(|entry| entry.generation)
}

fn past(node: &str, now: Option<Generation>, before: Option<Generation>) -> Problem {
    let [now, before] =
        [now, before].map(|of| of.map_or_else(|| "none".to_owned(), |of| of.number().to_string()));
    Problem {
        kind: ProblemKind::Announcement,
        object: format!("Node {node}"),
        field: names::ANNOUNCEMENT.to_owned(),
        message: format!(
            "the announcement is of the past: its newest generation is {now}, and the node has said {before}"
        ),
        advice: "The newer one stands. An API server that lags behind catches up by itself; if it persists, restart kubeveild on \
                 that node to announce again, and find out who writes the annotation"
            .to_owned(),
    }
}

fn refusal(node: &str, error: &AnnouncementError) -> Problem {
    Problem {
        kind: ProblemKind::Announcement,
        object: format!("Node {node}"),
        field: names::ANNOUNCEMENT.to_owned(),
        message: format!("the announcement is refused: {error}"),
        advice:
            "The last valid one stands. Restart kubeveild on that node to announce again; if it persists, \
                 find out who writes the annotation"
                .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use kubeveil_api::announcement::{GenerationEntry, GenerationState, NotFlipped};
    use kubeveil_keys::PrivateKey;

    use super::*;

    /// What node `a` says with a key of each of `generations`.
    fn said(generations: &[u32]) -> String {
        let keys: Vec<PrivateKey> =
            generations.iter().map(|_| PrivateKey::generate().expect("a key")).collect();
        let last = generations.len() - 1;
        let entry = |(n, number): (usize, &u32)| GenerationEntry {
            generation: Generation::new(*number),
            public_key: keys[n].public(),
            port: 51871.try_into().expect("port"),
            state: if n == last { GenerationState::Active } else { GenerationState::Retiring },
        };
        let entries = generations.iter().enumerate().map(entry).collect();
        let keys: Vec<&PrivateKey> = keys.iter().collect();
        Announcement::sign("a", "u", entries, NotFlipped::nobody(), &keys).expect("signed").to_json()
    }

    fn node(announcement: Option<String>) -> BTreeMap<String, Arc<NodeFacts>> {
        let facts = NodeFacts { uid: "u".to_owned(), announcement, ..NodeFacts::default() };
        [("a".to_owned(), Arc::new(facts))].into()
    }

    fn newest(announced: &Announced) -> Option<u32> {
        announced.of("a").and_then(newest_of).map(Generation::number)
    }

    /// A cache that lags behind, or somebody who plays an old one again, takes nothing back.
    #[test]
    fn what_is_of_the_past_is_refused() {
        let mut announced = Announced::default();
        let wanted = Some(Generation::new(4));
        announced.update(&node(Some(said(&[3, 4]))), wanted);
        announced.all_is_kept();
        let before = node(Some(said(&[3])));
        for _ in 0..2 {
            announced.update(&before, wanted);
            announced.is_told("a");
            assert_eq!(newest(&announced), Some(4));
            assert!(announced.is_kept("a"), "what it says now was not told");
            let problems: Vec<&Problem> = announced.problems().collect();
            assert!(problems.len() == 1 && problems[0].message.contains("of the past"), "{problems:?}");
        }
        // What is kept is what is gone by.
        let mut kept = before.clone();
        announced.restore(&mut kept);
        let mut after = Announced::default();
        after.update(&kept, wanted);
        assert_eq!(newest(&after), Some(4));
        // It catches up.
        announced.update(&node(Some(said(&[4]))), wanted);
        announced.is_told("a");
        assert!(!announced.is_kept("a") && announced.problems().next().is_none());
    }

    /// Who could write an announcement for a moment does not shut the node out for ever by one that is ahead of all.
    #[test]
    fn what_is_ahead_of_all_is_not_held_to() {
        let mut announced = Announced::default();
        let wanted = Some(Generation::new(4));
        announced.update(&node(Some(said(&[5000]))), wanted);
        announced.update(&node(Some(said(&[4]))), wanted);
        assert_eq!(newest(&announced), Some(4));
        // Another Node of the name has said nothing yet.
        let mut other = node(None);
        Arc::make_mut(other.get_mut("a").expect("a")).uid = "v".to_owned();
        announced.update(&other, wanted);
        assert_eq!(newest(&announced), None);
    }

    /// A mesh made anew begins anew, as soon as that is known.
    #[test]
    fn of_the_past_is_what_the_mesh_makes_it() {
        let mut announced = Announced::default();
        announced.update(&node(Some(said(&[4]))), Some(Generation::new(4)));
        let again = node(Some(said(&[0])));
        announced.update(&again, Some(Generation::new(4)));
        assert_eq!(newest(&announced), Some(4));
        announced.update(&again, Some(Generation::FIRST));
        assert_eq!(newest(&announced), Some(0));
    }
}
