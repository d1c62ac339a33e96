//! A daemon that panics while it holds its key.

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
};

use kubeveil_core::action::Action;
use kubeveil_keys::{Generation, test_support::encodings};
use kubeveil_linux::Secrets as _;

use super::bench::{Bench, FIRST};
use crate::{keeper::Keeper, node::Node};

/// Where a process that is to panic finds its state, and where it is to panic.
const PANIC: (&str, &str) = ("KUBEVEIL_TEST_STATE", "KUBEVEIL_TEST_PANIC");

/// The daemon panics while it holds its key, with all that RUST_BACKTRACE=full adds, in a process of its own:
/// at the kernel call that is given the key, and with everything at hand that has a `Debug`.
#[test]
fn a_panic_tells_no_key() {
    if let (Some(state), Ok(place)) = (env::var_os(PANIC.0), env::var(PANIC.1)) {
        return panic_at(&place, Path::new(&state));
    }
    for (place, leaks) in [("call", false), ("debug", false), ("control", true)] {
        let state = tempfile::tempdir().expect("temp dir");
        let output = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "node::tests::panics::a_panic_tells_no_key", "--nocapture"])
            .envs([("RUST_BACKTRACE", "full"), (PANIC.1, place)])
            .env(PANIC.0, state.path())
            .output()
            .expect("started");
        let said = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
        for words in ["panicked at", "stack backtrace:", "node::Node", "ConfigureTunnel"] {
            assert!(said.contains(words), "{place}: {words:?} is not in {said}");
        }
        let mut keeper = Keeper::new(state.path(), "node-1");
        keeper.unlock("uid-1", 1);
        assert!(keeper.make(Generation::FIRST, false, 1));
        let private = keeper.private_key(Generation::FIRST).expect("the key of the process that panicked");
        let found = private.expose(encodings).iter().any(|s| said.contains(s));
        assert_eq!(found, leaks, "{place}: the private key in what it said: {said}");
    }
}

fn panic_at(place: &str, state: &Path) {
    let bench = Bench::new(2);
    let source = Box::new(bench.world.clone());
    let mut node = Node::new("node-1", &[], "build", bench.kernel.clone(), source, state);
    bench.kernel.with(|k| {
        k.fail(|action| match action {
            Action::ConfigureTunnel { .. } => panic!("{action}: {action:?}"),
            _ => None,
        });
    });
    if place == "call" {
        node.pass(FIRST);
    }
    let passed = catch_unwind(AssertUnwindSafe(|| node.pass(FIRST)));
    assert!(passed.is_err(), "it did not panic");
    if place == "debug" {
        panic!("{:?} {:#?} {:?} {:?}", node.keeper, node.keeper, node.last, node.totals);
    }
    let private = node.keeper.private_key(Generation::FIRST).expect("key");
    private.expose(|bytes| panic!("{bytes:?}"));
}
