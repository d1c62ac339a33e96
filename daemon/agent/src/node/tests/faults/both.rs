//! A rotation of two whole nodes: one or both are killed at every step, keys, announcements and what is kept among them, and disk and
//! source refuse from every step on for a while. Nothing that one sends to the other is lost meanwhile, and both come to the end.

use super::pair::{Course, Fault, Pair};

const SIDES: [[bool; 2]; 3] = [[true, false], [false, true], [true, true]];

fn at_each_step(fault: Fault, each: impl FnMut(&Pair)) {
    const ROTATION: Course = Course {
        play: Pair::rotated,
        left: Pair::unfinished,
        deeds: &[
            "make generation-1.key",
            "give up generation-0.key",
            "say something else",
            "keep known.json",
            "keep generations.json",
        ],
    };
    let steps = ROTATION.at_each_step(fault, each);
    assert!(steps.len() > 40, "{fault:?}: only {steps:#?}");
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
    at_each_step(Fault::Killed { both: false, blind: false }, |_| {});
}

#[test]
fn both_are_killed_at_each_step() {
    at_each_step(Fault::Killed { both: true, blind: false }, |_| {});
}

/// What it said it may not have kept, and nobody tells it of that when it starts again.
#[test]
fn one_is_killed_at_each_step_and_starts_blind() {
    at_each_step(Fault::Killed { both: false, blind: true }, |_| {});
}

#[test]
fn both_are_killed_at_each_step_and_start_blind() {
    at_each_step(Fault::Killed { both: true, blind: true }, |_| {});
}

/// Nobody gives up what could not be made anew, and who can't is told so.
#[test]
fn disks_refuse_from_each_step_on() {
    for whose in SIDES {
        const OBJECTS: [&str; 3] = ["key store", "known.json", "generations.json"];
        let mut told = [0; OBJECTS.len()];
        at_each_step(Fault::Disk(whose), |pair| {
            for (told, object) in told.iter_mut().zip(OBJECTS) {
                *told += pair.told().iter().filter(|problem| problem.object.contains(object)).count();
            }
        });
        assert!(told.iter().all(|told| *told > 0), "{whose:?}: a disk that refuses is not told: {told:?}");
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
