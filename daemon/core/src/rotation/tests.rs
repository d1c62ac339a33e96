//! What one node does about its keys. What many do together is played in `tests/simulation`.

use std::num::NonZeroU16;

use kubeveil_keys::PublicKey;

use super::*;

fn generation(number: u32) -> Generation {
    Generation::new(number)
}

fn entries(numbers: &[u32]) -> Vec<GenerationEntry> {
    let entry = |number: &u32| GenerationEntry {
        generation: generation(*number),
        public_key: PublicKey::from_bytes([u8::try_from(*number).expect("few"); 32]),
        port: NonZeroU16::MIN,
        state: GenerationState::Active,
    };
    numbers.iter().map(entry).collect()
}

/// What the other node says, and a view of the node that hears it.
struct Heard {
    own: Vec<GenerationEntry>,
    other: Vec<GenerationEntry>,
    list: NotFlipped,
}

impl Heard {
    fn new(own: &[u32], other: &[u32], list: NotFlipped) -> Self {
        Self { own: entries(own), other: entries(other), list }
    }

    /// Settled: all devices stand, everything goes by the newest, and nothing has come for long.
    fn view(&self) -> View<'_> {
        let held: BTreeSet<_> = self.own.iter().map(|entry| entry.generation).collect();
        let newest = held.last().copied().unwrap_or_default();
        View {
            node: "me",
            wanted: Some(newest),
            paused: false,
            retire_before: Generation::FIRST,
            standing: held.clone(),
            quiet: held.iter().map(|of| (*of, STILL)).collect(),
            held,
            revoked: BTreeSet::new(),
            own: Some(Said { generations: &self.own, not_flipped: &self.list }),
            others: [("other", Said { generations: &self.other, not_flipped: &self.list })].into(),
            is_told: true,
            complete: true,
            whole: true,
            ways: Some([("other", newest)].into()),
            now: Duration::from_secs(1000),
        }
    }
}

fn names(all: &[&str]) -> NotFlipped {
    NotFlipped::of(all.iter().map(|name| (*name).to_owned()))
}

/// The step that is taken at last, once its place in the row has come.
fn step(view: &View<'_>) -> Option<Step> {
    let mut rotation = Rotation::default();
    let first = rotation.keys(view);
    first.or_else(|| rotation.keys(&View { now: view.now + STILL + Duration::from_secs(1), ..view.clone() }))
}

#[test]
fn each_thing_that_holds_an_old_key_holds_it() {
    let done = Heard::new(&[0, 1], &[0, 1], names(&["third"]));
    let view = done.view();
    assert_eq!(step(&view), Some(Step::Retire(generation(0))));
    let held = |view: View<'_>| {
        assert_eq!(step(&view), None);
        holdups(generation(0), &view).into_iter().next()
    };
    assert_eq!(held(View { paused: true, ..view.clone() }), Some(Holdup::Paused));
    assert_eq!(held(View { whole: false, ..view.clone() }), Some(Holdup::NotWhole));
    assert_eq!(held(View { ways: None, ..view.clone() }), Some(Holdup::NotWhole));
    let ways = Some([("other", generation(0))].into());
    assert_eq!(held(View { ways, ..view.clone() }), Some(Holdup::NotFlippedByUs("other".to_owned())));
    let quiet = [(generation(0), STILL - Duration::from_millis(1))].into();
    assert_eq!(held(View { quiet, ..view.clone() }), Some(Holdup::NotSilent));
    for list in [names(&["me"]), NotFlipped::Many] {
        let heard = Heard::new(&[0, 1], &[0, 1], list);
        assert_eq!(held(heard.view()), Some(Holdup::NotFlipped("other".to_owned())));
    }
    let behind = Heard::new(&[0, 1], &[0], names(&[]));
    assert_eq!(held(behind.view()), Some(Holdup::NotBegun("other".to_owned())));
    // Whatever holds it, somebody can end it.
    let forced = View { retire_before: generation(1), whole: false, ways: None, ..behind.view() };
    assert_eq!(step(&forced), Some(Step::Retire(generation(0))));
    // Who never had it, or has given it up, holds nothing.
    for other in [&[1][..], &[1, 2], &[2]] {
        assert_eq!(
            step(&Heard::new(&[0, 1], other, names(&["me"])).view()),
            Some(Step::Retire(generation(0)))
        );
    }
}

