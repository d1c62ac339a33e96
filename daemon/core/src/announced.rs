//! What the nodes say of themselves, verified.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubeveil_api::{
    announcement::{Announcement, AnnouncementError, GenerationEntry},
    mesh::MeshSpec,
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
    /// `seen` is what `valid` came from.
    is_current: bool,
    /// What an earlier daemon kept on disk, until a source tells of something that is not older.
    kept: Option<Announcement>,
    /// A source has told of it since the daemon started.
    is_told: bool,
}

/// Where what is known of a node comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A source has told of it: it is what the node says now.
    Told,
    /// Nobody has, since the daemon started: it is what was kept on disk, and may be older than what is in the kernel.
    Kept,
    /// A source has, of something older than what was kept. A node never goes back, so the source lags behind (a cache, a restored
    /// etcd); or the node has lost its keys and not made the next ones yet. So what the kernel does for it stands as long as that
    /// answers.
    Past,
}

impl Entry {
    const fn heard(&self) -> Heard {
        match (&self.kept, self.is_told) {
            (None, _) => Heard::Told,
            (Some(_), false) => Heard::Kept,
            (Some(_), true) => Heard::Past,
        }
    }

    /// What is known of it is the very thing that was kept.
    fn is_as_kept(&self) -> bool {
        self.is_current && self.valid == self.kept
    }

