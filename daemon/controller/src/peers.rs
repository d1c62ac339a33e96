//! The slices of nodes: whose prefixes are whose, on record in a cluster of any size; and in a large one all that agents know of other nodes.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kubeveil_api::{
    announcement::MAX_BYTES,
    mesh::MeshSpec,
    peer_slice::{MANY_NODES, MOST_CLAIMS, MOST_PEERS, PeerSlices, SlicedPeer},
    selector::Labels,
};
use kubeveil_core::{
    ownership::{Owner, Owners, assign},
    snapshot::{Knowledge, NodeFacts, Snapshot},
};

use crate::seen::Seen;

/// Slices as they stand, by number.
pub(crate) type Standing = BTreeMap<u32, Stands>;

/// All slices of nodes that there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slices {
    pub(crate) standing: Standing,
    /// What others are called that somebody made.
    pub(crate) foreign: Vec<String>,
}

/// A slice as it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stands {
    /// Its `metadata.uid` and `metadata.resourceVersion`: what is written takes the place of this, and of nothing that is newer.
    pub(crate) uid: String,
    pub(crate) version: String,
    /// What nodes announce stands in it.
    pub(crate) tells_all: bool,
    /// `None` where it can't be read.
    pub(crate) peers: Option<Vec<SlicedPeer>>,
}

impl Stands {
    /// It says this already.
    pub(crate) fn says(&self, peers: &[SlicedPeer], tells_all: bool) -> bool {
        self.tells_all == tells_all && self.peers.as_deref() == Some(peers)
    }
}

/// Between two writes of one slice, for each node that there is: so an agent is sent a constant number of bytes a second at most, some
/// six hundred for each node, though all nodes announce something else.
pub(crate) const FOR_EACH_NODE: Duration = Duration::from_millis(1);

/// Do agents go by slices, in a cluster of so many nodes, where they do (or don't) so far?
pub(crate) fn tell_all(spec: &MeshSpec, nodes: usize, do_so_far: bool) -> bool {
    match spec.peer_slices.unwrap_or(PeerSlices::Auto) {
        PeerSlices::Always => true,
        PeerSlices::Never => false,
        // Not to and fro, by nodes that come and go.
        PeerSlices::Auto if do_so_far => nodes * 5 >= MANY_NODES * 4,
        PeerSlices::Auto => nodes >= MANY_NODES,
    }
}

/// Nodes that stand in a slice, and that no watch shows any more.
pub(crate) fn vanished<'a>(seen: &Seen, standing: &'a Standing) -> impl Iterator<Item = &'a SlicedPeer> {
    let is_there = |name: &String| seen.nodes.contains_key(name) || seen.excluded.contains_key(name);
    all(standing).filter(move |peer| !is_there(&peer.name))
}

/// What slices should say of each node, by its name; of nodes that no watch shows, those stay that are not `gone`. `mesh` has the ranges that
/// count.
pub(crate) fn peers(
    seen: &Seen,
    standing: &Standing,
    gone: &BTreeSet<String>,
    mesh: &MeshSpec,
    tells_all: bool,
) -> BTreeMap<String, SlicedPeer> {
    let before: BTreeMap<String, Arc<NodeFacts>> =
        all(standing).map(|peer| (peer.name.clone(), Arc::new(peer.clone().into()))).collect();
    let record = record(standing);
    let stay = before.iter().filter(|(name, _)| !gone.contains(*name));
    let mut nodes: BTreeMap<String, Arc<NodeFacts>> =
        stay.map(|(name, facts)| (name.clone(), facts.clone())).collect();
    let now = seen.nodes.iter().chain(&seen.excluded);
    nodes.extend(now.map(|(name, node)| (name.clone(), Arc::new(node.clone()))));
    // As an agent does: what was read of a Node while it was being written is not all that it has.
    let of = |nodes| Snapshot { mesh: Some(mesh.clone()), nodes, ..Snapshot::default() };
    let knowledge = Knowledge::Whole(of(nodes).attest_whole()).or_before(&of(before));
    let assignment = assign(&knowledge, mesh, &record);
    let labels = Labelling::of(mesh);
    let said = |(name, facts): (&String, &Arc<NodeFacts>)| {
        let mut peer = SlicedPeer {
            name: name.clone(),
            uid: facts.uid.clone(),
            // Whoever writes more of them into his own Node has his own slice no larger.
            pod_cidrs: facts.pod_cidrs.iter().take(MOST_CLAIMS).copied().collect(),
            internal_ips: facts.internal_ips.iter().take(MOST_CLAIMS).copied().collect(),
            ..SlicedPeer::default()
        };
        let is_its_own = |claim: &_| assignment.prefixes.get(claim).is_some_and(|(owner, _)| owner == name);
        peer.refused = peer.claims().filter(|claim| !is_its_own(claim)).collect();
        if tells_all {
            // Longer ones count as none that is valid, and so they do when they are cut.
            let cut = |text: &String| text[..text.floor_char_boundary(MAX_BYTES + 4)].to_owned();
            peer.announcement = facts.announcement.as_ref().map(cut);
            peer.labels = labels.told(&facts.labels);
        }
        (name.clone(), peer)
    };
    knowledge.snapshot().nodes.iter().map(said).collect()
}

