//! Every kind of call × every error number × once and for ever, in every scenario in which the call is made.

use std::{collections::BTreeMap, io};

use kubeveil_core::problem::ProblemKind;
use kubeveil_linux::fake::{Call, Failure, FakeKernel};
use rustix::io::Errno;

use super::{
    scenarios::{SCENARIOS, Scenario},
    stage::{Fault, Keys, Stage},
    state::{KINDS, LOOKS, kind},
};
use crate::node::tests::bench::DEVICE;

const ERRORS: [(&str, Errno); 6] = [
    ("EBUSY", Errno::BUSY),
    ("ENOBUFS", Errno::NOBUFS),
    ("EINTR", Errno::INTR),
    ("ENODEV", Errno::NODEV),
    ("EPERM", Errno::PERM),
    ("ENOMEM", Errno::NOMEM),
];

/// The place of a call in [`KINDS`].
fn kind_of(call: &Call<'_>) -> usize {
    match call {
        Call::Execute(action) => kind(action),
        Call::Observe => LOOKS,
        Call::Counters => LOOKS + 1,
        Call::SweepFlows => LOOKS + 2,
    }
}

/// How many runs each cell stands for, by kind and error.
#[derive(Default)]
struct Table(BTreeMap<(usize, usize), usize>);

impl Table {
    fn count(&mut self, kind: usize, error: usize) {
        *self.0.entry((kind, error)).or_default() += 1;
    }

    /// Prints it, and requires that no cell of `kinds` is empty.
    #[expect(clippy::print_stdout, reason = "the output of a test")]
    fn close(&self, title: &str, kinds: impl Fn(usize) -> bool) {
        let head: String = ERRORS.iter().map(|(name, _)| format!("{name:>9}")).collect();
        println!("{title:<18}{head}");
        for (row, name) in KINDS.iter().enumerate().filter(|(row, _)| kinds(*row)) {
            let cells: Vec<_> =
                (0..ERRORS.len()).map(|error| self.0.get(&(row, error)).copied().unwrap_or(0)).collect();
            println!("{name:<18}{}", cells.iter().map(|n| format!("{n:>9}")).collect::<String>());
            assert!(cells.iter().all(|n| *n > 0), "{title}: {name} never failed so: {cells:?}");
        }
    }
}

/// A scenario without faults.
struct Clean<'a> {
    scenario: &'a Scenario,
    stage: Stage,
}

fn each_scenario(keys: &Keys, mut then: impl FnMut(&Clean<'_>)) {
    for scenario in &SCENARIOS {
        let (stage, node, rests) = Stage::run(keys, scenario, |_| None);
        assert!(rests, "{}: {:?}", scenario.name, node.last.problems);
        assert_eq!(stage.wrong(), [""; 0], "{}", scenario.name);
        then(&Clean { scenario, stage });
    }
}

impl Clean<'_> {
    /// Calls of each kind.
    fn kinds(&self) -> BTreeMap<usize, usize> {
        let mut kinds = BTreeMap::new();
        self.stage.calls().iter().for_each(|kind| *kinds.entry(*kind).or_default() += 1);
        kinds
    }

    /// It came to what it came to without faults, and nothing was open on the way.
    fn is_what_came_of(&self, stage: &Stage, what: &str) {
        assert_eq!(stage.wrong(), [""; 0], "{what}");
        assert_eq!(stage.state(), self.stage.state(), "{what}");
    }
}

/// One call fails: the first of each kind with every error, all others with one in turn; before or after it has done
/// what it is for. The next way round mends it.
#[test]
fn once() {
    let keys = Keys::new();
    let mut table = Table::default();
    let mut turn = 0;
    each_scenario(&keys, |clean| {
        turn += 1;
        for (wanted, calls) in clean.kinds() {
            let calls = if wanted < LOOKS { calls } else { calls.min(3) };
            for nth in 0..calls {
                turn += 1;
                for (error, (name, errno)) in ERRORS.iter().enumerate() {
                    let is_first = nth == 0 && wanted < LOOKS;
                    if !is_first && error != turn % ERRORS.len() {
                        continue;
                    }
                    for is_done in [false, true] {
                        let failure = Failure { errno: errno.raw_os_error(), is_done };
                        let what = format!(
                            "{}: {name} once, {} no. {nth}, done: {is_done}",
                            clean.scenario.name, KINDS[wanted]
                        );
                        let (stage, node, rests) =
                            Stage::run(&keys, clean.scenario, |_| Some(nth_of(wanted, nth, failure)));
                        assert!(rests, "{what}: {:?}", node.last.problems);
                        clean.is_what_came_of(&stage, &what);
                        table.count(wanted, error);
                    }
                }
            }
        }
    });
    table.close("once", |_| true);
}

