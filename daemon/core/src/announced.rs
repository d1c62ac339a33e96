//! What the nodes say of themselves, verified.

use std::collections::BTreeMap;

use kubeveil_api::{
    announcement::{Announcement, AnnouncementError},
    names,
};

use crate::{
    problem::{Problem, ProblemKind},
    snapshot::Snapshot,
};

/// The last valid announcement of each node. A signature costs some 100 us to verify, so one that
/// did not change is not verified again.
///
/// An announcement that vanishes or is refused does not undo the one before: whoever may edit the
/// annotation could cut the node off by it.
#[derive(Debug, Default)]
pub struct Announced {
    nodes: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    /// What was looked at last, valid or not.
    seen: Option<String>,
    valid: Option<Announcement>,
    refused: Option<Problem>,
}

impl Announced {
    /// Takes in what `snapshot` says. A node that is not in it is forgotten: the snapshot already
    /// holds everybody that is not known to be gone.
    pub fn update(&mut self, snapshot: &Snapshot) {
        self.nodes.retain(|name, entry| snapshot.nodes.get(name).is_some_and(|node| node.uid == entry.uid));
        for (name, node) in &snapshot.nodes {
            let entry = self.nodes.entry(name.clone()).or_insert_with(|| Entry {
                uid: node.uid.clone(),
                seen: None,
                valid: None,
                refused: None,
            });
            if entry.seen == node.announcement {
                continue;
            }
            entry.seen.clone_from(&node.announcement);
            let Some(json) = &node.announcement else { continue };
            match Announcement::parse_and_verify(json, name, &node.uid) {
                Ok(announcement) => {
                    entry.valid = Some(announcement);
                    entry.refused = None;
                }
                Err(error) => entry.refused = Some(refusal(name, &error)),
            }
        }
    }

    /// The last valid announcement of `node`.
    pub fn of(&self, node: &str) -> Option<&Announcement> {
        self.nodes.get(node)?.valid.as_ref()
    }

    /// Announcements that were refused and not replaced since.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.nodes.values().filter_map(|entry| entry.refused.as_ref())
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
