//! What is said of what.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    condition::Condition,
    mesh::EncryptionMesh,
    probe::{Attachment, Clock, ForeignProgram, PROBE_VERSION, Port, PortState, Target},
    status::Way,
    veil_node::{Unencrypted, VeilNodeStatus},
};
use kubeveil_keys::{Generation, PrivateKey};
use serde_json::json;

use super::*;
use crate::facts::{Installed, Node, Pod, Probes};

fn node(n: u8) -> Node {
    Node {
        linux: true,
        excluded: false,
        kernel: "6.12.0-1-amd64".to_owned(),
        pod_cidrs: vec![format!("10.244.{n}.0/24").parse().expect("net")],
        internal_ips: vec![format!("192.0.2.{n}").parse().expect("ip")],
        uid: format!("uid-{n}"),
        announcement: None,
    }
}

fn pod(name: &str, node: &str, address: &str) -> Pod {
    Pod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        ready: true,
        addresses: vec![address.parse().expect("ip")],
        ..Pod::default()
    }
}

fn probe(node: &str) -> Probe {
    Probe {
        schema_version: PROBE_VERSION,
        node: node.to_owned(),
        kernel: "6.12.0-1-amd64".to_owned(),
        no_wireguard: None,
        no_programs: None,
        attachment: Attachment::Tcx,
        btf: true,
        bpffs: true,
        programs: vec![],
        ports: [51871, 51872].map(|port| Port { port, state: PortState::Free, by: String::new() }).into(),
        asked: 2,
        silent: vec![],
        unanswered: 0,
        clocks: vec![],
        unseen: vec![],
    }
}

fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Two nodes, and nothing that stands against kubeveil.
fn well() -> Facts {
    Facts {
        pre: true,
        namespace: "kubeveil".to_owned(),
        namespace_labels: labels(&[("kubernetes.io/metadata.name", "kubeveil")]),
        version: Ok("v1.35.4".to_owned()),
        serves_policies: Ok(true),
        nodes: Ok([("a".to_owned(), node(1)), ("b".to_owned(), node(2))].into()),
        pods: Ok(vec![pod("p", "a", "10.244.1.7")]),
        webhooks: Ok(vec![]),
        probes: Probes {
            by_node: ["a", "b"].map(|name| (name.to_owned(), probe(name))).into(),
            ..Probes::default()
        },
        installed: None,
    }
}

fn agent(node: &str, ready: bool) -> Pod {
    let labels = labels(&mesh::AGENT);
    Pod { host_network: true, ready, labels, ..pod("kubeveil-agent-x", node, "192.0.2.1") }
}

fn says(not_encrypted: &[&str]) -> Option<VeilNodeStatus> {
    let to = |node: &&str| Unencrypted {
        node: (*node).to_owned(),
        way: Way::Dropped,
        reason: "no handshake yet".to_owned(),
    };
    let ready = Condition::new("Ready", true, "R", String::new(), Timestamp::UNIX_EPOCH);
    Some(VeilNodeStatus {
        not_encrypted: not_encrypted.iter().map(to).collect(),
        conditions: vec![ready],
        ..Default::default()
    })
}

