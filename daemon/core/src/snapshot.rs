//! What is known of the cluster at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use kubeveil_api::{
    mesh::{ExcludedTraffic, InForce, MeshSpec, Ranges},
    peer_slice::SlicedPeer,
    selector::Labels,
};
use serde::{Deserialize, Serialize};

use crate::{
    ownership::Owner,
    policy::{
        FlowMode, Policies,
        pods::{Concerned, OfPods, Workloads},
    },
};

/// A node, as far as Kubernetes and the node itself speak of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct NodeFacts {
    /// UID of the Node object.
    pub uid: String,
    /// Prefixes of its pods, from `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses of type `InternalIP`.
    pub internal_ips: Vec<IpAddr>,
    /// What it says of itself, not verified yet.
    pub announcement: Option<String>,
    /// Its labels. An agent's source has to tell those of this very node, and of nodes that announce nothing.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl NodeFacts {
    /// What becomes of traffic with it, if it is one that can have no agent in this mesh.
    pub fn excluded_by(&self, mesh: &MeshSpec) -> Option<ExcludedTraffic> {
        mesh.excludes(&self.labels, self.announcement.as_deref())
    }
}

impl From<SlicedPeer> for NodeFacts {
    fn from(peer: SlicedPeer) -> Self {
        Self {
            uid: peer.uid,
            pod_cidrs: peer.pod_cidrs.iter().map(IpNet::trunc).collect(),
            internal_ips: peer.internal_ips,
            announcement: peer.announcement,
            labels: peer.labels,
        }
    }
}

/// The mesh and the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Snapshot {
    /// `EncryptionMesh/default`; the last one that was seen, if it was deleted since.
    pub mesh: Option<MeshSpec>,
    /// Those of its ranges that people gave none of.
    #[serde(default)]
    pub found: Ranges,
    /// Pods of this node whose addresses are in none of its node's prefixes, in words: what Kubernetes says of the node is not
    /// what its pods have. Not kept: it is so only as long as somebody sees it.
    #[serde(skip)]
    pub strangers: BTreeSet<String>,
    /// Prefixes that the controller's record says are not those of nodes that claim them, whoever's they are. Not kept: what this node
    /// has on record itself is.
    #[serde(skip)]
    pub refused: Arc<BTreeSet<(IpNet, Owner)>>,
    /// What must be encrypted. Kept: who began anew while nobody answers holds all pods to the strictest of it.
    #[serde(default, skip_serializing_if = "Policies::is_empty")]
    pub policies: Policies,
    /// Namespaces that are being deleted. Not kept.
    #[serde(skip)]
    pub ending: BTreeSet<String>,
    /// Who pods are. Not kept: who has an address now only a source that answers can say.
    #[serde(skip)]
    pub workloads: Arc<Workloads>,
    /// Nodes by name. What was known before and what is known now share what did not change.
    pub nodes: BTreeMap<String, Arc<NodeFacts>>,
}

/// A snapshot that is known to be whole: what it lacks does not exist. Nothing is removed without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced(Snapshot);

/// A snapshot, and whether absence from it means anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// From disk, or from a source that has not told all yet.
    Partial(Snapshot),
    /// From a source in sync.
    Whole(Synced),
}

impl Snapshot {
    /// To be called by a source that has read everything there is, without an error, and by nobody else.
    pub fn attest_whole(self) -> Synced {
        Synced(self)
    }

    /// A Node's prefixes don't change while it lives, and a Node has addresses: one that has fewer
    /// prefixes than before, or no address at all, was read while it was being written.
    fn keep_prefixes(&mut self, before: &Self) {
        for (name, now) in &mut self.nodes {
            let Some(was) = before.nodes.get(name).filter(|was| was.uid == now.uid) else { continue };
            let lost: Vec<IpNet> =
                was.pod_cidrs.iter().filter(|p| !now.pod_cidrs.contains(p)).copied().collect();
            if !lost.is_empty() {
                Arc::make_mut(now).pod_cidrs.extend(lost);
            }
            if now.internal_ips.is_empty() && !was.internal_ips.is_empty() {
                Arc::make_mut(now).internal_ips.clone_from(&was.internal_ips);
            }
            // What is the same is kept once.
            if was == now {
                now.clone_from(was);
            }
        }
    }

