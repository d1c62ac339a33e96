use proptest::prelude::*;

use kubeveil_abi::Config;

use super::*;
use crate::{
    observed::Prefix,
    ownership::{Owners, assign},
    testing::{mesh, net, node, snapshot},
};

const DEADLINE: u64 = 1_000;

fn adoption() -> Option<Adoption> {
    serde_json::from_str(r#"{"deadline":"1970-01-01T00:16:40Z"}"#).ok()
}

fn nodes(names: &[&str]) -> Nodes {
    names.iter().map(|name| ((*name).to_owned(), format!("uid-{name}"))).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn seen(others: &[&str], proven: &[&str], seconds: u64) -> Seen {
    Seen {
        adoption: adoption(),
        requires: true,
        others: nodes(others),
        whole: true,
        proven: names(proven),
        barred: BTreeSet::new(),
        is_own: false,
        is_misled: false,
        epoch: Duration::from_secs(seconds),
    }
}

/// Steps, and says who is open then.
fn step(gate: &mut Gate, seen: &Seen) -> BTreeSet<String> {
    *gate = gate.step(seen);
    gate.open(seen)
}

#[test]
fn a_pair_closes_when_it_is_proven_and_stays_closed() {
    let mut gate = Gate::default();
    assert_eq!(step(&mut gate, &seen(&["a", "b", "c"], &[], 1)), names(&["a", "b", "c"]));
    assert_eq!(step(&mut gate, &seen(&["a", "b", "c"], &["b"], 2)), names(&["a", "c"]));
    assert_eq!(step(&mut gate, &seen(&["a", "b", "c"], &[], 3)), names(&["a", "c"]));
    // At once when the last one is.
    assert_eq!(step(&mut gate, &seen(&["a", "b", "c"], &["a", "c"], 4)), names(&[]));
    assert!(gate.is_over());
}

/// While pods have addresses that nobody knows of nothing closes, and the deadline waits for as long.
#[test]
fn while_addresses_are_unknown_nothing_closes() {
    let misled = |seconds| Seen { is_misled: true, ..seen(&["a", "b"], &["a"], seconds) };
    let mut gate = Gate::default();
    step(&mut gate, &seen(&["a", "b"], &[], 100));
    assert_eq!(step(&mut gate, &misled(200)), names(&["a", "b"]));
    assert_eq!(step(&mut gate, &misled(DEADLINE + 500)), names(&["a", "b"]));
    // A daemon that starts meanwhile goes on from there.
    gate = serde_json::from_str(&serde_json::to_string(&gate).expect("json")).expect("read");
    assert_eq!(step(&mut gate, &seen(&["a", "b"], &["a"], DEADLINE + 600)), names(&["b"]));
    assert_eq!(step(&mut gate, &seen(&["a", "b"], &[], 2 * DEADLINE + 399)), names(&["b"]));
    assert_eq!(step(&mut gate, &seen(&["a", "b"], &[], 2 * DEADLINE + 400)), names(&[]));
    // What is over stays so.
    assert_eq!(step(&mut gate, &misled(1)), names(&[]));
}

#[test]
fn the_deadline_is_latched() {
    let mut gate = Gate::default();
    step(&mut gate, &seen(&["a"], &[], DEADLINE - 1));
    assert!(!gate.is_over());
    step(&mut gate, &seen(&["a"], &[], DEADLINE));
    assert_eq!(step(&mut gate, &seen(&["a"], &[], 1)), names(&[]), "a clock that is set back opens nothing");
    // Nor does another deadline, once it is over; nor one that was past at the first look.
    let mut late = Gate::default();
    assert_eq!(step(&mut late, &seen(&["a"], &[], DEADLINE + 1)), names(&[]));
}

/// It was past while no daemon ran, so the programs closed what was open; what somebody has written since is too late.
#[test]
fn a_deadline_that_nobody_saw_is_past_all_the_same() {
    let later = |deadline: &str, seconds| {
        let adoption = serde_json::from_str(&format!(r#"{{"deadline":"{deadline}"}}"#)).ok();
        Seen { adoption, ..seen(&["a"], &[], seconds) }
    };
    let mut gate = Gate::default();
    step(&mut gate, &seen(&["a"], &[], 1));
    // In time it may be put off.
    assert_eq!(step(&mut gate, &later("1970-01-01T00:33:20Z", 2)), names(&["a"]));
    assert_eq!(step(&mut gate, &later("1970-01-01T00:33:20Z", DEADLINE)), names(&["a"]));
    assert_eq!(step(&mut gate, &later("1970-01-01T01:00:00Z", 2 * DEADLINE)), names(&[]));
    assert!(gate.is_over());
}

#[test]
fn who_joins_later_starts_closed() {
    let mut gate = Gate::default();
    step(&mut gate, &seen(&["a"], &[], 1));
    assert_eq!(step(&mut gate, &seen(&["a", "b"], &[], 2)), names(&["a"]));
    // One that left comes back later, too.
    let mut left = gate.clone();
    step(&mut left, &seen(&[], &[], 3));
    assert_eq!(step(&mut left, &seen(&["a"], &[], 4)), names(&[]));
    // A Node of an old name is another node.
    let mut again = seen(&["a", "b"], &[], 3);
    again.others.insert("a".to_owned(), "another".to_owned());
    assert_eq!(step(&mut gate, &again), names(&[]));
}

#[test]
fn who_is_not_known_yet_is_not_cut_off() {
    let mut gate = Gate::default();
    let half = Seen { whole: false, ..seen(&["a", "b"], &["b"], 1) };
    assert_eq!(step(&mut gate, &half), names(&["a"]));
    // The rest is read; b has proven itself before, though not now.
    assert_eq!(step(&mut gate, &seen(&["a", "b", "c"], &[], 2)), names(&["a", "c"]));
    // Half of it again: nobody is forgotten.
    let half = Seen { whole: false, ..seen(&["c"], &[], 3) };
    assert_eq!(step(&mut gate, &half), names(&["c"]));
    assert_eq!(step(&mut gate, &seen(&["a", "b", "c"], &[], 4)), names(&["a", "c"]));
}

#[test]
fn without_adoption_nothing_is_ever_open() {
    let mut gate = Gate::default();
    let bare = Seen { adoption: None, ..seen(&["a"], &[], 1) };
    assert_eq!(step(&mut gate, &bare), names(&[]));
    assert_eq!(step(&mut gate, &seen(&["a"], &[], 2)), names(&[]), "it came after all was closed");
    // In another mode nothing begins.
    let mut gate = Gate::default();
    let prefer = Seen { adoption: None, requires: false, ..seen(&["a"], &[], 1) };
    assert_eq!(step(&mut gate, &prefer), names(&[]));
    assert_eq!(step(&mut gate, &seen(&["a"], &[], 2)), names(&["a"]));
}

#[test]
fn a_lost_record_opens_nothing_that_the_maps_keep_closed() {
    let mut gate = Gate::default();
    let found = Seen { barred: names(&["b"]), ..seen(&["a", "b"], &[], 1) };
    assert_eq!(step(&mut gate, &found), names(&["a"]));
}

/// A full disk kept a record of when all were open, while the maps went on.
#[test]
fn an_older_record_opens_nothing_that_the_maps_keep_closed() {
    let mut gate = Gate::default();
    assert_eq!(step(&mut gate, &seen(&["a", "b"], &[], 1)), names(&["a", "b"]));
    let found = |is_own| Seen { barred: names(&["b"]), is_own, ..seen(&["a", "b"], &[], 2) };
    // Of its own record a daemon knows that it is not older: somebody's hand was at the maps, which is put back.
    assert_eq!(step(&mut gate, &found(true)), names(&["a", "b"]));
    assert_eq!(step(&mut gate, &found(false)), names(&["a"]));
}

/// Nor while pods have addresses that nobody knows of, and not afterwards either; a lost record is no other.
#[test]
fn what_the_maps_keep_closed_stays_so_while_addresses_are_unknown() {
    let mut begun = Gate::default();
    step(&mut begun, &seen(&["a", "b"], &[], 1));
    for mut gate in [begun, Gate::default()] {
        let misled = Seen { barred: names(&["b"]), is_misled: true, ..seen(&["a", "b"], &[], 2) };
        assert_eq!(step(&mut gate, &misled), names(&["a"]));
        assert_eq!(step(&mut gate, &Seen { is_own: true, ..seen(&["a", "b"], &[], 3) }), names(&["a"]));
    }
}

/// Maps that nobody has written settings into yet are no other daemon's, though prefixes are in them.
#[test]
fn maps_keep_nobody_closed_before_their_settings_are_written() {
    let known = snapshot(&[("b", node(2)), ("me", node(1))]);
    let knowledge = Knowledge::Whole(known.attest_whole());
    let assignment = assign(&knowledge, &mesh(), &Owners::new());
    let prefixes = [(net("10.244.2.0/24"), Prefix::new(PrefixKind::RemotePods, 1))];
    let barred = |config: Config| {
        let datapath = Datapath { config, prefixes: prefixes.into(), ..Datapath::default() };
        Seen::of("me", &knowledge, &assignment, &datapath, BTreeSet::new(), Duration::ZERO).barred
    };
    assert_eq!(barred(Config::default()), names(&[]));
    assert_eq!(barred(Config { mtu: 1400, ..Config::default() }), names(&["b"]));
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let some = || prop::collection::btree_set(prop::sample::select(vec!["a", "b", "c", "d"]), 0..4);
    let owned = |set: BTreeSet<&str>| set.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let uid = prop_oneof![9 => Just("uid"), 1 => Just("other")];
    (
        (prop::bool::weighted(0.9), prop::bool::weighted(0.9), any::<bool>(), prop::bool::weighted(0.1)),
        (some(), some(), some()),
        uid,
        prop_oneof![9 => 0..DEADLINE, 1 => DEADLINE..2 * DEADLINE],
        any::<bool>(),
    )
        .prop_map(
            move |(
                (has_adoption, requires, whole, is_misled),
                (others, proven, barred),
                uid,
                seconds,
                is_own,
            )| {
                Seen {
                    is_misled,
                    adoption: adoption().filter(|_| has_adoption && requires),
                    requires,
                    others: others
                        .into_iter()
                        .map(|name| (name.to_owned(), format!("{uid}-{name}")))
                        .collect(),
                    whole,
                    proven: owned(proven),
                    barred: owned(barred),
                    is_own,
                    epoch: Duration::from_secs(seconds),
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is seen, in whatever order, and however often the daemon starts anew from its record.
    #[test]
    fn what_was_closed_is_never_open_again(steps in prop::collection::vec(any_seen(), 1..30)) {
        let mut gate = Gate::default();
        let mut closed: BTreeSet<(String, String)> = BTreeSet::new();
        // The deadline is as given until it did not run for the first time.
        let (mut over, mut ran) = (false, true);
        for seen in steps {
            let is_misled = gate.is_misled(&seen);
            let open = step(&mut gate, &seen);
            ran &= !(is_misled && seen.requires);
            if seen.requires {
                over |= seen.adoption.is_none_or(|adoption| ran && seen.epoch >= adoption.deadline());
            }
            over |= gate.is_over();
            for (name, uid) in &seen.others {
                let pair = (name.clone(), uid.clone());
                let is_open = open.contains(name);
                prop_assert!(!(is_open && (over || closed.contains(&pair))), "{name} is open again");
                prop_assert!(!(is_open && seen.proven.contains(name) && !is_misled), "{name} is proven");
                if seen.requires && !is_open {
                    closed.insert(pair);
                }
            }
            let json = serde_json::to_string(&gate).expect("JSON");
            gate = serde_json::from_str(&json).expect("read back");
        }
    }
}
