//! How far the cluster has got from one key generation to the next, by what its nodes say.

use std::collections::{BTreeMap, BTreeSet};

use kubeveil_api::{announcement::NotFlipped, mesh::MeshSpec, problem::few};
use kubeveil_keys::Generation;
use serde::Serialize;

use super::Said;
use crate::announced::Announced;

/// How far one node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It says nothing that can be believed: no agent, or none yet.
    Silent,
    /// It has no key of the generation that is wanted.
    Behind,
    /// It has one, and does not send to all by it.
    Announced,
    /// It sends to all by it, and keeps an older one for those who do not.
    Flipped,
    /// It has no older one any more.
    Done,
}

impl Phase {
    /// All of them, in the order in which a node goes through them.
    pub const ALL: [Self; 5] = [Self::Silent, Self::Behind, Self::Announced, Self::Flipped, Self::Done];

    /// That of a node that says this, or nothing, where `wanted` is.
    pub fn of(said: Option<&Said<'_>>, wanted: Generation) -> Self {
        let Some(said) = said else { return Self::Silent };
        // A node that is ahead has been told of another mesh, or this one was restored to an earlier time: it is not behind it, and
        // whatever goes on is another rotation, which has to be asked for again.
        if said.newest() > wanted {
            return Self::Done;
        }
        if !said.has(wanted) {
            return Self::Behind;
        }
        match (said.generations, said.not_flipped) {
            ([_], _) => Self::Done,
            (_, list) if *list == NotFlipped::nobody() => Self::Flipped,
            _ => Self::Announced,
        }
    }

    /// Its word, in documents and as the value of a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Behind => "behind",
            Self::Announced => "announced",
            Self::Flipped => "flipped",
            Self::Done => "done",
        }
    }
}

/// How far all are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The generation that is wanted.
    pub generation: Generation,
    /// Each node, by name.
    pub nodes: BTreeMap<String, Phase>,
    /// Ways from one node to another by which packets go by the new key, of those between nodes that speak.
    pub flipped: usize,
    /// Those there are.
    pub ways: usize,
    /// Nodes that are not done, each with the reason.
    pub stragglers: BTreeMap<String, String>,
    /// The newest key of those that have none of that generation yet.
    #[serde(skip)]
    pub behind: BTreeMap<String, Generation>,
}

/// Most names in a reason.
const MOST_NAMED: usize = 3;

impl Progress {
    /// Of a cluster of `nodes`, which say so, or nothing.
    pub fn of(wanted: Generation, nodes: &BTreeMap<&str, Option<Said<'_>>>) -> Self {
        let speakers: BTreeMap<&str, Said<'_>> =
            nodes.iter().filter_map(|(name, said)| Some((*name, (*said)?))).collect();
        let mut out = Self {
            generation: wanted,
            nodes: BTreeMap::new(),
            flipped: 0,
            ways: speakers.len() * speakers.len().saturating_sub(1),
            stragglers: BTreeMap::new(),
            behind: BTreeMap::new(),
        };
        let has: BTreeSet<&str> =
            speakers.iter().filter(|(_, said)| said.has(wanted)).map(|(name, _)| *name).collect();
        for (name, said) in nodes {
            let phase = Phase::of(said.as_ref(), wanted);
            out.nodes.insert((*name).to_owned(), phase);
            let Some(said) = said else { continue };
            if phase == Phase::Behind {
                out.behind.insert((*name).to_owned(), said.newest());
            }
            if said.newest() == wanted {
                out.flipped += moved(name, said.not_flipped, &has);
            }
            if let Some(why) = why(name, said, wanted, &speakers) {
                out.stragglers.insert((*name).to_owned(), why);
            }
        }
        out
    }

