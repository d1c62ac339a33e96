//! Whose prefix is it.
//!
//! Prefixes come from what Kubernetes says of a node, never from its announcement, and only inside
//! the mesh's ranges. Where two nodes claim overlapping prefixes, the one on record keeps its own;
//! where none is on record nobody gets it (ARCHITECTURE.md, invariant 8).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use kubeveil_api::mesh::MeshSpec;
use serde::{Deserialize, Serialize};

use crate::{
    problem::{Problem, ProblemKind},
    snapshot::Knowledge,
};

/// What a prefix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Pods.
    Pods,
    /// The node itself.
    Node,
}

/// The node that a prefix was first seen with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Owner {
    /// Name of the Node.
    pub name: String,
    /// UID of the Node.
    pub uid: String,
}

/// Recorded owners, by prefix. Kept on disk. One of several prefixes is held once: thousands of nodes have four each, and the record is
/// copied.
pub type Owners = BTreeMap<IpNet, Arc<Owner>>;

/// The outcome of [`assign`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Prefixes by the name of their node.
    pub prefixes: BTreeMap<IpNet, (String, Class)>,
    /// The record from now on.
    pub owners: Owners,
    /// Claims that were refused.
    pub problems: Vec<Problem>,
    /// Nodes' addresses that nobody gets: those that several claim, and those in the range of pods, where no pod can have them. What the host
    /// sends there is left alone. (Contested pods' prefixes lie in the mesh's ranges anyway, and are closed by those.)
    pub contested: BTreeSet<IpNet>,
    by_node: BTreeMap<String, Vec<(IpNet, Class)>>,
}

impl Assignment {
    /// What `node` owns.
    pub fn of(&self, node: &str) -> &[(IpNet, Class)] {
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// The nodes that own anything, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &[(IpNet, Class)])> {
        self.by_node.iter().map(|(name, owned)| (name.as_str(), owned.as_slice()))
    }
}

/// Prefixes that one node can have. Kubernetes gives one a family; without a bound one Node could fill the
/// kernel's map, and what comes after it would not be there.
const MOST: usize = 16;

/// Why a claim is refused that others make too.
const OFF_THE_RECORD: &str = "and by the controller's record (VeilPeerSlice) it is not this node's";

struct Claim<'a> {
    prefix: IpNet,
    class: Class,
    node: &'a str,
    uid: &'a str,
    field: Field,
}

/// Where a claim stands in its Node; a word only where somebody has to be told.
#[derive(Clone, Copy)]
enum Field {
    Pods(usize),
    Address,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(index) => write!(f, "spec.podCIDRs[{index}]"),
            Self::Address => f.write_str("status.addresses[InternalIP]"),
        }
    }
}

impl Claim<'_> {
    /// Name and UID: a UID alone can be read by anybody and written into another Node's manifest.
    fn is_of(&self, owner: &Owner) -> bool {
        owner.name == self.node && owner.uid == self.uid
    }
}

