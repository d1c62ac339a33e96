//! The harness itself, with nothing in force: that leaks are seen, in real packets of the real kernel.

use anyhow::{Result, ensure};
use kubeveil_tests::address::{Family, Node};
use kubeveil_tests::lab::{Mode, batch};
use kubeveil_tests::stage::{Stage, none_lost, pod};
use kubeveil_tests::traffic::{Flow, transfer};

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("control_plaintext_is_seen", plaintext).mode(Mode::Off).nodes(2).bare(),
    Scenario::new("control_plaintext_is_seen_in_envelopes", envelopes).mode(Mode::Off).nodes(2).bare(),
];

/// Every frame of a load, whatever its size; of a TCP transfer; also of fragments.
fn plaintext(stage: &mut Stage) -> Result<()> {
    for (size, frames) in [(60, 1), (1400, 1), (4000, 3)] {
        let mut load = stage.load("1a", "2b", 200);
        load.size = size;
        let (tally, census) = stage.send(load, 40)?;
        none_lost(&tally)?;
        ensure!(census.markers >= frames * tally.sent, "{size} bytes: {census}");
        let least = frames * (tally.sent / 2);
        ensure!(census.addresses.iter().all(|&seen| seen >= least), "{size} bytes: {census}");
    }
    for &family in stage.lab.spec().families.all() {
        stage.phase()?;
        let moved = transfer(Flow { from: pod("1a"), to: pod("2a"), family }, 16)?;
        let census = stage.phase()?;
        ensure!(census.markers * 1500 >= moved.bytes, "{} bytes: {census}", moved.bytes);
    }
    Ok(())
}

/// The kernel's own envelopes: those that overlays put around pods' packets.
fn envelopes(stage: &mut Stage) -> Result<()> {
    let kinds = [
        ("vxlan", "vxlan id 7 dstport 4789 remote {peer}", [Family::V4, Family::V6].as_slice()),
        ("vxlan of flannel", "vxlan id 1 dstport 8472 remote {peer}", &[Family::V4, Family::V6]),
        ("geneve", "geneve id 7 remote {peer}", &[Family::V4, Family::V6]),
        ("gre", "gre local {own} remote {peer} ttl 64", &[Family::V4, Family::V6]),
        ("gre with a key", "gre local {own} remote {peer} ttl 64 key 9", &[Family::V4, Family::V6]),
        ("gretap", "gretap local {own} remote {peer} ttl 64", &[Family::V4, Family::V6]),
        ("ipip", "ipip local {own} remote {peer} ttl 64", &[Family::V4]),
        ("sit", "sit local {own} remote {peer} ttl 64", &[Family::V6]),
    ];
    let mut tried = 0;
    for (name, kind, carries) in kinds {
        if let Err(error) = through(stage, kind, carries) {
            // Not every kernel has every kind; a bare minimum it must have.
            let absent = format!("{error:?}").contains("Unknown device type");
            ensure!(absent, "{:?}", error.context(name));
            eprintln!("  {name}: not in this kernel");
            continue;
        }
        tried += 1;
    }
    ensure!(tried > 0, "not one kind of envelope was tried");
    Ok(())
}

fn through(stage: &mut Stage, kind: &str, carries: &[Family]) -> Result<()> {
    let ends = [Node(1), Node(2)];
    for (own, peer) in [(ends[0], ends[1]), (ends[1], ends[0])] {
        let kind = kind
            .replace("{own}", &own.address(Family::V4).to_string())
            .replace("{peer}", &peer.address(Family::V4).to_string());
        let mut lines = vec![format!("link add dev over0 type {kind}"), "link set dev over0 up".to_owned()];
        for &family in carries {
            // On the same subnet, so that neighbours are found through the envelope.
            let address = match family {
                Family::V4 => format!("198.51.100.{}/24", own.0),
                Family::V6 => format!("2001:db8:1::{}/64", own.0),
            };
            let by = match family {
                Family::V4 => format!("198.51.100.{}", peer.0),
                Family::V6 => format!("2001:db8:1::{}", peer.0),
            };
            lines.push(format!("address add {address} dev over0"));
            lines.push(format!("route replace {} via {by} dev over0", peer.pod_cidr(family)));
        }
        batch(Some(&own.name()), &lines)?;
    }
    let mut load = stage.load("1a", "2a", 200);
    load.flows.retain(|flow| carries.contains(&flow.family));
    let wanted = 10 * load.flows.len() as u64;
    let outcome = stage.send(load, wanted);
    for node in ends {
        let mut lines = vec!["link del dev over0".to_owned()];
        let other = if node == ends[0] { ends[1] } else { ends[0] };
        for &family in carries {
            let (to, by) = (other.pod_cidr(family), other.address(family));
            lines.push(format!("route add {to} via {by} dev eth0"));
        }
        batch(Some(&node.name()), &lines)?;
    }
    let (tally, census) = outcome?;
    none_lost(&tally)?;
    for &family in carries {
        let seen = census.addresses_of(family);
        ensure!(seen >= 10, "{seen} of 10 packets by {family} are seen: {census}");
    }
    let opened = census.examples.iter().all(|example| example.matches("ipv").count() > 1);
    ensure!(opened, "not in an envelope: {census}");
    Ok(())
}