/// The same with kubeveil on it.
fn installed() -> Facts {
    let mesh: EncryptionMesh = serde_json::from_value(json!({
        "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionMesh", "metadata": {"name": "default"},
        "spec": {"mode": "require", "podCIDRs": ["10.244.0.0/16"], "nodeCIDRs": ["192.0.2.0/24"]},
        "status": {"conditions": [{
            "type": "FullyConnected", "status": "True", "reason": "R", "message": "all is encrypted",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    }))
    .expect("a mesh");
    let mut facts = Facts { pre: false, ..well() };
    facts.pods.as_mut().expect("pods").extend([agent("a", true), agent("b", true)]);
    facts.installed = Some(Installed {
        definitions_missing: Ok(vec![]),
        mesh: Ok(Some(mesh)),
        veil_nodes: Ok([("a".to_owned(), says(&[])), ("b".to_owned(), says(&[]))].into()),
    });
    facts
}

/// Findings that are not well, as `severity check object: found`; each must say what it means and what mends it.
fn wrong(facts: &Facts) -> Vec<String> {
    let all = judge(facts);
    for finding in &all {
        let is_ok = finding.severity == Severity::Ok;
        assert_eq!(is_ok, finding.mend.is_empty(), "{finding:?}");
        assert_eq!(is_ok, finding.means.is_empty(), "{finding:?}");
        assert!(!finding.object.is_empty() && !finding.found.is_empty(), "{finding:?}");
    }
    let wrong = all.iter().filter(|finding| finding.severity != Severity::Ok);
    wrong.map(|f| format!("{} {} {}: {}", f.severity, f.check, f.object, f.found)).collect()
}

/// After a change exactly this is wrong.
fn after(mut facts: Facts, change: impl FnOnce(&mut Facts), expected: &[&str]) {
    assert_eq!(wrong(&facts), [""; 0], "it was well before");
    change(&mut facts);
    let found = wrong(&facts);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} is not {expected}");
    }
}

fn on_node(change: impl FnOnce(&mut Probe), expected: &[&str]) {
    after(well(), |facts| change(facts.probes.by_node.get_mut("b").expect("b")), expected);
}

#[test]
fn what_is_well_is_told_as_well() {
    let checks = |facts: &Facts| {
        let mut checks: Vec<String> = judge(facts).iter().map(|finding| finding.check.clone()).collect();
        checks.sort();
        checks.dedup();
        checks.join(" ")
    };
    assert_eq!(
        checks(&well()),
        "addresses bpffs clock cni kernel neighbours policies ports programs version webhooks wireguard"
    );
    assert_eq!(
        checks(&installed()),
        "addresses agents bpffs clock cni definitions kernel mesh neighbours pairs policies ports programs ranges version webhooks wireguard"
    );
}

#[test]
fn each_node_is_looked_at() {
    on_node(
        |b| b.no_wireguard = Some("no".to_owned()),
        &["failed wireguard Node b: WireGuard is not to be had: no"],
    );
    on_node(|b| b.no_programs = Some("no".to_owned()), &["failed programs Node b: the kernel does not take"]);
    on_node(|b| b.btf = false, &["warning programs Node b: the kernel has no BTF"]);
    on_node(|b| b.bpffs = false, &["failed bpffs Node b: no BPF file system"]);
    let program = |hook: &str| ForeignProgram {
        device: "eth0".to_owned(),
        hook: hook.to_owned(),
        program: "program 7 (x)".to_owned(),
    };
    on_node(
        |b| b.programs = vec![program("tc ingress"), program("xdp")],
        &[
            "warning neighbours Node b: somebody else's programs: tc ingress of eth0: program 7 (x)",
            "warning neighbours Node b: somebody else's programs: xdp of eth0: program 7 (x)",
        ],
    );
    on_node(|b| b.unseen = vec!["why".to_owned()], &["unknown neighbours Node b: why"]);
    let port = |state| Port { port: 51871, state, by: "WireGuard device wg0".to_owned() };
    on_node(
        |b| b.ports[0] = port(PortState::Taken),
        &["failed ports Node b: somebody else has UDP 51871 WireGuard device wg0"],
    );
    on_node(|b| b.ports[0] = port(PortState::Refused), &["unknown ports Node b: could not listen"]);
    on_node(|b| b.ports[0] = port(PortState::Ours), &[]);
}

#[test]
fn who_does_not_answer_is_named_where_somebody_listens() {
    let silent =
        |node: &str| Target { node: node.to_owned(), address: "192.0.2.1".parse().expect("ip"), port: 51872 };
    let told = "failed ports Node a: UDP 51872 over IPv4 does not answer Node b";
    on_node(|b| (b.silent, b.unanswered) = (vec![silent("a")], 1), &[told]);
    // After an odd number of rotations it is the first port that nobody uses.
    let idle = |facts: &mut Facts| {
        for name in ["a", "b"] {
            facts.probes.by_node.get_mut(name).expect("a probe").ports[1].state = PortState::Ours;
        }
        let b = facts.probes.by_node.get_mut("b").expect("b");
        (b.silent, b.unanswered) = (vec![Target { port: 51871, ..silent("a") }], 1);
    };
    after(well(), idle, &["failed ports Node a: UDP 51871 over IPv4 does not answer Node b"]);
    let means = |facts: &Facts| {
        let told = judge(facts).into_iter().find(|finding| finding.found.contains("UDP 51871 over IPv4"));
        told.expect("it is told").means
    };
    let mut facts = well();
    idle(&mut facts);
    assert_eq!(means(&facts), "the next rotation of keys does not get through between them");
    // Before an installation it is the one that will be used.
    let mut facts = well();
    let b = facts.probes.by_node.get_mut("b").expect("b");
    (b.silent, b.unanswered) = (vec![Target { port: 51871, ..silent("a") }, silent("a")], 2);
    assert_eq!(means(&facts), "no tunnel comes about between them");
    // What nobody listens at can't answer: a tunnel of ours is proven otherwise.
    after(
        well(),
        |facts| {
            let by_node = &mut facts.probes.by_node;
            by_node.get_mut("a").expect("a").ports[1].state = PortState::Ours;
            let b = by_node.get_mut("b").expect("b");
            (b.silent, b.unanswered) = (vec![silent("a")], 1);
        },
        &[],
    );
    on_node(
        |b| (b.silent, b.unanswered) = (vec![silent("a")], 9),
        &[told, "unknown ports further pairs: more did not answer"],
    );
}

#[test]
fn the_clock_that_most_see_wrong_is_named() {
    let mut facts = well();
    facts.nodes.as_mut().expect("nodes").insert("c".to_owned(), node(3));
    facts.probes.by_node.insert("c".to_owned(), probe("c"));
    let change = |facts: &mut Facts| {
        let clock = |node: &str, ahead| Clock { node: node.to_owned(), ahead };
        let mut say =
            |name: &str, clocks| facts.probes.by_node.get_mut(name).expect("a probe").clocks = clocks;
        say("a", vec![clock("c", -9_000)]);
        say("b", vec![clock("c", -9_000)]);
        say("c", vec![clock("a", 9_000), clock("b", 9_000)]);
    };
    after(facts, change, &["warning clock Node c: its clock is 9 s behind that of Nodes a, b"]);
    on_node(|b| b.clocks = vec![Clock { node: "a".to_owned(), ahead: 4_000 }], &[]);
}

#[test]
fn without_probes_nobody_knows() {
    let change = |facts: &mut Facts| {
        facts.probes = Probes { missing: Some("no image".to_owned()), ..Probes::default() };
    };
    let told = ["wireguard", "programs", "bpffs", "ports", "neighbours", "clock"];
    let told = told.map(|check| format!("unknown {check} Nodes a, b: no image"));
    after(well(), change, &told.each_ref().map(String::as_str));
}

#[test]
fn the_api_server_is_looked_at() {
    after(
        well(),
        |f| f.version = Ok("v1.30.9+k3s1".to_owned()),
        &["failed version API server: it is Kubernetes v1.30.9"],
    );
    after(well(), |f| f.version = Ok("nonsense".to_owned()), &["unknown version API server"]);
    after(well(), |f| f.version = Err("no".to_owned()), &["unknown version API server: no"]);
    after(well(), |f| f.serves_policies = Ok(false), &["failed policies API server"]);
    after(well(), |f| f.webhooks = Err("no".to_owned()), &["unknown webhooks the cluster: no"]);
    after(well(), |f| f.pods = Err("no".to_owned()), &["unknown addresses the cluster: no"]);
}

#[test]
fn kernels_are_known_without_probes() {
    let kernel = |release: &'static str| {
        move |facts: &mut Facts| {
            release.clone_into(&mut facts.nodes.as_mut().expect("nodes").get_mut("b").expect("b").kernel);
        }
    };
    after(well(), kernel("5.4.0-200-generic"), &["failed kernel Node b (5.4.0-200-generic)"]);
    after(well(), kernel("5.15.0"), &["warning kernel Node b (5.15.0): the kernel is older than any"]);
    let windows = |facts: &mut Facts| {
        facts.nodes.as_mut().expect("nodes").get_mut("b").expect("b").linux = false;
        facts.probes.by_node.remove("b");
    };
    after(well(), windows, &["warning kernel Node b: it does not run Linux"]);
    // Nobody has to be told of what he has said himself.
    let excluded = |facts: &mut Facts| {
        windows(facts);
        facts.nodes.as_mut().expect("nodes").get_mut("b").expect("b").excluded = true;
    };
    after(well(), excluded, &[]);
}

