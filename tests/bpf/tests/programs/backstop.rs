//! The backstop on this machine's kernel: both forms, with packets.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::{
    EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
    programs::SchedClassifier,
};
use kubeveil_abi::{COUNTERS, Direction, Mode, Reason, Verdict, counter_index, names};
use kubeveil_core::{
    action::Action,
    backstop::{Backstop, Form, Rules, remote},
    observed::Observed,
};
use kubeveil_linux::backstop::outcome;
use kubeveil_verdict::{
    Hop, backstop,
    testing::{Scene, Slice, World, scene, situation},
};
use proptest::{
    collection,
    test_runner::{Config, TestCaseError, TestRunner},
};

use crate::{
    cell::{Cell, LOCAL, NODE, OUTSIDE, REMOTE, UNOWNED, passes, path_of_program, run, within},
    kernel::{boot_seconds, object, test_run},
};

const MODES: [Mode; 3] = [Mode::Require, Mode::Prefer, Mode::Observe];
/// The index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;
/// `NF_INET_LOCAL_OUT`, at which a test's packet needs no link header and leaves by the loopback device; `NFPROTO_*`; and the
/// size of `struct nf_hook_state`, which begins with both (kernel `net/bpf/test_run.c`, `bpf_prog_test_run_nf`).
const LOCAL_OUT: u8 = 3;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const HOOK_STATE: usize = 48;

pub(crate) fn the_program_holds() -> Result<()> {
    within(|cell| holds(cell, |_, _| Ok(Backstop::Bpf)))
}

pub(crate) fn nftables_holds() -> Result<()> {
    within(|cell| holds(cell, rules))
}

/// What nftables is told, of the maps.
fn rules(cell: &mut Cell, mode: Mode) -> Result<Backstop> {
    let Observed { datapath, .. } = cell.observe()?;
    let datapath = datapath.context("nothing is loaded")?;
    Ok(Backstop::Nftables(Rules {
        mode,
        guarded: datapath.devices.keys().copied().collect(),
        tunnels: Default::default(),
        remote: remote(&datapath.prefixes),
    }))
}

type FormOf = fn(&mut Cell, Mode) -> Result<Backstop>;

/// In every mode and family: what is dropped, what passes, and that all of what is dropped is counted, once.
fn holds(cell: &mut Cell, form: FormOf) -> Result<()> {
    cell.load(Mode::Require)?;
    for to in [REMOTE, UNOWNED].as_flattened() {
        ensure!(passes(to)?, "without a backstop {to} does not pass");
    }
    for mode in MODES {
        cell.load(mode)?;
        let backstop = form(cell, mode)?;
        cell.raise(backstop)?;
        let (reason, observed) = outcome(mode, Reason::UnguardedDevice);
        let before = cell.counted(reason)?;
        for to in [LOCAL, NODE, OUTSIDE].as_flattened() {
            ensure!(passes(to)?, "{mode:?}: {to} does not pass");
        }
        ensure!(cell.counted(reason)? == before, "{mode:?}: what is none of ours is counted");
        for to in [REMOTE, UNOWNED].as_flattened() {
            ensure!(passes(to)? == (mode != Mode::Require), "{mode:?}: {to}");
        }
        let counted = cell.counted(reason)?[usize::from(observed)] - before[usize::from(observed)];
        ensure!(counted == 4, "{mode:?}: {counted} of 4 are counted as {}", reason.name());
    }
    cell.load(Mode::Require)?;
    cell.guard()?;
    let backstop = form(cell, Mode::Require)?;
    cell.raise(backstop)?;
    let before = cell.counted(Reason::UnguardedDevice)?;
    for to in [REMOTE, UNOWNED, LOCAL, NODE, OUTSIDE].as_flattened() {
        ensure!(passes(to)?, "by a guarded device {to} does not pass");
    }
    ensure!(cell.counted(Reason::UnguardedDevice)? == before, "counted at a guarded device");
    Ok(())
}

