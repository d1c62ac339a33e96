use proptest::prelude::*;

use super::*;

const BOOT: &str = "3b6b2a0e";
/// Seconds since 1970 at the second 0 since boot.
const EPOCH: u64 = 1_800_000_000;

fn time(second: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(second).expect("small")).expect("a time")
}

/// Between `me` and `b`, written at this second since boot, for so long.
fn bypass(at: u64, seconds: u64) -> Bypass {
    Bypass {
        nodes: ["b".to_owned(), "me".to_owned()],
        at: time(EPOCH + at),
        until: time(EPOCH + at + seconds),
        by: "alice".to_owned(),
        reason: "INC-1".to_owned(),
    }
}

/// At a second since boot, by a wall clock that goes right.
fn seen(bypasses: &[Bypass], now: u64) -> Seen<'_> {
    Seen {
        node: "me",
        bypasses,
        is_whole: true,
        boot: BOOT,
        now: Duration::from_secs(now),
        epoch: Duration::from_secs(EPOCH + now),
        ..Seen::default()
    }
}

fn standing(value: PeerValue) -> BTreeMap<String, PeerValue> {
    [("b".to_owned(), value)].into()
}

/// From when on, and until when.
fn of(record: &Record, seen: &Seen<'_>) -> Option<(u32, u32)> {
    let bypassing = record.bypassing(seen.now);
    assert!(bypassing.peers.keys().all(|peer| peer == "b"), "{bypassing:?}");
    bypassing.peers.get("b").map(|bypassed| (bypassed.from, bypassed.end))
}

fn step(before: &Record, seen: &Seen<'_>) -> (Record, Option<(u32, u32)>) {
    let record = before.step(seen);
    let told = of(&record, seen);
    (record, told)
}

#[test]
fn its_life() {
    let all = [bypass(100, 600), Bypass { nodes: ["b".to_owned(), "c".to_owned()], ..bypass(100, 600) }];
    let (record, told) = step(&Record::default(), &seen(&all, 102));
    assert_eq!(told, Some((102 + LEAD, 700)));
    let waits = |record: &Record, now| record.next_look(Duration::from_secs(now)).map(|wait| wait.as_secs());
    assert_eq!(waits(&record, 102), Some(LEAD.into()));
    assert_eq!(waits(&record, 107), Some(593));
    let tunnel = PeerValue::tunnel(1, 3);
    let value = |record: &Record, now: u64, beneath| {
        let bypassed = record.bypassing(seen(&all, now).now).peers.remove("b");
        bypassed.map(|bypassed| bypassed.over(beneath, Duration::from_secs(now)))
    };
    assert_eq!(value(&record, 106, tunnel), Some(tunnel.bypass_heard(700 + BYPASS_GRACE)));
    assert_eq!(value(&record, 107, tunnel), Some(tunnel.bypassed(700)));
    // Nothing is lost that would not be dropped.
    assert_eq!(value(&record, 102, PeerValue::NO_TUNNEL), Some(PeerValue::bypass(700)));
    // What is in plain already stays as it is.
    assert_eq!(value(&record, 107, PeerValue::adopting(9)), Some(PeerValue::adopting(9)));
    // It has ended, and the other end is heard as long as it may be late.
    let (record, told) = step(&record, &seen(&all, 700));
    assert_eq!((told, waits(&record, 700)), (Some((107, 700)), Some(BYPASS_GRACE.into())));
    let (record, told) = step(&record, &seen(&all, 700 + u64::from(BYPASS_GRACE)));
    assert_eq!((told, waits(&record, 710)), (None, None));
    // Nothing of it is written again.
    assert_eq!(record.step(&seen(&all, 5_000)), record);
}