#[test]
fn addresses_that_are_not_their_nodes_fail() {
    let pods = |pods: Vec<Pod>| move |facts: &mut Facts| facts.pods = Ok(pods);
    after(
        well(),
        pods(vec![pod("p", "a", "10.244.1.7"), pod("q", "b", "10.244.1.8")]),
        &[
            "failed addresses Node b: pods have addresses outside of their Node's podCIDRs: default/q (10.244.1.8)",
        ],
    );
    after(well(), pods(vec![]), &["unknown addresses the cluster: no pod with an address of its own runs"]);
    let host = Pod { host_network: true, ..pod("h", "a", "192.0.2.1") };
    after(well(), pods(vec![pod("p", "a", "10.244.1.7"), host]), &[]);
    let without =
        |facts: &mut Facts| facts.nodes.as_mut().expect("nodes").get_mut("b").expect("b").pod_cidrs.clear();
    after(well(), without, &["failed addresses Node b: it has no spec.podCIDRs"]);
    let cilium = Pod { host_network: true, ..pod("cilium-x", "a", "192.0.2.1") };
    after(
        well(),
        pods(vec![pod("p", "a", "10.244.1.7"), cilium]),
        &["warning cni the cluster: its network plugin is Cilium"],
    );
}

#[test]
fn agents_and_pairs_are_looked_at() {
    let of = |change: fn(&mut Installed)| {
        move |facts: &mut Facts| change(facts.installed.as_mut().expect("installed"))
    };
    let pods = |pods: Vec<Pod>| move |facts: &mut Facts| facts.pods = Ok(pods);
    let inside = pod("p", "a", "10.244.1.7");
    after(
        installed(),
        pods(vec![inside.clone(), agent("a", true)]),
        &["failed agents Node b: no agent runs there"],
    );
    after(
        installed(),
        pods(vec![inside, agent("a", true), agent("b", false)]),
        &["failed agents Node b: its agent is not ready"],
    );
    after(
        installed(),
        of(|i| i.definitions_missing = Ok(vec!["x".to_owned()])),
        &["failed definitions the cluster: there is no CustomResourceDefinition x"],
    );
    after(installed(), of(|i| i.mesh = Ok(None)), &["failed mesh EncryptionMesh default: there is none"]);
    let pair =
        |i: &mut Installed| drop(i.veil_nodes.as_mut().expect("said").insert("b".to_owned(), says(&["a"])));
    after(installed(), of(pair), &["failed pairs Node b: not encrypted to a (dropped, no handshake yet)"]);
    let nothing = |i: &mut Installed| drop(i.veil_nodes.as_mut().expect("said").insert("b".to_owned(), None));
    after(installed(), of(nothing), &["unknown pairs Node b: its agent has said nothing yet"]);
    let condition = |i: &mut Installed| {
        let status = i.mesh.as_mut().expect("read").as_mut().expect("there").status.as_mut().expect("said");
        status.conditions[0] =
            Condition::new("Ready", false, "R", "b is not".to_owned(), Timestamp::UNIX_EPOCH);
    };
    after(installed(), of(condition), &["failed mesh EncryptionMesh default: Ready is False: b is not"]);
    let none = |i: &mut Installed| i.mesh.as_mut().expect("read").as_mut().expect("there").status = None;
    after(installed(), of(none), &["unknown mesh EncryptionMesh default: it has no status"]);
    let narrow = |i: &mut Installed| {
        i.mesh.as_mut().expect("read").as_mut().expect("there").spec.node_cidrs =
            vec!["192.0.2.1/32".parse().expect("net")];
    };
    after(installed(), of(narrow), &["failed ranges Node b: outside of the mesh's nodeCIDRs: 192.0.2.2/32"]);
}