/// Two nodes were off when the others were told to go on without them, and did, twice; one comes back. It does not wait for the other.
#[test]
fn who_was_cut_off_waits_for_nobody_who_was() {
    let (list, old, done) = (names(&[]), entries(&[0]), entries(&[3]));
    let back = Heard::new(&[0], &[3], names(&[]));
    let others = |none: bool| {
        let off = (!none).then_some(("off", Said { generations: &old, not_flipped: &list }));
        [("other", Said { generations: &done, not_flipped: &list })].into_iter().chain(off).collect()
    };
    for wanted in [2, 3] {
        let view = View {
            wanted: Some(generation(wanted)),
            retire_before: generation(1),
            others: others(false),
            ..back.view()
        };
        let later = View { now: view.now + Duration::from_secs(1), ..view.clone() };
        let mut rotation = Rotation::default();
        let _ = rotation.keys(&view);
        assert_eq!(rotation.keys(&later), Some(Step::Retire(generation(0))), "{wanted}");
        let none = View { held: BTreeSet::new(), ..later };
        assert_eq!(rotation.keys(&none), Some(Step::Make(generation(wanted))), "{wanted}");
        // Nor does who is between.
        let between = Heard::new(&[0, 1], &[3], names(&[]));
        let view = View { retire_before: generation(1), others: others(false), ..between.view() };
        assert_eq!(holdups(generation(0), &view), BTreeSet::new(), "{wanted}");
    }
}

/// A node that joins while others wait amid a rotation can speak to most of them.
#[test]
fn who_joins_takes_what_most_have() {
    let (none, both, old, new) =
        (Heard::new(&[], &[], names(&[])), entries(&[4, 5]), entries(&[4]), entries(&[5]));
    let list = names(&[]);
    let comes = |own: Option<Said<'_>>, others: &[&[GenerationEntry]]| {
        let said = others.iter().zip(["a", "b", "c", "d"]);
        let others = said.map(|(of, name)| (name, Said { generations: of, not_flipped: &list })).collect();
        step(&View { wanted: Some(generation(5)), paused: true, own, others, ..none.view() })
    };
    let joins = |others: &[&[GenerationEntry]]| comes(None, others);
    let make = |number| Some(Step::Make(generation(number)));
    assert_eq!(joins(&[]), make(5));
    assert_eq!(joins(&[&both, &both]), make(5));
    assert_eq!(joins(&[&both, &old, &both]), make(4));
    assert_eq!(joins(&[&both, &new, &new, &old]), make(5), "one is far behind");
    let had_both = Some(Said { generations: &both, not_flipped: &list });
    assert_eq!(comes(had_both, &[&both, &old]), make(5), "it never goes back");
    // Whoever gave a key up since nobody goes with it takes what is wanted.
    let (alone, other) = (Heard::new(&[1], &[3], names(&[])), entries(&[3]));
    let mut rotation = Rotation::default();
    let view = View { wanted: Some(generation(5)), ..alone.view() };
    let late = View { now: view.now + Duration::from_secs(1), ..view.clone() };
    let _ = rotation.keys(&view);
    assert_eq!(rotation.keys(&late), Some(Step::Retire(generation(1))));
    let others = [("other", Said { generations: &other, not_flipped: &list })].into();
    let empty = View { held: BTreeSet::new(), others, ..late.clone() };
    assert_eq!(rotation.keys(&empty), make(5));
}

