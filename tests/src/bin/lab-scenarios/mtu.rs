//! Packets around the size that the tunnel takes: what does not fit is told to its sender.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::{BRIDGE, WIRE, batch, nft, program_path};
use kubeveil_tests::process::{self, wait_until};
use kubeveil_tests::stage::{PROVEN, Stage, conclusive, encrypted, none_plain, pod};
use kubeveil_tests::status::said_in;
use kubeveil_tests::traffic::{Flow, Load, transfer};

use crate::Scenario;
use crate::support::{DEVICE, rises_by, told};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("sizes_around_the_edge", edge).nodes(2),
    Scenario::new("sizes_around_the_edge_over_ipv6", edge).nodes(2).families(Families::Ipv6),
    Scenario::new("a_masqueraded_sender_is_told", masqueraded).nodes(2),
    Scenario::new("the_underlays_mtu_changes", changes).nodes(2),
];

const SENDER: &str = "1a";
const RECEIVER: &str = "2a";
const TOO_BIG: (&str, &str) = ("egress", "too_big");

/// Largest packet that the tunnel takes, from its IP header on (`daemon/core/src/mtu.rs`).
fn limit(stage: &Stage) -> usize {
    if stage.lab.spec().families == Families::Ipv6 { 1408 } else { 1440 }
}

/// Bytes of IP and UDP headers.
fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

/// What fits arrives; the first that does not teaches its sender, whose later ones arrive in pieces that fit.
fn edge(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let limit = limit(stage);
    for &family in stage.lab.spec().families.all() {
        let mut load = Load::new(vec![Flow { from: pod(SENDER), to: pod(RECEIVER), family }], 100);
        let before = told(stage, Node(1), TOO_BIG)?;
        for size in [limit - 17, limit - 16, limit - 15, limit - 1, limit] {
            load.size = size - headers(family);
            let (tally, census) = stage.send(load.clone(), 10)?;
            encrypted(&tally, &census).with_context(|| format!("{size} bytes of {family}"))?;
        }
        rises_by(stage, Node(1), TOO_BIG, before, 0)?;
        ensure!(path_mtu(SENDER, RECEIVER, family)?.is_none(), "told though all fits");

        load.size = limit + 1 - headers(family);
        let (tally, census) = stage.send(load.clone(), 50)?;
        none_plain(&census)?;
        conclusive(&tally)?;
        let told_mtu = path_mtu(SENDER, RECEIVER, family)?;
        ensure!(told_mtu == Some(limit), "{family}: the pod knows {told_mtu:?}, not {limit}");
        // What was on its way before the message came is lost; nothing after.
        ensure!((1..=5).contains(&tally.lost()), "{family}, one byte too many: {tally}");
        rises_by(stage, Node(1), TOO_BIG, before, tally.lost())?;

        for size in [limit + 1, 1500] {
            load.size = size - headers(family);
            let (tally, census) = stage.send(load.clone(), 50)?;
            encrypted(&tally, &census).with_context(|| format!("{size} bytes of {family}, in pieces"))?;
        }
        rises_by(stage, Node(1), TOO_BIG, before, tally.lost())?;
    }
    Ok(())
}

/// The message finds its way back through the node's own translation of addresses.
fn masqueraded(stage: &mut Stage) -> Result<()> {
    let rules = "add table inet lab
        add chain inet lab post { type nat hook postrouting priority srcnat; }
        add rule inet lab post ip saddr 10.244.1.0/24 ip daddr 192.0.2.0/24 masquerade
        add rule inet lab post ip6 saddr fd00:244:1::/64 ip6 daddr 2001:db8::/64 masquerade";
    nft("node-1", rules).context("masquerade the first node's pods")?;
    stage.start()?;
    for &family in Families::Dual.all() {
        let to = Node(2).address(family).to_string();
        // With its headers one fits into the tunnel, the other into the pod's device only.
        for size in ["1380", "1440"] {
            let mut ping = Command::new("ip");
            let option = if family == Family::V6 { "-6" } else { "-4" };
            ping.args([
                "netns", "exec", "pod-1a", "ping", option, "-M", "do", "-c", "2", "-i", "0.2", "-W", "1",
            ]);
            ping.args(["-s", size, &to]).env("PATH", program_path());
            // The larger ones don't get through, which is an error to ping.
            let answer = process::run(&mut ping, "");
            ensure!(size == "1440" || answer.is_ok(), "{size} bytes by {family}: {answer:?}");
        }
        let found = route_mtu("pod-1a", &to, family)?;
        ensure!(found == Some(1440), "{family}: the pod knows {found:?}");
    }
    let census = stage.phase()?;
    none_plain(&census)?;
    batch(Some("node-1"), &["route flush cache".to_owned()])
}