    /// The mesh as a source has it.
    pub fn set_mesh(&mut self, mesh: Option<InForce>) {
        let (mesh, found) = mesh.map(|mesh| (mesh.spec, mesh.found)).unzip();
        (self.mesh, self.found) = (mesh, found.unwrap_or_default());
    }

    /// A mesh that is no more stands; a key that was revoked once stays so, whatever becomes of the list; and ranges that nobody gave
    /// only ever grow, since what lies outside of them is no pod's and travels in plain: who may write what was found can't switch
    /// encryption off by it.
    fn keep_mesh(&mut self, before: &Self) {
        let Some(mesh) = &mut self.mesh else {
            (self.mesh, self.found) = (before.mesh.clone(), before.found.clone());
            return;
        };
        let before_keys = before.mesh.iter().flat_map(|mesh| &mesh.revoked_keys);
        let forgotten: Vec<_> = before_keys.filter(|key| !mesh.revoked_keys.contains(key)).copied().collect();
        mesh.revoked_keys.extend(forgotten);
        for (in_force, found, was) in [
            (&mut mesh.pod_cidrs, &mut self.found.pod_cidrs, &before.found.pod_cidrs),
            (&mut mesh.node_cidrs, &mut self.found.node_cidrs, &before.found.node_cidrs),
        ] {
            if !found.is_empty() {
                found.extend(
                    was.iter()
                        .filter(|range| !found.iter().any(|now| now.contains(*range)))
                        .copied()
                        .collect::<Vec<_>>(),
                );
                in_force.clone_from(found);
            }
        }
    }

    /// What becomes of traffic with a node that can have no agent, if it is one of those.
    pub fn excludes(&self, node: &str) -> Option<ExcludedTraffic> {
        let mesh = self.mesh.as_ref().filter(|mesh| mesh.excluded_nodes.is_some())?;
        self.nodes.get(node)?.excluded_by(mesh)
    }

    /// What happens to a flow of which no policy asks for anything; `None` as long as no mesh is known.
    pub fn mode(&self) -> Option<FlowMode> {
        self.mesh.as_ref().map(|mesh| self.policies.base(mesh.mode))
    }

    /// Forgets the pods of `node` of which all that is told is of before `boot`, when the node was started last; returns their addresses.
    pub fn forget_earlier_pods(&mut self, node: &str, boot: Timestamp) -> BTreeSet<IpAddr> {
        let Some((workloads, forgotten)) = self.workloads.without_earlier(node, boot) else {
            return BTreeSet::new();
        };
        self.workloads = Arc::new(workloads);
        forgotten
    }

    /// A node's facts, to be changed.
    pub fn node_mut(&mut self, name: &str) -> Option<&mut NodeFacts> {
        self.nodes.get_mut(name).map(Arc::make_mut)
    }
}

impl Default for Knowledge {
    fn default() -> Self {
        Self::Partial(Snapshot::default())
    }
}

/// What a source has told since the daemon began. All else that is known was kept on disk, and may be older than what the kernel holds:
/// a disk may refuse what the kernel takes, and a daemon end in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The mesh was told of.
    pub mesh: bool,
    /// All that there is was, once.
    pub all: bool,
    /// An earlier daemon had kept a mesh: this node is none that has just joined.
    pub kept: bool,
    /// The daemon has begun a moment ago: what was not told of yet may come.
    pub is_early: bool,
}

impl Told {
    /// A source tells of it.
    pub fn hear(&mut self, told: &Knowledge) {
        self.mesh |= told.snapshot().mesh.is_some();
        self.all |= told.synced().is_some();
    }
}

impl Knowledge {
    /// What is known.
    pub fn snapshot(&self) -> &Snapshot {
        match self {
            Self::Partial(snapshot) | Self::Whole(Synced(snapshot)) => snapshot,
        }
    }

