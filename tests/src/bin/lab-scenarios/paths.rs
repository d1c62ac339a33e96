//! What the status says of the way to each peer.

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::batch;
use kubeveil_tests::stage::Stage;

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("a_narrow_path_by_ipv4_shows_in_the_status", narrow),
    Scenario::new("a_narrow_path_by_ipv6_shows_in_the_status", narrow).families(Families::Ipv6),
];

/// Bytes, of an outer packet on the way to the second node; everywhere else it is 1500.
const NARROW: u32 = 1400;

fn narrow(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let family = stage.lab.spec().families.all()[0];
    // The outer headers take 60 bytes over IPv4 and 80 over IPv6, and WireGuard fills up to multiples of 16.
    let (wide, through, length) = match family {
        Family::V4 => (1440, 1328, 32),
        Family::V6 => (1408, 1312, 128),
    };
    let to = format!("{}/{length}", Node(2).address(family));
    let found = [path_mtu(stage, 2)?, path_mtu(stage, 3)?];
    ensure!(found == [wide; 2], "{found:?} before anything is narrow, not {wide}");
    batch(Some(&Node(1).name()), &[format!("route add {to} dev eth0 mtu {NARROW}")])?;
    let found = [path_mtu(stage, 2)?, path_mtu(stage, 3)?];
    ensure!(found == [through, wide], "{found:?} with a narrow way to node-2 alone, not {through}, {wide}");
    batch(Some(&Node(1).name()), &[format!("route del {to} dev eth0")])?;
    let found = path_mtu(stage, 2)?;
    ensure!(found == wide, "{found} though the way is wide again, not {wide}");
    Ok(())
}

/// What the first node says of its way to another.
fn path_mtu(stage: &Stage, to: u8) -> Result<u64> {
    let status = stage.status(Node(1))?;
    let peers = status["peers"].as_array().context("status.peers")?;
    let peer = peers.iter().find(|peer| peer["node"] == Node(to).name()).context("the peer")?;
    peer["pathMtu"].as_u64().context("pathMtu")
}
