//! Rotation of two and three nodes in every order holds by our rules, and finds out rules that are broken.

use kubeveil_tests_simulation::{
    Rules,
    model::{Bounds, Checked, check},
};

fn two(rotations: u8, crashes: u8, silences: u8, rules: Rules) -> Checked {
    check(Bounds { nodes: 2, rotations, crashes, silences }, rules)
}

/// As many states as were counted: none of it is held by nothing having been looked at.
fn holds(checked: &Checked, states: usize) {
    if let Some(broken) = &checked.broken {
        panic!("after {} states:\n{broken}", checked.states);
    }
    assert_eq!(checked.states, states, "another model, or another protocol: count anew");
}

#[test]
fn two_nodes_hold_in_every_order() {
    holds(&two(1, 1, 1, Rules::Ours), 299_484);
    holds(&two(2, 1, 0, Rules::Ours), 623_321);
    holds(&two(3, 0, 0, Rules::Ours), 548_044);
}

#[test]
fn broken_rules_are_found_out() {
    let broken = [
        Rules::FlipsBeforeEvidence,
        Rules::IgnoresTheList,
        Rules::ListsNobody,
        Rules::GoesBackUnsaid,
        Rules::GoesByTheSourceAlone,
        Rules::DoesNotWait,
        Rules::IgnoresOwnWays,
    ];
    for rules in broken {
        let found = two(1, 1, 1, rules).broken.unwrap_or_else(|| panic!("{rules:?} holds"));
        assert!(!found.path.is_empty() && found.path.len() < 20, "{rules:?}:\n{found}");
    }
}
