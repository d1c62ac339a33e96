//! Peer indices: small numbers for nodes, as the kernel's maps know them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use kubeveil_abi::{MAX_PEERS, PrefixKind};

use crate::{observed::Prefix, ownership::Assignment};

/// Gives each node but `own` an index.
///
/// A node keeps the index under which the map in the kernel already has one of its prefixes, so a
/// restart changes nothing. A new node gets one that no prefix in the map refers to and that is
/// not in `resting` (given back a moment ago: a program may still hold it). Index 0 is never used.
pub fn allocate(
    assignment: &Assignment,
    own: &str,
    in_map: &BTreeMap<IpNet, Prefix>,
    resting: &BTreeSet<u32>,
) -> BTreeMap<String, u32> {
    let mut nodes: BTreeMap<&str, Option<u32>> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for (prefix, (node, _)) in assignment.prefixes.iter().filter(|(_, (node, _))| node != own) {
        let index = nodes.entry(node).or_default();
        let remote = |p: &&Prefix| matches!(p.kind, PrefixKind::RemotePods | PrefixKind::RemoteNode);
        if let (None, Some(found)) = (*index, in_map.get(prefix).filter(remote)) {
            // The first to come keeps it: an index never stands for two nodes.
            if taken.insert(found.peer) {
                *index = Some(found.peer);
            }
        }
    }
    taken.extend(in_map.values().map(|prefix| prefix.peer));
    taken.extend(resting);
    let mut free = (1..u32::try_from(MAX_PEERS).unwrap_or(u32::MAX)).filter(|i| !taken.contains(i));
    nodes
        .into_iter()
        .filter_map(|(node, index)| Some((node.to_owned(), index.or_else(|| free.next())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ownership::{Class, assign},
        snapshot::Knowledge,
        testing::{mesh, net, node, snapshot},
    };

    fn assignment(names: &[(&str, u8)]) -> Assignment {
        let nodes: Vec<_> = names.iter().map(|(name, n)| (*name, node(*n))).collect();
        assign(&Knowledge::Whole(snapshot(&nodes).attest_whole()), &mesh(), &BTreeMap::new())
    }

    fn map_of(assignment: &Assignment, indices: &BTreeMap<String, u32>) -> BTreeMap<IpNet, Prefix> {
        assignment
            .prefixes
            .iter()
            .filter_map(|(p, (node, class))| {
                let kind =
                    if *class == Class::Pods { PrefixKind::RemotePods } else { PrefixKind::RemoteNode };
                Some((*p, Prefix::new(kind, *indices.get(node)?)))
            })
            .collect()
    }

    #[test]
    fn a_restart_changes_nothing_and_a_newcomer_disturbs_nobody() {
        let before = assignment(&[("b", 2), ("me", 1), ("z", 9)]);
        let first = allocate(&before, "me", &BTreeMap::new(), &BTreeSet::new());
        assert_eq!(first, [("b".to_owned(), 1), ("z".to_owned(), 2)].into());
        let map = map_of(&before, &first);
        let after = assignment(&[("a", 3), ("b", 2), ("me", 1), ("z", 9)]);
        let second = allocate(&after, "me", &map, &BTreeSet::new());
        assert_eq!((second["b"], second["z"], second["a"]), (1, 2, 3));
    }

    #[test]
    fn an_index_rests_before_it_is_given_again() {
        let all = assignment(&[("b", 2), ("me", 1)]);
        assert_eq!(allocate(&all, "me", &BTreeMap::new(), &[1].into())["b"], 2);
        // Still referred to by a prefix of somebody who left.
        let left = [(net("10.244.9.0/24"), Prefix::new(PrefixKind::RemotePods, 1))].into();
        assert_eq!(allocate(&all, "me", &left, &BTreeSet::new())["b"], 2);
    }
}