/// Decides over all claims of `knowledge`. `recorded` is what an earlier call returned in `owners`.
pub fn assign(knowledge: &Knowledge, mesh: &MeshSpec, recorded: &Owners) -> Assignment {
    let mut problems = Vec::new();
    let (mut claims, mut misplaced) = admissible(knowledge, mesh, recorded, &mut problems);
    claims.sort_by(|a, b| a.prefix.cmp(&b.prefix).then(a.node.cmp(b.node)));
    // Another's, or nobody's, by the controller's record. What is on this node's own is not, whoever may write that.
    let is_refused = |claim: &Claim<'_>| {
        let owner = || Owner { name: claim.node.to_owned(), uid: claim.uid.to_owned() };
        let refused = &knowledge.snapshot().refused;
        !refused.is_empty() && refused.contains(&(claim.prefix, owner()))
    };

    // A record ends when its owner is known not to claim it any more.
    let mut recorded = recorded.clone();
    if knowledge.synced().is_some() {
        let held: BTreeSet<_> = claims.iter().map(|c| (c.prefix, c.node, c.uid)).collect();
        recorded.retain(|prefix, owner| held.contains(&(*prefix, owner.name.as_str(), owner.uid.as_str())));
    }
    let mut claimed: BTreeMap<IpNet, Vec<&Claim<'_>>> = BTreeMap::new();
    for claim in &claims {
        claimed.entry(claim.prefix).or_default().push(claim);
    }

    let (recorded_lengths, claimed_lengths) = (lengths(&recorded), lengths(&claimed));
    let mut owners = recorded.clone();
    let mut prefixes = BTreeMap::new();
    // Nor is any host kept from an API server that lies there.
    let ranges = &mesh.pod_cidrs;
    let servers = servers(knowledge).copied();
    misplaced.extend(servers.filter(|server| ranges.iter().any(|range| range.contains(server))));
    let is_pods = |address: &IpNet| overlapping(&claimed, &claimed_lengths, *address).next().is_some();
    let mut contested: BTreeSet<_> = misplaced.into_iter().filter(|address| !is_pods(address)).collect();
    let mut once: BTreeMap<(&str, &str), Arc<Owner>> = BTreeMap::new();
    for claim in &claims {
        let on_record = recorded.get(&claim.prefix).is_some_and(|owner| claim.is_of(owner));
        if !on_record {
            if let Some(owner) =
                overlapping(&recorded, &recorded_lengths, claim.prefix).find(|owner| !claim.is_of(owner))
            {
                problems.push(refused(claim, &owner.name, "which had it first"));
                continue;
            }
            // What nobody else claims is not in question, and who is refused is nobody's rival.
            let is_out = is_refused(claim);
            let mut rivals = overlapping(&claimed, &claimed_lengths, claim.prefix).flatten();
            if let Some(rival) = rivals.find(|c| c.node != claim.node && (is_out || !is_refused(c))) {
                if claim.class == Class::Node {
                    contested.insert(claim.prefix);
                }
                let why =
                    if is_out { OFF_THE_RECORD } else { "and no owner is on record, so neither gets it" };
                problems.push(refused(claim, rival.node, why));
                continue;
            }
        }
        // What is known in part could record a thief, whose rival is only not read yet.
        if knowledge.synced().is_some() {
            let owner = || Owner { name: claim.node.to_owned(), uid: claim.uid.to_owned() }.into();
            owners.insert(claim.prefix, once.entry((claim.node, claim.uid)).or_insert_with(owner).clone());
        }
        prefixes.insert(claim.prefix, (claim.node.to_owned(), claim.class));
    }
    contested.retain(|prefix| !prefixes.contains_key(prefix));
    let mut by_node: BTreeMap<String, Vec<(IpNet, Class)>> = BTreeMap::new();
    for (prefix, (node, class)) in &prefixes {
        by_node.entry(node.clone()).or_default().push((*prefix, *class));
    }
    Assignment { prefixes, owners, problems, contested, by_node }
}

/// Prefix lengths that occur, by family.
type Lengths = BTreeSet<(bool, u8)>;

fn lengths<V>(map: &BTreeMap<IpNet, V>) -> Lengths {
    map.keys().map(|prefix| (prefix.addr().is_ipv6(), prefix.prefix_len())).collect()
}

/// The entries of `map` whose prefix overlaps `prefix`. Prefixes nest or are apart, so these are its
/// supernets, itself, and what begins inside of it. Of its supernets only those are looked for whose length occurs:
/// thousands of nodes have a handful of lengths, and an address of IPv6 has 128 supernets.
fn overlapping<'a, V>(
    map: &'a BTreeMap<IpNet, V>,
    lengths: &Lengths,
    prefix: IpNet,
) -> impl Iterator<Item = &'a V> {
    let is_v6 = prefix.addr().is_ipv6();
    let shorter = lengths.range((is_v6, 0)..(is_v6, prefix.prefix_len())).rev();
    let supernets =
        shorter.filter_map(move |(_, length)| Some(IpNet::new(prefix.addr(), *length).ok()?.trunc()));
    let inside = map.range(prefix..).take_while(move |(p, _)| prefix.contains(*p));
    supernets.filter_map(|p| map.get(&p)).chain(inside.map(|(_, v)| v))
}

