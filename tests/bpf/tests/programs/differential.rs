//! Any packet in any state of the world: the kernel's answer, what it counts and what it remembers
//! must be what the same decision says on the host.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use anyhow::{Result, ensure};
use kubeveil_abi::{Counter, Direction, counter_index};
use kubeveil_verdict::testing::{Policies, Scene, Situation, policies, scene, situation};
use proptest::{
    collection,
    test_runner::{Config, TestCaseError, TestRunner},
};

use crate::{
    kernel::{Kernel, boot_seconds, words},
    reasons::{action, on_host},
};

/// States of the world, and packets in each. Filling the maps is what takes the time.
const SCENES: u32 = 150;
const PACKETS: usize = 60;

pub(crate) fn kernel_and_host_agree() -> Result<()> {
    let config =
        Config { cases: SCENES, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let packets = collection::vec((situation(), 0_usize..3), PACKETS);
    let kernel = RefCell::new(Kernel::with(&kubeveil_verdict::testing::World::default())?);
    let tried = Cell::new(0_usize);
    runner
        .run(&(scene(boot_seconds()), policies(boot_seconds()), packets), |(scene, policies, packets)| {
            let mut kernel = kernel.borrow_mut();
            tried.set(tried.get() + packets.len());
            compare(&mut kernel, scene, &policies, &packets)
                .map_err(|e| TestCaseError::fail(format!("{e:#}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    println!("{} packets in {SCENES} states of the world", tried.get());
    Ok(())
}

fn compare(
    kernel: &mut Kernel,
    scene: Scene,
    policies: &Policies,
    packets: &[(Situation, usize)],
) -> Result<()> {
    let world = policies.in_force(scene.world());
    kernel.install(&world)?;
    // Half of the scenes without what the programs keep of their look-ups.
    if scene.flows.len().is_multiple_of(2) {
        kernel.unsettle()?;
    }
    let mut counted: BTreeMap<u32, Counter> = BTreeMap::new();
    for (situation, program) in packets {
        let direction = Direction::ALL[*program];
        let decision = on_host(direction, situation, &world);
        let ran = kernel.run(direction, situation)?;
        ensure!(ran.action == action(&decision), "{} for {decision:?}, {situation:?}", ran.action);
        let index = counter_index(direction, decision.mode, decision.reason);
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