    /// Forgets the pods of `node` of which all that is told is of before `boot` ([`Snapshot::forget_earlier_pods`]).
    pub fn forget_earlier_pods(&mut self, node: &str, boot: Timestamp) -> BTreeSet<IpAddr> {
        let (Self::Partial(snapshot) | Self::Whole(Synced(snapshot))) = self;
        snapshot.forget_earlier_pods(node, boot)
    }

    /// `node` announces something else now; `None` if there is no such node.
    pub fn hear(&mut self, node: &str, announcement: Option<String>) -> Option<&Arc<NodeFacts>> {
        let (Self::Partial(snapshot) | Self::Whole(Synced(snapshot))) = self;
        let facts = snapshot.nodes.get_mut(node)?;
        Arc::make_mut(facts).announcement = announcement;
        Some(facts)
    }

    /// That is said of pods now; returns whom it concerns ([`Workloads::hear`]).
    pub fn hear_of_pods(&mut self, said: OfPods) -> Option<Concerned> {
        let (Self::Partial(snapshot) | Self::Whole(Synced(snapshot))) = self;
        Arc::make_mut(&mut snapshot.workloads).hear(said)
    }

    /// The proof that absence means removal.
    pub fn synced(&self) -> Option<&Synced> {
        match self {
            Self::Partial(_) => None,
            Self::Whole(synced) => Some(synced),
        }
    }

    /// A cluster in which this very node does not exist can't be all of it: a source that answers with
    /// nothing after a failure, a folder that was emptied, the wrong cluster. Absence from it means nothing.
    pub fn as_seen_by(self, own: &str) -> Self {
        match self {
            Self::Whole(Synced(snapshot)) if !snapshot.nodes.contains_key(own) => Self::Partial(snapshot),
            other => other,
        }
    }