/// A bypass has an end by the time since boot, and none by a clock that was set back.
#[test]
fn a_clock_that_is_set_makes_none_longer() {
    let all = [bypass(100, 600)];
    let (mut record, _) = step(&Record::default(), &seen(&all, 102));
    for (now, epoch) in [(103, 0), (200, EPOCH), (300, EPOCH + 699), (699, EPOCH)] {
        let told;
        (record, told) = step(&record, &Seen { epoch: Duration::from_secs(epoch), ..seen(&all, now) });
        assert_eq!(told, Some((102 + LEAD, 700)), "{now} {epoch}");
    }
    let late = Seen { epoch: Duration::from_secs(EPOCH), ..seen(&all, 710) };
    assert_eq!(step(&record, &late).1, None);
    // One that goes on ends it.
    let (record, _) = step(&Record::default(), &seen(&all, 102));
    let ahead = Seen { epoch: Duration::from_secs(EPOCH + 700), ..seen(&all, 300) };
    let (record, told) = step(&record, &ahead);
    assert_eq!(told, Some((107, 300)));
    assert_eq!(step(&record, &seen(&all, 301)).1, Some((107, 300)), "for good");
    let ahead = Seen { epoch: Duration::from_secs(EPOCH + 9_000), ..seen(&all, 102) };
    assert_eq!(step(&Record::default(), &ahead).1, None);
}

/// Without a battery it is 1970: nobody knows what is on. Nor does anything begin before it was written.
#[test]
fn a_clock_that_is_behind_opens_nothing_until_it_is_right() {
    let all = [bypass(100, 600)];
    let at = |now: u64, epoch: u64| Seen { epoch: Duration::from_secs(epoch), ..seen(&all, now) };
    for epoch in [0, EPOCH, EPOCH + 39] {
        let (waits, told) = step(&Record::default(), &at(102, epoch));
        assert_eq!(told, None, "{epoch}");
        assert_eq!(waits.waiting().collect::<Vec<_>>(), [("b", time(EPOCH + 100))]);
        assert_eq!(waits.next_look(Duration::from_secs(102)), Some(Duration::from_secs(RECHECK.into())));
        let (waits, told) = step(&waits, &at(300, epoch));
        assert_eq!(told, None, "{epoch}");
        // It is right.
        let (begun, told) = step(&waits, &seen(&all, 310));
        assert_eq!((told, begun.waiting().count()), (Some((310 + LEAD, 700)), 0));
        // It is right too late: that it is over was known by the seconds since boot already.
        let (over, told) = step(&waits, &seen(&all, 700));
        assert_eq!((told, over.waiting().count(), over.next_look(Duration::from_secs(700))), (None, 0, None));
        // It is wrong again, in another way: no longer than was asked for, from when it was heard of.
        assert_eq!(step(&waits, &at(650, EPOCH + 100)).1, Some((650 + LEAD, 702)));
        assert_eq!(step(&waits, &at(702, EPOCH + 100)).1, None);
        assert_eq!(step(&step(&waits, &at(702, epoch)).0, &at(500, EPOCH + 500)).1, None, "for good");
        // In another boot it waits again.
        let booted = |epoch| Seen { boot: "another", ..at(20, epoch) };
        let (waits, told) = step(&waits, &booted(0));
        assert_eq!(told, None);
        assert_eq!(step(&waits, &booted(EPOCH + 300)).1, Some((20 + LEAD, 420)));
    }
    // Whoever writes may have a clock that is somewhat ahead.
    assert_eq!(step(&Record::default(), &at(102, EPOCH + 40)).1, Some((102 + LEAD, 702)));
    // One that is written for next year begins neither now nor then.
    let next_year = [bypass(30_000_000, 600)];
    let (waits, told) = step(&Record::default(), &seen(&next_year, 102));
    assert_eq!(told, None);
    assert_eq!(step(&waits, &seen(&next_year, 30_000_100)).1, None);
    // Where the record is lost nothing begins later than what stands.
    for kept in [Kept::Absent, Kept::Unreadable] {
        let standing = standing(PeerValue::tunnel(0, 3).bypassed(700));
        let lost = Seen { kept, standing, ..at(400, 0) };
        let (over, told) = step(&Record::default(), &lost);
        assert_eq!((told, step(&over, &seen(&all, 410)).1), (None, None));
    }
}

