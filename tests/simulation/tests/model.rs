//! Rotation of two nodes, and of three of which one or two are prompt, in every order holds by our rules, and finds out rules that are
//! broken.

use kubeveil_tests_simulation::{
    Rules,
    model::{Bounds, Checked, check},
};

fn two(rotations: u8, crashes: u8, silences: u8, rules: Rules) -> Checked {
    check(Bounds { nodes: 2, prompt: 0, rotations, crashes, silences }, rules)
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
    holds(&two(1, 1, 1, Rules::Ours), 250_726);
    holds(&two(2, 1, 0, Rules::Ours), 436_743);
    holds(&two(3, 0, 0, Rules::Ours), 154_478);
}

#[test]
fn three_nodes_of_which_one_is_prompt_hold_in_every_order() {
    let bounds = Bounds { nodes: 3, prompt: 1, rotations: 1, crashes: 0, silences: 0 };
    holds(&check(bounds, Rules::Ours), 1_525_867);
}

#[test]
fn three_nodes_of_which_two_are_prompt_hold_though_one_dies_and_one_falls_silent() {
    let bounds = Bounds { nodes: 3, prompt: 2, rotations: 1, crashes: 1, silences: 1 };
    holds(&check(bounds, Rules::Ours), 604_398);
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

/// Two conditions that others make up for, as long as all keep to the protocol (`Rules` says how).
#[test]
fn what_is_not_needed_is_known() {
    for rules in [Rules::NoQuietTime, Rules::IgnoresWhoHasNotBegun] {
        holds(&two(1, 1, 1, rules), 250_726);
        holds(&two(2, 0, 1, rules), 149_502);
    }
}
