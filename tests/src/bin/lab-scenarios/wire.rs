//! What crosses the wire in a cluster that is well.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use kubeveil_tests::address::{Families, Node};
use kubeveil_tests::analysis::MARKER;
use kubeveil_tests::stage::{Stage, encrypted, none_lost, none_plain, pod};
use kubeveil_tests::traffic::{Load, flows, transfer};
use kubeveil_tests::{namespace, traffic};

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("pods_of_all_nodes_talk_encrypted", everybody_talks).shared(),
    Scenario::new("an_error_that_quotes_a_pods_packet_is_encrypted", quoted).shared(),
    Scenario::new("a_large_tcp_transfer_is_encrypted", tcp).shared(),
    Scenario::new("full_size_packets_are_encrypted", full_size).shared(),
    Scenario::new("an_ipv4_cluster_is_encrypted", one_family).families(Families::Ipv4),
    Scenario::new("an_ipv6_cluster_is_encrypted", one_family).families(Families::Ipv6),
];

fn everybody_talks(stage: &mut Stage) -> Result<()> {
    let families = stage.lab.spec().families;
    let pairs = [("1a", "2b"), ("2b", "3a"), ("3a", "1b"), ("1b", "3b"), ("3b", "2a"), ("2a", "1a")];
    let all = pairs.map(|(from, to)| flows(pod(from), pod(to), families)).concat();
    let (tally, census) = stage.send(Load::new(all, 400), 480)?;
    encrypted(&tally, &census)
}

/// A host's error message quotes the packet that it is about: a pod's, with its bytes.
fn quoted(stage: &mut Stage) -> Result<()> {
    const SENT: u64 = 3;
    for (from, to) in [("192.0.2.1:0", "10.244.2.99:9000"), ("[2001:db8::1]:0", "[fd00:244:2::99]:9000")] {
        stage.phase()?;
        // From the host to a pod that is gone: the other host says so, once it has looked for it in vain.
        let socket = namespace::within(&Node(1).name(), || Ok(UdpSocket::bind(from)?))?;
        for _ in 0..SENT {
            // An error that came back is told by the next call; the packet was sent all the same.
            let _ = socket.send_to(&MARKER.repeat(4), to);
        }
        thread::sleep(Duration::from_secs(5));
        let census = stage.phase()?;
        none_plain(&census)?;
        ensure!(census.ciphertext > SENT, "no error came back, so nothing was shown: {census}");
    }
    Ok(())
}

fn tcp(stage: &mut Stage) -> Result<()> {
    // 16 MiB of each family: enough to fill every window and buffer on the way.
    const BLOCKS: u64 = 256;
    for &family in stage.lab.spec().families.all() {
        let flow = traffic::Flow { from: pod("1a"), to: pod("2a"), family };
        stage.phase()?;
        let moved = transfer(flow, BLOCKS)?;
        let census = stage.phase()?;
        none_plain(&census)?;
        let frames = moved.bytes / 1500;
        ensure!(census.ciphertext > frames, "{} bytes in {census}", moved.bytes);
        eprintln!("  {family}: {} MiB at {:.0} Mb/s", moved.bytes >> 20, moved.rate());
    }
    Ok(())
}

/// Packets as large as a pod's device takes are more than a tunnel takes: fragments must not leak.
fn full_size(stage: &mut Stage) -> Result<()> {
    // 1440 bytes are the most that a tunnel over 1500 takes: IPv6 with 1392 of payload.
    const FITS: usize = 1392;
    for size in [1200, FITS, 1452, 1472] {
        let mut load = stage.load("1a", "3a", 100);
        load.size = size;
        let (tally, census) = stage.send(load, 40)?;
        none_plain(&census)?;
        // Whether a packet that is too big arrives is a matter of MTU; that none leaks is not.
        if size <= FITS {
            none_lost(&tally)?;
        }
    }
    Ok(())
}

fn one_family(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 200)?;
    encrypted(&tally, &census)?;
    let (tally, census) = stage.send(stage.load("3b", "1b", 200), 200)?;
    encrypted(&tally, &census)
}
