//! What the nodes say of themselves, verified.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubeveil_api::{
    announcement::{Announcement, AnnouncementError},
    names,
};
use kubeveil_keys::PublicKey;

use crate::{
    problem::{Problem, ProblemKind},
    snapshot::NodeFacts,
};

/// The last valid announcement of each node. A signature costs some 100 us to verify, so one that
/// did not change is not verified again.
///
/// An announcement that vanishes or is refused does not undo the one before: whoever may edit the
/// annotation could cut the node off by it.
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
}

impl Announced {
    /// Takes in what `nodes` say. A node that is not among them is forgotten: they are all that are not known to be gone.
    pub fn update(&mut self, nodes: &BTreeMap<String, Arc<NodeFacts>>) {
        self.nodes.retain(|name, entry| nodes.get(name).is_some_and(|node| node.uid == entry.seen.uid));
        self.refused.retain(|name, _| self.nodes.contains_key(name));
        for (name, node) in nodes {
            self.hear(name, node);
        }
    }

    /// All that is known so far is what an earlier daemon kept.
    pub fn all_is_kept(&mut self) {
        for entry in self.nodes.values_mut() {
            entry.is_kept = true;
        }
    }

    /// A source tells of `node` by itself.
    pub fn is_told(&mut self, node: &str) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.is_kept = false;
        }
    }

    /// Is what we know of `node` only what an earlier daemon kept?
    pub fn is_kept(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|entry| entry.is_kept)
    }

    /// Takes in what `node` says of itself. True if that is something else than before.
    pub fn hear(&mut self, name: &str, node: &Arc<NodeFacts>) -> bool {
        let before = self.nodes.get_mut(name).filter(|entry| entry.seen.uid == node.uid);
        let is_seen = before.map(|entry| {
            let seen = std::mem::replace(&mut entry.seen, node.clone());
            seen.announcement == node.announcement
        });
        if is_seen.is_none() {
            let entry = Entry { seen: node.clone(), valid: None, is_kept: false };
            self.nodes.insert(name.to_owned(), entry);
        }
        let (Some(entry), Some(json)) = (self.nodes.get_mut(name), &node.announcement) else { return false };
        if is_seen == Some(true) {
            return false;
        }
        match Announcement::parse_and_verify(json, name, &node.uid) {
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
