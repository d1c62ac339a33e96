//! Calls that fail, and a daemon that is killed between them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kubeveil_core::problem::ProblemKind;
use kubeveil_linux::fake::FakeKernel;

use super::bench::{Bench, DEVICE, FIRST};

/// Each action, failing once and failing for a while: the others are carried out, the problem is told,
/// no peer is tunnelled that isn't proven, and afterwards everything stands.
#[test]
fn every_call_may_fail() {
    let sample = Bench::new(3);
    sample.start().pass(FIRST);
    let steps = sample.tried().len();
    for errno in [1, 4, 12, 16, 19, 105] {
        for step in 0..steps {
            let mut bench = Bench::new(3);
            let mut node = bench.start();
            // Which of two keys is lower is chance, and so is the number of steps.
            let (mut left, fired) = (Some(step), Arc::new(AtomicBool::new(false)));
            let fire = fired.clone();
            bench.kernel.with(|k| {
                k.fail(move |_| {
                    let now = left == Some(0);
                    left = left.and_then(|n| n.checked_sub(1));
                    fire.fetch_or(now, Ordering::Relaxed);
                    now.then_some(errno)
                });
            });
            node.pass(FIRST);
            let told = node.last.problems.iter().any(|p| p.kind == ProblemKind::Kernel);
            assert_eq!(told, fired.load(Ordering::Relaxed), "errno {errno} at step {step}");
            bench.kernel.with(FakeKernel::heal);
            bench.settle(&mut node);
            assert_eq!(bench.tunnelled(), 2, "errno {errno} at step {step}");
            assert_eq!(node.last.problems, [], "errno {errno} at step {step}");
        }
    }
}

/// Killed after each step, started again: converges, and a device that stands keeps its key.
#[test]
fn killed_after_every_step() {
    let sample = Bench::new(3);
    sample.start().pass(FIRST);
    for step in 0..sample.tried().len() {
        let mut bench = Bench::new(3);
        let mut node = bench.start();
        let mut left = step;
        bench.kernel.with(|k| {
            k.fail(move |_| {
                // Dead processes make no calls.
                let dead = left == 0;
                left = left.saturating_sub(1);
                dead.then_some(5)
            });
        });
        node.pass(FIRST);
        drop(node);
        let key = bench.truth().tunnels.get(DEVICE).and_then(|t| t.public_key);
        bench.kernel.with(|k| {
            k.heal();
            k.daemon_ends();
        });
        let mut again = bench.start();
        bench.settle(&mut again);
        assert_eq!(bench.tunnelled(), 2, "killed after step {step}");
        let now = bench.truth().tunnels[DEVICE].public_key;
        assert!(key.is_none() || key == now, "killed after step {step}");
    }
}