    /// What was known before stands until it is known to be gone: the union of a partial snapshot
    /// with `before`; a whole one replaces it, but for a mesh object that was deleted: the
    /// last spec stands, and where there is none nothing is whole; and for policies of a namespace that is about to end.
    pub fn or_before(self, before: &Snapshot) -> Self {
        match self {
            Self::Whole(Synced(mut now)) => {
                now.keep_mesh(before);
                now.keep_prefixes(before);
                now.policies.or_of(&before.policies, &now.ending);
                // Without a mesh, now or before, nobody knows what a pod is: no reason to take away what an
                // earlier daemon knew.
                if now.mesh.is_none() { Self::Partial(now) } else { Self::Whole(Synced(now)) }
            }
            Self::Partial(mut now) => {
                now.keep_mesh(before);
                now.keep_prefixes(before);
                now.strangers.extend(before.strangers.iter().cloned());
                if now.refused.is_empty() {
                    now.refused.clone_from(&before.refused);
                }
                now.policies.or_before(&before.policies);
                for (name, facts) in &before.nodes {
                    now.nodes.entry(name.clone()).or_insert_with(|| facts.clone());
                }
                Self::Partial(now)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kubeveil_api::{policy::PolicyMode, selector::LabelSelector};
    use kubeveil_keys::PublicKey;

    use super::*;
    use crate::policy::{Namespaces, Policy, PolicyId};

    fn nodes(names: &[&str]) -> Snapshot {
        Snapshot {
            mesh: Some(crate::testing::mesh()),
            nodes: names.iter().map(|n| ((*n).to_owned(), Arc::default())).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_partial_snapshot_forgets_nobody() {
        let now = Knowledge::Partial(nodes(&["c"])).or_before(&nodes(&["a", "b"]));
        assert_eq!(now.snapshot().nodes.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(now.synced().is_none());
    }

    /// Over a restart too: who began anew is held to what was asked for, and what he is told himself counts.
    #[test]
    fn policies_of_before_stand_until_all_is_told() {
        let with = |policies: &[(&str, PolicyMode)]| {
            let policy = |(name, mode): &(&str, PolicyMode)| {
                let namespaces = Namespaces::Labelled(LabelSelector::default());
                let id = PolicyId { namespace: None, name: (*name).to_owned() };
                (
                    id,
                    Policy {
                        namespaces,
                        pods: LabelSelector::default(),
                        mode: *mode,
                        until: None,
                        max_key_age: None,
                    },
                )
            };
            Snapshot { policies: Policies::new(policies.iter().map(policy).collect()), ..nodes(&["me"]) }
        };
        let told = |snapshot: &Snapshot| -> Vec<(String, PolicyMode)> {
            snapshot.policies.iter().map(|(id, policy)| (id.name.clone(), policy.mode)).collect()
        };
        let of = |name: &str, mode| (name.to_owned(), mode);
        use PolicyMode::{Exempt, Prefer, Require};
        let before = with(&[("kept", Require), ("changed", Exempt)]);
        let json = serde_json::to_string(&before).expect("JSON");
        let kept: Snapshot = serde_json::from_str(&json).expect("a snapshot");
        assert_eq!(kept, before);
        let now = with(&[("changed", Require), ("new", Prefer)]);
        let partial = Knowledge::Partial(now.clone()).or_before(&kept);
        assert_eq!(
            told(partial.snapshot()),
            [of("changed", Require), of("kept", Require), of("new", Prefer)]
        );
        assert!(told(Knowledge::Partial(nodes(&["me"])).or_before(&kept).snapshot()) == told(&kept));
        let whole = Knowledge::Whole(now.clone().attest_whole()).or_before(&kept);
        assert_eq!(told(whole.snapshot()), told(&now));
        let none = Knowledge::Whole(nodes(&["me"]).attest_whole()).or_before(&kept);
        assert_eq!(told(none.snapshot()), []);
    }

    /// Of a namespace that is deleted policies go before pods do; they stand until it is gone, over restarts too, and no other does.
    #[test]
    fn policies_of_a_namespace_that_ends_stand_until_it_is_gone() {
        let with = |ids: &[(Option<&str>, &str)], ending: &[&str]| {
            let policy = |(namespace, name): &(Option<&str>, &str)| {
                let namespaces = Namespaces::Labelled(LabelSelector::default());
                let (pods, mode) = (LabelSelector::default(), PolicyMode::Require);
                let id = PolicyId { namespace: namespace.map(str::to_owned), name: (*name).to_owned() };
                (id, Policy { namespaces, pods, mode, until: None, max_key_age: None })
            };
            let ending = ending.iter().map(|name| (*name).to_owned()).collect();
            let policies = Policies::new(ids.iter().map(policy).collect());
            Snapshot { policies, ending, ..nodes(&["me"]) }
        };
        let names = |now: Knowledge| -> Vec<String> {
            now.snapshot().policies.iter().map(|(id, _)| id.name.clone()).collect()
        };
        let whole = |now: Snapshot| Knowledge::Whole(now.attest_whole());
        let before = with(&[(Some("payments"), "mine"), (Some("shop"), "other"), (None, "all")], &[]);
        let json = serde_json::to_string(&before).expect("JSON");
        let before: Snapshot = serde_json::from_str(&json).expect("a snapshot");
        let ends = whole(with(&[], &["payments", "elsewhere"])).or_before(&before);
        assert!(ends.synced().is_some());
        let still = whole(with(&[], &["payments"])).or_before(ends.snapshot());
        assert_eq!([names(ends), names(still.clone())], [["mine"], ["mine"]]);
        assert_eq!(names(whole(with(&[], &[])).or_before(still.snapshot())), [] as [&str; 0]);
    }

    #[test]
    fn half_a_node_keeps_what_it_had() {
        let with = |cidrs: &[&str], ips: &[&str]| {
            let facts = NodeFacts {
                uid: "u".to_owned(),
                pod_cidrs: cidrs.iter().map(|c| c.parse().expect("net")).collect(),
                internal_ips: ips.iter().map(|a| a.parse().expect("ip")).collect(),
                ..NodeFacts::default()
            };
            let nodes = [("a".to_owned(), Arc::new(facts))].into();
            Snapshot { mesh: Some(crate::testing::mesh()), nodes, ..Snapshot::default() }
        };
        let before = with(&["10.0.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]);
        for half in [with(&[], &[]), with(&["10.0.1.0/24"], &[])] {
            let now = Knowledge::Whole(half.attest_whole()).or_before(&before);
            assert_eq!(now.snapshot(), &before);
        }
        // An address may change; another Node of the name has nothing to do with this one.
        let moved = with(&["10.0.1.0/24", "fd00:1::/64"], &["192.0.2.7"]);
        assert_eq!(Knowledge::Whole(moved.clone().attest_whole()).or_before(&before).snapshot(), &moved);
        let mut other = with(&[], &[]);
        other.node_mut("a").expect("node").uid = "v".to_owned();
        assert_eq!(Knowledge::Whole(other.clone().attest_whole()).or_before(&before).snapshot(), &other);
    }

    #[test]
    fn a_cluster_without_this_node_is_not_whole() {
        let whole = |names: &[&str]| Knowledge::Whole(nodes(names).attest_whole());
        assert!(whole(&["a", "me"]).as_seen_by("me").synced().is_some());
        assert!(whole(&["a"]).as_seen_by("me").synced().is_none());
        assert!(whole(&[]).as_seen_by("me").synced().is_none());
    }

    /// Ranges that the controller found grow, and never shrink; those that people gave are as they say.
    #[test]
    fn ranges_that_were_found_only_grow() {
        let net = |text: &str| -> IpNet { text.parse().expect("net") };
        let found = |pods: &[&str]| {
            let ranges = Ranges {
                pod_cidrs: pods.iter().map(|range| net(range)).collect(),
                node_cidrs: vec![net("192.168.0.0/16")],
                ..Ranges::default()
            };
            let mut snapshot = nodes(&["me"]);
            let spec = MeshSpec {
                pod_cidrs: ranges.pod_cidrs.clone(),
                node_cidrs: ranges.node_cidrs.clone(),
                ..crate::testing::mesh()
            };
            snapshot.set_mesh(Some(InForce { spec, found: ranges, peer_slices: None }));
            snapshot
        };
        let after = |now: Snapshot, before: &Snapshot| {
            let both = [Knowledge::Whole(now.clone().attest_whole()), Knowledge::Partial(now)];
            let [whole, partial] = both.map(|now| now.or_before(before).snapshot().clone());
            assert_eq!(whole, partial);
            whole
        };
        let first = found(&["10.0.0.0/16", "10.1.0.0/16"]);
        let less = after(found(&["10.0.0.0/16"]), &first);
        assert_eq!(less, first);
        let more = after(found(&["10.0.0.0/8"]), &less);
        assert_eq!(more.mesh.as_ref().expect("mesh").pod_cidrs, [net("10.0.0.0/8")]);
        let given = after(nodes(&["me"]), &more);
        assert_eq!(given.mesh, Some(crate::testing::mesh()));
        assert_eq!(given.found, Ranges::default());
    }

    /// Whoever empties the list brings no stolen key back.
    #[test]
    fn a_revoked_key_stays_revoked() {
        let revoked = |keys: &[u8]| {
            let mut snapshot = nodes(&["me"]);
            let keys = keys.iter().map(|byte| PublicKey::from_bytes([*byte; 32])).collect();
            snapshot.mesh.as_mut().expect("a mesh").revoked_keys = keys;
            snapshot
        };
        let before = revoked(&[1, 2]);
        let now = [Knowledge::Whole(revoked(&[2, 3]).attest_whole()), Knowledge::Partial(revoked(&[2, 3]))];
        for now in now.map(|now| now.or_before(&before).snapshot().clone()) {
            assert_eq!(now, revoked(&[2, 3, 1]));
        }
    }

    #[test]
    fn without_a_mesh_nothing_is_whole() {
        let bare = |names: &[&str]| Snapshot { mesh: None, ..nodes(names) };
        let now = Knowledge::Whole(bare(&["me"]).attest_whole()).or_before(&Snapshot::default());
        assert!(now.synced().is_none());
        // The last one stands.
        let now = Knowledge::Whole(bare(&["me"]).attest_whole()).or_before(&nodes(&["me"]));
        assert!(now.synced().is_some());
    }

    #[test]
    fn a_whole_snapshot_does() {
        let now = Knowledge::Whole(nodes(&["c"]).attest_whole()).or_before(&nodes(&["a", "b"]));
        assert_eq!(now.snapshot().nodes.keys().collect::<Vec<_>>(), ["c"]);
        assert!(now.synced().is_some());
    }
}
