//! What somebody watches: each packet that is counted is seen, where it was counted, and nobody else's.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
};

use anyhow::{Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuHashMap};
use ipnet::IpNet;
use kubeveil_abi::{Asked, Counter, Direction, FlowMode, Mode, PrefixKind, Reason, names};
use kubeveil_core::{action::Action, backstop::Backstop, observed::Prefix};
use kubeveil_linux::{Flow, Kernel as _, Sighting, Sightings};
use kubeveil_verdict::{
    ends,
    testing::{Situation, Slice},
};

use crate::{
    cell::{Cell, NoKeys, REMOTE, UNOWNED, passes, within},
    kernel::Kernel,
    reasons,
};

/// Number of the flow that is watched.
const WATCH: u32 = 7;

/// From now on the flow of the packet is watched, and what was seen is forgotten.
fn watch(kernel: &mut Kernel, [source, destination]: [IpAddr; 2]) -> Result<()> {
    let mut watched: HashMap<_, [u32; 8], u32> = kernel.map(names::WATCHED)?.try_into()?;
    let old: Vec<_> = watched.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| watched.remove(key))?;
    let mut key = [0; 8];
    key[..4].copy_from_slice(&address(source));
    key[4..].copy_from_slice(&address(destination));
    watched.insert(key, WATCH, 0)?;
    let mut seen: PerCpuHashMap<_, [u32; 2], [u64; 3]> = kernel.map(names::SEEN)?.try_into()?;
    let old: Vec<_> = seen.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| seen.remove(key))?;
    arm(kernel, true)
}

fn arm(kernel: &mut Kernel, on: bool) -> Result<()> {
    Array::<_, u32>::try_from(kernel.map(names::WATCH)?)?.set(0, u32::from(on), 0)?;
    Ok(())
}

fn address(ip: IpAddr) -> [u32; 4] {
    let bytes = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    std::array::from_fn(|_| words.next().unwrap_or_default())
}

/// By counter, and when the last was.
fn seen(kernel: &mut Kernel) -> Result<BTreeMap<u32, (Counter, u64)>> {
    let seen: PerCpuHashMap<_, [u32; 2], [u64; 3]> = kernel.map(names::SEEN)?.try_into()?;
    let mut found = BTreeMap::new();
    for entry in seen.iter() {
        let ([number, counter], cpus) = entry?;
        ensure!(number == WATCH, "another number");
        let sum = |at: usize| cpus.iter().map(|cpu| cpu[at]).sum();
        let last = cpus.iter().map(|cpu| cpu[2]).max().unwrap_or_default();
        found.insert(counter, (Counter { packets: sum(0), bytes: sum(1) }, last));
    }
    Ok(found)
}

fn ends_of(situation: &Situation) -> [IpAddr; 2] {
    [situation.build.source, situation.build.destination]
}

/// A packet of every reason, of both families, twice.
pub(crate) fn what_is_counted_is_seen() -> Result<()> {
    const TWICE: u64 = 2;
    let mut directions = BTreeMap::new();
    for case in reasons::cases() {
        for is_v6 in [false, true] {
            let (world, situation) = case.situation(is_v6);
            let mut kernel = Kernel::with(&world)?;
            watch(&mut kernel, ends_of(&situation))?;
            let before = now();
            for _ in 0..TWICE {
                case.send(&mut kernel, &situation)?;
            }
            let found = seen(&mut kernel)?;
            arm(&mut kernel, false)?;
            // Whose header can't be read has no addresses.
            let bytes = situation.build.network();
            if ends(situation.meta().protocol, &Slice::new(&bytes)).is_none() {
                ensure!(found.is_empty(), "{}: {found:?}", case.name());
                continue;
            }
            let counted = kernel.counters()?;
            let counters: BTreeMap<u32, Counter> = found.iter().map(|(at, (sum, _))| (*at, *sum)).collect();
            ensure!(counters == counted, "{}: {counters:?} seen, {counted:?} counted", case.name());
            ensure!(found.values().all(|(_, last)| *last >= before && *last <= now()), "{found:?}");
            *directions.entry(case.direction.name()).or_insert(0) += 1;
        }
    }
    let all = Direction::ALL.iter().filter(|direction| **direction != Direction::Backstop);
    for direction in all {
        ensure!(directions.get(direction.name()).is_some_and(|n| *n > 1), "{directions:?}");
    }
    Ok(())
}

