//! A rotation of two whole nodes: one or both are killed at every step, keys and announcements among them, and disk and source refuse
//! from every step on for a while. Nothing that one sends to the other is lost meanwhile, and both come to the end.

use super::pair::{Fault, Pair};

const SIDES: [[bool; 2]; 3] = [[true, false], [false, true], [true, true]];

/// Plays `fault` at each step of a rotation, and holds each run to the same; says how many there were, and of which steps.
fn at_each_step(fault: Fault, mut each: impl FnMut(&Pair)) -> Vec<String> {
    let mut at = 0;
    let mut steps = Vec::new();
    while let Some(pair) = Pair::rotated(at, fault) {
        let step = pair.taken()[at].clone();
        let what = format!("{fault:?} at step {at}, {step}");
        assert_eq!(pair.wrong(), [""; 0], "{what}");
        assert_eq!(pair.unfinished(), [""; 0], "{what}");
        each(&pair);
        steps.push(step);
        at += 1;
    }
    assert!(steps.len() > 40, "{fault:?}: only {steps:#?}");
    for side in ["node-1", "node-2"] {
        for deed in ["make generation-1.key", "give up generation-0.key", "say something else"] {
            assert!(
                steps.contains(&format!("{side}: {deed}")),
                "{fault:?}: {side} does not {deed}: {steps:#?}"
            );
        }
    }
    steps
}

#[test]
fn nothing_happens() {
    let pair = Pair::rotated(0, Fault::Nothing).expect("a rotation");
    assert_eq!(pair.wrong(), [""; 0]);
    assert_eq!(pair.unfinished(), [""; 0], "{:#?}", pair.taken());
    assert_eq!(pair.told(), []);
}

#[test]
fn one_is_killed_at_each_step() {
    at_each_step(Fault::Killed { both: false }, |_| {});
}

#[test]
fn both_are_killed_at_each_step() {
    at_each_step(Fault::Killed { both: true }, |_| {});
}

/// Nobody gives up what could not be made anew, and who can't is told so.
#[test]
fn disks_refuse_from_each_step_on() {
    for whose in SIDES {
        let mut told = 0;
        at_each_step(Fault::Disk(whose), |pair| {
            told += pair.told().iter().filter(|problem| problem.object.starts_with("key store")).count();
        });
        assert!(told > 0, "{whose:?}: a disk that refuses is not told");
    }
}

#[test]
fn sources_refuse_from_each_step_on() {
    for whose in SIDES {
        let mut told = 0;
        at_each_step(Fault::Source(whose), |pair| {
            told += pair.told().iter().filter(|problem| problem.message.contains("refuses")).count();
        });
        assert!(told > 0, "{whose:?}: a source that refuses is not told");
    }
}