/// Again and again, between two builds: a new device is closed and a guarded one open at every moment.
pub(crate) fn an_upgrade_opens_and_closes_nothing() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        for guarded in [false, true] {
            if guarded {
                cell.guard()?;
            }
            let stop = std::sync::atomic::AtomicBool::new(false);
            let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
            std::thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    let mut sent = 0_u64;
                    while !stopped() {
                        for to in REMOTE {
                            ensure!(passes(to)? == guarded, "after {sent} packets, guarded: {guarded}");
                            sent += 1;
                        }
                    }
                    Ok(sent)
                });
                let mut upgrades = (0..5).map(|_| {
                    cell.upgrade()?;
                    let standing = cell.observe()?.backstop;
                    ensure!(
                        standing.bpf && !standing.is_current,
                        "the old build does not stand: {standing:?}"
                    );
                    cell.raise(Backstop::Bpf)?;
                    ensure!(cell.observe()?.backstop.is_current, "the new build is not in force");
                    Ok(())
                });
                let upgraded: Result<()> = upgrades.try_for_each(|upgrade| upgrade);
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
                println!("{sent} packets during five upgrades, guarded: {guarded}");
                ensure!(sent > 0, "nothing was sent");
                upgraded
            })?;
        }
        Ok(())
    })
}

/// Of nftables' form it is seen that somebody took it away; the program does not mind.
pub(crate) fn a_flush_of_nftables() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        let table = rules(cell, Mode::Require)?;
        cell.raise(table.clone())?;
        ensure!(!passes(REMOTE[0])?, "nftables does not hold");
        let counted = cell.counted(Reason::UnguardedDevice)?;
        run("ip", &["link", "add", "other", "type", "veth", "peer", "name", "other-far"])?;
        ensure!(cell.observe()?.backstop.lost.is_empty(), "told, though nobody touched it");
        run("nft", &["flush", "ruleset"])?;
        let standing = cell.observe()?.backstop;
        ensure!(
            standing.lost.contains(&Form::Nftables) && standing.in_force().is_none(),
            "not told: {standing:?}"
        );
        ensure!(passes(REMOTE[0])?, "the flush did nothing");
        cell.raise(table)?;
        ensure!(!passes(REMOTE[0])?, "raised again, nftables does not hold");
        let now = cell.counted(Reason::UnguardedDevice)?;
        ensure!(now[0] == counted[0] + 1, "{counted:?} became {now:?}");
        cell.raise(Backstop::Bpf)?;
        cell.run(Action::RemoveBackstop(Form::Nftables))?;
        run("nft", &["flush", "ruleset"])?;
        ensure!(!passes(REMOTE[0])? && !passes(REMOTE[1])?, "a flush opens the program");
        Ok(())
    })
}

/// Of the program's form, its pins are what it hangs by.
pub(crate) fn pins_that_somebody_removed() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        std::fs::remove_file(cell.dir.path().join("v1/backstop/v6"))?;
        let standing = cell.observe()?.backstop;
        ensure!(!standing.bpf && standing.lost.contains(&Form::Bpf), "not told: {standing:?}");
        ensure!(soon(REMOTE[1])? && !passes(REMOTE[0])?, "not only IPv6 is open");
        cell.raise(Backstop::Bpf)?;
        ensure!(!passes(REMOTE[0])? && !passes(REMOTE[1])?, "raised again, it does not hold");
        Ok(())
    })
}

/// Whether packets pass, within a moment: the kernel frees a link some time after its last pin is gone.
fn soon(to: &str) -> Result<bool> {
    for _ in 0..500 {
        if passes(to)? {
            return Ok(true);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(false)
}

/// Something else in the place of a pin: told, and the rest of the node is seen all the same.
pub(crate) fn what_can_not_be_seen_is_told() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        let place = cell.dir.path().join("v1/backstop/v4");
        std::fs::create_dir_all(&place)?;
        let observed = cell.observe()?;
        ensure!(observed.datapath.is_some(), "nothing is seen of the datapath");
        ensure!(observed.backstop.unseen.is_some(), "not told: {:?}", observed.backstop);
        ensure!(
            cell.run(Action::RaiseBackstop(Backstop::Bpf)).is_err(),
            "raised, though there is no room for its pin"
        );
        std::fs::remove_dir(&place)?;
        cell.raise(Backstop::Bpf)
    })
}

