//! What a rotation costs a large cluster is what ARCHITECTURE.md says, for one of 1,000 nodes.

use std::time::Duration;

use kubeveil_tests_simulation::scale::{Look, rotate};

#[test]
fn no_node_is_told_more_than_it_can_take_in() {
    let cost = rotate(1000, 0, Look::MEASURED);
    assert!(cost.took < Duration::from_secs(60), "{cost}");
    assert!(cost.most_of_one <= 4 && cost.writes < 3200, "{cost}");
    // A hundred a second is what the nodes' places in the row come to; 1,182 came where the end was told at once.
    assert!(cost.most_a_second < 200, "{cost}");
    assert!(cost.keeps_up(), "{cost}");
}

/// Who takes twenty milliseconds for each of a hundred announcements a second does not keep up.
#[test]
fn who_is_too_slow_falls_behind() {
    let cost = rotate(1000, 0, Look { each_told: 20_000, ..Look::MEASURED });
    assert!(!cost.keeps_up(), "{cost}");
}
