//! The daemon is killed between any two actions, without a last word, and another one starts.

use super::{
    scenarios::SCENARIOS,
    stage::{Keys, Stage},
    state::LOOKS,
};

#[test]
fn killed_between_any_two_actions() {
    let keys = Keys::new();
    let mut moments = 0;
    for scenario in &SCENARIOS {
        let (clean, _, rests) = Stage::run(&keys, scenario, |_| None);
        assert!(rests, "{}", scenario.name);
        let mut after = 0;
        while let Some((stage, node)) = Stage::run_killed(&keys, scenario, after) {
            let what = format!("{}, killed after {after} actions", scenario.name);
            assert_eq!(stage.wrong(), [""; 0], "{what}");
            assert_eq!(stage.state(), clean.state(), "{what}");
            assert_eq!(node.last.problems, [], "{what}");
            after += 1;
        }
        let actions = clean.calls().iter().filter(|kind| **kind < LOOKS).count();
        assert_eq!(after, actions, "{}: it was killed before each action", scenario.name);
        moments += after;
    }
    assert!(moments > 100, "only {moments}");
}
