//! Which skips are excused. A developer's machine may lack what a test needs; in CI a skip of
//! something that the machine can do hides a test that never runs, and so it fails.
//!
//! A test says why it is skipped with the words `needs ABILITY`, by an ability's name below.

use std::{collections::BTreeMap, env, path::Path};

use super::tally::Tally;
use crate::{machine::has_link_kind, process};

/// Whether we run in CI.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}

/// What the place where tests ran can do, by the names that reasons use.
pub(crate) struct Abilities(BTreeMap<&'static str, bool>);

impl Abilities {
    /// This machine's own kernel and user.
    pub(crate) fn of_host() -> Self {
        let root = process::is_root() || process::succeeds(process::command("sudo").args(["-n", "true"]));
        Self(BTreeMap::from([
            ("root", root),
            ("clock", false),
            ("wireguard", has_link_kind("wireguard")),
            ("netkit", has_link_kind("netkit")),
            ("btf", Path::new("/sys/kernel/btf/vmlinux").exists()),
            ("kvm", Path::new("/dev/kvm").exists()),
            ("systemd-analyze", process::find("systemd-analyze").is_some()),
            ("smp", std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)),
        ]))
    }

    /// The guest: everything but what emulation by one CPU can't give.
    pub(crate) fn of_guest() -> Self {
        let can = ["root", "wireguard", "netkit", "btf", "clock"].map(|name| (name, true));
        Self(can.into_iter().chain([("kvm", false), ("smp", false)]).collect())
    }

    /// Whether a skip (`NAME (needs ABILITY …)`) could not be helped.
    fn excuses(&self, skip: &str) -> bool {
        let Some((_, needs)) = skip.split_once("(needs ") else { return false };
        let ability = needs.split([' ', ')', ':', ',']).next().unwrap_or(needs);
        self.0.get(ability).is_some_and(|can| !can)
    }
}

impl Tally {
    /// Turns skips into failures, where the machine can do what they would need.
    pub(crate) fn refuse_avoidable_skips(&mut self, abilities: &Abilities) {
        for skip in self.skips.iter().filter(|skip| !abilities.excuses(skip)) {
            self.failures.push(format!("{skip}: skipped in CI, though this machine can do it"));
            self.failed += 1;
            self.skipped = self.skipped.saturating_sub(1);
        }
        self.skips.retain(|skip| abilities.excuses(skip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_skip_for_what_is_missing_is_excused() {
        let skips = ["a (needs kvm: it is slow)", "b (needs wireguard)", "c (flaky)", "d (needs luck)"];
        let mut tally = Tally { passed: 1, skipped: 4, ..Tally::default() };
        tally.skips.extend(skips.map(str::to_owned));
        tally.refuse_avoidable_skips(&Abilities::of_guest());
        assert_eq!(tally.closing_line(), "1 passed, 3 failed, 1 skipped");
        assert_eq!(tally.skips.first().map(String::as_str), Some(skips[0]));
    }
}