/// What is history when it is first heard of never begins, though the clock be set back to when it was on.
#[test]
fn what_is_over_stays_so() {
    let all = [bypass(100, 600)];
    let (record, told) = step(&Record::default(), &seen(&all, 800));
    assert_eq!(told, None);
    let back = Seen { epoch: Duration::from_secs(EPOCH + 101), ..seen(&all, 900) };
    assert_eq!(step(&record, &back).1, None);
}

#[test]
fn it_is_brought_forward_and_never_put_off() {
    let all = [bypass(100, 600)];
    let (record, _) = step(&Record::default(), &seen(&all, 102));
    let later = [bypass(100, 6_000)];
    assert_eq!(step(&record, &seen(&later, 200)).1, Some((107, 700)));
    let sooner = [bypass(100, 200)];
    let (ended, told) = step(&record, &seen(&sooner, 200));
    assert_eq!(told, Some((107, 300)));
    assert_eq!(step(&ended, &seen(&all, 201)).1, Some((107, 300)), "not even back to what it was");
    let (_, told) = step(&record, &seen(&sooner, 400));
    assert_eq!(told, Some((107, 400)), "who hears of it late ends at once");
    // The same with a clock that was set back.
    let back = Seen { epoch: Duration::from_secs(EPOCH), ..seen(&sooner, 200) };
    assert_eq!(
        step(&record, &back).1,
        Some((107, 302)),
        "as long as it was asked for, from when it was heard of"
    );
    // Taken out of the mesh: at once, and the other end is heard as long as it may be late.
    let (gone, told) = step(&record, &seen(&[], 200));
    assert_eq!(told, Some((107, 200)));
    assert_eq!(step(&gone, &seen(&[], 205)).1, Some((107, 200)));
    assert_eq!(step(&gone, &seen(&[], 210)).1, None);
}

/// A source that goes back, or somebody who puts it in again, does not open it again.
#[test]
fn what_was_taken_out_does_not_come_back() {
    let all = [bypass(100, 600)];
    let (record, _) = step(&Record::default(), &seen(&all, 102));
    let (mut gone, _) = step(&record, &seen(&[], 200));
    for now in [201, 209, 210, 300, 600, 699] {
        gone = gone.step(&seen(&[], now));
        assert_eq!(step(&gone, &seen(&all, now)).1, (now < 210).then_some((107, 200)), "{now}");
        let booted = Seen { boot: "another", now: Duration::from_secs(20), ..seen(&all, now) };
        assert_eq!(step(&gone, &booted).1, None, "{now}");
        // In another boot nobody says so at first.
        let none_booted = Seen { bypasses: &[], ..booted.clone() };
        assert_eq!(step(&gone.step(&none_booted), &booted).1, None, "{now}");
    }
    // Nor one that was ended first, and comes back as it was written.
    let sooner = [bypass(100, 150)];
    let ended = record.step(&seen(&sooner, 300)).step(&seen(&[], 301)).step(&seen(&[], 400));
    assert_eq!(step(&ended, &seen(&all, 500)).1, None);
    // Nor one that waited.
    let waits = Record::default().step(&Seen { epoch: Duration::ZERO, ..seen(&all, 102) });
    assert_eq!(step(&waits.step(&seen(&[], 103)), &seen(&all, 300)).1, None);
    // Nothing is remembered of what could not be on any more, and no more than has room.
    let day = 24 * 3_600;
    assert!(gone.step(&seen(&[], day + 101)).has_entries());
    let behind = Seen { epoch: Duration::from_secs(EPOCH + day + 99), ..seen(&[], day + 102) };
    assert!(gone.step(&behind).has_entries());
    let ahead = Seen { epoch: Duration::from_secs(EPOCH + day + 100), ..seen(&[], 300) };
    assert_eq!(step(&gone.step(&ahead), &seen(&all, 400)).1, None);
    assert_eq!(gone.step(&seen(&[], day + 102)), Record { boot: BOOT.to_owned(), entries: vec![] });
    let many: Vec<_> = (0..100).map(|n| bypass(1_000 + n, 600)).collect();
    let full = Record::default().step(&seen(&many, 1_100)).step(&seen(&[], 1_101));
    assert_eq!(full.entries.len(), 100, "all are heard for a moment");
    let full = full.step(&seen(&[], 1_120));
    assert_eq!((full.entries.len(), full.entries[0].at), (MOST_GONE, time(EPOCH + 1_099)));
    assert_eq!(step(&full, &seen(&many[99..], 1_121)).1, None);
}

