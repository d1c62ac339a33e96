//! From one version of the pinned maps to another, and back.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_abi::ABI_VERSION;
use kubeveil_tests::address::{Families, Node};
use kubeveil_tests::analysis::MARKER;
use kubeveil_tests::lab::{READY, nft};
use kubeveil_tests::namespace;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, pod};
use kubeveil_tests::status::said_in;

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("another_abi_takes_over_under_traffic", takes_over).nodes(2),
    Scenario::new("another_abi_is_killed_while_it_takes_over", killed).nodes(2),
];

/// Our own version, and what a build of another would be told apart by.
const OWN: u32 = ABI_VERSION;
const OTHER: u32 = ABI_VERSION + 1;
/// Where the host process listens.
const PORT: u16 = 9_000;

fn arguments(abi: u32) -> Vec<String> {
    vec!["--abi".to_owned(), abi.to_string()]
}

fn takes_over(stage: &mut Stage) -> Result<()> {
    masquerade()?;
    stage.start()?;
    for (from, to) in [(OWN, OTHER), (OTHER, OWN)] {
        let streams = Streams::start()?;
        let load = stage.load("1a", "2a", 400);
        let (tally, census) = stage.send_while(load, |stage| {
            for node in stage.lab.nodes() {
                // Once in order, and once not.
                if to == OTHER {
                    stage.lab.daemon(node).stop()?
                } else {
                    stage.lab.daemon(node).kill()?
                }
                stage.lab.daemon(node).spawn(&arguments(to))?;
                stage.lab.daemon(node).wait_ready(READY)?;
                alone(stage, node, to, from)?;
            }
            sleep(Duration::from_secs(1));
            Ok(())
        })?;
        encrypted(&tally, &census).with_context(|| format!("from version {from} to {to}"))?;
        no_others(stage).with_context(|| format!("from version {from} to {to}"))?;
        streams.end().with_context(|| format!("of a host process, from version {from} to {to}"))?;
    }
    Ok(())
}

/// Dies at many moments of taking over; whoever comes next goes on, whichever version it is.
fn killed(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let load = stage.load("1a", "2a", 400);
    let (tally, census) = stage.send_while(load, |stage| {
        let daemon = stage.lab.daemon(Node(1));
        for turn in 0..12_u64 {
            daemon.kill()?;
            daemon.spawn(&arguments(if turn % 2 == 0 { OTHER } else { OWN }))?;
            sleep(Duration::from_millis(100 + turn * 97 % 700));
        }
        daemon.kill()?;
        daemon.spawn(&arguments(OTHER))?;
        daemon.wait_ready(READY)?;
        alone(stage, Node(1), OTHER, OWN)
    })?;
    encrypted(&tally, &census)
}

/// Of two versions' pins one is there, and the other goes.
fn alone(stage: &Stage, node: Node, stays: u32, goes: u32) -> Result<()> {
    let pins = |version: u32| stage.lab.daemon(node).file("bpf/kubeveil").join(format!("v{version}"));
    let gone = wait_until(Duration::from_secs(20), Duration::from_millis(100), || Ok(!pins(goes).exists()))?;
    ensure!(gone, "{}: the pins of version {goes} stay", node.name());
    ensure!(pins(stays).join("links").exists(), "{}: no links of version {stays}", node.name());
    Ok(())
}

/// One program of each kind for each node, in the whole kernel.
fn no_others(stage: &Stage) -> Result<()> {
    let wanted = stage.lab.nodes().count();
    let mut found = 0;
    let none = wait_until(Duration::from_secs(10), Duration::from_millis(100), || {
        found = said_in(Node(1), "bpftool", &["prog", "show"])?.matches("name steer ").count();
        Ok(found == wanted)
    })?;
    ensure!(none, "{found} programs called steer, for {wanted} nodes");
    Ok(())
}

/// A host process that was asked once, by a pod behind its node's address, and goes on telling: what keeps the answers
/// in the tunnel is what was remembered of that one request.
struct Streams {
    ended: Arc<AtomicBool>,
    /// Who tells, and who hears it.
    both: Vec<[JoinHandle<u64>; 2]>,
}

impl Streams {
    fn start() -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut both = Vec::new();
        for &family in Families::Dual.all() {
            let to = SocketAddr::new(Node(2).address(family), PORT);
            let server = namespace::within(&Node(2).name(), || Ok(UdpSocket::bind(to)?))?;
            let any: SocketAddr =
                if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
            let client = namespace::within(&pod("1b").name(), || Ok(UdpSocket::bind(any)?))?;
            client.connect(to)?;
            client.send(b"tell me")?;
            client.set_read_timeout(Some(Duration::from_secs(3)))?;
            server.set_read_timeout(Some(Duration::from_secs(3)))?;
            let (_, from) =
                server.recv_from(&mut [0; 64]).with_context(|| format!("no request by {family}"))?;
            let ended = Arc::clone(&ended);
            both.push([
                thread::spawn(move || tell(&server, from, &ended)),
                thread::spawn(move || hear(&client)),
            ]);
        }
        Ok(Self { ended, both })
    }

    /// An error unless all that was told was heard.
    fn end(self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        for both in self.both {
            let [told, heard] = both.map(|thread| thread.join().ok());
            let (told, heard) = told.zip(heard).context("a thread panicked")?;
            ensure!(told > 50 && heard == told, "{heard} of {told} were heard");
        }
        Ok(())
    }
}

/// Tells until it is ended; how often.
fn tell(server: &UdpSocket, to: SocketAddr, ended: &AtomicBool) -> u64 {
    let mut told = 0;
    while !ended.load(Ordering::Relaxed) {
        told += u64::from(server.send_to(&MARKER.repeat(4), to).is_ok());
        sleep(Duration::from_millis(20));
    }
    told
}

/// Hears until nothing comes any more; how often.
fn hear(client: &UdpSocket) -> u64 {
    std::iter::from_fn(|| client.recv(&mut [0; 128]).ok()).map(|_| 1).sum()
}

/// Behind the first node's address, as a CNI hides pods from what is no pod.
fn masquerade() -> Result<()> {
    let rules = "add table inet lab
        add chain inet lab post { type nat hook postrouting priority srcnat; }
        add rule inet lab post ip saddr 10.244.1.11 ip daddr 192.0.2.0/24 masquerade
        add rule inet lab post ip6 saddr fd00:244:1::11 ip6 daddr 2001:db8::/64 masquerade";
    nft(&Node(1).name(), rules)
}
