//! Two whole nodes close to each other as a mesh is adopted, and are bypassed for a while: killed at every step, and disks that refuse from
//! every step on. What is closed stays closed, and no bypass lasts longer than it may.

use super::pair::{Course, Fault, Pair};

fn at_each_step(fault: Fault, each: impl FnMut(&Pair)) {
    const CLOSING: Course = Course {
        play: Pair::adopted,
        left: Pair::open,
        deeds: &["keep adoption.json", "keep bypasses.json", "keep known.json", "keep generations.json"],
    };
    CLOSING.at_each_step(fault, each);
}

#[test]
fn one_is_killed_at_each_step() {
    at_each_step(Fault::Killed { both: false, blind: false }, |_| {});
}

#[test]
fn one_is_killed_at_each_step_and_starts_blind() {
    at_each_step(Fault::Killed { both: false, blind: true }, |_| {});
}

#[test]
fn both_are_killed_at_each_step_and_start_blind() {
    at_each_step(Fault::Killed { both: true, blind: true }, |_| {});
}

#[test]
fn disks_refuse_from_each_step_on() {
    const FILES: [&str; 4] = ["adoption.json", "bypasses.json", "known.json", "generations.json"];
    let mut told = [0; FILES.len()];
    at_each_step(Fault::Disk([true, true]), |pair| {
        for (told, file) in told.iter_mut().zip(FILES) {
            *told += pair.told().iter().filter(|problem| problem.object.ends_with(file)).count();
        }
    });
    assert!(told.iter().all(|told| *told > 0), "a disk that refuses is not told: {told:?}");
}
