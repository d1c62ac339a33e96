//! How long the programs take. One packet a kind, again and again: its addresses are found where the programs keep what
//! they have looked up, as those of most packets of a node are.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Result;
use kubeveil_abi::{Direction, Mode, PeerValue, PrefixKind, names, v4_mapped_length};
use kubeveil_tests_bpf::kernel::{Kernel, test_run};
use kubeveil_verdict::testing::{Place, Scene, Situation, Transport, World, address};

use crate::{
    raw,
    row::{Row, Series},
    say,
};

/// Runs of a program a measurement.
const REPEAT: u32 = 100_000;
/// Nodes of the clusters, each of both families.
const SIZES: [u16; 3] = [50, 1_000, 5_000];

/// What one kind of packet cost, round by round, by size of the cluster.
#[derive(Default)]
struct Cost {
    kept: [Series; SIZES.len()],
    looked_up: [Series; SIZES.len()],
}

/// `steer`, `guard` and `deliver`, net of an empty program.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    let mut kernels =
        SIZES.map(|nodes| Kernel::with(&cluster(nodes))).into_iter().collect::<Result<Vec<_>>>()?;
    let mut empty = raw::Program::load(&[raw::NEXT, raw::EXIT])?;
    let mut costs: Vec<Cost> = situations(SIZES[0]).iter().map(|_| Cost::default()).collect();
    for round in 1..=rounds {
        say(format!("programs: round {round} of {rounds}"));
        for (kernel, (size, nodes)) in kernels.iter_mut().zip(SIZES.into_iter().enumerate()) {
            for ((_, direction, situation), cost) in situations(nodes).iter().zip(&mut costs) {
                let frame = situation.build.frame();
                let nothing = nanoseconds(test_run(empty.classifier()?, &frame, None, REPEAT)?.duration);
                let time = |kernel: &mut Kernel| {
                    let ran = kernel.run_often(*direction, situation, &frame, 0, REPEAT)?;
                    anyhow::Ok(nanoseconds(ran.duration) - nothing)
                };
                kernel.settle()?;
                cost.kept[size].push(time(kernel)?);
                kernel.unsettle()?;
                cost.looked_up[size].push(time(kernel)?);
            }
        }
    }
    Ok(situations(SIZES[0])
        .iter()
        .zip(&costs)
        .flat_map(|((what, direction, _), cost)| cost.rows(what, *direction))
        .collect())
}

pub(crate) fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

impl Cost {
    fn rows(&self, what: &str, direction: Direction) -> [Row; 2] {
        let program = match direction {
            Direction::Ingress => names::GUARD,
            Direction::Tunnel => names::DELIVER,
            Direction::Egress | Direction::Backstop => names::STEER,
        };
        let [few, many, most] = &self.kept;
        let name = format!("{program}, {what}");
        let note = format!(
            "50 nodes: {:.0} ns, 1,000: {:.0} ns; with every prefix looked up anew, at 5,000: {:.0} ns",
            few.median(),
            many.median(),
            self.looked_up[2].median()
        );
        let time = Row::of(format!("{name}, 5,000 nodes"), "ns", most).note(note);
        let growth = Row::of(format!("{name}, 5,000 nodes / 1,000"), "ratio", &most.over(many));
        let anew = self.looked_up[2].over(&self.looked_up[1]).median();
        let growth = growth.note(format!("with every prefix looked up anew: {anew:.2}"));
        // The bars are those of the program that every packet meets.
        if program == names::STEER { [time.at_most(100.0), growth.at_most(1.3)] } else { [time, growth] }
    }
}

/// The addresses of node `n`: a pod's and its own.
pub(crate) fn node(n: u16, is_v6: bool) -> (IpAddr, IpAddr) {
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
pub(crate) fn cluster(nodes: u16) -> World {
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

pub(crate) fn situations(nodes: u16) -> Vec<(&'static str, Direction, Situation)> {
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