/// Which labels are told of a node: as many as an announcement is long, since it has one or the other; those first by which nodes are excluded.
struct Labelling<'a>(BTreeSet<&'a str>);

impl<'a> Labelling<'a> {
    fn of(mesh: &'a MeshSpec) -> Self {
        let selector = mesh.excluded_nodes.iter().map(|excluded| &excluded.selector);
        let keys = selector.flat_map(|selector| {
            let asked = selector.match_expressions.iter().map(|requirement| &requirement.key);
            selector.match_labels.keys().chain(asked)
        });
        Self(keys.map(String::as_str).collect())
    }

    fn told(&self, labels: &Labels) -> Labels {
        let (first, then): (Vec<_>, Vec<_>) =
            labels.iter().partition(|(key, _)| self.0.contains(key.as_str()));
        let mut bytes = 0;
        let fitting = first.into_iter().chain(then).take_while(|(key, value)| {
            bytes += key.len() + value.len();
            bytes <= MAX_BYTES
        });
        fitting.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// Is there none of this number that can be read? Who stood in it nobody can say.
pub(crate) fn is_gap(standing: &Standing, number: u32) -> bool {
    standing.get(&number).is_none_or(|slice| slice.peers.is_none())
}

/// Into slices, by their number: a node that stands in one stays there, since each move would be told to all; who comes gets the first free
/// place, but first of all those slices are filled that are missing, of which agents know `before` many: those who come may be who stood there.
pub(crate) fn slices(
    standing: &Standing,
    before: Option<u32>,
    mut peers: BTreeMap<String, SlicedPeer>,
) -> Vec<Vec<SlicedPeer>> {
    // What is beyond was not written by us.
    let most = u32::try_from(peers.len()).unwrap_or(u32::MAX);
    let last = standing.keys().copied().filter(|number| *number < most).max();
    let count = last.map_or(0, |last| last + 1).max(before.unwrap_or(0).min(most));
    let stay = |number| {
        let stands = standing.get(&number).and_then(|slice| slice.peers.as_ref());
        stands.into_iter().flatten().take(MOST_PEERS).filter_map(|peer| peers.remove(&peer.name)).collect()
    };
    let mut slices: Vec<Vec<SlicedPeer>> = (0..count).map(stay).collect();
    let (gaps, others): (Vec<_>, Vec<_>) = (0..count).partition(|number| is_gap(standing, *number));
    let mut free =
        gaps.into_iter().chain(others).filter_map(|number| usize::try_from(number).ok()).peekable();
    for peer in peers.into_values() {
        while free.next_if(|number| slices[*number].len() >= MOST_PEERS).is_some() {}
        match free.peek() {
            Some(number) => slices[*number].push(peer),
            None => match slices.last_mut().filter(|last| last.len() < MOST_PEERS) {
                Some(last) => last.push(peer),
                None => slices.push(vec![peer]),
            },
        }
    }
    slices.iter_mut().for_each(|slice| slice.sort_by(|a, b| a.name.cmp(&b.name)));
    let last = slices.iter().rposition(|slice| !slice.is_empty());
    slices.truncate(last.map_or(0, |last| last + 1));
    slices
}

/// What is to be written now, in this order; slices by their number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Order {
    /// Those that somebody comes into …
    pub(crate) gaining: Vec<u32>,
    /// … and all others; but …
    pub(crate) others: Vec<u32>,
    /// … those that are missing only once every node that is in none stands in its slice: agents wait for these, and who stood in them may be
    /// in another by now.
    pub(crate) gaps: Vec<u32>,
    /// Until what was written a moment ago may be written again.
    pub(crate) again: Option<Duration>,
}

/// The order in which slices become what is `wanted`, as of `now`, where agents know of `before` many and each was `written` then.
pub(crate) fn order(
    wanted: &[Vec<SlicedPeer>],
    standing: &Standing,
    (tells_all, before): (bool, Option<u32>),
    written: &BTreeMap<u32, Instant>,
    (pace, now): (Duration, Instant),
) -> Order {
    let stand: BTreeSet<&str> = all(standing).map(|peer| peer.name.as_str()).collect();
    let mut order = Order::default();
    let mut waits_for_another = false;
    for (number, peers) in (0..).zip(wanted) {
        if standing.get(&number).is_some_and(|slice| slice.says(peers, tells_all)) {
            continue;
        }
        let is_missed = is_gap(standing, number) && before.is_some_and(|before| number < before);
        let gains = !is_missed && peers.iter().any(|peer| !stand.contains(peer.name.as_str()));
        let due = written.get(&number).map_or(now, |last| *last + pace);
        if due > now {
            order.again = order.again.into_iter().chain([due - now]).min();
            waits_for_another |= gains;
        } else if is_missed {
            order.gaps.push(number);
        } else if gains {
            order.gaining.push(number);
        } else {
            order.others.push(number);
        }
    }
    if waits_for_another {
        order.gaps.clear();
    }
    order
}

/// Of how many slices the agents are told that they can go by them, where `before` many they were told of: not before each node stands in one
/// that tells all, as it is, and no more than there are.
pub(crate) fn count(wanted: &[Vec<SlicedPeer>], standing: &Standing, before: Option<u32>) -> Option<u32> {
    let telling = standing.values().filter(|slice| slice.tells_all).filter_map(|slice| slice.peers.as_ref());
    let told: BTreeMap<&str, &SlicedPeer> =
        telling.flatten().map(|peer| (peer.name.as_str(), peer)).collect();
    let is_told = |peer: &SlicedPeer| {
        let told = told.get(peer.name.as_str()).filter(|told| told.uid == peer.uid);
        told.is_some_and(|told| match (&told.announcement, &peer.announcement) {
            (None, None) => told.labels == peer.labels,
            (one, other) => one.is_some() == other.is_some(),
        })
    };
    if before.is_none() && !wanted.iter().flatten().all(is_told) {
        return None;
    }
    let most = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let count = (0..most).take_while(|number| !is_gap(standing, *number)).count();
    // One that somebody took away comes back, and until then the agents are to miss it.
    u32::try_from(count).ok().map(|count| count.max(before.unwrap_or(0).min(most))).filter(|count| *count > 0)
}

fn all(standing: &Standing) -> impl Iterator<Item = &SlicedPeer> {
    standing.values().filter_map(|slice| slice.peers.as_ref()).flatten()
}

/// Owners by what stands.
fn record(standing: &Standing) -> Owners {
    let mut owners = Owners::new();
    for peer in all(standing) {
        let owner = Arc::new(Owner { name: peer.name.clone(), uid: peer.uid.clone() });
        owners.extend(
            peer.claims().filter(|claim| !peer.refused.contains(claim)).map(|claim| (claim, owner.clone())),
        );
    }
    owners
}