/// Absence from what is not whole means nothing: neither that it has ended, nor that it goes on longer.
#[test]
fn what_a_part_of_the_mesh_does_not_say_goes_on_to_its_end() {
    let all = [bypass(100, 600)];
    let part = |now| Seen { is_whole: false, ..seen(&[], now) };
    let (record, told) = step(&Record::default().step(&seen(&all, 102)), &part(200));
    assert_eq!(told, Some((107, 700)));
    assert_eq!(step(&record, &seen(&all, 201)).1, Some((107, 700)));
    let (over, told) = step(&record, &part(700));
    assert_eq!((told, step(&over, &part(710)).1), (Some((107, 700)), None));
    // It begins by what is said, not by what is on record.
    let waits = Record::default().step(&Seen { epoch: Duration::ZERO, ..seen(&all, 102) });
    assert_eq!(step(&waits, &part(300)).1, None);
    let booted = |seen| Seen { boot: "another", now: Duration::from_secs(20), ..seen };
    let (record, told) = step(&record, &booted(part(300)));
    assert_eq!((told, step(&record, &booted(seen(&all, 300))).1), (None, Some((25, 420))));
}

/// Another entry is another decision, and the one that speaks goes on until the other does.
#[test]
fn another_one_may_last_longer() {
    let both = [bypass(100, 600), bypass(690, 600)];
    let (record, _) = step(&Record::default(), &seen(&both[..1], 102));
    let (record, told) = step(&record, &seen(&both, 691));
    assert_eq!(told, Some((107, 700)));
    assert_eq!(step(&record, &seen(&both, 696)).1, Some((696, 1_290)));
}

#[test]
fn a_daemon_that_lost_the_record_goes_by_the_map() {
    let all = [bypass(100, 600)];
    let tunnel = PeerValue::tunnel(0, 3);
    // The clock was set back since.
    let lost = |kept, value: PeerValue| Seen {
        standing: standing(value),
        kept,
        epoch: Duration::from_secs(EPOCH + 100),
        ..seen(&all, 400)
    };
    for kept in [Kept::Absent, Kept::Unreadable] {
        assert_eq!(step(&Record::default(), &lost(kept, tunnel.bypassed(700))).1, Some((400, 700)));
        assert_eq!(step(&Record::default(), &lost(kept, PeerValue::bypass(700))).1, Some((400, 700)));
        let told = step(&Record::default(), &lost(kept, tunnel.bypass_heard(710))).1;
        assert_eq!(told, Some((405, 700)));
        let over = step(&Record::default(), &lost(kept, tunnel.bypassed(300))).1;
        assert_eq!(over, None);
    }
    // There never was one: the map holds nothing back.
    assert_eq!(step(&Record::default(), &lost(Kept::Absent, tunnel)).1, Some((405, 1_000)));
    assert_eq!(step(&Record::default(), &lost(Kept::Unreadable, tunnel)).1, None);
}

