//! A node that says and claims what it should not: refused by object and field, and to the others nothing changes.

use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, MAX_BYTES, NotFlipped};
use kubeveil_keys::PrivateKey;

use super::*;
use crate::observed::{Datapath, Peer, TunnelDevice};

const DEVICE: &str = "kubeveil0";

/// This node and two others, and what they have of each other.
struct Cluster {
    nodes: Vec<(&'static str, NodeFacts)>,
    owners: Owners,
    observed: Observed,
    desired: Desired,
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::copied_from(&[n; 32])
}

fn announce(name: &str, uid: &str, key: &PrivateKey) -> String {
    let entry = GenerationEntry {
        generation: Generation::FIRST,
        public_key: key.public(),
        port: 51871.try_into().expect("port"),
        state: GenerationState::Active,
    };
    Announcement::sign(name, uid, vec![entry], NotFlipped::nobody(), &[key]).expect("signed").to_json()
}

/// What `me` wants of the kernel, whose key is the first, over `observed`.
fn wanted(nodes: &[(&str, NodeFacts)], owners: &Owners, observed: &Observed) -> (Desired, Owners) {
    let mut world = World {
        keys: vec![(Generation::FIRST, key(1).public())],
        observed: observed.clone(),
        ..World::of(snapshot(nodes), &mesh(), owners)
    };
    world.announced.update(&world.knowledge.snapshot().nodes);
    world.tunnels.observe(observed, Duration::ZERO, Duration::ZERO);
    let mut desired = desired(&world.inputs());
    desired.problems.extend(world.announced.problems());
    desired.problems.extend(world.assignment.problems);
    (desired, world.assignment.owners)
}

/// A kernel that holds what is wanted, and whose peers have answered.
fn kernel(desired: &Desired) -> Observed {
    let tunnel = &desired.tunnels[DEVICE];
    let peers = tunnel.peers.iter().map(|(key, want)| {
        let peer = Peer {
            endpoint: want.endpoint,
            allowed_ips: want.allowed_ips.clone(),
            last_handshake: Some(Duration::from_secs(1)),
            ..Peer::default()
        };
        (*key, peer)
    });
    let device = TunnelDevice {
        ifindex: 7,
        public_key: Some(tunnel.key.1),
        peers: peers.collect(),
        ..TunnelDevice::default()
    };
    let link = crate::observed::Link {
        name: DEVICE.to_owned(),
        kind: Some("wireguard".to_owned()),
        up: true,
        ..Default::default()
    };
    Observed {
        links: [(7, link)].into(),
        tunnels: [(DEVICE.to_owned(), device)].into(),
        datapath: Some(Datapath { prefixes: desired.prefixes.clone(), ..Datapath::default() }),
        ..Observed::default()
    }
}

impl Cluster {
    fn new() -> Self {
        let nodes = [("me", 1), ("n2", 2), ("n3", 3)].map(|(name, n)| {
            let announcement = Some(announce(name, &format!("uid-{n}"), &key(n)));
            (name, NodeFacts { announcement, ..node(n) })
        });
        let (first, owners) = wanted(&nodes, &Owners::new(), &Observed::default());
        let observed = kernel(&first);
        let (desired, owners) = wanted(&nodes, &owners, &observed);
        assert_eq!(desired.problems, []);
        assert_eq!(desired.values.len(), 2);
        Self { nodes: nodes.into(), owners, observed, desired }
    }

    /// With one node more.
    fn with(&self, name: &'static str, facts: NodeFacts) -> Desired {
        let mut nodes = self.nodes.clone();
        nodes.push((name, facts));
        wanted(&nodes, &self.owners, &self.observed).0
    }