/// Node `n` of that name announces keys of these generations, and does not send to `not_flipped` by the newest.
fn announces(n: u8, name: &str, generations: &[u32], not_flipped: &[&str]) -> Option<String> {
    let keys: Vec<_> = generations.iter().map(|_| PrivateKey::generate().expect("a key")).collect();
    let entry = |(generation, key): (&u32, &PrivateKey)| GenerationEntry {
        generation: Generation::new(*generation),
        public_key: key.public(),
        port: 51871.try_into().expect("a port"),
        state: GenerationState::Active,
    };
    let entries = generations.iter().zip(&keys).map(entry).collect();
    let not_flipped = NotFlipped::of(not_flipped.iter().map(|name| (*name).to_owned()));
    let keys: Vec<&PrivateKey> = keys.iter().collect();
    let said = Announcement::sign(name, &format!("uid-{n}"), entries, not_flipped, &keys);
    Some(said.expect("signed").to_json())
}

/// While a rotation is stuck both ports are ours, and no probe can ask there: what nodes announce tells which of them is blocked.
#[test]
fn a_port_that_holds_a_rotation_up_is_named() {
    let stuck = |facts: &mut Facts| {
        for node in facts.probes.by_node.values_mut() {
            node.ports.iter_mut().for_each(|port| port.state = PortState::Ours);
        }
        let nodes = facts.nodes.as_mut().expect("nodes");
        nodes.get_mut("a").expect("a").announcement = announces(1, "a", &[0, 1], &["b"]);
        nodes.get_mut("b").expect("b").announcement = announces(2, "b", &[0, 1], &["a"]);
        let mesh = facts.installed.as_mut().expect("installed").mesh.as_mut().expect("read").as_mut();
        mesh.expect("there").spec.key_generation = 1;
    };
    let port = "is UDP 51872 open both ways between them?";
    let told = format!(
        "EncryptionMesh default: the rotation to generation 1 is not over: a has no handshake with b on the new key: {port}"
    );
    after(installed(), stuck, &[&format!("warning rotation {told}")]);
    let late = |facts: &mut Facts| {
        stuck(facts);
        let mesh = facts.installed.as_mut().expect("installed").mesh.as_mut().expect("read").as_mut();
        let status = mesh.expect("there").status.as_mut().expect("said");
        status.conditions.push(Condition::new(
            "Rotating",
            true,
            "RotationLate",
            "late".to_owned(),
            Timestamp::UNIX_EPOCH,
        ));
    };
    after(installed(), late, &[&format!("failed rotation {told}")]);
    // Nothing is said of one that is over, nor where nobody has announced anything.
    let over = |facts: &mut Facts| {
        stuck(facts);
        let nodes = facts.nodes.as_mut().expect("nodes");
        nodes.get_mut("a").expect("a").announcement = announces(1, "a", &[1], &[]);
        nodes.get_mut("b").expect("b").announcement = announces(2, "b", &[1], &[]);
    };
    after(installed(), over, &[]);
}

