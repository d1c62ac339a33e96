//! How long the programs take. Reported, never asserted: the machine is not ours alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use aya::{Ebpf, programs::SchedClassifier};
use kubeveil_abi::{Direction, Mode, PeerValue, PrefixKind, names, v4_mapped_length};
use kubeveil_verdict::testing::{Build, Place, Scene, Situation, Transport, World, address};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use crate::kernel::{Kernel, test_run};

const REPEAT: u32 = 100_000;

pub(crate) fn report() -> Result<()> {
    let frame = Build::new(Place::LocalPod.ip(false), Place::Outside.ip(false), Transport::Raw(59)).frame();
    let empty = empty_program(&frame)?;
    println!("speed: an empty program takes {empty} ns; all below is net of it");
    for nodes in [1_000, 5_000] {
        let mut kernel = Kernel::with(&cluster(nodes))?;
        for (what, direction, situation) in situations(nodes) {
            let frame = situation.build.frame();
            let time = |kernel: &mut Kernel| {
                let ran = kernel.run_often(direction, &situation, &frame, 0, REPEAT)?;
                anyhow::Ok(ran.duration.as_nanos().saturating_sub(empty))
            };
            kernel.settle()?;
            let kept = time(&mut kernel)?;
            kernel.unsettle()?;
            let looked_up = time(&mut kernel)?;
            let direction = direction.name();
            println!("speed: {nodes} nodes, {direction}, {what}: {kept} ns; looked up anew: {looked_up} ns");
        }
    }
    Ok(())
}

/// The addresses of node `n`: a pod's and its own.
fn node(n: u16, is_v6: bool) -> (IpAddr, IpAddr) {
    let [high, low] = n.to_be_bytes();
    if is_v6 {
        let pod = Ipv6Addr::new(0xfd00, 0x244, 0, n, 0, 0, 0, 0x10);
        (pod.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n).into())
    } else {
        let pod = Ipv4Addr::new(10, 128 + high, low, 10);
        (pod.into(), Ipv4Addr::new(172, 16 + high, low, 1).into())
    }
}

/// A dual-stack cluster beside the ordinary scene.
fn cluster(nodes: u16) -> World {
    let mut world = Scene::calm(Mode::Require).world();
    for n in 0..nodes {
        let peer = u32::from(n) + u32::from(Scene::PEERS);
        world.peers.insert(peer, PeerValue::tunnel(0, 0));
        for is_v6 in [false, true] {
            let (pod, own) = node(n, is_v6);
            let length = if is_v6 { 64 } else { v4_mapped_length(24) };
            world.add(address(pod), length, PrefixKind::RemotePods, peer);
            world.add(address(own), 128, PrefixKind::RemoteNode, peer);
        }
    }
    world
}

fn situations(nodes: u16) -> Vec<(&'static str, Direction, Situation)> {
    let mut all = Vec::new();
    for is_v6 in [false, true] {
        let mut add = |what: [&'static str; 2], direction, from: IpAddr, to: IpAddr, ingress| {
            let mut situation =
                Situation::new(Place::LocalPod, Place::Outside, is_v6, Transport::Tcp(40_000, 443, None))
                    .by(ingress);
            (situation.build.source, situation.build.destination) = (from, to);
            all.push((what[usize::from(is_v6)], direction, situation));
        };
        let (pod, own) = node(nodes / 3, is_v6);
        let (here, host) = (Place::LocalPod.ip(is_v6), Place::LocalNode.ip(is_v6));
        let outside = Place::Outside.ip(is_v6);
        add(["pod to pod, IPv4", "pod to pod, IPv6"], Direction::Egress, here, pod, Scene::POD_DEVICE);
        add(["host to node, IPv4", "host to node, IPv6"], Direction::Egress, host, own, 0);
        add(["elsewhere, IPv4", "elsewhere, IPv6"], Direction::Egress, here, outside, Scene::POD_DEVICE);
        add(["node to node, IPv4", "node to node, IPv6"], Direction::Ingress, own, host, Scene::UNDERLAY);
        add(
            ["from elsewhere, IPv4", "from elsewhere, IPv6"],
            Direction::Ingress,
            outside,
            here,
            Scene::UNDERLAY,
        );
        add(["pod to pod, IPv4", "pod to pod, IPv6"], Direction::Tunnel, pod, here, Scene::TUNNELS[0]);
    }
    all
}

/// `return -1`, timed in the same way.
fn empty_program(frame: &[u8]) -> Result<u128> {
    // r0 = -1; exit (instruction set: Documentation/bpf/standardization/instruction-set.rst).
    let code = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"GPL\0", 1);
    let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    object.append_section_data(section, &code, 8);
    object.add_symbol(Symbol {
        name: b"empty".to_vec(),
        value: 0,
        size: u64::try_from(code.len())?,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    let mut ebpf = Ebpf::load(&object.write()?)?;
    let classifier: &mut SchedClassifier = ebpf.program_mut("empty").context("empty")?.try_into()?;
    classifier.load()?;
    Ok(test_run(classifier, frame, None, REPEAT)?.duration.as_nanos())
}

/// Instructions that the verifier may look at, for each program: about twice what it does on Linux 6.18, for older
/// kernels look at more. A program that grows beyond is a slow start of every node, and at a million none at all.
const MOST: [(&str, u32); 4] =
    [(names::STEER, 45_000), (names::REPLACE, 45_000), (names::GUARD, 20_000), (names::DELIVER, 20_000)];

/// Growth is seen before it hurts.
pub(crate) fn verified() -> Result<()> {
    let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
    let counts = kernel.verified()?;
    for (name, most) in MOST {
        let count = counts.get(name).with_context(|| format!("no count for {name}"))?;
        println!("{name}: {count} instructions verified, {most} at most");
        ensure!(*count <= most, "{name}: the verifier looked at {count} instructions, more than {most}");
    }
    Ok(())
}
