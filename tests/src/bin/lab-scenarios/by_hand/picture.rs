//! What is to be the same before a deed and after it was put back.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use kubeveil_linux::bpf::{Maps, Pins};
use kubeveil_tests::address::Node;
use kubeveil_tests::stage::Stage;
use kubeveil_tests::status::said_in;

use crate::support::DEVICE;

/// Facts of a node, a line each, sorted.
#[derive(PartialEq, Eq)]
pub(super) struct Picture(Vec<String>);

/// Of which the daemon keeps settings of the tunnel's device.
const SYSCTLS: [&str; 4] = ["ipv4/rp_filter", "ipv4/forwarding", "ipv6/forwarding", "ipv6/disable_ipv6"];

impl Picture {
    /// Looks at a node as any tool could.
    pub(super) fn of(stage: &Stage, node: Node) -> Result<Self> {
        let mut facts = Vec::new();
        // What is not there is a fact too.
        let said = |program: &str, arguments: &[&str]| said_in(node, program, arguments).unwrap_or_default();
        facts.push(said("ip", &["-o", "link", "show", "dev", DEVICE]));
        facts.extend(said("ip", &["-o", "-4", "address", "show", "dev", DEVICE]).lines().map(str::to_owned));
        facts.extend(wireguard(&said("wg", &["show", DEVICE, "dump"])));
        facts.extend(programs(&said("bpftool", &["net", "show"])));
        for sysctl in SYSCTLS {
            let (family, name) = sysctl.split_once('/').context("a sysctl")?;
            let path = format!("/proc/sys/net/{family}/conf/{DEVICE}/{name}");
            facts.push(format!("{sysctl} {}", said("cat", &[&path]).trim()));
        }
        let daemon = stage.lab.daemon(node);
        match maps(&Pins::new(&daemon.file("bpf/kubeveil"))) {
            Ok(maps) => facts.extend(maps),
            Err(error) => facts.push(format!("maps: {error:#}")),
        }
        facts.extend(pins(&daemon.file("bpf/kubeveil"))?);
        let announcement = stage.manifest(&format!("announcements/{}.yaml", node.name()));
        facts.push(format!("known.json: {:?}", kept(&daemon.file("state/known.json"))));
        for path in [daemon.file("state/adoption.json"), announcement] {
            facts.push(format!("{}: {:?}", path.display(), std::fs::read_to_string(&path).ok()));
        }
        facts.sort();
        Ok(Self(facts))
    }

    /// What differs from `now`.
    pub(super) fn difference(&self, now: &Self) -> String {
        let [was, is] = [self, now].map(|picture| picture.0.iter().collect::<BTreeSet<_>>());
        let [gone, new] = [&was - &is, &is - &was];
        format!("was {gone:#?}, is {new:#?}")
    }
}

/// What is kept, but for announcements: those get there with the next whole way round, up to ten seconds after they are known.
fn kept(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let Ok(mut kept) = serde_json::from_str::<serde_json::Value>(&text) else { return Some(text) };
    for node in kept["snapshot"]["nodes"].as_object_mut()?.values_mut() {
        node.as_object_mut()?.remove("announcement");
    }
    Some(kept.to_string())
}

/// The device's line without its private key, and each peer's without what changes by itself.
fn wireguard(dump: &str) -> Vec<String> {
    let line = |(number, line): (usize, &str)| {
        let mut fields: Vec<_> = line.split('\t').collect();
        if number == 0 {
            fields.remove(0);
            return fields.join(" ");
        }
        let mut prefixes: Vec<_> = fields.get(3).copied().unwrap_or_default().split(',').collect();
        prefixes.sort_unstable();
        let field = |at: usize| fields.get(at).copied().unwrap_or_default();
        format!("peer {} at {} for {prefixes:?} every {}", field(0), field(2), field(7))
    };
    dump.lines().enumerate().map(line).collect()
}

/// Device, hook and name of each program, without numbers that are given anew.
fn programs(said: &str) -> Vec<String> {
    let words = said.lines().map(|line| {
        let words = line.split_whitespace();
        words.take_while(|word| !["prog_id", "id", "prio"].contains(word)).collect::<Vec<_>>().join(" ")
    });
    words.filter(|line| !line.is_empty()).collect()
}

/// Peers by what they are, not by their numbers: who loses one may get another.
fn maps(pins: &Pins) -> Result<Vec<String>> {
    let maps = Maps::open(pins)?;
    let peers = maps.peers();
    let mut facts = vec![
        format!("config {:?}", maps.config()?),
        format!("slots {:?}", maps.slots()?),
        format!("devices {:?}", maps.devices()?),
        format!("{} peers", peers.len()),
    ];
    let prefixes = maps.prefixes()?;
    facts.extend(
        prefixes
            .iter()
            .map(|(net, prefix)| format!("prefix {net} {:?} {:?}", prefix.kind, peers.get(&prefix.peer))),
    );
    Ok(facts)
}

/// Every file below a folder of a BPF file system.
fn pins(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(pins(&path)?);
        } else {
            found.push(format!("pin {}", path.display()));
        }
    }
    Ok(found)
}

/// What a daemon could use up.
#[derive(Debug)]
pub(super) struct Counts {
    descriptors: usize,
    devices: usize,
    pins: usize,
}

impl Counts {
    /// Of a node and its daemon.
    pub(super) fn of(stage: &Stage, node: Node) -> Result<Self> {
        let daemon = stage.lab.daemon(node);
        let process = daemon.running()?.context("the daemon runs")?;
        Ok(Self {
            descriptors: std::fs::read_dir(format!("/proc/{}/fd", process.id()))?.count(),
            devices: said_in(node, "ip", &["-o", "link"])?.lines().count(),
            pins: pins(&daemon.file("bpf/kubeveil"))?.len(),
        })
    }

    /// Whether there are no more of any than there were.
    pub(super) const fn is_within(&self, before: &Self) -> bool {
        let Self { descriptors, devices, pins } = *self;
        descriptors <= before.descriptors && devices <= before.devices && pins <= before.pins
    }
}

/// Pins that the daemon says are missing.
pub(super) fn missing_pins(stage: &Stage, node: Node) -> Result<usize> {
    let there = pins(&stage.lab.daemon(node).file("bpf/kubeveil"))?;
    let wanted = ["maps/PEERS", "maps/PREFIXES", "maps/CONFIG"];
    Ok(wanted.iter().filter(|wanted| !there.iter().any(|pin| pin.ends_with(**wanted))).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_of_one_hides_no_growth_of_another() {
        let before = Counts { descriptors: 40, devices: 4, pins: 20 };
        for (descriptors, devices, pins, holds) in
            [(40, 4, 20, true), (39, 3, 19, true), (39, 4, 21, false), (39, 5, 20, false), (41, 4, 20, false)]
        {
            assert_eq!(Counts { descriptors, devices, pins }.is_within(&before), holds);
        }
    }
}