fn refused(claim: &Claim<'_>, other: &str, why: &str) -> Problem {
    Problem {
        kind: ProblemKind::Prefix,
        object: format!("Node {}", claim.node),
        field: claim.field.to_string(),
        message: format!("{} is also claimed by node {other}, {why}", claim.prefix),
        advice: "Give each node its own prefix; if the other one is gone, delete its Node object".to_owned(),
    }
}

/// The claims that lie where they may; the others become problems. And the nodes' addresses among those that lie in the range of pods.
fn admissible<'a>(
    knowledge: &'a Knowledge,
    mesh: &MeshSpec,
    recorded: &Owners,
    problems: &mut Vec<Problem>,
) -> (Vec<Claim<'a>>, Vec<IpNet>) {
    let (mut claims, mut misplaced) = (Vec::new(), Vec::new());
    for (name, node) in &knowledge.snapshot().nodes {
        if node.pod_cidrs.len() + node.internal_ips.len() > MOST {
            problems.push(Problem {
                kind: ProblemKind::Prefix,
                object: format!("Node {name}"),
                field: "spec.podCIDRs".to_owned(),
                message: format!("it has more than {MOST} prefixes and addresses, so it gets none"),
                advice: "Give it one podCIDR and one InternalIP a family".to_owned(),
            });
            continue;
        }
        let pods = node.pod_cidrs.iter().enumerate().map(|(i, p)| (p.trunc(), Class::Pods, Field::Pods(i)));
        let addresses = node.internal_ips.iter().map(|a| (IpNet::from(*a), Class::Node, Field::Address));
        for (prefix, class, field) in pods.chain(addresses) {
            let claim = Claim { prefix, class, node: name, uid: &node.uid, field };
            // Whose it was before is not to be cut off by who may write of API servers.
            let is_new = || !recorded.get(&prefix).is_some_and(|owner| claim.is_of(owner));
            let is_server = class == Class::Node && servers(knowledge).any(|server| *server == prefix);
            match refusal(prefix, class, mesh).or((is_server && is_new()).then_some(SERVER)) {
                None => claims.push(claim),
                Some((message, advice)) => {
                    if class == Class::Node && mesh.pod_cidrs.iter().any(|range| range.contains(&prefix)) {
                        misplaced.push(prefix);
                    }
                    problems.push(Problem {
                        kind: ProblemKind::Prefix,
                        object: format!("Node {name}"),
                        field: field.to_string(),
                        message: format!("{prefix} {message}"),
                        advice: advice.to_owned(),
                    });
                }
            }
        }
    }
    (claims, misplaced)
}

/// Why `prefix` can't be what it claims to be, and what to do.
fn refusal(prefix: IpNet, class: Class, mesh: &MeshSpec) -> Option<(&'static str, &'static str)> {
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&prefix));
    if !is_ordinary(prefix.addr()) || prefix.prefix_len() == 0 {
        return Some(("is not an address range that pods or nodes can have", "Correct it on the Node"));
    }
    match class {
        Class::Pods if !within(&mesh.pod_cidrs) => Some((
            "lies outside the mesh's podCIDRs",
            "Add its range to spec.podCIDRs of EncryptionMesh default, if it is right",
        )),
        Class::Node if !within(&mesh.node_cidrs) => Some((
            "lies outside the mesh's nodeCIDRs",
            "Add its range to spec.nodeCIDRs of EncryptionMesh default, if it is right",
        )),
        Class::Node if within(&mesh.pod_cidrs) => Some((
            "lies inside the mesh's podCIDRs, so it can't be a node's",
            "Correct the mesh's ranges or the node's address",
        )),
        _ => None,
    }
}

/// API servers that are no node's: single addresses.
fn servers(knowledge: &Knowledge) -> impl Iterator<Item = &IpNet> {
    let found = &knowledge.snapshot().found.api_servers;
    found.iter().filter(|server| server.prefix_len() == server.max_prefix_len())
}