pub(crate) fn uninstall_takes_it_away() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        let table = rules(cell, Mode::Require)?;
        cell.raise_beside(table)?;
        let (removed, errors) = cell.kernel.remove_everything();
        ensure!(errors.is_empty(), "{errors:?}");
        ensure!(removed.backstops == [Form::Bpf, Form::Nftables], "it reports {:?}", removed.backstops);
        ensure!(soon(REMOTE[0])? && soon(REMOTE[1])?, "something is left");
        let (removed, _) = cell.kernel.remove_everything();
        ensure!(removed.backstops.is_empty(), "removed twice: {:?}", removed.backstops);
        Ok(())
    })
}

/// Each of the hands that can change our table is seen: the rules are not taken for ours any more.
pub(crate) fn a_changed_table_is_not_taken_for_ours() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        let table = rules(cell, Mode::Require)?;
        let Backstop::Nftables(rules) = &table else { unreachable!() };
        for change in [
            "delete table inet kubeveil",
            "flush chain inet kubeveil backstop",
            "add element inet kubeveil guarded { 77 }",
            "delete element inet kubeveil remote4 { 10.244.2.0-10.244.255.255 }",
            "flush set inet kubeveil remote6",
            "insert rule inet kubeveil backstop accept",
            "add table inet kubeveil { flags dormant; }",
        ] {
            cell.raise(table.clone())?;
            ensure!(
                cell.observe()?.backstop.nftables.as_ref() == Some(rules),
                "{change}: not as it was written"
            );
            run("nft", &[change])?;
            let found = cell.observe()?.backstop.nftables;
            ensure!(found.as_ref() != Some(rules), "{change}: not seen");
        }
        cell.raise(table)?;
        ensure!(!passes(REMOTE[0])? && !passes(REMOTE[1])?, "mended, nftables does not hold");
        Ok(())
    })
}

/// Thousands of prefixes: what is written is read back.
pub(crate) fn a_large_cluster_fits_into_nftables() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        let Backstop::Nftables(mut rules) = rules(cell, Mode::Require)? else { unreachable!() };
        // Every second /24 and /64 of a large range, so that none merges with the next.
        let prefix = |n: u32, is_v6: bool| {
            let text = if is_v6 {
                format!("fd00:244:{:x}::/64", n * 2)
            } else {
                format!("10.{}.{}.0/24", 128 + n / 128, n % 128 * 2)
            };
            let prefix =
                kubeveil_core::observed::Prefix { kind: kubeveil_abi::PrefixKind::RemotePods, peer: 1 };
            anyhow::Ok((text.parse()?, prefix))
        };
        let all = (0..5_000).flat_map(|n| [prefix(n, false), prefix(n, true)]);
        rules.remote = remote(&all.collect::<Result<BTreeMap<_, _>>>()?);
        ensure!(rules.remote.len() == 10_000, "{} ranges", rules.remote.len());
        cell.raise(Backstop::Nftables(rules.clone()))?;
        ensure!(cell.observe()?.backstop.nftables == Some(rules), "not read back as it was written");
        Ok(())
    })
}

/// A map that an older build pinned in another size is made anew; the rest stays.
pub(crate) fn a_map_of_another_size_is_made_anew() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        let maps = cell.dir.path().join("v1/maps");
        let before = cell.observe()?.datapath.context("nothing is loaded")?;
        std::fs::remove_file(maps.join(names::COUNTERS))?;
        // As it was with three directions.
        EbpfLoader::new()
            .map_max_entries(names::COUNTERS, 384)
            .map_pin_path(names::COUNTERS, maps.join(names::COUNTERS))
            .load_file(object()?)?;
        cell.upgrade()?;
        cell.raise(Backstop::Bpf)?;
        let after = cell.observe()?.datapath.context("nothing is loaded")?;
        ensure!(after.prefixes == before.prefixes, "the prefixes were lost");
        ensure!(!passes(REMOTE[0])?, "it does not hold");
        ensure!(cell.counted(Reason::UnguardedDevice)? == [1, 0], "it does not count");
        Ok(())
    })
}

