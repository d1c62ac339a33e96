//! What a stranger on the wire puts into the mouth of others, in both families.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::{WIRE, batch};
use kubeveil_tests::namespace;
use kubeveil_tests::stage::{Stage, encrypted, none_arrived, none_lost, pod};
use kubeveil_tests::traffic::{Flow, Load};

use crate::Scenario;
use crate::support::{rises_by, told};

pub(crate) const ALL: &[Scenario] =
    &[Scenario::new("a_forged_source_from_the_wire_is_dropped", forged).nodes(2)];

/// Whose pods the packets are for.
const VICTIM: Node = Node(1);
/// Packets of each family.
const SENT: u64 = 20;

/// A source that a stranger claims.
struct Forgery {
    claims: &'static str,
    source: fn(Family) -> IpAddr,
    reason: &'static str,
}

const FORGERIES: [Forgery; 5] = [
    Forgery {
        claims: "a pod of another node",
        source: |family| pod("2a").address(family),
        reason: "plain_from_pod",
    },
    Forgery {
        claims: "a pod of no node",
        source: |family| pod("9a").address(family),
        reason: "plain_from_pod",
    },
    Forgery { claims: "another node", source: |family| Node(2).address(family), reason: "plain_to_pod" },
    Forgery {
        claims: "another pod of the victim's node",
        source: |family| pod("1b").address(family),
        reason: "spoofed_local",
    },
    Forgery {
        claims: "the victim's own node",
        source: |family| VICTIM.address(family),
        reason: "spoofed_local",
    },
];

/// Each is shown to arrive while nothing is in force.
fn forged(stage: &mut Stage) -> Result<()> {
    // The kernel itself would refuse IPv4 from its own address and from where no route leads, and then
    // nothing would be shown.
    for (key, value) in [("accept_local", "1"), ("rp_filter", "0")] {
        namespace::sysctl(&VICTIM.name(), &format!("net/ipv4/conf/eth0/{key}"), value)?;
    }
    enable_stranger()?;
    for (forgery, family) in each() {
        let (tally, census) = stage.send(forgery.load(family), SENT)?;
        none_lost(&tally).with_context(|| format!("the control: {} by {family}", forgery.claims))?;
        ensure!(census.markers >= tally.sent, "the capture does not show them: {census}");
    }
    disable_stranger()?;
    stage.start()?;

    stage.open()?;
    enable_stranger()?;
    // All of them, so that who mends one sees the others.
    let failed: Vec<_> = each()
        .filter_map(|(forgery, family)| {
            let error = forgery.is_dropped(stage, family).err()?;
            Some(format!("{} by {family}: {error:#}", forgery.claims))
        })
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    disable_stranger()?;

    stage.close()?;
    let (tally, census) = stage.send(stage.load("2a", "1a", 100), SENT)?;
    encrypted(&tally, &census)
}

fn each() -> impl Iterator<Item = (&'static Forgery, Family)> {
    FORGERIES.iter().flat_map(|forgery| Families::Dual.all().iter().map(move |&family| (forgery, family)))
}

impl Forgery {
    fn load(&self, family: Family) -> Load {
        let flow = Flow { from: pod("2a"), to: pod("1a"), family };
        Load::new(vec![flow], 100).by(WIRE).disguised(self.source)
    }

    /// An error unless each packet was on the wire, was dropped, and was counted for the reason.
    fn is_dropped(&self, stage: &mut Stage, family: Family) -> Result<()> {
        let counter = ("ingress", self.reason);
        let before = told(stage, VICTIM, counter)?;
        let (tally, census) = stage.send(self.load(family), SENT)?;
        ensure!(census.markers >= tally.sent, "they were not on the wire: {census}");
        none_arrived(&tally)?;
        rises_by(stage, VICTIM, counter, before, tally.sent)
    }
}

/// Gives the wire's own namespace the addresses, and the way to the victim that the plain routes take.
/// They lie on its loopback device, for which nobody on the wire is answered.
fn enable_stranger() -> Result<()> {
    for (key, value) in [
        ("net/ipv4/conf/wire0/arp_ignore", "1"),
        ("net/ipv6/conf/lo/disable_ipv6", "0"),
        ("net/ipv6/conf/wire0/disable_ipv6", "0"),
    ] {
        namespace::sysctl(WIRE, key, value)?;
    }
    let mut lines = vec!["link set dev lo up".to_owned()];
    for &family in Families::Dual.all() {
        let length = if family == Family::V6 { 128 } else { 32 };
        for forgery in &FORGERIES {
            lines.push(format!("address add {}/{length} dev lo", (forgery.source)(family)));
        }
        // Found without asking: a question under a forged address would be dropped as well.
        lines.push(format!("neighbour replace {} lladdr {} {LINK} nud permanent", by(family), VICTIM.mac()));
        lines.push(format!("route add {} via {} {LINK} onlink", VICTIM.pod_cidr(family), by(family)));
    }
    batch(Some(WIRE), &lines)
}

/// The device that the frames leave by.
const LINK: &str = "dev wire0";

/// Nobody's address, behind which the victim is: its own is one of those forged.
fn by(family: Family) -> IpAddr {
    Node(99).address(family)
}

fn disable_stranger() -> Result<()> {
    let mut lines: Vec<_> =
        Families::Dual.all().iter().map(|&f| format!("route del {} {LINK}", VICTIM.pod_cidr(f))).collect();
    lines.extend([
        format!("neighbour flush {LINK} nud permanent"),
        "address flush dev lo".to_owned(),
        "link set dev lo down".to_owned(),
    ]);
    batch(Some(WIRE), &lines)?;
    namespace::sysctl(WIRE, "net/ipv6/conf/wire0/disable_ipv6", "1")
}