#[test]
fn a_webhook_in_pods_that_must_answer_locks_out() {
    use crate::facts::Webhook;
    let webhook = |selector: serde_json::Value, resource: &str| -> Webhook {
        let mut found = crate::webhook::tests::webhooks(&json!({
            "name": "w.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"service": {"namespace": "n", "name": "s"}}, "namespaceSelector": selector,
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": [resource]}],
        }))
        .remove(0);
        found.service.as_mut().expect("service").selector = labels(&[("app", "w")]);
        found
    };
    let runs = |host_network| Pod {
        namespace: "n".to_owned(),
        labels: labels(&[("app", "w")]),
        host_network,
        ..pod("w", "a", "10.244.1.9")
    };
    let with = |webhook: Webhook, host_network| {
        move |facts: &mut Facts| {
            facts.webhooks = Ok(vec![webhook]);
            facts.pods.as_mut().expect("pods").push(runs(host_network));
        }
    };
    let told = "warning webhooks validatingwebhookconfiguration w: webhooks[0] must answer before changes of";
    after(well(), with(webhook(json!({}), "pods"), false), &[&format!("{told} Pods")]);
    after(well(), with(webhook(json!({}), "nodes"), false), &[&format!("{told} Nodes")]);
    after(well(), with(webhook(json!({}), "pods"), true), &[]);
    let but = json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kubeveil"]}]});
    after(well(), with(webhook(but.clone(), "pods"), false), &[]);
    // Nodes are in no namespace, so that helps nobody there.
    after(well(), with(webhook(but, "nodes"), false), &[&format!("{told} Nodes")]);
}