    /// Of `nodes`, on the way to what `mesh` wants, by what they last announced.
    pub fn towards<'a>(
        mesh: &MeshSpec,
        nodes: impl Iterator<Item = &'a String>,
        announced: &'a Announced,
    ) -> Self {
        Self::announced(Generation::new(mesh.key_generation), nodes, announced)
    }

    /// Of `nodes`, by what they last announced.
    pub fn announced<'a>(
        wanted: Generation,
        nodes: impl Iterator<Item = &'a String>,
        announced: &'a Announced,
    ) -> Self {
        Self::of(wanted, &nodes.map(|node| (node.as_str(), announced.of(node).map(Said::from))).collect())
    }

    /// Every node that speaks has the key that is wanted, and no other, but for nodes that were cut off: see [`Self::waits_for`].
    pub fn is_over(&self, retire_before: u32) -> bool {
        self.waits_for(retire_before).next().is_none() && self.count(Phase::Done) > 0
    }

    /// Nodes that the rotation still waits for, where keys of generations before `retire_before` were given up by force, for this one or for one
    /// before it: who has no newer key is cut off, and waited for no more.
    pub fn waits_for(&self, retire_before: u32) -> impl Iterator<Item = (&String, &String)> {
        let is_cut_off =
            move |node: &String| self.behind.get(node).is_some_and(|newest| newest.number() < retire_before);
        self.stragglers.iter().filter(move |(node, _)| !is_cut_off(node))
    }

    /// Nodes that are so far.
    pub fn count(&self, phase: Phase) -> usize {
        self.nodes.values().filter(|at| **at == phase).count()
    }

    /// Nodes that have come so far, or farther.
    pub fn at_least(&self, phase: Phase) -> usize {
        self.nodes.values().filter(|at| **at >= phase).count()
    }

    /// Nodes that say something.
    pub fn speaking(&self) -> usize {
        self.at_least(Phase::Behind)
    }
}

/// How many of those that have the new key `node` sends to by it: all but itself and those that it lists.
fn moved(node: &str, list: &NotFlipped, has: &BTreeSet<&str>) -> usize {
    match list {
        NotFlipped::Many => 0,
        NotFlipped::Nodes(names) => {
            let listed = names.iter().map(String::as_str).filter(|name| *name != node);
            let left = listed.chain([node]).filter(|name| has.contains(name)).count();
            has.len() - left
        }
    }
}