/// The call number `nth` of a kind fails.
fn nth_of(wanted: usize, nth: usize, failure: Failure) -> Fault {
    let mut left = nth;
    let mut is_over = false;
    Box::new(move |call| {
        if is_over || kind_of(call) != wanted {
            return None;
        }
        is_over = left == 0;
        left = left.saturating_sub(1);
        is_over.then_some(failure)
    })
}

/// All calls of a kind fail: what was closed stays closed, the status says why, and once they succeed all is well.
#[test]
fn for_ever() {
    let keys = Keys::new();
    let mut table = Table::default();
    let mut turn = 0;
    each_scenario(&keys, |clean| {
        turn += 1;
        for wanted in clean.kinds().into_keys() {
            for (error, (name, errno)) in ERRORS.iter().enumerate() {
                if wanted >= LOOKS && error != turn % ERRORS.len() {
                    continue;
                }
                let failure = Failure { errno: errno.raw_os_error(), is_done: false };
                let what = format!("{}: {name} for ever, {}", clean.scenario.name, KINDS[wanted]);
                let (mut stage, mut node, rests) = Stage::run(&keys, clean.scenario, |_| {
                    Some(Box::new(move |call| (kind_of(call) == wanted).then_some(failure)))
                });
                if rests {
                    // What was to be withdrawn was wanted again by the time that it could not be.
                    clean.is_what_came_of(&stage, &what);
                    continue;
                }
                let words = io::Error::from(*errno).to_string();
                let told = node.last.problems.iter().filter(|p| {
                    p.kind == ProblemKind::Kernel && p.message.contains(&words) && !p.object.is_empty()
                });
                assert!(told.count() > 0, "{what}: {:?}", node.last.problems);
                stage.bench.kernel.with(FakeKernel::heal);
                assert!(stage.goes_round(&mut node), "{what}: {:?}", node.last.problems);
                clean.is_what_came_of(&stage, &what);
                table.count(wanted, error);
            }
        }
    });
    table.close("for ever", |_| true);
}

/// All calls of a kind that are about one node fail: the others get what they would have got.
#[test]
fn for_ever_about_one_node() {
    let keys = Keys::new();
    let mut table = Table::default();
    each_scenario(&keys, |clean| {
        for wanted in clean.kinds().into_keys().filter(|kind| *kind < LOOKS) {
            for node in [2, 3, 4] {
                for (error, (name, errno)) in ERRORS.iter().enumerate() {
                    let failure = Failure { errno: errno.raw_os_error(), is_done: false };
                    let what =
                        format!("{}: {name} for ever, {} of node-{node}", clean.scenario.name, KINDS[wanted]);
                    let (mut stage, mut daemon, rests) = Stage::run(&keys, clean.scenario, |stage| {
                        Some(about(stage, &clean.stage, wanted, node, failure))
                    });
                    if rests {
                        // Nothing of this kind is about this node.
                        break;
                    }
                    assert_eq!(stage.wrong(), [""; 0], "{what}");
                    // A node that is not moved keeps its own pair's old key, and so this node its own.
                    let is_kept = |fact: &str| {
                        clean.scenario.rotates() && (fact.contains(DEVICE) || fact.contains("slots"))
                    };
                    let others = |stage: &Stage| {
                        let mut state = stage.state();
                        state
                            .retain(|(about, fact)| ![Some(node), Some(0)].contains(about) && !is_kept(fact));
                        state
                    };
                    assert_eq!(others(&stage), others(&clean.stage), "{what}");
                    stage.bench.kernel.with(FakeKernel::heal);
                    assert!(stage.goes_round(&mut daemon), "{what}: {:?}", daemon.last.problems);
                    clean.is_what_came_of(&stage, &what);
                    table.count(wanted, error);
                }
            }
        }
    });
    let about_nodes = [
        "PutPrefix",
        "RemovePrefix",
        "AddPeer",
        "SetEndpoint",
        "AddAllowedIps",
        "ReplaceAllowedIps",
        "SetKeepalive",
        "RemovePeer",
        "SetPeer",
    ];
    table.close("about one node", |kind| about_nodes.contains(&KINDS[kind]));
}

/// Calls of a kind that are about a node fail. Its index is looked up in what stood before, or will stand.
fn about(before: &Stage, after: &Stage, wanted: usize, node: u8, failure: Failure) -> Fault {
    let maps = [before.datapath(), after.datapath()];
    let names = before.names();
    Box::new(move |call| match call {
        Call::Execute(action) if kind(action) == wanted => {
            let is_about = maps.iter().any(|map| names.node_of(action, map) == Some(node));
            is_about.then_some(failure)
        }
        _ => None,
    })
}