#[test]
fn another_boot_goes_by_a_clock_that_has_gone_on() {
    let all = [bypass(100, 600)];
    let (record, _) = step(&Record::default(), &seen(&all, 102));
    let booted = |epoch| Seen {
        boot: "another",
        now: Duration::from_secs(20),
        epoch: Duration::from_secs(epoch),
        ..seen(&all, 0)
    };
    assert_eq!(step(&record, &booted(EPOCH + 300)).1, Some((20 + LEAD, 420)));
    assert_eq!(step(&record, &booted(EPOCH + 800)).1, None);
    // Without a battery it is 1970.
    assert_eq!(step(&record, &booted(0)).1, None);
    assert_eq!(step(&step(&record, &booted(0)).0, &booted(EPOCH + 300)).1, None, "nor later");
    // One that was seen to end does not begin again.
    let (ended, _) = step(&record, &seen(&all, 700));
    assert_eq!(step(&ended, &booted(EPOCH + 102)).1, None);
    // Nor is it put off meanwhile.
    let later = [bypass(100, 6_000)];
    let put_off = Seen { bypasses: &later, ..booted(EPOCH + 300) };
    assert_eq!(step(&record, &put_off).1, Some((20 + LEAD, 420)));
    assert_eq!(step(&record, &put_off).0.bypassing(put_off.now).peers["b"].until, all[0].until);
    // A kernel that does not tell its boots apart: their seconds do.
    let alike = Seen { boot: BOOT, ..booted(EPOCH + 300) };
    assert_eq!(step(&record, &alike).1, Some((20 + LEAD, 420)));
}

#[test]
fn what_can_not_be_kept_opens_nothing() {
    let all = [bypass(100, 600), bypass(200, 600)];
    let (before, _) = step(&Record::default(), &seen(&all[..1], 102));
    let refused = before.step(&seen(&all, 201)).without_news(&before);
    assert_eq!(of(&refused, &seen(&all, 201)), Some((107, 700)));
    let refused = Record::default().step(&seen(&all, 201)).without_news(&Record::default());
    assert_eq!(of(&refused, &seen(&all, 201)), None);
    // Nor what has waited, or was on in another boot; as soon as it can be kept it begins.
    let (waits, _) = step(&Record::default(), &Seen { epoch: Duration::ZERO, ..seen(&all[..1], 102) });
    let booted = Seen { boot: "another", now: Duration::from_secs(102), ..seen(&all[..1], 302) };
    for (before, seen, end) in [(waits, seen(&all[..1], 302), 700), (before, booted, 500)] {
        let refused = before.step(&seen).without_news(&before);
        assert_eq!(of(&refused, &seen), None);
        let later = u32::try_from(seen.now.as_secs()).expect("small") + LEAD;
        assert_eq!(step(&refused, &seen).1, Some((later, end)));
    }
    // But that it is over is known though it can't be kept.
    let refused = Record::default().step(&seen(&all[..1], 800)).without_news(&Record::default());
    let back = Seen { epoch: Duration::from_secs(EPOCH + 101), ..seen(&all[..1], 801) };
    assert_eq!(step(&refused, &back).1, None);
}

/// Two entries of the same instant and pair: nobody's name stands beside another's end, whichever of them is said when.
#[test]
fn nobody_is_named_for_what_another_wrote() {
    let alices = bypass(100, 600);
    let bobs = Bypass { by: "bob".to_owned(), reason: "INC-2".to_owned(), ..bypass(100, 300) };
    let turned = Bypass { nodes: ["me".to_owned(), "b".to_owned()], ..bobs.clone() };
    let untils = [("alice", alices.until), ("bob", bobs.until)];
    let both = [[alices.clone(), bobs.clone()], [bobs.clone(), alices.clone()], [turned, alices.clone()]];
    let named = |record: &Record, seen: &Seen<'_>| {
        let bypassed = record.bypassing(seen.now).peers.remove("b").expect("on");
        assert!(untils.contains(&(&*bypassed.by, bypassed.until)), "{bypassed:?}");
        assert_eq!(bypassed.reason, if bypassed.by == "bob" { "INC-2" } else { "INC-1" });
        (bypassed.by, bypassed.end)
    };
    for before in &both {
        let record = Record::default().step(&seen(before, 102));
        assert_eq!(named(&record, &seen(before, 102)), ("alice".to_owned(), 700));
        for after in &both {
            let record = record.step(&seen(after, 103));
            assert_eq!(named(&record, &seen(after, 103)), ("alice".to_owned(), 700));
            assert_eq!(record.entries.len(), 2);
        }
        // Hers is taken out: his does not last longer for that.
        for nodes in [&bobs.nodes, &both[2][0].nodes] {
            let his = [Bypass { nodes: nodes.clone(), ..bobs.clone() }];
            let record = record.step(&seen(&his, 200)).step(&seen(&his, 211));
            assert_eq!(named(&record, &seen(&his, 211)), ("bob".to_owned(), 400));
        }
    }
    // Said twice by the same one it is one, and its end the sooner.
    let turned = Bypass { nodes: ["me".to_owned(), "b".to_owned()], ..bypass(100, 200) };
    for twice in [[alices.clone(), turned.clone()], [turned, alices.clone()]] {
        let record = Record::default().step(&seen(&twice, 102));
        assert_eq!((of(&record, &seen(&twice, 102)), record.entries.len()), (Some((107, 300)), 1));
        assert_eq!(step(&record, &seen(std::slice::from_ref(&alices), 110)).1, Some((107, 300)));
    }
}

