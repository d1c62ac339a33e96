//! Two thousand schedules hold by our rules, and find out every set of rules that is broken.

use kubeveil_tests_simulation::{Rules, Schedule, play_all};

/// How many are played in the tests; `cargo xtask simulate` plays as many as are wanted.
const SCHEDULES: u64 = 2000;

fn schedules(rules: Rules) -> impl Iterator<Item = Schedule> + Send {
    (0..SCHEDULES).map(move |seed| Schedule { seed, nodes: None, rules })
}

#[test]
fn ours_hold() {
    let all = play_all(schedules(Rules::Ours), usize::MAX, |_, _| {});
    let failures: Vec<String> = all
        .failures
        .iter()
        .take(5)
        .map(|(schedule, failure)| {
            format!("seed {}: {failure}\n  again: {}", schedule.seed, schedule.replay())
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {SCHEDULES} are broken:\n{}",
        all.failures.len(),
        failures.join("\n")
    );
    // None of it is held by nothing having happened.
    let figures = all.figures;
    assert!(figures.delivered > 1_000_000 && figures.kills > 1000 && figures.writes > 20_000, "{figures}");
    assert!(figures.plain > 10_000 && figures.unkept > 50, "{figures}");
    assert!(figures.lost > 50_000 && figures.doubled > 50_000, "{figures}");
}

#[test]
fn broken_rules_are_found_out() {
    let mut missed = Rules::BROKEN.to_vec();
    missed.retain(|rules| play_all(schedules(*rules), 1, |_, _| {}).failures.is_empty());
    assert_eq!(missed, [], "no schedule of {SCHEDULES} finds these out");
}

/// Seeds that were broken once. A seed plays another schedule when what is simulated changes, so what each of them was is
/// held elsewhere as well.
#[test]
fn what_was_mended_holds() {
    let seeds = [
        // WireGuard begins a handshake when nothing comes back: the simulation did not, and a node whose clock had been set back
        // and whose device was lost waited for two minutes.
        4010,
        // A node whose peer's key was revoked went back to an older one by a list that it had taken back
        // (`what_was_said_binds_before_the_source_tells_of_it` in core).
        17403, // What was tried first against that.
        636,
        // Late answers of a device that somebody had deleted, which the simulation took for its successor's.
        624, 6498, 10143,
    ];
    let schedules = seeds.map(|seed| Schedule { seed, nodes: None, rules: Rules::Ours });
    let failures = play_all(schedules.into_iter(), usize::MAX, |_, _| {}).failures;
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn the_same_seed_plays_the_same_way() {
    for seed in 0..20 {
        let [one, other] = [(); 2].map(|()| Schedule { seed, nodes: None, rules: Rules::Ours }.play(true));
        assert_eq!((one.trace, one.figures), (other.trace, other.figures), "seed {seed}");
    }
}
