//! What WireGuard itself drops. It tells nobody; only its device's counters show it.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kubeveil_tests::address::{Families, Family, Node, Pod};
use kubeveil_tests::lab::{WIRE, batch};
use kubeveil_tests::namespace;
use kubeveil_tests::packet::Host;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{PROVEN, Stage, encrypted, none_arrived, pod};
use kubeveil_tests::status::{said_in, wireguard_peers};

use crate::Scenario;
use crate::support::{Counter, DEVICE, public_key, rises_by, told};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("packets_of_a_peer_that_was_removed_are_counted", peer_removed).shared(),
    Scenario::new("packets_that_claim_anothers_source_are_counted", another_source).shared(),
    Scenario::new("packets_of_a_wrong_length_are_counted", wrong_length).shared(),
    Scenario::new("decrypted_packets_that_nobody_takes_are_counted", nobody_takes).shared(),
    Scenario::new("packets_that_wait_in_vain_for_a_handshake_are_counted", no_handshake).nodes(2),
];

const TX_DROPPED: Counter = ("egress", "wireguard_tx_dropped");
const TX_ERRORS: Counter = ("egress", "wireguard_tx_errors");
const RX_DROPPED: Counter = ("tunnel", "wireguard_rx_dropped");
const RX_ERRORS: Counter = ("tunnel", "wireguard_rx_errors");
const RX_FRAME_ERRORS: Counter = ("tunnel", "wireguard_rx_frame_errors");
const ALL_COUNTERS: [Counter; 5] = [TX_DROPPED, TX_ERRORS, RX_DROPPED, RX_ERRORS, RX_FRAME_ERRORS];

/// Who receives, and counts what it refuses.
const RECEIVER: Node = Node(1);
/// Who sends what is refused.
const SENDER: Node = Node(2);
/// Packets of each family.
const SENT: u64 = 20;
/// The length of one address as a prefix.
const HOSTS: [(Family, u8); 2] = [(Family::V4, 32), (Family::V6, 128)];
/// Packets of a peer that WireGuard keeps while it has no session: it makes room before it adds one
/// (kernel `drivers/net/wireguard/device.c`, `wg_xmit`; `messages.h`, `MAX_STAGED_PACKETS` = 128).
const KEPT: u64 = 129;

/// What a node tells of each of WireGuard's drops.
fn all_told(stage: &Stage, node: Node) -> Result<[[u64; 2]; 5]> {
    let mut all = [[0; 2]; 5];
    for (place, counter) in all.iter_mut().zip(ALL_COUNTERS) {
        *place = told(stage, node, counter)?;
    }
    Ok(all)
}

/// An error unless exactly these counters have risen, by so much, and no other.
fn only_rise(stage: &Stage, node: Node, before: [[u64; 2]; 5], rises: &[(Counter, u64)]) -> Result<()> {
    for (counter, before) in ALL_COUNTERS.into_iter().zip(before) {
        let by = rises.iter().find(|(rises, _)| *rises == counter).map_or(0, |(_, by)| *by);
        rises_by(stage, node, counter, before, by)?;
    }
    Ok(())
}

/// Somebody takes a peer off the device while no daemon runs. (One that runs adds it again.)
fn peer_removed(stage: &mut Stage) -> Result<()> {
    let key = public_key(stage, Node(2))?;
    let before = all_told(stage, Node(1))?;
    stage.lab.daemon(Node(1)).kill()?;
    said_in(Node(1), "wg", &["set", DEVICE, "peer", &key, "remove"])?;
    let (tally, _) = stage.send(stage.load("1a", "2a", 200), 2 * SENT)?;
    none_arrived(&tally)?;
    stage.lab.daemon(Node(1)).start()?;
    only_rise(stage, Node(1), before, &[(TX_ERRORS, tally.sent)])?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 2 * SENT)?;
    encrypted(&tally, &census)
}

/// The session is gone and the far end can't be reached: WireGuard keeps some packets and drops the rest.
fn no_handshake(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let before = all_told(stage, Node(1))?;
    // It would set the device up itself, at a moment of its own.
    stage.lab.daemon(Node(1)).kill()?;
    batch(Some(WIRE), &["link set dev port-2 nomaster".to_owned()])?;
    let sessions_end = [format!("link set dev {DEVICE} down"), format!("link set dev {DEVICE} up")];
    batch(Some(&Node(1).name()), &sessions_end)?;
    // One that has a keepalive is sent an empty packet as the device comes up, before ours, and the oldest are dropped
    // (`drivers/net/wireguard/device.c`, `wg_open` and `wg_xmit`).
    let empty = u64::from(wireguard_peers(Node(1), DEVICE)?.first().is_some_and(|peer| peer.has_keepalive));
    let (tally, _) = stage.send(stage.load("1a", "2a", 200), KEPT + SENT)?;
    none_arrived(&tally)?;
    stage.lab.daemon(Node(1)).start()?;
    only_rise(stage, Node(1), before, &[(TX_DROPPED, empty + tally.sent - KEPT)])?;

    let shaken = |node| anyhow::Ok(wireguard_peers(node, DEVICE)?.first().map_or(0, |peer| peer.handshake));
    let last = shaken(Node(1))?;
    batch(Some(WIRE), &["link set dev port-2 master wire0".to_owned()])?;
    let again = wait_until(PROVEN, Duration::from_millis(100), || Ok(shaken(Node(1))? > last))?;
    ensure!(again, "no handshake though the wire is whole again");
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 2 * SENT)?;
    encrypted(&tally, &census)
}