#[test]
fn the_next_key_is_one_that_there_is_a_device_for() {
    let wants = |own: &[u32], other: &[u32], wanted: u32| {
        let heard = Heard::new(own, other, names(&[]));
        step(&View { wanted: Some(generation(wanted)), ..heard.view() })
    };
    assert_eq!(wants(&[], &[0], 7), Some(Step::Make(generation(0))), "that which the other has");
    assert_eq!(wants(&[], &[6, 7], 7), Some(Step::Make(generation(7))));
    assert_eq!(wants(&[], &[8], 7), Some(Step::Make(generation(7))), "nobody is led beyond what is wanted");
    assert_eq!(wants(&[0], &[0], 0), None);
    assert_eq!(wants(&[3], &[3], 2), None, "no way back");
    assert_eq!(wants(&[0], &[0], 1), Some(Step::Make(generation(1))));
    for wanted in [2, 3] {
        assert_eq!(wants(&[0], &[0], wanted), Some(Step::Make(generation(1))), "by way of those between");
        assert_eq!(wants(&[0], &[0, 1], wanted), Some(Step::Make(generation(1))));
        assert_eq!(wants(&[0], &[wanted], wanted), Some(Step::Retire(generation(0))), "nobody else has it");
    }
    assert_eq!(
        wants(&[0], &[1], 1),
        Some(Step::Make(generation(1))),
        "first the new one, where there is room"
    );
    assert_eq!(wants(&[0, 1], &[0], 2), None, "one at a time");
    assert_eq!(wants(&[0, 2], &[0], 2), Some(Step::Retire(generation(0))), "two of one device");
    // Without a mesh nobody knows what is wanted.
    let heard = Heard::new(&[], &[0], names(&[]));
    assert_eq!(step(&View { wanted: None, ..heard.view() }), None);
}

/// What is said binds: to whom packets may go by an old key follows from it.
#[test]
fn what_is_not_said_is_not_done() {
    let (generations, list) = (entries(&[0, 1]), names(&["a"]));
    let own = Some(Said { generations: &generations, not_flipped: &list });
    let rotation = Rotation::default();
    let may_use = |own, peer, generation| rotation.may_use(own, true, peer, generation, Some(generation));
    assert!(may_use(own, "a", generation(0)) && !may_use(own, "b", generation(0)));
    assert!(may_use(own, "b", generation(1)) && may_use(own, "b", generation(2)));
    assert!(may_use(None, "b", generation(0)), "nothing was said yet");
    // What was kept on disk may be older than that which let packets go by this one.
    let kept = |goes_by| rotation.may_use(own, false, "b", generation(0), goes_by);
    assert!(kept(Some(generation(0))) && !kept(Some(generation(1))) && !kept(None));
}

/// A node that has said that it moved does not go back, though its source still tells of the list before.
#[test]
fn what_was_said_binds_before_the_source_tells_of_it() {
    let heard = Heard::new(&[0, 1], &[0, 1], names(&["other"]));
    let mut rotation = Rotation::default();
    let view = heard.view();
    let may_use =
        |rotation: &Rotation, old: u32| rotation.may_use(view.own, true, "other", generation(old), None);
    assert!(may_use(&rotation, 0));
    assert_eq!(rotation.says(&view).expect("a device stands").1, names(&[]));
    assert!(!may_use(&rotation, 0) && may_use(&rotation, 1));
    // An earlier daemon may have said so too, and what it sent is on its way: only not while packets went by the old one still.
    let started =
        |by: u32| Rotation::default().may_use(view.own, true, "other", generation(0), Some(generation(by)));
    assert!(started(0) && !started(1));
    // Nor does the end of the newer key undo what was said.
    rotation.keys(&View { revoked: [generation(1)].into(), ..view.clone() });
    assert!(!may_use(&rotation, 0));
}

#[test]
fn the_newest_that_answers_is_chosen() {
    let [never, up, idle, stale] =
        [Health::Never, Health::Up, Health::Idle, Health::Stale].map(|health| health(Duration::ZERO));
    assert_eq!(choose([never, up]), Some(1));
    assert_eq!(choose([idle, up]), Some(0), "an idle tunnel is silent");
    assert_eq!(choose([stale, up]), Some(1));
    assert_eq!(choose([stale, stale]), Some(0));
    assert_eq!(choose([never, never]), None);
}

