//! The loop, asked without end: what it tells costs little, and its work is done in time.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use kubeveil_abi::{Direction, FlowMode, Reason};
use kubeveil_core::{
    action::Action,
    observed::{Neighbours, Observed},
    problem::Problem,
    snapshot::{Knowledge, Snapshot},
    source::{Source, SourceState},
};
use kubeveil_linux::{Count, Flow, KernelError, Removed, Secrets, Sighting, Sightings, fake::FakeKernel};

use super::*;

/// How often the kernel was looked at, and the source read (once each way round).
#[derive(Clone, Default)]
struct Costs {
    looks: Arc<AtomicUsize>,
    rounds: Arc<AtomicUsize>,
    views: Arc<AtomicUsize>,
}

/// A kernel that is slow to look at, as one with thousands of peers is.
struct SlowKernel {
    inner: FakeKernel,
    costs: Costs,
    asker: Option<Asker>,
}

/// Has the next question as soon as one is being answered, so that one always waits.
struct Asker {
    events: mpsc::Sender<Event>,
    waits: Option<oneshot::Receiver<Box<View>>>,
}

impl Asker {
    fn ask(&mut self) {
        let (answer, view) = oneshot::channel();
        self.waits = Some(view);
        // The loop may have ended.
        let _ = self.events.send(Event::Ask(Question::View(answer)));
    }
}

const SLOW: Duration = Duration::from_millis(5);

impl Kernel for SlowKernel {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        self.costs.looks.fetch_add(1, Ordering::Relaxed);
        thread::sleep(SLOW);
        self.inner.observe()
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.inner.neighbours()
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        self.inner.still_holds(last)
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        self.inner.execute(action, secrets)
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        self.costs.views.fetch_add(1, Ordering::Relaxed);
        if let Some(asker) = &mut self.asker {
            asker.ask();
        }
        self.inner.counters()
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        self.inner.watch(flows)
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        self.inner.seen()
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        self.inner.sweep_flows()
    }

    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        self.inner.remove_everything()
    }
}

/// Knows nothing, and wants to be read again soon.
struct Restless(Costs);

const SOON: Duration = Duration::from_millis(20);

impl Source for Restless {
    fn name(&self) -> String {
        "test".to_owned()
    }

    fn read(&mut self, _: Duration) -> SourceState {
        self.0.rounds.fetch_add(1, Ordering::Relaxed);
        let knowledge = Knowledge::Partial(Snapshot::default());
        SourceState { knowledge, problems: Vec::new(), look_again: Some(SOON) }
    }

    fn announce(&mut self, _: &str, _: &str, _: Option<&str>) -> Result<(), Problem> {
        Ok(())
    }

    fn report(&mut self, _: &str, _: kubeveil_api::veil_node::VeilNodeStatus) -> Result<(), Problem> {
        Ok(())
    }
}

fn node(costs: &Costs, state_dir: &Path) -> Node<SlowKernel> {
    let kernel = SlowKernel { inner: FakeKernel::new("build", &[]), costs: costs.clone(), asker: None };
    Node::new("node-1", &[], "build", kernel, Box::new(Restless(costs.clone())), state_dir)
}

#[test]
fn many_questions_are_answered_from_one_look() {
    const QUESTIONS: usize = 2_000;
    let (costs, state) = (Costs::default(), tempfile::tempdir().expect("folder"));
    let mut node = node(&costs, state.path());
    node.pass(now());
    let (before, start) = (costs.looks.load(Ordering::Relaxed), Instant::now());
    for _ in 0..QUESTIONS {
        let (answer, mut view) = oneshot::channel();
        tell(&mut node, answer);
        view.try_recv().expect("an answer");
    }
    let looks = costs.looks.load(Ordering::Relaxed) - before;
    let most = start.elapsed().as_millis() / FRESH.as_millis() + 1;
    assert!(looks as u128 <= most, "{looks} looks at the kernel, not {most}, for {QUESTIONS} questions");
}

/// Who has hung up is told nothing, so a flood of those costs next to nothing.
#[test]
fn who_has_gone_is_not_answered() {
    let (costs, state) = (Costs::default(), tempfile::tempdir().expect("folder"));
    let mut node = node(&costs, state.path());
    for _ in 0..100 {
        let (answer, view) = oneshot::channel();
        drop(view);
        tell(&mut node, answer);
    }
    let made = costs.views.load(Ordering::Relaxed) + costs.looks.load(Ordering::Relaxed);
    assert_eq!(made, 0, "views or looks for nobody");
}

/// It goes round in time though a question always waits, and hears that it is to end.
#[test]
fn questions_without_end_keep_nobody_from_going_round() {
    const ROUNDS: usize = 10;
    const PATIENCE: Duration = Duration::from_secs(20);
    let (costs, state) = (Costs::default(), tempfile::tempdir().expect("folder"));
    let (events, inbox) = mpsc::channel();
    let mut node = node(&costs, state.path());
    let mut asker = Asker { events: events.clone(), waits: None };
    asker.ask();
    node.kernel.asker = Some(asker);
    let looping = thread::spawn(move || go_round(&mut node, &inbox, &Durations::new()));
    let start = Instant::now();
    while costs.rounds.load(Ordering::Relaxed) < ROUNDS && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    let rounds = costs.rounds.load(Ordering::Relaxed);
    let answers = costs.views.load(Ordering::Relaxed);
    events.send(Event::Stop).expect("the loop listens");
    looping.join().expect("the loop ends");
    assert!(rounds >= ROUNDS, "{rounds} ways round while {answers} questions were answered");
    assert!(answers > BACKLOG, "{answers} questions are no flood");
}

#[test]
fn what_the_kernel_saw_is_told_with_its_verdict() {
    let (costs, state) = (Costs::default(), tempfile::tempdir().expect("folder"));
    let mut node = node(&costs, state.path());
    let address = |text: &str| text.parse().expect("an address");
    let flow = Flow { source: address("fd00:10:244:1::2"), destination: address("fd00:10:244:2::2") };
    let (armed, mut done) = oneshot::channel();
    answer(&mut node, Question::Watch(vec![flow], armed));
    done.try_recv().expect("an answer").expect("it is watched");
    assert_eq!(node.kernel.inner.watched, [flow]);
    let count = |mode, reason| Count { direction: Direction::Egress, mode, reason, packets: 3, bytes: 300 };
    let sighting = |count| Sighting { flow, count, last: Duration::from_secs(1) };
    node.kernel.inner.sightings.found = vec![
        sighting(count(FlowMode::Insist, Reason::NoTunnel)),
        sighting(count(FlowMode::Observe, Reason::NoTunnel)),
    ];
    let seen = watch::seen(&mut node, Duration::from_millis(1_250)).expect("read").seen;
    let told: Vec<_> =
        seen.iter().map(|s| (s.verdict.name(), s.mode.name(), s.reason.as_str(), s.age_ms)).collect();
    assert_eq!(told, [("drop", "require", "no_tunnel", 250), ("would_drop", "observe", "no_tunnel", 250)]);
    assert!(seen[0].advice.starts_with("The peer has no proven tunnel"), "{:?}", seen[0]);
}
