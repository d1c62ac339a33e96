//! Every packet of a ground at once: sent, seen, and told apart by its payload.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::{BRIDGE, WIRE};
use kubeveil_tests::packet::{Host, Tap, content};
use kubeveil_tests::stage::{Stage, pod};
use kubeveil_tests::status::said_in;
use kubeveil_verdict::testing::conditions::{Hook, Kind, Way, conditions};
use kubeveil_verdict::testing::{Place, Situation};

use crate::ground::{CABLE, FAR, Ground, NEAR};

/// When nothing more is seen for so long, nothing comes any more.
const QUIET: Duration = Duration::from_millis(400);
/// Longer than neighbours take to find each other.
const PATIENCE: Duration = Duration::from_secs(10);
/// The tunnel's device.
const TUNNEL: &str = "kubeveil0";

/// A packet of the batch.
pub(crate) struct Item {
    pub(crate) way: &'static Way,
    pub(crate) kind: Kind,
    pub(crate) is_v6: bool,
    pub(crate) situation: Situation,
}

impl Item {
    /// How often it is sent.
    pub(crate) fn copies(&self) -> u64 {
        // The host itself is told how much fits, and sends no more like it.
        if self.way.ingress_ifindex == 0 && self.kind == Kind::Undivided { 1 } else { 2 }
    }
}

/// What was seen of each packet, by its number.
#[derive(Default)]
pub(crate) struct Seen {
    /// On the cables between the nodes, in plain.
    pub(crate) wire: BTreeMap<u32, u64>,
    /// Out of the far node's tunnel.
    pub(crate) tunnel: BTreeMap<u32, u64>,
    /// At a pod of the near node.
    pub(crate) pod: BTreeMap<u32, u64>,
}

/// All packets that a ground shows.
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    senders: Senders,
}

struct Senders {
    pods: [Tap; 2],
    host: Host,
    wire: Tap,
    /// Hardware address by which pods reach their node.
    gateway: [u8; 6],
}

impl Batch {
    pub(crate) fn of(ground: Ground) -> Result<Self> {
        let shown =
            conditions().filter(|(way, kind, _)| ground.has(way) && ground.hidden(way, *kind).is_none());
        let items = (0..).zip(shown).map(|(id, (way, kind, is_v6))| {
            let mut situation = kind.on(way, is_v6);
            let build = &mut situation.build;
            build.content = content(id);
            build.payload = build.payload.max(64);
            if ground == Ground::Masquerading {
                build.source = pod("1b").address(if is_v6 { Family::V6 } else { Family::V4 });
            }
            // The receiving device takes one tag off before anybody sees it; here another is the VLAN's.
            let is_vlans = ground == Ground::Vlan && way.hook == Hook::Wire && kind != Kind::Tagged;
            build.tags += u8::from(is_vlans || kind == Kind::TripleTagged);
            build.provider_tags += u8::from(kind == Kind::ProviderTagged);
            Item { way, kind, is_v6, situation }
        });
        let senders = Senders {
            pods: [Tap::at("pod-1a", "eth0")?, Tap::at("pod-1b", "eth0")?],
            host: Host::in_namespace(&NEAR.name())?,
            wire: Tap::at(WIRE, "port-1")?,
            gateway: hardware_address(NEAR, "cni0")?,
        };
        Ok(Self { items: items.collect(), senders })
    }

    /// Sends all; what is seen of each. `is_closed`: there are tunnels to look out of.
    pub(crate) fn send(&self, ground: Ground, is_closed: bool) -> Result<Seen> {
        let wires = match ground {
            Ground::Unguarded => vec![Tap::at(&FAR.name(), CABLE)?, Tap::at(WIRE, BRIDGE)?],
            _ => vec![Tap::at(WIRE, "port-2")?],
        };
        let tunnel = is_closed.then(|| Tap::at(&FAR.name(), TUNNEL)).transpose()?;
        let pod = Tap::at("pod-1a", "eth0")?;
        for (id, item) in (0_u32..).zip(&self.items) {
            for _ in 0..item.copies() {
                self.senders.send(ground, item).with_context(|| {
                    format!("packet {id}: {}, {}, IPv6: {}", item.way.name, item.kind.name(), item.is_v6)
                })?;
                // Not faster than queues on the way are emptied.
                sleep(Duration::from_millis(1));
            }
        }
        let (mut seen, mut last, end) = (Seen::default(), Instant::now(), Instant::now() + PATIENCE);
        while last.elapsed() < QUIET {
            ensure!(Instant::now() < end, "packets come and come");
            sleep(Duration::from_millis(20));
            let mut any = add(&mut seen.pod, pod.seen()?);
            for wire in &wires {
                any |= add(&mut seen.wire, wire.seen()?);
            }
            if let Some(tunnel) = &tunnel {
                any |= add(&mut seen.tunnel, tunnel.seen()?);
            }
            if any {
                last = Instant::now();
            }
        }
        Ok(seen)
    }
}

impl Senders {
    fn send(&self, ground: Ground, item: &Item) -> Result<()> {
        let build = &item.situation.build;
        match (item.way.hook, item.way.ingress_ifindex) {
            (Hook::Wire, _) => self.wire.send(&build.frame()),
            (_, 0) => self.host.send(&build.network(), build.destination),
            _ => {
                let mut frame = build.frame();
                frame[..6].copy_from_slice(&self.gateway);
                self.pods[usize::from(ground == Ground::Masquerading)].send(&frame)
            }
        }
    }
}

fn add(all: &mut BTreeMap<u32, u64>, more: BTreeMap<u32, u64>) -> bool {
    let any = !more.is_empty();
    for (id, count) in more {
        *all.entry(id).or_default() += count;
    }
    any
}

fn hardware_address(node: Node, device: &str) -> Result<[u8; 6]> {
    let text = said_in(node, "ip", &["-j", "link", "show", "dev", device])?;
    let json: serde_json::Value = serde_json::from_str(&text).context("what `ip -j link` says")?;
    let address = json[0]["address"].as_str().context("address")?;
    let bytes: Vec<_> =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("no hardware address")
}

/// Pods and their nodes find each other beforehand: of what waits for a neighbour the kernel keeps a few packets only.
pub(crate) fn introduce(stage: &Stage) -> Result<()> {
    for node in stage.lab.nodes() {
        for (pod, &family) in
            node.pods().iter().flat_map(|pod| Families::Dual.all().iter().map(move |f| (pod, f)))
        {
            let option = if family == Family::V6 { "-6" } else { "-4" };
            said_in(node, "ping", &[option, "-c", "1", "-W", "2", &pod.address(family).to_string()])?;
        }
    }
    Ok(())
}

/// Whether what becomes of it shows at a pod: what comes from the wire for the node itself is seen nowhere.
pub(crate) fn ends_at_pod(item: &Item) -> bool {
    item.way.hook == Hook::Wire && item.way.to == Place::LocalPod
}