/// Any packet in any state of the world, under BPF_PROG_TEST_RUN: the kernel's answer and what it counts are
/// what the same decision says on the host. The kernel lets such packets leave by the loopback device.
pub(crate) fn the_kernel_decides_as_the_host_does() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        let path = path_of_program(cell)?;
        // aya knows no netfilter programs; to run one its type does not matter.
        let program = SchedClassifier::from_pin(&path)?;
        let maps = cell.dir.path().join("v1/maps");
        let config =
            Config { cases: 100, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
        let packets = collection::vec(situation(), 60);
        let guarded = proptest::bool::weighted(0.1);
        TestRunner::new(config)
            .run(&(scene(boot_seconds()), packets, guarded), |(scene, packets, guarded)| {
                compare(&program, &maps, &scene, &packets, guarded)
                    .map_err(|e| TestCaseError::fail(format!("{e:#}")))
            })
            .map_err(|error| anyhow::anyhow!("{error}"))
    })
}

fn compare(
    program: &SchedClassifier,
    maps: &std::path::Path,
    scene: &Scene,
    packets: &[kubeveil_verdict::testing::Situation],
    guarded: bool,
) -> Result<()> {
    let mut world = scene.world();
    if guarded {
        world.devices.insert(LOOPBACK, kubeveil_abi::DeviceKind::Underlay);
    }
    fill(maps, &world)?;
    for situation in packets {
        // Tags are off by then, and the kernel has checked the header.
        let mut situation = situation.clone();
        situation.build.tags = 0;
        let bytes = situation.build.network();
        let hop = Hop { ingress_ifindex: 0, egress_ifindex: LOOPBACK };
        let decision = backstop(hop, &Slice::new(&bytes), &world, &world.config);
        let before = count(maps)?;
        let family = if situation.build.destination.is_ipv6() { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        let mut state = [0; HOOK_STATE];
        state[..2].copy_from_slice(&[LOCAL_OUT, family]);
        let ran = test_run(program, &bytes, Some(&state), 1);
        let action = ran.with_context(|| format!("run on {bytes:02x?}"))?.action;
        let is_dropped = decision.is_some_and(|d| d.verdict() == Verdict::Drop);
        ensure!(action == u32::from(!is_dropped), "answered {action} for {decision:?}, {situation:?}");
        let mut expected = before.clone();
        if let Some(decision) = decision {
            let index = counter_index(Direction::Backstop, decision.observed, decision.reason);
            *expected.entry(index).or_default() += 1;
        }
        ensure!(count(maps)? == expected, "counted otherwise for {decision:?}");
    }
    Ok(())
}

fn open(maps: &std::path::Path, name: &str) -> Result<MapData> {
    MapData::from_pin(maps.join(name)).with_context(|| name.to_owned())
}

/// The configuration, of which only the first word, the mode, is the backstop's business.
const WORDS: usize = size_of::<kubeveil_abi::Config>() / 4;

fn fill(maps: &std::path::Path, world: &World) -> Result<()> {
    let mut config: Array<_, [u32; WORDS]> = Map::Array(open(maps, names::CONFIG)?).try_into()?;
    let mut words = [0; WORDS];
    words[0] = world.config.mode;
    config.set(0, words, 0)?;
    let mut prefixes: LpmTrie<_, [u32; 4], [u32; 2]> =
        Map::LpmTrie(open(maps, names::PREFIXES)?).try_into()?;
    let old: Vec<_> = prefixes.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| prefixes.remove(key))?;
    for (address, length, value) in &world.prefixes {
        prefixes.insert(&Key::new(*length, *address), [value.kind, value.peer], 0)?;
    }
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
    let start = counter_index(Direction::Backstop, false, Reason::Other);
    let mut counts = BTreeMap::new();
    for index in start..u32::try_from(COUNTERS)? {
        let packets = counters.get(&index, 0)?.iter().map(|[packets, _]| packets).sum();
        if packets != 0 {
            counts.insert(index, packets);
        }
    }
    Ok(counts)
}
