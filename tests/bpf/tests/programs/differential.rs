//! Any packet in any state of the world: the kernel's answer, what it counts and what it remembers
//! must be what the same decision says on the host. So too of bytes that no host sends.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
};

use anyhow::{Context as _, Result, ensure};
use kubeveil_abi::{Counter, Direction, Mode, counter_index};
use kubeveil_verdict::testing::{
    Scene, Situation, World,
    conditions::{Hook, conditions},
    policies, scene, situation,
};
use proptest::{
    arbitrary::any,
    collection, option, prop_oneof,
    sample::Index,
    strategy::{Just, Strategy},
    test_runner::{Config, TestCaseError, TestRunner},
};

use crate::{
    kernel::{Kernel, boot_seconds, words},
    reasons::{LINK, action, on_host_of},
};

/// States of the world, and packets in each. Filling the maps is what takes the time.
const SCENES: u32 = 150;
const PACKETS: usize = 60;
/// Length of an Ethernet header.
const ETHERNET: usize = LINK as usize;

/// A packet as it is shown to the kernel.
#[derive(Clone)]
struct Shown {
    direction: Direction,
    situation: Situation,
    frame: Vec<u8>,
}

/// In one line: there are many.
impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, situation, frame } = self;
        write!(f, "{direction:?}, {} bytes of {situation:?}: {frame:02x?}", frame.len())
    }
}

/// The shortest frame of that EtherType that Linux 6.18 takes (`net/bpf/test_run.c`, `bpf_prog_test_run_skb`): with an IP
/// header, but for one behind a VLAN tag, which it does not look for.
const fn least(ether_type: u16) -> usize {
    ETHERNET
        + match ether_type {
            0x0800 => 20,
            0x86dd => 40,
            _ => 0,
        }
}

fn shown() -> impl Strategy<Value = Shown> {
    (situation(), 0_usize..3).prop_map(|(situation, program)| {
        let frame = situation.build.frame();
        Shown { direction: Direction::ALL[program], situation, frame }
    })
}

/// What becomes of a packet's bytes on a wire, or by somebody's hand.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    /// They end there, or go on with noise.
    end: Option<Index>,
    noise: Vec<u8>,
    /// And some are others.
    others: Vec<(Index, u8)>,
}

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let noise = prop_oneof![Just(Vec::new()), collection::vec(any::<u8>(), 1..200)];
    let others = collection::vec((any::<Index>(), any::<u8>()), 0..4);
    (option::of(any::<Index>()), noise, others).prop_map(|(end, noise, others)| Damage { end, noise, others })
}

impl Damage {
    /// Does it to `bytes`, but not to their `head`; leaves `least` of them.
    pub(crate) fn to(&self, mut bytes: Vec<u8>, head: usize, least: usize) -> Vec<u8> {
        if let Some(end) = self.end {
            let least = least.saturating_sub(self.noise.len()).max(head);
            bytes.truncate(end.index(bytes.len()).max(least));
            bytes.extend(&self.noise);
        }
        for (at, byte) in &self.others {
            let at = at.index(bytes.len());
            if at >= head {
                bytes[at] = *byte;
            }
        }
        bytes
    }
}

/// Bytes that no host sends.
fn damaged() -> impl Strategy<Value = Shown> {
    (shown(), damage()).prop_map(|(shown, damage)| {
        let least = least(shown.situation.build.ether_type());
        Shown { frame: damage.to(shown.frame, ETHERNET, least), ..shown }
    })
}

pub(crate) fn kernel_and_host_agree() -> Result<()> {
    agree(shown())
}

pub(crate) fn of_damaged_packets_too() -> Result<()> {
    agree(damaged())
}

/// Every kind of packet on every way, ended behind each of its bytes.
pub(crate) fn of_packets_cut_off_anywhere() -> Result<()> {
    let world = Scene { now: boot_seconds(), ..Scene::calm(Mode::Require) }.world();
    let mut kernel = Kernel::with(&world)?;
    let mut tried = 0;
    for (way, kind, is_v6) in conditions() {
        let direction = match way.hook {
            Hook::Underlay => Direction::Egress,
            Hook::Wire => Direction::Ingress,
            Hook::Tunnel => Direction::Tunnel,
            Hook::Overlay | Hook::Unguarded => continue,
        };
        let situation = kind.on(way, is_v6);
        let frame = situation.build.frame();
        let cut = |end| Shown { direction, situation: situation.clone(), frame: frame[..end].to_vec() };
        let packets: Vec<_> = (least(situation.build.ether_type())..frame.len()).map(cut).collect();
        tried += packets.len();
        compare(&mut kernel, &world, true, &packets)
            .with_context(|| format!("{}, {}, IPv6: {is_v6}", way.name, kind.name()))?;
    }
    println!("{tried} packets");
    Ok(())
}

fn agree(packet: impl Strategy<Value = Shown>) -> Result<()> {
    let config =
        Config { cases: SCENES, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let packets = collection::vec(packet, PACKETS);
    let kernel = RefCell::new(Kernel::with(&World::default())?);
    let tried = Cell::new(0_usize);
    runner
        .run(&(scene(boot_seconds()), policies(boot_seconds()), packets), |(scene, policies, packets)| {
            let mut kernel = kernel.borrow_mut();
            tried.set(tried.get() + packets.len());
            let world = policies.in_force(scene.world());
            // Half of the scenes without what the programs keep of their look-ups.
            let keeps = !scene.flows.len().is_multiple_of(2);
            compare(&mut kernel, &world, keeps, &packets).map_err(|e| TestCaseError::fail(format!("{e:#}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    println!("{} packets in {SCENES} states of the world", tried.get());
    Ok(())
}

fn compare(kernel: &mut Kernel, world: &World, keeps: bool, packets: &[Shown]) -> Result<()> {
    kernel.install(world)?;
    if !keeps {
        kernel.unsettle()?;
    }
    let mut counted: BTreeMap<u32, Counter> = BTreeMap::new();
    for shown @ Shown { direction, situation, frame } in packets {
        let decision = on_host_of(*direction, situation, &frame[ETHERNET..], world);
        let ran = kernel.run_frame(*direction, situation, frame, 0)?;
        ensure!(ran.action == action(&decision), "{} for {decision:?}, {shown:?}", ran.action);
        let index = counter_index(*direction, decision.mode, decision.reason);
        let counter = counted.entry(index).or_default();
        counter.packets += 1;
        counter.bytes += u64::from(decision.length);
    }
    let now = kernel.counters()?;
    ensure!(now == counted, "counted {now:?} instead of {counted:?}");
    let remembered: Vec<_> = kernel.flows()?.into_keys().collect();
    let mut expected: Vec<_> = world.flows.borrow().iter().map(|(key, _)| words(key)).collect();
    expected.sort_unstable();
    ensure!(remembered == expected, "flows {remembered:x?} instead of {expected:x?}");
    Ok(())
}
