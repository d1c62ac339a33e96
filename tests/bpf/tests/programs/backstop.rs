//! The backstop on this machine's kernel: both forms, with packets.

mod differential;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::EbpfLoader;
use kubeveil_abi::{FlowMode, Mode, Reason, names};
use kubeveil_core::{
    action::Action,
    backstop::{Backstop, Form, Rules, remote},
    observed::{Observed, Program},
};
use kubeveil_linux::{Kernel as _, backstop::outcome};

use crate::{
    cell::{Cell, DEVICE, LOCAL, NODE, OUTSIDE, REMOTE, UNOWNED, passes, run, within},
    kernel::object,
};

pub(crate) use differential::the_kernel_decides_as_the_host_does;

const MODES: [Mode; 3] = [Mode::Require, Mode::Prefer, Mode::Observe];
/// What is counted of a packet that is held back.
const HELD: (FlowMode, Reason) = (FlowMode::Require, Reason::UnguardedDevice);

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
        let outcome = outcome(mode, Reason::UnguardedDevice);
        let before = cell.counted(outcome)?;
        for to in [LOCAL, NODE, OUTSIDE].as_flattened() {
            ensure!(passes(to)?, "{mode:?}: {to} does not pass");
        }
        ensure!(cell.counted(outcome)? == before, "{mode:?}: what is none of ours is counted");
        for to in [REMOTE, UNOWNED].as_flattened() {
            ensure!(passes(to)? == (mode != Mode::Require), "{mode:?}: {to}");
        }
        let counted = cell.counted(outcome)? - before;
        ensure!(counted == 4, "{mode:?}: {counted} of 4 are counted as {outcome:?}");
    }
    cell.load(Mode::Require)?;
    cell.guard()?;
    let backstop = form(cell, Mode::Require)?;
    cell.raise(backstop)?;
    let before = cell.counted(HELD)?;
    for to in [REMOTE, UNOWNED, LOCAL, NODE, OUTSIDE].as_flattened() {
        ensure!(passes(to)?, "by a guarded device {to} does not pass");
    }
    ensure!(cell.counted(HELD)? == before, "counted at a guarded device");
    Ok(())
}

/// Another device under the index of a guarded one is not taken for it; once it is guarded too, it is.
pub(crate) fn an_index_guards_nobody() -> Result<()> {
    const AWAY: &str = "away";
    within(|cell| {
        // Its name is nobody's outside of this test.
        std::fs::create_dir_all("/run/netns")?;
        run("mount", &["-t", "tmpfs", "tmpfs", "/run/netns"])?;
        cell.load(Mode::Require)?;
        cell.guard()?;
        cell.raise(Backstop::Bpf)?;
        ensure!(passes(REMOTE[0])? && passes(REMOTE[1])?, "by a guarded device it does not pass");
        let index = cell.index()?;
        // The old one is deleted, or is somewhere else with the programs that hang on it.
        let far = format!("{DEVICE}-far");
        for gone in [&["link", "del", DEVICE][..], &["link", "set", DEVICE, "netns", AWAY]] {
            run("ip", &["netns", "add", AWAY])?;
            run("ip", &["link", "set", &far, "name", "old-far"])?;
            run("ip", gone)?;
            cell.lay_device(Some(index))?;
            ensure!(!passes(REMOTE[0])? && !passes(REMOTE[1])?, "{gone:?}: open");
            ensure!(passes(OUTSIDE[0])? && passes(LOCAL[1])?, "{gone:?}: what is none of ours is held");
            cell.guard()?;
            let attached = cell.observe()?.datapath.context("nothing is loaded")?.attached;
            ensure!(attached.contains_key(&(Program::Steer, index)), "{gone:?}: attached elsewhere");
            ensure!(passes(REMOTE[0])? && passes(REMOTE[1])?, "{gone:?}: closed for good");
            run("ip", &["netns", "del", AWAY])?;
        }
        Ok(())
    })
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
        let counted = cell.counted(HELD)?;
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
        let now = cell.counted(HELD)?;
        ensure!(now == counted + 1, "{counted:?} became {now:?}");
        cell.raise(Backstop::Bpf)?;
        cell.run(Action::RemoveBackstop(Form::Nftables))?;
        run("nft", &["flush", "ruleset"])?;
        ensure!(!passes(REMOTE[0])? && !passes(REMOTE[1])?, "a flush opens the program");
        Ok(())
    })
}

/// Of somebody's firewall it is seen that it drops what comes out of a tunnel.
pub(crate) fn a_strict_route_check_is_seen() -> Result<()> {
    const CHAIN: &str = "chain check { type filter hook prerouting priority 10; ";
    within(|cell| {
        for (rules, seen) in [
            ("fib saddr . mark . iif oif missing drop", true),
            ("fib saddr . mark oif missing drop", false),
            ("iifname \"kubeveil*\" accept; fib saddr . iif oif 0 drop", false),
        ] {
            for family in ["inet", "ip", "ip6"] {
                run("nft", &[&format!("add table {family} other {{ {CHAIN} {rules}; }}; }}")])?;
                let found = cell.observe()?.route_checks;
                let wanted = seen.then(|| format!("{family} other check"));
                ensure!(found == wanted.into_iter().collect(), "{family} {rules}: {found:?}");
                run("nft", &[&format!("delete table {family} other")])?;
            }
        }
        Ok(())
    })
}

/// Of the program's form, its pins are what it hangs by.
pub(crate) fn pins_that_somebody_removed() -> Result<()> {
    within(|cell| {
        cell.load(Mode::Require)?;
        cell.raise(Backstop::Bpf)?;
        let pin = cell.pin("backstop/v6");
        // A daemon that lives holds what it pinned.
        std::fs::remove_file(&pin)?;
        let unpinned = cell.observe()?.datapath.map(|datapath| datapath.unpinned).unwrap_or_default();
        ensure!(unpinned.len() == 1, "not told: {unpinned:?}");
        std::thread::sleep(std::time::Duration::from_millis(500));
        ensure!(!passes(REMOTE[0])? && !passes(REMOTE[1])?, "it opens though it is held");
        cell.run(Action::PinAgain)?;
        ensure!(pin.exists(), "not pinned again");
        // One that is dead holds nothing.
        cell.restart()?;
        std::fs::remove_file(&pin)?;
        ensure!(soon(REMOTE[1])? && !passes(REMOTE[0])?, "not only IPv6 is open");
        cell.run(Action::LoadPrograms)?;
        let standing = cell.observe()?.backstop;
        ensure!(!standing.bpf, "not told: {standing:?}");
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
        let place = cell.pin("backstop/v4");
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
            let prefix = kubeveil_core::observed::Prefix::new(kubeveil_abi::PrefixKind::RemotePods, 1);
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
        let maps = cell.pin("maps");
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
        ensure!(cell.counted(HELD)? == 1, "it does not count");
        Ok(())
    })
}