/// Neither what nobody watches, nor packets the other way.
pub(crate) fn others_are_not_seen() -> Result<()> {
    let cases = reasons::cases();
    let case = cases.iter().find(|case| case.expected == Reason::Tunnelled);
    let case = case.expect("what is tunnelled has a case");
    for is_v6 in [false, true] {
        let (world, situation) = case.situation(is_v6);
        let mut kernel = Kernel::with(&world)?;
        let [source, destination] = ends_of(&situation);
        watch(&mut kernel, [destination, source])?;
        case.send(&mut kernel, &situation)?;
        ensure!(seen(&mut kernel)?.is_empty(), "the other way is another flow");
        watch(&mut kernel, [source, destination])?;
        arm(&mut kernel, false)?;
        case.send(&mut kernel, &situation)?;
        ensure!(seen(&mut kernel)?.is_empty(), "nobody watches");
    }
    Ok(())
}

/// As the programs see it, nanoseconds since boot.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// By the daemon's own calls: what the backstop drops, since it was asked for, and after the programs were opened anew nothing is watched.
pub(crate) fn the_backstop_shows_what_it_drops() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        let flows = REMOTE.map(flow_to).into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(!passes(REMOTE[0])?, "it is not dropped");
        let began = now();
        cell.kernel.watch(&flows)?;
        ensure!(cell.kernel.seen()?.found.is_empty(), "what came before was not watched");
        for to in [REMOTE, UNOWNED].as_flattened() {
            ensure!(!passes(to)?, "{to} is not dropped");
        }
        let Sightings { found, is_short } = cell.kernel.seen()?;
        ensure!(!is_short && found.len() == flows.len(), "{found:?}");
        for Sighting { flow, count, last } in &found {
            ensure!(flows.contains(flow), "{flow:?} is another's");
            let outcome = (count.direction, count.mode, count.reason, count.packets);
            let unguarded = Reason::UnguardedDevice;
            ensure!(outcome == (Direction::Backstop, FlowMode::Require, unguarded, 1), "{outcome:?}");
            ensure!(last.as_nanos() >= began.into(), "{last:?}");
        }
        cell.kernel.watch(&flows[..1])?;
        ensure!(cell.kernel.seen()?.found.is_empty(), "what was seen is not forgotten");
        for to in REMOTE {
            ensure!(!passes(to)?, "{to} is not dropped");
        }
        ensure!(cell.kernel.seen()?.found.len() == 1, "a flow that nobody watches any more is seen");
        // As a daemon that was killed leaves it.
        cell.restart()?;
        cell.run(Action::LoadPrograms)?;
        let armed: Array<_, u32> =
            Map::Array(MapData::from_pin(cell.pin("maps").join(names::WATCH))?).try_into()?;
        ensure!(armed.get(&0, 0)? == 0, "the next daemon watches on");
        ensure!(cell.kernel.seen().is_err(), "nothing is watched, and nobody is told");
        Ok(())
    })
}

/// From the address that the kernel takes.
fn flow_to(to: &str) -> Result<Flow> {
    let destination: IpAddr = to.parse()?;
    let any = if destination.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((destination, 9))?;
    Ok(Flow { source: socket.local_addr()?.ip(), destination })
}

/// Prefixes that were changed by themselves, as a slice of pods is, are settled when that is done: the programs keep what they look up.
pub(crate) fn what_was_written_is_settled() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.observe()?;
        let before = epoch(cell)?;
        let pod: IpNet = "10.244.2.77/32".parse()?;
        let prefix = Prefix { asked: Asked::Require, ..Prefix::new(PrefixKind::RemotePods, 1) };
        for actions in [[Action::PutPrefix(pod, prefix)], [Action::RemovePrefix(pod)]] {
            let done = cell.kernel.execute_all(&actions, &NoKeys);
            ensure!(done.iter().all(Result::is_ok), "{done:?}");
            ensure!(
                kubeveil_abi::is_settled(epoch(cell)?),
                "{} leaves the programs to look up anew",
                actions[0]
            );
        }
        ensure!(epoch(cell)? != before, "what was kept before counts no more");
        Ok(())
    })
}

fn epoch(cell: &Cell) -> Result<u32> {
    let words: Array<_, u32> =
        Map::Array(MapData::from_pin(cell.pin("maps").join(names::EPOCH))?).try_into()?;
    Ok(words.get(&0, 0)?)
}