/// The end is told at once, what goes on every ten seconds, and what is as it was said never.
#[test]
fn the_list_is_told_at_times() {
    let mut heard = Heard::new(&[0, 1], &[0, 1], names(&["other"]));
    let mut rotation = Rotation::default();
    let mut says = |ways: &[(&'static str, u32)], seconds: u64| {
        let ways = ways.iter().map(|(name, by)| (*name, generation(*by))).collect();
        let mut view = heard.view();
        view.others.insert("third", view.others["other"]);
        let view = View { ways: Some(ways), now: Duration::from_secs(seconds), ..view };
        heard.list = rotation.says(&view).expect("a device stands").1;
        heard.list.clone()
    };
    assert_eq!(says(&[("other", 0), ("third", 0)], 20), names(&["other", "third"]));
    for seconds in [20, 21, 29] {
        assert_eq!(says(&[("other", 1), ("third", 0)], seconds), names(&["other", "third"]), "too early");
    }
    assert_eq!(says(&[("other", 1), ("third", 0)], 30), names(&["third"]));
    assert_eq!(says(&[("other", 1), ("third", 1)], 31), names(&[]));
}

/// All nodes move the last one at one time; they say so one after another. Whom a list names anew waits for it.
#[test]
fn a_shorter_list_is_told_in_the_nodes_place() {
    let mut heard = Heard::new(&[0, 1], &[0, 1], names(&["other"]));
    let mut says = |node: &str, rotation: &mut Rotation, way: Option<u32>, millis: u64| {
        let mut view = heard.view();
        view.node = node;
        view.ways = Some(way.map(|by| ("other", generation(by))).into_iter().collect());
        view.now = Duration::from_millis(millis);
        let (list, wait) = (rotation.says(&view).expect("a device stands").1, rotation.next_look(&view));
        heard.list.clone_from(&list);
        (list, wait)
    };
    let mut places: Vec<Duration> = Vec::new();
    for node in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let mut rotation = Rotation::default();
        let (list, wait) = says(node, &mut rotation, Some(1), 1000);
        let wait = wait.filter(|wait| *wait < Duration::from_millis(900)).unwrap_or_default();
        assert_eq!(list, names(if wait.is_zero() { &[] } else { &["other"] }), "{node}");
        let then = 1000 + u64::try_from(wait.as_millis()).expect("short");
        assert_eq!(
            says(node, &mut rotation, Some(1), then).0,
            names(&[]),
            "{node} has its place after {wait:?}"
        );
        assert_eq!(says(node, &mut rotation, None, then + 10_000).0, names(&["other"]), "{node}: at once");
        places.push(wait);
    }
    assert!(places.iter().any(|place| *place != places[0]), "{places:?}");
}

/// A node that has only its newest says that it sends to everybody by it; a device that somebody took away for a moment is spoken of
/// all the same.
#[test]
fn what_it_has_it_says() {
    let says = |view: View<'_>| Rotation::default().says(&view);
    let one = Heard::new(&[1], &[1], names(&[]));
    assert_eq!(says(one.view()), Some((vec![(generation(1), GenerationState::Active)], names(&[]))));
    let both = Heard::new(&[0, 1], &[0, 1], names(&["other"]));
    let standing = [generation(1)].into();
    let (generations, _) = says(View { standing, ..both.view() }).expect("it stands");
    assert_eq!(
        generations,
        [(generation(0), GenerationState::Retiring), (generation(1), GenerationState::Active)]
    );
    let nothing = View { own: None, standing: BTreeSet::new(), ..both.view() };
    assert_eq!(says(nothing), None);
}