    /// Told as a problem, where it is one.
    fn of_the_past(&self, node: &str) -> Option<Problem> {
        let before = self.kept.as_ref().filter(|_| self.heard() == Heard::Past)?;
        let [now, before] =
            [self.valid.as_ref()?, before].map(|said| newest(said).unwrap_or(Generation::FIRST));
        Some(of_the_past(node, now, before))
    }
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
            (entry.kept, entry.is_told) = (entry.valid.clone(), false);
        }
    }

    /// A source tells of `node` by itself, in this mesh. True if it counts for something else from now on.
    pub fn confirm(&mut self, node: &str, mesh: Option<&MeshSpec>) -> bool {
        let Some(entry) = self.nodes.get_mut(node).filter(|entry| entry.is_current) else { return false };
        let before = entry.heard();
        entry.is_told = true;
        let said = entry.valid.as_ref().map_or(&[][..], Announcement::generations);
        let is_revoked = |key: &PublicKey| mesh.is_some_and(|mesh| mesh.revokes(key));
        entry.kept.take_if(|kept| !is_older(said, kept.generations(), is_revoked));
        entry.heard() != before
    }

    /// Where what is known of `node` comes from.
    pub fn heard(&self, node: &str) -> Heard {
        self.nodes.get(node).map_or(Heard::Told, Entry::heard)
    }

    /// Puts what was kept of each node in the place of what a source tells that is older, and what counts in the place of nothing, or of what is
    /// none: it is to be kept on. But not of who can have no agent any more, by what is told now.
    pub fn restore(&self, mesh: Option<&MeshSpec>, nodes: &mut BTreeMap<String, Arc<NodeFacts>>) {
        for (name, entry) in self.nodes.iter().filter(|(_, entry)| !entry.is_as_kept()) {
            let counts = entry.valid.as_ref().filter(|_| !entry.is_current);
            let is_excluded = |node: &NodeFacts| mesh.and_then(|mesh| node.excluded_by(mesh)).is_some();
            let node = nodes.get_mut(name).filter(|node| !is_excluded(node));
            if let (Some(kept), Some(node)) = (entry.kept.as_ref().or(counts), node) {
                Arc::make_mut(node).announcement = Some(kept.to_json());
            }
        }
    }

    /// Takes in what `node` says of itself. True if that is something else than before.
    pub fn hear(&mut self, name: &str, node: &Arc<NodeFacts>) -> bool {
        let before = self.nodes.get_mut(name).filter(|entry| entry.seen.uid == node.uid);
        let is_seen = before.map(|entry| {
            let seen = std::mem::replace(&mut entry.seen, node.clone());
            seen.announcement == node.announcement
        });
        if is_seen.is_none() {
            let entry =
                Entry { seen: node.clone(), valid: None, is_current: false, kept: None, is_told: false };
            self.nodes.insert(name.to_owned(), entry);
        }
        let Some(entry) = self.nodes.get_mut(name) else { return false };
        if is_seen == Some(true) {
            return false;
        }
        entry.is_current = false;
        let Some(json) = &node.announcement else { return false };
        match Announcement::parse_and_verify(json, name, &node.uid) {
            Ok(announcement) => {
                self.refused.remove(name);
                entry.is_current = true;
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

    /// Announcements that were refused and not replaced since, and those that are of the past.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let past = self.nodes.iter().filter_map(|(name, entry)| entry.of_the_past(name));
        self.refused.values().cloned().chain(past)
    }
}

fn newest(announcement: &Announcement) -> Option<Generation> {
    announcement.generations().last().map(|entry| entry.generation)
}

/// Did a node say `now` before it said `kept`? Its newest generation only grows, and who has said another key since his was revoked has never said
/// that one again.
pub fn is_older(
    now: &[GenerationEntry],
    kept: &[GenerationEntry],
    is_revoked: impl Fn(&PublicKey) -> bool,
) -> bool {
    let [now, kept] = [now, kept].map(|said| said.last());
    let is_revoked = |said: Option<&GenerationEntry>| said.is_some_and(|said| is_revoked(&said.public_key));
    let generation = |said: Option<&GenerationEntry>| said.map(|said| said.generation);
    generation(now) < generation(kept) || is_revoked(now) && !is_revoked(kept)
}

fn of_the_past(node: &str, now: Generation, before: Generation) -> Problem {
    Problem {
        kind: ProblemKind::Announcement,
        object: format!("Node {node}"),
        field: names::ANNOUNCEMENT.to_owned(),
        message: if now == before {
            format!("the announcement is of the past: its key of generation {now} is revoked, and the node has said another")
        } else {
            format!("the announcement is of the past: its newest generation is {now}, and the node has said {before}")
        },
        advice: "No older key is given up meanwhile. An API server that lags behind catches up by itself. Else look there with `kubeveil \
                 status`: rotation may be paused or the disk full, so that the key is not made; or somebody writes the annotation"
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
    use kubeveil_api::{
        announcement::{GenerationState, NotFlipped},
        mesh::{ExcludedNodes, ExcludedTraffic},
        selector::LabelSelector,
    };
    use kubeveil_keys::PrivateKey;

    use super::*;

    /// What node `a` says with a key of each of `generations`.
    fn said(generations: &[u32]) -> Option<String> {
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
        let signed = Announcement::sign("a", "u", entries, NotFlipped::nobody(), &keys);
        Some(signed.expect("signed").to_json())
    }

    fn node(uid: &str, announcement: Option<String>) -> BTreeMap<String, Arc<NodeFacts>> {
        let facts = NodeFacts { uid: uid.to_owned(), announcement, ..NodeFacts::default() };
        [("a".to_owned(), Arc::new(facts))].into()
    }

    /// A daemon that starts: what an earlier one kept of the node.
    fn kept(announcement: Option<String>) -> Announced {
        let mut announced = Announced::default();
        announced.update(&node("u", announcement));
        announced.all_is_kept();
        announced
    }

    fn hears(announced: &mut Announced, announcement: Option<String>) -> Heard {
        announced.update(&node("u", announcement));
        announced.confirm("a", None);
        announced.heard("a")
    }

    /// Nobody can tell the older of two of one generation, but where one was revoked.
    #[test]
    fn who_has_said_another_key_has_not_said_a_revoked_one_since() {
        let [before, after] = [said(&[3]), said(&[3])];
        let key = |json: &Option<String>| {
            let announcement = Announcement::parse_and_verify(json.as_deref().expect("said"), "a", "u");
            announcement.expect("valid").generations()[0].public_key
        };
        let nothing = crate::testing::mesh();
        let first = MeshSpec { revoked_keys: vec![key(&before)], ..nothing.clone() };
        for (kept_one, told, revokes, heard) in [
            (&after, &before, &first, Heard::Past),
            (&after, &before, &nothing, Heard::Told),
            (&before, &after, &first, Heard::Told),
            (&before, &before, &first, Heard::Told),
        ] {
            let mut announced = kept(kept_one.clone());
            announced.update(&node("u", told.clone()));
            announced.confirm("a", Some(revokes));
            assert_eq!(announced.heard("a"), heard);
        }
    }

    /// What counts is kept on, though nothing that can be read is told any more.
    #[test]
    fn what_vanished_is_kept_on_disk_as_long_as_it_counts() {
        for gone in [None, Some("no announcement".to_owned())] {
            let before = said(&[3, 4]);
            let mut announced = Announced::default();
            assert_eq!(hears(&mut announced, before.clone()), Heard::Told);
            assert_eq!(hears(&mut announced, gone.clone()), Heard::Told);
            let mut nodes = node("u", gone.clone());
            announced.restore(None, &mut nodes);
            assert_eq!(nodes["a"].announcement, before);
            // Of who can have no agent any more nothing is.
            let mut nodes = node("u", None);
            let labels = [("os".to_owned(), "windows".to_owned())];
            Arc::make_mut(nodes.get_mut("a").expect("there")).labels = labels.clone().into();
            let selector = LabelSelector { match_labels: labels.into(), ..LabelSelector::default() };
            let traffic = ExcludedTraffic::Plain;
            let excluded_nodes = Some(ExcludedNodes { selector, traffic });
            announced.restore(Some(&MeshSpec { excluded_nodes, ..crate::testing::mesh() }), &mut nodes);
            assert_eq!(nodes["a"].announcement, None);
            // A daemon that starts by that knows that it is not what the node says now.
            let mut next = kept(before);
            assert_eq!(hears(&mut next, gone), Heard::Kept);
            assert!(next.of("a").is_some());
        }
    }

    #[test]
    fn what_is_older_than_what_was_kept_is_of_the_past() {
        let before = said(&[3]);
        let mut announced = kept(said(&[3, 4]));
        assert_eq!(announced.heard("a"), Heard::Kept);
        for _ in 0..2 {
            assert_eq!(hears(&mut announced, before.clone()), Heard::Past);
            let problems: Vec<Problem> = announced.problems().collect();
            assert!(problems.len() == 1 && problems[0].message.contains("of the past"), "{problems:?}");
        }
        // Also for the next daemon.
        let mut nodes = node("u", before);
        announced.restore(None, &mut nodes);
        let mut next = kept(nodes["a"].announcement.clone());
        assert_eq!(next.of("a").and_then(newest), Some(Generation::new(4)));
        // It catches up.
        for announced in [&mut announced, &mut next] {
            assert_eq!(hears(announced, said(&[4])), Heard::Told);
            assert!(announced.problems().next().is_none());
            // Who is told of it once goes by what the source says, whatever that is.
            assert_eq!(hears(announced, said(&[3])), Heard::Told);
            assert_eq!(announced.of("a").and_then(newest), Some(Generation::new(3)));
        }
    }

    /// What is not there, or false, tells of nothing.
    #[test]
    fn nothing_told_is_nothing_new() {
        for nothing in [None, Some("{}".to_owned())] {
            let mut announced = kept(said(&[3]));
            assert_eq!(hears(&mut announced, nothing), Heard::Kept);
            assert_eq!(hears(&mut announced, said(&[3])), Heard::Told);
        }
    }

    /// Another Node of the name has nothing to do with what was kept.
    #[test]
    fn another_node_of_the_name_begins_anew() {
        let mut announced = kept(said(&[4]));
        announced.update(&node("v", None));
        assert_eq!((announced.heard("a"), announced.of("a")), (Heard::Told, None));
    }
}