/// Of an address that is on record as an API server's: whoever speaks to it, speaks to that.
const SERVER: (&str, &str) = (
    "is an API server's address that was no node's (status.ranges.apiServers of EncryptionMesh default), so it gets none of that traffic",
    "If the node is of the control plane, give its Node the label node-role.kubernetes.io/control-plane",
);

/// Neither unspecified, loopback, link-local nor multicast.
fn is_ordinary(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_broadcast())
        }
        IpAddr::V6(a) => {
            !(a.is_unspecified() || a.is_loopback() || a.is_unicast_link_local() || a.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        snapshot::Snapshot,
        testing::{mesh, net, node, snapshot},
    };

    fn whole(nodes: &[(&str, crate::snapshot::NodeFacts)]) -> Knowledge {
        Knowledge::Whole(snapshot(nodes).attest_whole())
    }

    fn owner(a: &Assignment, prefix: &str) -> Option<String> {
        a.prefixes.get(&net(prefix)).map(|(name, _)| name.clone())
    }

    #[test]
    fn each_gets_its_own() {
        let a = assign(&whole(&[("a", node(1)), ("b", node(2))]), &mesh(), &Owners::new());
        assert_eq!(owner(&a, "10.244.1.0/24").as_deref(), Some("a"));
        assert_eq!(owner(&a, "fd00:244:2::/64").as_deref(), Some("b"));
        assert_eq!(owner(&a, "192.0.2.2/32").as_deref(), Some("b"));
        assert_eq!(a.problems, []);
    }

    #[test]
    fn without_a_record_nobody_gets_what_two_claim() {
        let mut thief = node(2);
        thief.pod_cidrs = vec![net("10.244.1.128/25")];
        let a = assign(&whole(&[("a", node(1)), ("b", thief)]), &mesh(), &Owners::new());
        assert_eq!(owner(&a, "10.244.1.0/24"), None);
        assert_eq!(owner(&a, "10.244.1.128/25"), None);
        assert_eq!(a.problems.len(), 2);
        assert!(a.problems[0].to_string().contains("Node a spec.podCIDRs[0]"), "{}", a.problems[0]);
    }

    #[test]
    fn the_recorded_owner_keeps_it() {
        let first = assign(&whole(&[("b", node(1))]), &mesh(), &Owners::new());
        for claim in ["10.244.1.0/24", "10.244.1.128/25", "10.244.0.0/16"] {
            let mut thief = node(9);
            thief.pod_cidrs = vec![net(claim)];
            let a = assign(&whole(&[("a", thief), ("b", node(1))]), &mesh(), &first.owners);
            assert_eq!(owner(&a, "10.244.1.0/24").as_deref(), Some("b"), "{claim}");
            assert!(claim == "10.244.1.0/24" || owner(&a, claim).is_none(), "{claim}");
        }
    }

    /// Who has no record of his own goes by the controller's; who has one goes by that.
    #[test]
    fn a_newcomer_goes_by_the_controllers_record() {
        let knows = |refused: &[&str]| {
            let of =
                |name: &&str| (net("10.244.1.0/24"), Owner { name: (*name).to_owned(), uid: node(1).uid });
            let nodes = [("a", node(1)), ("b", node(1))];
            let snapshot =
                Snapshot { refused: Arc::new(refused.iter().map(of).collect()), ..snapshot(&nodes) };
            Knowledge::Whole(snapshot.attest_whole())
        };
        let prefix = "10.244.1.0/24";
        let newcomer = |refused: &[&str]| owner(&assign(&knows(refused), &mesh(), &Owners::new()), prefix);
        assert_eq!(newcomer(&[]), None);
        assert_eq!(newcomer(&["a"]).as_deref(), Some("b"));
        assert_eq!(newcomer(&["b"]).as_deref(), Some("a"));
        assert_eq!(newcomer(&["a", "b"]), None);
        // What only one claims is not in question.
        let owner_of = Owner { name: "a".to_owned(), uid: node(1).uid };
        let refused = Arc::new([(net(prefix), owner_of)].into());
        let alone = Snapshot { refused, ..snapshot(&[("a", node(1)), ("b", node(2))]) };
        let a = assign(&Knowledge::Whole(alone.attest_whole()), &mesh(), &Owners::new());
        assert_eq!((owner(&a, prefix).as_deref(), a.problems.len()), (Some("a"), 0));
        // An address that somebody gets is nobody's matter of dispute.
        let address = net("192.0.2.1/32");
        let of = |name: &str| (address, Owner { name: name.to_owned(), uid: node(1).uid });
        for (refused, is_contested) in [(&["a"][..], false), (&["a", "b"], true)] {
            let refused = Arc::new(refused.iter().map(|name| of(name)).collect());
            let both = Snapshot { refused, ..snapshot(&[("a", node(1)), ("b", node(1))]) };
            let a = assign(&Knowledge::Whole(both.attest_whole()), &mesh(), &Owners::new());
            assert_eq!(a.contested.contains(&address), is_contested);
            assert_eq!(a.prefixes.contains_key(&address), !is_contested);
        }
        let own = assign(&whole(&[("a", node(1))]), &mesh(), &Owners::new()).owners;
        for refused in [&["a"][..], &["b"], &["a", "b"]] {
            let a = assign(&knows(refused), &mesh(), &own);
            assert_eq!(owner(&a, prefix).as_deref(), Some("a"), "{refused:?}");
            assert!(a.problems.iter().any(|p| p.object == "Node b"), "{refused:?}");
        }
    }

    #[test]
    fn one_node_can_not_fill_the_map() {
        let mut greedy = node(1);
        greedy.pod_cidrs = (0..200).map(|n| net(&format!("10.244.{n}.0/24"))).collect();
        let a = assign(&whole(&[("a", greedy), ("b", node(2))]), &mesh(), &Owners::new());
        assert_eq!(owner(&a, "10.244.2.0/24").as_deref(), Some("b"));
        assert!(a.of("a").is_empty());
    }

    #[test]
    fn an_address_of_two_nodes_is_nobodys() {
        let mut twin = node(3);
        twin.internal_ips = node(2).internal_ips;
        let a = assign(&whole(&[("b", node(2)), ("c", twin)]), &mesh(), &Owners::new());
        assert!(a.contested.contains(&net("192.0.2.2/32")), "{a:?}");
    }

    /// Whoever writes a range of pods that holds the nodes too does not cut them off from each other, and so from whom would tell them of another.
    #[test]
    fn an_address_in_the_range_of_pods_is_still_a_nodes() {
        let wide = MeshSpec { pod_cidrs: vec![net("0.0.0.0/1"), net("128.0.0.0/1"), net("::/1")], ..mesh() };
        let narrow = MeshSpec { node_cidrs: vec![net("203.0.113.0/24")], ..wide.clone() };
        for mesh in [wide, narrow] {
            let a = assign(&whole(&[("a", node(1)), ("b", node(2))]), &mesh, &Owners::new());
            assert!(a.prefixes.values().all(|(_, class)| *class == Class::Pods), "{a:?}");
            for address in ["192.0.2.1/32", "192.0.2.2/32", "2001:db8::2/128"] {
                assert!(a.contested.contains(&net(address)), "{address}: {a:?}");
            }
            // But not where pods are: what the host sends them is encrypted.
            let mut thief = node(3);
            thief.internal_ips = vec!["10.244.1.7".parse().expect("an address")];
            let a = assign(&whole(&[("a", node(1)), ("c", thief)]), &mesh, &Owners::new());
            assert!(!a.contested.contains(&net("10.244.1.7/32")), "{a:?}");
        }
    }

    /// A managed control plane's is no node's, and every host can speak to it, wherever it lies.
    #[test]
    fn an_api_servers_address_can_not_be_claimed() {
        let server = net("192.0.2.100/32");
        let mut thief = node(2);
        thief.internal_ips.push(server.addr());
        let mut cluster = snapshot(&[("a", node(1)), ("b", thief)]);
        let claimed = |cluster: &Snapshot, mesh: &MeshSpec| {
            assign(&Knowledge::Whole(cluster.clone().attest_whole()), mesh, &Owners::new())
        };
        assert_eq!(owner(&claimed(&cluster, &mesh()), "192.0.2.100/32").as_deref(), Some("b"), "nobody's");
        cluster.found.api_servers = vec![server];
        let a = claimed(&cluster, &mesh());
        assert_eq!((owner(&a, "192.0.2.100/32"), owner(&a, "192.0.2.2/32").as_deref()), (None, Some("b")));
        assert!(!a.contested.contains(&server) && a.problems.len() == 1, "{a:?}");
        let wide = MeshSpec { pod_cidrs: vec![net("128.0.0.0/1"), net("10.0.0.0/8")], ..mesh() };
        assert!(claimed(&cluster, &wide).contested.contains(&server));
        // Who may write that opens nothing by it: no node's own on record, and no range.
        let mut first = cluster.clone();
        first.found.api_servers.clear();
        let owners = claimed(&first, &mesh()).owners;
        cluster.found.api_servers.extend([net("192.0.2.1/32"), net("10.0.0.0/8")]);
        let a = assign(&Knowledge::Whole(cluster.clone().attest_whole()), &mesh(), &owners);
        assert_eq!(owner(&a, "192.0.2.1/32").as_deref(), Some("a"));
        assert!(!claimed(&cluster, &wide).contested.contains(&net("10.0.0.0/8")));
    }

    #[test]
    fn a_copied_uid_gains_nothing() {
        let first = assign(&whole(&[("b", node(1))]), &mesh(), &Owners::new());
        let mut thief = node(1);
        thief.pod_cidrs = vec![net("10.244.1.128/25")];
        let a = assign(&whole(&[("a", thief), ("b", node(1))]), &mesh(), &first.owners);
        assert_eq!(owner(&a, "10.244.1.0/24").as_deref(), Some("b"));
        assert_eq!(owner(&a, "10.244.1.128/25"), None);
        // The very same prefix, by a Node that comes after its owner.
        let a = assign(&whole(&[("b", node(1)), ("z", node(1))]), &mesh(), &first.owners);
        assert_eq!(owner(&a, "10.244.1.0/24").as_deref(), Some("b"));
        assert!(a.of("z").is_empty() && !a.problems.is_empty(), "{a:?}");
    }

    #[test]
    fn partial_knowledge_records_nobody() {
        let partial = Knowledge::Partial(snapshot(&[("thief", node(1))]));
        let a = assign(&partial, &mesh(), &Owners::new());
        assert_eq!(owner(&a, "10.244.1.0/24").as_deref(), Some("thief"));
        assert_eq!(a.owners, Owners::new());
    }

    #[test]
    fn a_record_ends_only_by_whole_knowledge() {
        let first = assign(&whole(&[("b", node(1))]), &mesh(), &Owners::new());
        let mut heir = node(1);
        heir.uid = "new".to_owned();
        let partial = assign(&Knowledge::Partial(snapshot(&[("b", heir.clone())])), &mesh(), &first.owners);
        assert_eq!(owner(&partial, "10.244.1.0/24"), None);
        let whole = assign(&whole(&[("b", heir)]), &mesh(), &first.owners);
        assert_eq!(owner(&whole, "10.244.1.0/24").as_deref(), Some("b"));
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let mut bad = node(1);
        bad.pod_cidrs = vec![net("0.0.0.0/0"), net("169.254.0.0/24"), net("172.16.0.0/24"), net("fe80::/64")];
        bad.internal_ips = vec!["10.244.1.1".parse().expect("ip"), "8.8.8.8".parse().expect("ip")];
        let a = assign(&whole(&[("a", bad)]), &mesh(), &Owners::new());
        assert_eq!(a.prefixes, BTreeMap::new());
        assert_eq!(a.problems.len(), 6, "{:?}", a.problems);
    }
}