/// A node that we have a tunnel with sends from the address of another node's pod.
fn another_source(stage: &mut Stage) -> Result<()> {
    let claimed = pod("3a");
    let address = |word: &str| {
        let line = |(family, length)| format!("address {word} {}/{length} dev lo", claimed.address(family));
        batch(Some(&SENDER.name()), &HOSTS.map(line))
    };
    let before = all_told(stage, RECEIVER)?;
    address("add")?;
    route("add")?;
    for &family in Families::Dual.all() {
        let from = (claimed.address(family), 0);
        let socket = namespace::within(&SENDER.name(), || Ok(UdpSocket::bind(from)?))?;
        for _ in 0..SENT {
            socket.send_to(b"not mine to say", (pod("1a").address(family), 9)).context("send")?;
        }
    }
    only_rise(stage, RECEIVER, before, &[(RX_ERRORS, 2 * SENT), (RX_FRAME_ERRORS, 2 * SENT)])?;
    route("del")?;
    address("del")?;
    let (tally, census) = stage.send(stage.load("2a", "1a", 200), 2 * SENT)?;
    encrypted(&tally, &census)
}

/// A node that we have a tunnel with sends packets that say to be longer than they are. What nobody can
/// authenticate is not counted at all, so a stranger can't raise an alarm.
fn wrong_length(stage: &mut Stage) -> Result<()> {
    let before = all_told(stage, RECEIVER)?;
    let stranger = namespace::within(&SENDER.name(), || Ok(UdpSocket::bind("192.0.2.2:0")?))?;
    for kind in 1..=4_u8 {
        // The sizes of WireGuard's four messages (kernel `drivers/net/wireguard/messages.h`).
        let mut message = vec![0x5a; [148, 92, 64, 128][usize::from(kind) - 1]];
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        for _ in 0..SENT {
            stranger.send_to(&message, (RECEIVER.address(Family::V4), 51871)).context("send")?;
        }
    }
    sleep(Duration::from_secs(1));
    only_rise(stage, RECEIVER, before, &[]).context("what nobody can authenticate")?;

    route("add")?;
    send_too_short(pod("2a"), pod("1a"))?;
    only_rise(stage, RECEIVER, before, &[(RX_ERRORS, SENT)])?;
    route("del")?;
    let (tally, census) = stage.send(stage.load("2a", "1a", 200), 2 * SENT)?;
    encrypted(&tally, &census)
}

/// IPv6 headers of our own making. (The kernel corrects the length of IPv4's.)
fn send_too_short(from: Pod, to: Pod) -> Result<()> {
    let [IpAddr::V6(from), IpAddr::V6(to)] = [from, to].map(|pod| pod.address(Family::V6)) else {
        bail!("a pod's IPv6 address is none");
    };
    let host = Host::in_namespace(&SENDER.name())?;
    let packet = header(from, to, 1000);
    (0..SENT).try_for_each(|_| host.send(&packet, to.into()))
}

/// An IPv6 header (RFC 8200, section 3) without anything behind it, which says that `length` bytes follow.
fn header(from: Ipv6Addr, to: Ipv6Addr, length: u16) -> Vec<u8> {
    const NO_NEXT_HEADER: u8 = 59;
    let [high, low] = length.to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, NO_NEXT_HEADER, 64][..], &from.octets(), &to.octets()].concat()
}

/// Priority of a filter that comes after ours where ours are filters (`daemon/linux/src/bpf/attach/clsact.rs`).
const BEHIND_OURS: u16 = 0xd000;

/// What was decrypted becomes, on the node itself, something that no protocol of it takes.
fn nobody_takes(stage: &mut Stage) -> Result<()> {
    let tc = |line: &str| said_in(RECEIVER, "tc", &line.split(' ').collect::<Vec<_>>());
    let before = all_told(stage, RECEIVER)?;
    // Before Linux 6.6 our own programs are filters of such a qdisc.
    let is_ours = tc(&format!("qdisc show dev {DEVICE}"))?.contains("clsact");
    if !is_ours {
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
    }
    let filter = format!("dev {DEVICE} ingress pref {BEHIND_OURS}");
    tc(&format!("filter add {filter} matchall action mpls push protocol mpls_uc label 9"))?;
    let (tally, _) = stage.send(stage.load("2a", "1a", 200), 2 * SENT)?;
    none_arrived(&tally)?;
    only_rise(stage, RECEIVER, before, &[(RX_DROPPED, tally.sent)])?;
    tc(&format!("filter del {filter}"))?;
    if !is_ours {
        tc(&format!("qdisc del dev {DEVICE} clsact"))?;
    }
    let (tally, census) = stage.send(stage.load("2a", "1a", 200), 2 * SENT)?;
    encrypted(&tally, &census)
}

/// Adds or takes away the sender's own way to one of the receiver's pods: into its tunnel, past our programs.
fn route(word: &str) -> Result<()> {
    let line = |(family, length)| format!("route {word} {}/{length} dev {DEVICE}", pod("1a").address(family));
    batch(Some(&SENDER.name()), &HOSTS.map(line))
}
