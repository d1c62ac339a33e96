//! Pods' packets in envelopes: each overlay over IPv4 (with both families inside) and over IPv6.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::{Overlay, WIRE, batch};
use kubeveil_tests::namespace;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_lost, none_plain, pod};
use kubeveil_tests::traffic::{Flow, Load};

use crate::Scenario;
use crate::support::{delete_device, rises_by, told};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("vxlan_is_replaced", carried).nodes(2).overlay(Overlay::Vxlan),
    Scenario::new("vxlan_over_ipv6_is_replaced", carried)
        .nodes(2)
        .overlay(Overlay::Vxlan)
        .families(Families::Ipv6),
    Scenario::new("geneve_is_wrapped", carried).nodes(2).overlay(Overlay::Geneve),
    Scenario::new("geneve_over_ipv6_is_wrapped", carried)
        .nodes(2)
        .overlay(Overlay::Geneve)
        .families(Families::Ipv6),
    Scenario::new("ipip_and_sit_are_wrapped", carried).nodes(2).overlay(Overlay::Ipip),
    Scenario::new("ip6tnl_is_wrapped", carried).nodes(2).overlay(Overlay::Ipip).families(Families::Ipv6),
    Scenario::new("gre_is_wrapped", carried).nodes(2).overlay(Overlay::Gre),
    Scenario::new("ip6gre_is_wrapped", carried).nodes(2).overlay(Overlay::Gre).families(Families::Ipv6),
    Scenario::new("an_envelope_forged_on_the_wire_is_dropped", forged_on_the_wire)
        .nodes(2)
        .overlay(Overlay::Vxlan),
    Scenario::new("a_node_cannot_speak_for_anothers_pods", forged_by_a_node).overlay(Overlay::Vxlan),
];

/// Packets of each load.
const SENT: u64 = 100;

fn carried(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let verdict = if stage.lab.spec().overlay == Overlay::Vxlan { "replace" } else { "wrap" };
    let count = |stage: &Stage| {
        let labels = [("direction", "egress"), ("verdict", verdict)];
        Ok::<_, anyhow::Error>(stage.metrics(Node(1))?.count("kubeveil_packets_total", &labels))
    };
    let before = count(stage)?;
    let (tally, census) = stage.send(stage.load("1a", "2b", 200), SENT)?;
    encrypted(&tally, &census)?;
    let (there, census) = stage.send(stage.load("2a", "1b", 200), SENT)?;
    encrypted(&there, &census).context("the other way")?;
    let rise = count(stage)? - before;
    ensure!(rise >= tally.sent, "{rise} packets counted as {verdict}, of {}", tally.sent);

    for node in stage.lab.nodes() {
        stage.lab.daemon(node).kill()?;
    }
    let (tally, census) = stage.send(stage.load("1b", "2a", 200), SENT)?;
    encrypted(&tally, &census).context("with the daemons dead")?;
    delete_device(Node(1))?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), SENT)?;
    none_plain(&census)?;
    none_arrived(&tally)
}

/// Whose pods forged packets are for, and whose they pretend to be.
const VICTIM: Node = Node(1);
const CLAIMED: Node = Node(2);
/// A device for envelopes, on the forger's side.
const FORGE: &str = "forge";

fn claimed(family: Family) -> IpAddr {
    CLAIMED.pods()[0].address(family)
}

fn forgery(family: Family, by: &'static str) -> Load {
    Load::new(vec![Flow { from: CLAIMED.pods()[0], to: pod("1a"), family }], 100).by(by).disguised(claimed)
}

/// Lines that make an envelope's device as the claimed node has one, with packets to the victim's pod going by it.
fn forge(own: IpAddr) -> Vec<String> {
    let (low, high) = (VICTIM.0, CLAIMED.0);
    let id = u32::from(low) << 8 | u32::from(high);
    let far = VICTIM.address(Family::V4);
    let mut lines = vec![
        "link set dev lo up".to_owned(),
        format!("link add {FORGE} type vxlan id {id} local {own} remote {far} dstport 8472"),
        format!("link set dev {FORGE} up"),
    ];
    for &family in Families::Dual.all() {
        let (length, hop) = match family {
            Family::V4 => (32, "169.254.77.1"),
            Family::V6 => (128, "fe80::77:1"),
        };
        lines.push(format!("address add {}/{length} dev lo", claimed(family)));
        lines.push(format!("neighbour replace {hop} lladdr 02:00:00:01:01:02 dev {FORGE} nud permanent"));
        // Closer than the way that the forger's own pods take.
        let victim = pod("1a").address(family);
        lines.push(format!("route add {victim}/{length} via {hop} dev {FORGE} onlink"));
    }
    lines
}

/// Both families: the forged packets arrive while nothing is in force.
fn all_arrive(stage: &mut Stage, by: &'static str) -> Result<()> {
    for &family in Families::Dual.all() {
        let (tally, _) = stage.send(forgery(family, by), SENT)?;
        none_lost(&tally).with_context(|| format!("the control, by {family}"))?;
    }
    Ok(())
}

/// None arrives, and each is counted.
fn none_arrive(stage: &mut Stage, by: &'static str, counter: (&'static str, &'static str)) -> Result<()> {
    for &family in Families::Dual.all() {
        let before = told(stage, VICTIM, counter)?;
        let (tally, _) = stage.send(forgery(family, by), SENT)?;
        none_arrived(&tally).with_context(|| format!("by {family}"))?;
        rises_by(stage, VICTIM, counter, before, tally.sent)?;
    }
    Ok(())
}

/// Whoever can reach a node's VXLAN port could put packets into its pods' network.
fn forged_on_the_wire(stage: &mut Stage) -> Result<()> {
    const STRANGER: [u8; 4] = [192, 0, 2, 77];
    for device in ["default", "all", "lo"] {
        namespace::sysctl(WIRE, &format!("net/ipv6/conf/{device}/disable_ipv6"), "0")?;
    }
    let own = IpAddr::from(STRANGER);
    let mut lines = vec![
        "link set dev lo up".to_owned(),
        format!("address add {own}/32 dev lo"),
        format!("route add 192.0.2.0/24 dev wire0 src {own}"),
    ];
    lines.extend(forge(own));
    batch(Some(WIRE), &lines)?;
    all_arrive(stage, WIRE)?;
    batch(Some(WIRE), &[format!("link set dev {FORGE} down")])?;
    stage.start()?;
    stage.open()?;
    lines = vec![format!("link set dev {FORGE} up")];
    lines.extend(
        forge(own).into_iter().filter(|line| line.contains("neighbour") || line.contains("route add")),
    );
    batch(Some(WIRE), &lines)?;
    none_arrive(stage, WIRE, ("ingress", "plain_from_pod"))
}

/// WireGuard holds a node to its own addresses; in an envelope it could claim others'.
fn forged_by_a_node(stage: &mut Stage) -> Result<()> {
    const FORGER: Node = Node(3);
    let name = "node-3";
    ensure!(FORGER.name() == name, "another node than the third");
    batch(Some(name), &forge(FORGER.address(Family::V4)))?;
    all_arrive(stage, name)?;
    stage.start()?;
    none_arrive(stage, name, ("tunnel", "envelope_spoofed"))
}
