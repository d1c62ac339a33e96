//! Any packet in any state of the world: the backstop's answer, and what it counts, are what the same decision
//! says on the host.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::{
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
    programs::SchedClassifier,
};
use kubeveil_abi::{COUNTERS, Direction, FlowMode, Mode, Reason, Verdict, counter_index, names};
use kubeveil_core::{action::Action, backstop::Backstop, observed::Program};
use kubeveil_verdict::{
    Hop, backstop,
    testing::{Situation, Slice, World, policies, scene, situation},
};
use proptest::{
    collection, option,
    test_runner::{Config, TestCaseError, TestRunner},
};

use crate::{
    cell::{path_of_program, within},
    differential::{Damage, damage},
    kernel::{boot_seconds, replace_alive, replace_origins, test_run, words_of},
};

/// The index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;
/// `NF_INET_LOCAL_OUT`, at which a test's packet needs no link header and leaves by the loopback device; `NFPROTO_*`; and the
/// size of `struct nf_hook_state`, which begins with both (kernel `net/bpf/test_run.c`, `bpf_prog_test_run_nf`).
const LOCAL_OUT: u8 = 3;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const HOOK_STATE: usize = 48;
/// The shortest packet that the kernel takes here, whatever its family: an IPv4 header (as above).
const LEAST: usize = 20;

/// By BPF_PROG_TEST_RUN, whose packets leave by the loopback device.
pub(crate) fn the_kernel_decides_as_the_host_does() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        let path = path_of_program(cell)?;
        // aya knows no netfilter programs; to run one its type does not matter.
        let program = SchedClassifier::from_pin(&path)?;
        let maps = cell.pin("maps");
        let config =
            Config { cases: 50, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
        for has_programs in [false, true] {
            if has_programs {
                cell.run(Action::Attach((Program::Steer, LOOPBACK)))?;
            }
            let hop = Hop { ingress_ifindex: 0, egress_ifindex: LOOPBACK, has_programs };
            let packets = collection::vec((situation(), option::of(damage())), 60);
            let guarded = proptest::bool::weighted(0.1);
            TestRunner::new(config.clone())
                .run(
                    &(scene(boot_seconds()), policies(boot_seconds()), packets, guarded),
                    |(scene, policies, packets, guarded)| {
                        let world = policies.in_force(scene.world());
                        compare(&program, &maps, world, &packets, (hop, guarded))
                            .map_err(|e| TestCaseError::fail(format!("{e:#}")))
                    },
                )
                .map_err(|error| anyhow::anyhow!("has_programs: {has_programs}: {error}"))?;
        }
        Ok(())
    })
}

fn compare(
    program: &SchedClassifier,
    maps: &std::path::Path,
    mut world: World,
    packets: &[(Situation, Option<Damage>)],
    (hop, guarded): (Hop, bool),
) -> Result<()> {
    if guarded {
        world.devices.insert(LOOPBACK, kubeveil_abi::DeviceKind::Underlay);
    }
    fill(maps, &world)?;
    for (situation, damage) in packets {
        // Tags are off by then. That the kernel has checked the header, too, nobody relies on.
        let mut situation = situation.clone();
        situation.build.tags = 0;
        let mut bytes = situation.build.network();
        if let Some(damage) = damage {
            bytes = damage.to(bytes, 0, LEAST);
        }
        let decision = backstop(hop, &Slice::new(&bytes), &world, &world.config);
        let before = count(maps)?;
        let family = if situation.build.destination.is_ipv6() { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        let mut state = [0; HOOK_STATE];
        state[..2].copy_from_slice(&[LOCAL_OUT, family]);
        let ran = test_run(program, &bytes, Some(&state), 1);
        let action = ran.with_context(|| format!("run on {bytes:02x?}"))?.action;
        let is_dropped = decision.is_some_and(|d| d.verdict() == Verdict::Drop);
        ensure!(
            action == u32::from(!is_dropped),
            "answered {action} for {decision:?}, {situation:?}: {bytes:02x?}"
        );
        let mut expected = before.clone();
        if let Some(decision) = decision {
            let index = counter_index(Direction::Backstop, decision.mode, decision.reason);
            *expected.entry(index).or_default() += 1;
        }
        ensure!(count(maps)? == expected, "counted otherwise for {decision:?}");
    }
    Ok(())
}

fn open(maps: &std::path::Path, name: &str) -> Result<MapData> {
    MapData::from_pin(maps.join(name)).with_context(|| name.to_owned())
}

/// The configuration, of which only the first two words, what all are held to and who is unknown, are the backstop's business.
const WORDS: usize = size_of::<kubeveil_abi::Config>() / 4;

fn fill(maps: &std::path::Path, world: &World) -> Result<()> {
    let mut config: Array<_, [u32; WORDS]> = Map::Array(open(maps, names::CONFIG)?).try_into()?;
    let mut words = [0; WORDS];
    words[..2].copy_from_slice(&[world.config.mode, world.config.unknown]);
    config.set(0, words, 0)?;
    let mut prefixes: LpmTrie<_, [u32; 4], [u32; 2]> =
        Map::LpmTrie(open(maps, names::PREFIXES)?).try_into()?;
    let old: Vec<_> = prefixes.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| prefixes.remove(key))?;
    for (address, length, value) in &world.prefixes {
        prefixes.insert(&Key::new(*length, *address), words_of(value), 0)?;
    }
    replace_origins(&mut Map::HashMap(open(maps, names::ORIGINS)?).try_into()?, world)?;
    replace_alive(&mut Map::DevMapHash(open(maps, names::ALIVE)?).try_into()?, world)?;
    let mut peers: Array<_, u64> = Map::Array(open(maps, names::PEERS)?).try_into()?;
    for (index, value) in &world.peers {
        peers.set(*index, value.0, 0)?;
    }
    let mut devices: HashMap<_, u32, u32> = Map::HashMap(open(maps, names::DEVICES)?).try_into()?;
    let old: Vec<_> = devices.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| devices.remove(key))?;
    for (ifindex, kind) in &world.devices {
        devices.insert(ifindex, *kind as u32, 0)?;
    }
    Ok(())
}

/// Packets by counter.
fn count(maps: &std::path::Path) -> Result<BTreeMap<u32, u64>> {
    let counters: PerCpuArray<_, [u64; 2]> = Map::PerCpuArray(open(maps, names::COUNTERS)?).try_into()?;
    let start = counter_index(Direction::Backstop, FlowMode::Observe, Reason::Other);
    let mut counts = BTreeMap::new();
    for index in start..u32::try_from(COUNTERS)? {
        let packets = counters.get(&index, 0)?.iter().map(|[packets, _]| packets).sum();
        if packets != 0 {
            counts.insert(index, packets);
        }
    }
    Ok(counts)
}