/// What may happen between two looks.
#[derive(Clone, Debug)]
enum Deed {
    Wait(u64),
    /// The wall clock is set by so many seconds.
    Set(i64),
    /// The mesh says another end of it, sooner or later by so much.
    Until(i64),
    /// It is taken out of the mesh, and put back after so many seconds.
    Out(u64),
    Restart,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        (1_u64..200).prop_map(Deed::Wait),
        (-100_000_i64..100_000).prop_map(Deed::Set),
        (-300_i64..300).prop_map(Deed::Until),
        (0_u64..200).prop_map(Deed::Out),
        Just(Deed::Restart),
    ]
}

proptest! {
    /// Whatever is done to clocks, daemon and mesh, the end only ever comes nearer, and the programs are never told of a later one.
    #[test]
    fn nothing_makes_it_longer(deeds in prop::collection::vec(deed(), 1..20), seconds in 1_u64..600) {
        let mut all = [bypass(100, seconds)];
        let (mut record, mut now, mut offset) = (Record::default(), 100_u64, 0_i64);
        // As long as it was asked for, from when it was heard of first.
        let mut ends = 101 + seconds;
        for deed in std::iter::once(Deed::Wait(1)).chain(deeds) {
            match deed {
                Deed::Wait(seconds) => now += seconds,
                Deed::Set(seconds) => offset = seconds,
                Deed::Until(seconds) => {
                    let until = all[0].until.as_second() + seconds;
                    all[0].until = Timestamp::from_second(until.max(all[0].at.as_second() + 1)).expect("a time");
                }
                Deed::Out(seconds) => {
                    let epoch = Duration::from_secs((EPOCH + now).saturating_add_signed(offset));
                    record = record.step(&Seen { epoch, ..seen(&[], now) });
                    ends = ends.min(now);
                    now += seconds;
                    let epoch = Duration::from_secs((EPOCH + now).saturating_add_signed(offset));
                    record = record.step(&Seen { epoch, ..seen(&[], now) });
                }
                Deed::Restart => {
                    let text = serde_json::to_string(&record).expect("JSON");
                    record = serde_json::from_str(&text).expect("a record");
                }
            }
            let epoch = (EPOCH + now).saturating_add_signed(offset);
            let seen = Seen { epoch: Duration::from_secs(epoch), ..seen(&all, now) };
            let told;
            (record, told) = step(&record, &seen);
            if let Some((_, end)) = told {
                prop_assert!(u64::from(end) <= ends, "{end}");
                ends = end.into();
            }
        }
    }
}

/// Of a node that can have no agent: it is in plain in any case, and longer.
#[test]
fn what_is_in_plain_without_a_tunnel_stays_so() {
    let bypassed =
        Bypassed { from: 0, end: 50, until: Timestamp::UNIX_EPOCH, by: String::new(), reason: String::new() };
    let endless = PeerValue::bypass(7_200);
    for now in [10, 55, 100] {
        assert_eq!(bypassed.over(endless, Duration::from_secs(now)), endless);
    }
}