/// Why a node is not done.
fn why(node: &str, said: &Said<'_>, wanted: Generation, all: &BTreeMap<&str, Said<'_>>) -> Option<String> {
    let newest = said.newest();
    // Of the next one it is enough to ask for that.
    if wanted.next().is_some_and(|next| newest > next) && !said.has(wanted) {
        return Some(format!(
            "has a key of generation {newest} already, by another mesh: delete this one and create it with keyGeneration: {newest}"
        ));
    }
    let others = || all.iter().filter(|(name, _)| **name != node);
    match Phase::of(Some(said), wanted) {
        Phase::Silent | Phase::Done => None,
        Phase::Behind => Some(format!(
            "has no key of generation {wanted}, its newest is of {newest}: is kubeveild running there, and does it see the mesh? \
             `kubeveil status` there tells what keeps it from making one"
        )),
        Phase::Announced => {
            let without: Vec<&str> =
                others().filter(|(_, other)| !other.has(newest)).map(|(name, _)| *name).collect();
            let named: Vec<&str> =
                others().filter(|(name, _)| said.not_flipped.names(name)).map(|(name, _)| *name).collect();
            let unproven: Vec<&str> = named.iter().filter(|name| !without.contains(name)).copied().collect();
            Some(if unproven.is_empty() {
                format!("waits for the key of {}", few(named.iter(), MOST_NAMED))
            } else {
                let port = wanted.port(kubeveil_abi::BASE_PORT).unwrap_or(kubeveil_abi::BASE_PORT);
                format!(
                    "has no handshake with {} on the new key: is UDP {port} open both ways between them?",
                    few(unproven.iter(), MOST_NAMED)
                )
            })
        }
        Phase::Flipped => {
            let old = said.generations.first().map_or(newest, |entry| entry.generation);
            let held: Vec<&str> =
                others().filter(|(_, other)| other.may_send(node, old)).map(|(name, _)| *name).collect();
            Some(if held.is_empty() {
                format!("waits until nothing comes by its key of generation {old} any more")
            } else {
                format!("keeps its key of generation {old} for {}", few(held.iter(), MOST_NAMED))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use kubeveil_api::announcement::{GenerationEntry, GenerationState};
    use kubeveil_keys::PublicKey;

    use super::*;

    /// A node's generations, and whom it has not moved.
    type Says = (&'static str, &'static [u32], &'static [&'static str]);

    fn progress(wanted: u32, nodes: &[Says]) -> Progress {
        let entry = |number: &u32| GenerationEntry {
            generation: Generation::new(*number),
            public_key: PublicKey::from_bytes([1; 32]),
            port: NonZeroU16::MIN,
            state: GenerationState::Active,
        };
        let said: Vec<(&str, Vec<GenerationEntry>, NotFlipped)> = nodes
            .iter()
            .map(|(name, generations, list)| {
                let list = NotFlipped::of(list.iter().map(|name| (*name).to_owned()));
                (*name, generations.iter().map(entry).collect(), list)
            })
            .collect();
        let said = said.iter().map(|(name, generations, not_flipped)| {
            let said = (!generations.is_empty()).then_some(Said { generations, not_flipped });
            (*name, said)
        });
        Progress::of(Generation::new(wanted), &said.collect())
    }

    fn reasons(progress: &Progress) -> Vec<(&str, &str)> {
        progress.stragglers.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect()
    }

    /// etcd was restored to before a rotation that was half done: it is to be asked for again, so nothing goes on.
    #[test]
    fn who_is_ahead_of_the_mesh_is_not_waited_for() {
        let restored = progress(4, &[("a", &[4, 5], &["x"]), ("b", &[5], &[]), ("x", &[4], &[])]);
        assert_eq!(restored.count(Phase::Done), 3);
        assert!(restored.is_over(0));
        let again = progress(5, &[("a", &[4, 5], &["x"]), ("b", &[5], &[]), ("x", &[4], &[])]);
        assert_eq!((again.count(Phase::Done), again.is_over(0)), (1, false));
    }

    #[test]
    fn each_node_is_told_of_with_its_reason() {
        let half = progress(
            1,
            &[
                ("a", &[0, 1], &["b", "c"]),
                ("b", &[0, 1], &["c"]),
                ("c", &[0], &[]),
                ("d", &[0, 1], &[]),
                ("e", &[1], &[]),
                ("f", &[], &[]),
            ],
        );
        assert_eq!(Phase::ALL.map(|phase| half.count(phase)), [1, 1, 2, 1, 1]);
        assert_eq!((half.flipped, half.ways, half.speaking()), (2 + 3 + 3 + 3, 20, 5));
        let [a, b, c, d] = reasons(&half)[..] else { panic!("{:?}", half.stragglers) };
        assert_eq!(
            a,
            ("a", "has no handshake with b on the new key: is UDP 51872 open both ways between them?")
        );
        assert_eq!(b, ("b", "waits for the key of c"));
        assert!(c.1.starts_with("has no key of generation 1, its newest is of 0"), "{}", c.1);
        assert!(c.1.contains("`kubeveil status` there"), "{}", c.1);
        assert_eq!(d, ("d", "keeps its key of generation 0 for c"));
        assert!(!half.is_over(0));
    }

    #[test]
    fn it_is_done_when_no_older_key_is_left() {
        let at = |says: &'static [u32]| progress(1, &[("a", says, &[]), ("b", &[1], &[])]);
        assert!(!at(&[0, 1]).is_over(0));
        assert_eq!(
            reasons(&at(&[0, 1])),
            [("a", "waits until nothing comes by its key of generation 0 any more")]
        );
        assert!(at(&[1]).is_over(0));
        // A mesh that was made anew, of which nobody has heard by its generation.
        assert!(!at(&[5]).is_over(0));
        assert!(reasons(&at(&[5]))[0].1.contains("create it with keyGeneration: 5"));
        assert!(!progress(1, &[("a", &[], &[])]).is_over(0), "nobody says anything");
    }
}