/// Whoever asks when to look again is not sent round and round by what is over.
#[test]
fn what_is_over_is_not_waited_for() {
    fn at(view: View<'_>, seconds: u64) -> View<'_> {
        View { now: Duration::from_secs(seconds), ..view }
    }
    let next = Some(generation(1));
    let mut rotation = Rotation::default();
    let before = Heard::new(&[0], &[0], names(&[]));
    let begins = View { wanted: next, ..before.view() };
    if rotation.keys(&at(begins.clone(), 1)).is_none() {
        let wait = rotation.next_look(&at(begins.clone(), 1)).expect("its place in the row comes");
        assert!(!wait.is_zero() && wait < Duration::from_secs(1), "{wait:?}");
    }
    assert_eq!(rotation.keys(&at(begins.clone(), 2)), Some(Step::Make(generation(1))));
    assert_eq!(rotation.next_look(&at(begins, 2)), None, "it has failed, or is about to be done");
    let both = Heard::new(&[0, 1], &[0, 1], names(&[]));
    rotation.keys(&at(both.view(), 3));
    assert_eq!(rotation.keys(&at(both.view(), 7)), None, "what was sent before is on its way");
    assert_eq!(rotation.keys(&at(both.view(), 9)), Some(Step::Retire(generation(0))));
    assert_eq!(rotation.next_look(&at(both.view(), 9)), Some(Duration::from_secs(1)), "is it still?");
    let after = Heard::new(&[1], &[1], names(&[]));
    assert!(rotation.waits_for_silence());
    assert_eq!(rotation.keys(&at(after.view(), 10)), None);
    assert!(!rotation.waits_for_silence(), "there is nothing to listen for");
    assert_eq!(rotation.next_look(&at(after.view(), 10)), None, "all is done");
}

/// A key that takes the place of a revoked one of its generation is nobody's way yet, whatever was said of the other.
#[test]
fn another_key_of_a_generation_begins_anew() {
    let mut heard = Heard::new(&[0, 1], &[0, 1], names(&[]));
    let mut rotation = Rotation::default();
    let by = |heard: &mut Heard, rotation: &mut Rotation, old: u32| {
        let view = View { ways: Some([("other", generation(old))].into()), ..heard.view() };
        heard.list = rotation.says(&view).expect("a device stands").1;
        heard.list.clone()
    };
    let said = [0, 1, 0].map(|old| by(&mut heard, &mut rotation, old));
    assert_eq!(said, [names(&["other"]), names(&[]), names(&[])], "too early");
    let view = View { revoked: [generation(1)].into(), ..heard.view() };
    assert_eq!(rotation.keys(&view), Some(Step::Retire(generation(1))));
    assert_eq!(by(&mut heard, &mut rotation, 0), names(&["other"]));
}

/// As long as the source does not tell of a list, another is not said: a peer that was moved, and thrown back, would be named by what
/// the source tells and by what was said last, and disclaimed by what is on its way between the two.
#[test]
fn one_list_at_a_time_is_on_its_way() {
    let heard = |list: &[&str]| Heard::new(&[0, 1], &[0, 1], names(list));
    let (named, nobody) = (heard(&["other"]), heard(&[]));
    let mut rotation = Rotation::default();
    let mut says = |heard: &Heard, by: u32, seconds: u64| {
        let way = Some([("other", generation(by))].into());
        let view = View { ways: way, now: Duration::from_secs(seconds), ..heard.view() };
        let list = rotation.says(&view).expect("a device stands").1;
        (list, rotation.may_use(view.own, true, "other", generation(0), None))
    };
    assert_eq!(says(&named, 1, 100), (names(&[]), false), "it has moved");
    assert_eq!(says(&named, 0, 200), (names(&[]), false), "thrown back while that is on its way");
    assert_eq!(says(&nobody, 0, 201), (names(&["other"]), false), "others have heard that it moved");
    assert_eq!(says(&named, 0, 202), (names(&["other"]), true), "they have heard that it did not");
}

/// A daemon that began anew and has not heard of all nodes may have been speaking to one of the others: it says what was said, or that
/// it may be anybody, and is bound by neither.
#[test]
fn who_does_not_know_all_says_what_was_said() {
    let heard = Heard::new(&[0, 1], &[0, 1], names(&["third"]));
    let mut rotation = Rotation::default();
    let whole = View { ways: Some([("other", generation(0))].into()), ..heard.view() };
    let partial = View { complete: false, whole: false, ..whole.clone() };
    let mut says = |view: &View<'_>| rotation.says(view).expect("a device stands").1;
    assert_eq!(says(&partial), names(&["third"]));
    let told = Heard::new(&[0, 1], &[0, 1], names(&["fourth"]));
    let own = Some(Said { generations: &told.own, not_flipped: &told.list });
    let both = says(&View { own, ..partial.clone() });
    assert_eq!(both, names(&["third", "fourth"]), "either may be the older one");
    assert_eq!(says(&partial), both);
    // What was kept may be older than what others have heard since.
    let mut rotation = Rotation::default();
    let kept = View { is_told: false, ..partial.clone() };
    assert_eq!(rotation.says(&kept), None);
    assert_eq!(rotation.says(&View { own, ..partial.clone() }).map(|(_, list)| list), Some(both));
    let mut rotation = Rotation::default();
    let mut says = |view: &View<'_>| rotation.says(view).expect("a device stands").1;
    assert_eq!(says(&partial), names(&["third"]));
    assert_eq!(says(&View { whole: false, ..whole.clone() }), names(&["other"]), "now it knows them");
    assert!(rotation.may_use(None, false, "other", generation(0), None));
    let mut rotation = Rotation::default();
    let nothing = rotation.says(&View { own: None, ..partial.clone() }).expect("a device stands");
    assert_eq!(nothing.1, NotFlipped::Many);
    assert!(rotation.may_use(None, false, "fourth", generation(0), Some(generation(0))));
}