    /// What the others have is what they had, to the byte.
    fn is_as_before(&self, now: &Desired, what: &str) {
        let peers = |desired: &Desired| {
            let mut peers = desired.tunnels[DEVICE].peers.clone();
            peers.retain(|key, _| self.desired.tunnels[DEVICE].peers.contains_key(key));
            format!("{peers:?}")
        };
        assert_eq!(peers(now), peers(&self.desired), "{what}");
        for (net, prefix) in &self.desired.prefixes {
            assert_eq!(now.prefixes.get(net), Some(prefix), "{what}: {net}");
        }
        for name in ["n2", "n3"] {
            assert_eq!(now.remotes.get(name), self.desired.remotes.get(name), "{what}");
        }
        for (index, value) in &self.desired.values {
            assert_eq!(now.values.get(index), Some(value), "{what}: peer {index}");
        }
        // A node without IPv4 costs everybody some bytes of each packet, whether it is hostile or not.
        let Config { mtu, mss_v4, mss_v6, .. } = now.config;
        assert!(mtu >= 1408, "{what}: {mtu}");
        assert_eq!(now.config, Config { mtu, mss_v4, mss_v6, ..self.desired.config }, "{what}");
    }
}

/// A node like any other.
fn honest(name: &str) -> NodeFacts {
    NodeFacts { announcement: Some(announce(name, "uid-9", &key(9))), ..node(9) }
}

struct Case {
    what: &'static str,
    /// From an honest node of this name.
    change: fn(&str, &mut NodeFacts, &Cluster),
    field: &'static str,
    message: &'static str,
    /// It is a peer all the same, with what is left.
    is_peer: bool,
}

const fn claims(
    what: &'static str,
    change: fn(&str, &mut NodeFacts, &Cluster),
    field: &'static str,
    message: &'static str,
) -> Case {
    Case { what, change, field, message, is_peer: true }
}

const fn says(
    what: &'static str,
    change: fn(&str, &mut NodeFacts, &Cluster),
    field: &'static str,
    message: &'static str,
) -> Case {
    Case { what, change, field, message, is_peer: false }
}

const ANNOUNCEMENT: &str = kubeveil_api::names::ANNOUNCEMENT;
const ADDRESS: &str = "status.addresses[InternalIP]";
const TAKEN: &str = "is also claimed by node n2, which had it first";
const NO_RANGE: &str = "is not an address range that pods or nodes can have";

fn pods(facts: &mut NodeFacts, text: &str) {
    facts.pod_cidrs[0] = net(text);
}

fn lives_at(facts: &mut NodeFacts, text: &str) {
    facts.internal_ips[0] = text.parse().expect("ip");
}

/// The announcement, with its key replaced by this one.
fn with_key(name: &str, facts: &mut NodeFacts, bytes: [u8; 32]) {
    let json = announce(name, &facts.uid, &key(9));
    let forged = PublicKey::from_bytes(bytes).to_string();
    facts.announcement = Some(json.replace(&key(9).public().to_string(), &forged));
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    claims("another's prefix", |_, f, _| pods(f, "10.244.2.0/24"), "spec.podCIDRs[0]", TAKEN),
    claims("a part of it", |_, f, _| pods(f, "10.244.2.128/25"), "spec.podCIDRs[0]", TAKEN),
    claims("one address of it", |_, f, _| pods(f, "10.244.2.7/32"), "spec.podCIDRs[0]", TAKEN),
    claims("more than it", |_, f, _| pods(f, "10.244.0.0/16"), "spec.podCIDRs[0]", "is also claimed by node me"),
    claims("another's IPv6 prefix", |_, f, _| pods(f, "fd00:244:2::/64"), "spec.podCIDRs[0]", TAKEN),
    claims("this node's prefix", |_, f, _| pods(f, "10.244.1.0/24"), "spec.podCIDRs[0]", "is also claimed by node me"),
    claims("everything", |_, f, _| pods(f, "0.0.0.0/0"), "spec.podCIDRs[0]", NO_RANGE),
    claims("everything in IPv6", |_, f, _| pods(f, "::/0"), "spec.podCIDRs[0]", NO_RANGE),
    claims("half of everything", |_, f, _| pods(f, "128.0.0.0/1"), "spec.podCIDRs[0]", "lies outside the mesh's podCIDRs"),
    claims("a range of nobody", |_, f, _| pods(f, "10.96.0.0/24"), "spec.podCIDRs[0]", "lies outside the mesh's podCIDRs"),
    claims("nodes' addresses for pods", |_, f, _| pods(f, "192.0.2.0/25"), "spec.podCIDRs[0]", "lies outside the mesh's podCIDRs"),
    claims("IPv4 in IPv6's clothes", |_, f, _| pods(f, "::ffff:10.244.2.0/120"), "spec.podCIDRs[0]", "lies outside the mesh's podCIDRs"),
    claims("link-local pods", |_, f, _| pods(f, "169.254.0.0/16"), "spec.podCIDRs[0]", NO_RANGE),
    claims("another's address", |_, f, _| lives_at(f, "192.0.2.2"), ADDRESS, TAKEN),
    claims("this node's address", |_, f, _| lives_at(f, "192.0.2.1"), ADDRESS, "is also claimed by node me"),
    claims("a pod's address", |_, f, _| lives_at(f, "10.244.2.7"), ADDRESS, "lies outside the mesh's nodeCIDRs"),
    claims("an address of somewhere else", |_, f, _| lives_at(f, "8.8.8.8"), ADDRESS, "lies outside the mesh's nodeCIDRs"),
    claims("an address in IPv6's clothes", |_, f, _| lives_at(f, "::ffff:192.0.2.2"), ADDRESS, "lies outside the mesh's nodeCIDRs"),
    claims("loopback", |_, f, _| lives_at(f, "127.0.0.1"), ADDRESS, NO_RANGE),
    claims("a group", |_, f, _| lives_at(f, "224.0.0.1"), ADDRESS, NO_RANGE),
    claims("everybody", |_, f, _| lives_at(f, "255.255.255.255"), ADDRESS, NO_RANGE),
    claims("nowhere", |_, f, _| lives_at(f, "0.0.0.0"), ADDRESS, NO_RANGE),
    claims("another's UID and prefix", |name, f, _| {
        f.uid = "uid-2".to_owned();
        f.announcement = Some(announce(name, "uid-2", &key(9)));
        pods(f, "10.244.2.0/25");
    }, "spec.podCIDRs[0]", TAKEN),
    says("more prefixes than fit a message", |_, f, _| {
        f.pod_cidrs = (0..5_000_u32).map(|n| net(&format!("fd00:244:9:{n:x}::/80"))).collect();
    }, "spec.podCIDRs", "more than 16 prefixes and addresses"),
    says("more addresses than fit a message", |_, f, _| {
        f.internal_ips = (1..2_000_u32).map(|n| format!("2001:db8::9:{n:x}").parse().expect("ip")).collect();
    }, "spec.podCIDRs", "more than 16 prefixes and addresses"),
    says("another's key", |name, f, _| f.announcement = Some(announce(name, &f.uid, &key(2))),
        "publicKey", "another node announces the same key"),
    says("this node's key", |name, f, _| f.announcement = Some(announce(name, &f.uid, &key(1))),
        "publicKey", "it announces this node's own key"),
    says("a key of zeros", |name, f, _| with_key(name, f, [0; 32]), ANNOUNCEMENT, "publicKey"),
    says("a key of low order", |name, f, _| with_key(name, f, [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
        0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ]), ANNOUNCEMENT, "publicKey"),
    says("another's public key", |name, f, _| with_key(name, f, *key(2).public().as_bytes()),
        ANNOUNCEMENT, "signature does not fit"),
    says("a false signature", |name, f, _| {
        let json = announce(name, &f.uid, &key(9));
        let stranger = announce(name, &f.uid, &key(8));
        let signature = |json: &str| json.split("\"signature\":\"").nth(1).map(|rest| rest[..88].to_owned());
        let [good, bad] = [&json, &stranger].map(|json| signature(json).expect("a signature"));
        f.announcement = Some(json.replace(&good, &bad));
    }, ANNOUNCEMENT, "signature does not fit"),
    says("another's announcement, word for word", |_, f, cluster| {
        f.announcement.clone_from(&cluster.nodes[1].1.announcement);
    }, ANNOUNCEMENT, "signature does not fit"),
    says("its own of another life", |name, f, _| f.announcement = Some(announce(name, "uid-8", &key(9))),
        ANNOUNCEMENT, "signature does not fit"),
    says("an unknown version", |name, f, _| {
        f.announcement = Some(announce(name, &f.uid, &key(9)).replace("\"version\":1", "\"version\":7"));
    }, ANNOUNCEMENT, "announcement of version 7"),
    says("a megabyte", |name, f, _| {
        f.announcement = Some(format!("{}{}", announce(name, &f.uid, &key(9)), " ".repeat(1 << 20)));
    }, ANNOUNCEMENT, "at most 8192 are read"),
    says("a megabyte of brackets", |_, f, _| f.announcement = Some("[".repeat(1 << 20)), ANNOUNCEMENT, "at most 8192 are read"),
    says("brackets", |_, f, _| f.announcement = Some("[".repeat(MAX_BYTES)), ANNOUNCEMENT, "refused"),
    says("nothing", |_, f, _| f.announcement = Some(String::new()), ANNOUNCEMENT, "refused"),
];

/// Named before all others, and after them: to come first gains nothing.
#[test]
fn what_a_hostile_node_says_is_refused_and_harms_nobody() {
    let cluster = Cluster::new();
    for name in ["a-hostile", "z-hostile"] {
        let others = cluster.with(name, honest(name));
        assert_eq!(others.problems, []);
        cluster.is_as_before(&others, "an honest node");
        assert_eq!(others.tunnels[DEVICE].peers.len(), 3);
        for Case { what, change, field, message, is_peer } in CASES {
            let mut facts = honest(name);
            change(name, &mut facts, &cluster);
            let what = format!("{name}: {what}");
            let desired = cluster.with(name, facts);
            cluster.is_as_before(&desired, &what);
            let is_told = desired.problems.iter().any(|p| {
                p.object == format!("Node {name}") && p.field == *field && p.message.contains(message)
            });
            assert!(is_told, "{what}: {:?}", desired.problems);
            assert!(desired.problems.iter().all(|p| p.object == format!("Node {name}")), "{what}");
            let peers = desired.tunnels[DEVICE].peers.len();
            assert_eq!(peers, if *is_peer { 3 } else { 2 }, "{what}");
        }
    }
}