/// Jumbo frames come, and a path so narrow that IPv6 leaves the tunnel no less: everything follows, under traffic.
fn changes(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    // The underlay's, the tunnel's, and what a pod then knows by IPv4 and by IPv6. What is too big for the underlay itself
    // the node's kernel answers with that one's; by IPv4 the pod then sends pieces that may be cut further.
    for (underlay, limit, known) in [
        (9000, 8928, [None, None]),
        (1300, 1280, [Some(1300), Some(1280)]),
        (1500, 1440, [Some(1440), Some(1440)]),
    ] {
        let load = stage.load(SENDER, RECEIVER, 200);
        let (tally, census) = stage.send_while(load, |stage| {
            set_underlay(stage, underlay)?;
            stage.lab.nodes().try_for_each(|node| follows(node, limit))
        })?;
        encrypted(&tally, &census).with_context(|| format!("while the MTU becomes {underlay}"))?;
        let before = told(stage, Node(1), TOO_BIG)?;
        for (&family, expected) in Families::Dual.all().iter().zip(known) {
            // As much as a pod's own device takes.
            let mut load = Load::new(vec![Flow { from: pod(SENDER), to: pod(RECEIVER), family }], 100);
            load.size = 1500 - headers(family);
            let (tally, census) = stage.send(load, 30)?;
            none_plain(&census)?;
            conclusive(&tally)?;
            let known = path_mtu(SENDER, RECEIVER, family)?;
            ensure!(known == expected, "{family} over {underlay}: the pod knows {known:?}, not {expected:?}");
            let fits = expected.is_none();
            ensure!(tally.received > 0 && (!fits || tally.lost() == 0), "{family} over {underlay}: {tally}");
            transfer(Flow { from: pod(SENDER), to: pod(RECEIVER), family }, 4)
                .with_context(|| format!("over {underlay}"))?;
        }
        let risen = told(stage, Node(1), TOO_BIG)?[0] - before[0];
        ensure!((risen > 0) == known[1].is_some(), "over {underlay}: {risen} were too big");
        none_plain(&stage.phase()?)?;
    }
    Ok(())
}

/// The devices of all nodes, and of the wire between them: the wire is never the narrower one.
fn set_underlay(stage: &Stage, mtu: u32) -> Result<()> {
    let nodes: Vec<_> = stage.lab.nodes().collect();
    let of_wire = |mtu| {
        let ports = nodes.iter().map(|node| format!("link set dev port-{} mtu {mtu}", node.0));
        batch(Some(WIRE), &ports.chain([format!("link set dev {BRIDGE} mtu {mtu}")]).collect::<Vec<_>>())
    };
    of_wire(9000)?;
    for node in &nodes {
        batch(Some(&node.name()), &[format!("link set dev eth0 mtu {mtu}")])?;
    }
    // What the pods have learnt of the old one.
    for name in [SENDER, RECEIVER] {
        batch(Some(&pod(name).name()), &["route flush cache".to_owned()])?;
        said_of_pod(name, &["-6", "route", "flush", "cache"])?;
    }
    Ok(())
}

fn said_of_pod(name: &str, arguments: &[&str]) -> Result<String> {
    let mut ip = Command::new("ip");
    process::run(ip.args(["-n", &pod(name).name()]).args(arguments), "")
}

/// Waits until a node's tunnel has this MTU.
fn follows(node: Node, limit: usize) -> Result<()> {
    let mut last = String::new();
    let followed = wait_until(PROVEN, Duration::from_millis(50), || {
        last = said_in(node, "ip", &["-o", "link", "show", "dev", DEVICE])?;
        Ok(last.contains(&format!(" mtu {limit} ")))
    })?;
    ensure!(followed, "{}: the tunnel's MTU does not become {limit}: {last}", node.name());
    Ok(())
}

/// What a pod has learnt of the way to another.
fn path_mtu(from: &str, to: &str, family: Family) -> Result<Option<usize>> {
    route_mtu(&pod(from).name(), &pod(to).address(family).to_string(), family)
}

fn route_mtu(namespace: &str, to: &str, family: Family) -> Result<Option<usize>> {
    let option = if family == Family::V6 { "-6" } else { "-4" };
    let mut ip = Command::new("ip");
    ip.args(["-n", namespace, option, "route", "get", to]);
    let answer = process::run(&mut ip, "")?;
    let mut words = answer.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(|mtu| mtu.parse().with_context(|| format!("no MTU: {answer}"))).transpose()
}
