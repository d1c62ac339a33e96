//! Pods whose devices are looked for, and those that are held to more than policies ask of them: since when.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use jiff::Timestamp;
use kubeveil_core::{
    desired::{Desired, HeldBack},
    observed::Observed,
    origin::origins,
    problem::{Problem, ProblemKind, few},
    snapshot::Knowledge,
};
use kubeveil_linux::Kernel;

use super::{Node, Now, RESYNC};

/// How often a pod's device is looked for, and how long: it is heard by its bridge a moment after the source has told of it, and one that is
/// not found soon is behind something that we don't know.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_FOR: Duration = Duration::from_secs(30);
/// That a pod is held to more than it should be is told only when it lasts: its device comes a moment after the source tells of it, and goes a
/// moment before.
const LASTS: Duration = Duration::from_secs(30);
/// How long after a boot what sources tell of pods may be of before it: a kubelet has told of them anew by then, unless it is away.
const BOOT_COUNTS: Duration = Duration::from_secs(600);
/// By how much the time that a kubelet tells, in full seconds, may be before the boot as it is reckoned from two clocks.
const BOOT_SLACK: Duration = Duration::from_secs(3);
/// Most addresses that are named.
const MOST_NAMED: usize = 5;

impl Now {
    /// When the machine was started, as long as that is not long ago. Later it proves nothing: the wall clock may have been set since.
    fn boot_that_counts(&self) -> Option<Timestamp> {
        let boot = self.epoch.checked_sub(self.monotonic)?.checked_sub(BOOT_SLACK)?;
        let boot = i64::try_from(boot.as_secs()).ok().filter(|_| self.monotonic < BOOT_COUNTS)?;
        Timestamp::from_second(boot).ok()
    }
}

/// Since when, monotonic.
#[derive(Debug, Default)]
pub(super) struct Pods {
    looked_for: BTreeMap<IpAddr, Duration>,
    held_back: BTreeMap<(HeldBack, IpAddr), Duration>,
}

/// Those of `now` that were not there before since now, the others since when they were.
fn since<T: Ord + Copy>(
    before: &BTreeMap<T, Duration>,
    all: impl Iterator<Item = T>,
    now: Duration,
) -> BTreeMap<T, Duration> {
    all.map(|one| (one, before.get(&one).copied().unwrap_or(now))).collect()
}

impl Pods {
    fn look_for(&mut self, unfound: BTreeSet<IpAddr>, now: Now) {
        self.looked_for = since(&self.looked_for, unfound.into_iter(), now.monotonic);
    }

    /// Until everything is looked at again, where nothing is left to do.
    pub(super) fn resync(&self, now: Now) -> Duration {
        let mut all = self.looked_for.values();
        let is_new = all.any(|since| now.monotonic.saturating_sub(*since) < LOOK_FOR);
        if is_new { LOOK_EVERY } else { RESYNC }
    }

    /// What is wrong with those that are held back, as far as it lasts.
    pub(super) fn hold_back(
        &mut self,
        held_back: impl Iterator<Item = (IpAddr, HeldBack)>,
        now: Now,
    ) -> Vec<Problem> {
        self.held_back =
            since(&self.held_back, held_back.map(|(address, why)| (why, address)), now.monotonic);
        let mut lasting: BTreeMap<HeldBack, Vec<IpAddr>> = BTreeMap::new();
        for ((why, address), _) in
            self.held_back.iter().filter(|(_, since)| now.monotonic.saturating_sub(**since) >= LASTS)
        {
            lasting.entry(*why).or_default().push(*address);
        }
        lasting.into_iter().map(|(why, addresses)| problem(why, addresses)).collect()
    }
}

fn problem(why: HeldBack, addresses: Vec<IpAddr>) -> Problem {
    let (message, advice) = match why {
        HeldBack::DeviceUnknown => (
            "a policy asks for less of them than the mesh does, but it is not known by which device they speak, and so whether it is they \
             who have these addresses: they are held to what the mesh asks for",
            "The node's network plugin is one of those whose pods' devices kubeveil does not find: it knows veth and netkit devices that \
             have a route of their own, or are ports of a bridge by which the pod was heard",
        ),
        HeldBack::DeviceGone => (
            "the devices by which they spoke are gone, so that anybody may have these addresses: as much is asked of them as of a pod that \
             is not known",
            "Delete the pods, so that they are made anew",
        ),
        HeldBack::Disputed => (
            "other pods are told of at these addresses than those whose devices are there: as much is asked of them as of a pod that is not \
             known",
            "Look whether the API server tells of an older state than the node's (a restored etcd, a cache); else delete the pods that it \
             tells of, so that they are made anew",
        ),
        HeldBack::BeforeBoot => (
            "all that is told of them is of before this node was started, so that others may have these addresses: as much is asked of them \
             as of a pod that is not known, until their kubelet tells of them anew, and at most for ten minutes after the start",
            "Look whether the kubelet runs and reaches the API server, and whether the node's clock was set since",
        ),
    };
    Problem {
        kind: ProblemKind::Kernel,
        object: format!("pods of this node at {}", few(addresses.into_iter(), MOST_NAMED)),
        field: String::new(),
        message: message.to_owned(),
        advice: advice.to_owned(),
    }
}

impl<K: Kernel> Node<K> {
    /// Pods of which all that is told is of before a boot count as not told of. Returns their addresses.
    pub(super) fn forget_earlier_pods(&self, knowledge: &mut Knowledge, now: Now) -> BTreeSet<IpAddr> {
        now.boot_that_counts().map(|boot| knowledge.forget_earlier_pods(&self.name, boot)).unwrap_or_default()
    }

    /// What is wrong with pods that are held back, as far as it lasts: by what should be in the kernel, and since a boot.
    pub(super) fn hold_back(
        &mut self,
        desired: &Desired,
        earlier: BTreeSet<IpAddr>,
        now: Now,
    ) -> Vec<Problem> {
        let earlier = earlier.into_iter().map(|address| (address, HeldBack::BeforeBoot));
        let held_back = desired.held_back.iter().map(|(address, why)| (*address, *why));
        self.pods.hold_back(held_back.chain(earlier), now)
    }

    /// Asks bridges for pods whose devices were not found yet, as long as there are any.
    pub(super) fn look_for_pods(&mut self, knowledge: &Knowledge, observed: &mut Observed, now: Now) {
        // Before the maps are seen nobody knows who was found.
        let unfound = match observed.datapath {
            Some(_) => origins(&self.name, knowledge, observed).unfound,
            None => BTreeSet::new(),
        };
        if !unfound.is_empty() {
            let read = self.kernel.neighbours();
            observed.neighbours = self.beside("neighbours", read).unwrap_or_default();
        }
        self.pods.look_for(unfound, now);
    }
}
