//! When a schedule begins the next rotation.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, civil::Weekday, tz::TimeZone};
use kubeveil_api::{
    rotation::RotationSpec,
    schedule::{Day, Period, Window},
};

/// The next rotation that a schedule begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// When it is due. It does not change with time, but where a window was missed.
    pub at: Timestamp,
    /// It is, and may begin.
    pub is_due: bool,
}

/// The next one by `asked`, where the last one began at `since`; `cluster` is what this one is known by among others, which shall not
/// all begin at once. `None`: nothing is scheduled. Many that were missed come to one. An error says which field is wrong, and how.
pub fn next(
    asked: &RotationSpec,
    since: Timestamp,
    cluster: &str,
    now: Timestamp,
) -> Result<Option<Next>, String> {
    let Some(every) = asked.every else { return Ok(None) };
    let bytes = cluster.bytes().chain(since.as_second().to_be_bytes());
    // Of the time that there is, where that is less than the jitter.
    let place = fnv(bytes);
    let later = |at: Timestamp, room: Duration| {
        let most = asked.jitter.map_or(0, |jitter| jitter.seconds().min(room.as_secs()));
        at.saturating_add(Duration::from_secs(place.checked_rem(most).unwrap_or(0)))
    };
    let Ok(due) = since.saturating_add(every.duration()) else { return Ok(None) };
    let at = match &asked.window {
        None => later(due, Duration::MAX).ok(),
        Some(window) => opening(window, due.max(now))?.and_then(|(opens, closes)| {
            let opens = opens.max(due);
            later(opens, closes.duration_since(opens).unsigned_abs()).ok()
        }),
    };
    Ok(at.map(|at| Next { at, is_due: at <= now }))
}

/// FNV-1a of 64 bits (Fowler, Noll and Vo): the same in each build of this program, or the next one would move.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// When it opens and closes: the first time that it closes after `from`.
fn opening(window: &Window, from: Timestamp) -> Result<Option<(Timestamp, Timestamp)>, String> {
    let zone = TimeZone::get(&window.time_zone).map_err(|_| {
        format!(
            "spec.rotation.window.timeZone: {} is no time zone that is known, such as Europe/Berlin",
            window.time_zone
        )
    })?;
    let day_before = zone.to_datetime(from).date().yesterday().ok();
    let days = day_before.into_iter().flat_map(|day| day.series(jiff::Span::new().days(1)));
    // Yesterday's may be open still; and once a week every day has been there.
    let mut openings = days.take(9).filter_map(|day| {
        if !window.days.is_empty() && !window.days.iter().any(|open| weekday(*open) == day.weekday()) {
            return None;
        }
        // A time that a clock leaves out in spring is taken an hour later.
        let at = |day: jiff::civil::Date, time| zone.to_timestamp(day.to_datetime(time)).ok();
        let closes_on = if window.end > window.start { day } else { day.tomorrow().ok()? };
        Some((at(day, window.start)?, at(closes_on, window.end)?))
    });
    Ok(openings.find(|(_, closes)| *closes > from))
}

const fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

/// Is a key that was made `created` older at `now` than it may be at most?
pub fn is_too_old(most: Option<Period>, created: Timestamp, now: Timestamp) -> bool {
    let most = most.and_then(|most| SignedDuration::try_from(most.duration()).ok());
    most.is_some_and(|most| now.duration_since(created) > most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn asked(text: &str) -> RotationSpec {
        serde_json::from_str(text).expect("a spec")
    }

    /// When the next one is, and whether now.
    fn told(spec: &RotationSpec, since: &str, now: &str) -> (String, bool) {
        let next =
            next(spec, time(since), "a", time(now)).expect("it can be read").expect("one is scheduled");
        (next.at.to_string(), next.is_due)
    }

    #[test]
    fn without_a_window_it_is_due_when_the_time_is_over() {
        let monthly = asked(r#"{"every": "30d"}"#);
        let since = "2027-01-01T00:00:00Z";
        let at = "2027-01-31T00:00:00Z".to_owned();
        assert_eq!(told(&monthly, since, "2027-01-02T00:00:00Z"), (at.clone(), false));
        assert_eq!(told(&monthly, since, "2027-01-30T23:59:59Z"), (at.clone(), false));
        assert_eq!(told(&monthly, since, "2027-01-31T00:00:00Z"), (at.clone(), true));
        // After a year of pause one begins, not twelve.
        assert_eq!(told(&monthly, since, "2028-01-31T00:00:00Z"), (at, true));
        assert_eq!(next(&RotationSpec::default(), time(since), "a", time(since)), Ok(None));
    }

    #[test]
    fn a_window_is_waited_for() {
        let nights = asked(
            r#"{"every": "30d", "window": {"days": ["Sat", "Sun"], "start": "22:00", "end": "02:00"}}"#,
        );
        // 2027-01-31 is a Sunday.
        let since = "2027-01-01T00:00:00Z";
        let sunday = "2027-01-31T22:00:00Z".to_owned();
        for before in ["2027-01-02T00:00:00Z", "2027-01-31T12:00:00Z", "2027-01-31T21:59:59Z"] {
            // What was due in Saturday's window is not: that one closed before.
            let expected = if before < "2027-01-31T02:00:00Z" { "2027-01-31T00:00:00Z" } else { &sunday };
            assert_eq!(told(&nights, since, before), (expected.to_owned(), false), "{before}");
        }
        let due = "2027-01-31T00:00:00Z".to_owned();
        assert_eq!(told(&nights, since, "2027-01-31T00:00:00Z"), (due.clone(), true), "Saturday's is open");
        assert_eq!(told(&nights, since, "2027-01-31T01:59:59Z"), (due, true), "it closes on the next day");
        assert_eq!(told(&nights, since, "2027-01-31T22:00:00Z"), (sunday.clone(), true));
        assert_eq!(told(&nights, since, "2027-02-01T01:59:59Z"), (sunday, true), "so does Sunday's");
        let saturday = "2027-02-06T22:00:00Z".to_owned();
        assert_eq!(told(&nights, since, "2027-02-01T02:00:00Z"), (saturday.clone(), false), "it was missed");
        assert_eq!(told(&nights, since, "2027-02-05T02:00:00Z"), (saturday, false), "and that stands");
    }

    #[test]
    fn a_window_goes_by_its_own_clock() {
        let night = asked(
            r#"{"every": "1h", "window": {"start": "02:30", "end": "03:30", "timeZone": "Europe/Berlin"}}"#,
        );
        let winter = told(&night, "2027-01-10T12:00:00Z", "2027-01-10T12:00:00Z");
        assert_eq!(winter, ("2027-01-11T01:30:00Z".to_owned(), false));
        let summer = told(&night, "2027-07-10T12:00:00Z", "2027-07-10T12:00:00Z");
        assert_eq!(summer, ("2027-07-11T00:30:00Z".to_owned(), false));
        // On 2027-03-28 there is no half past two.
        let spring = told(&night, "2027-03-27T12:00:00Z", "2027-03-27T12:00:00Z");
        assert_eq!(spring, ("2027-03-28T01:30:00Z".to_owned(), false));
        let nowhere =
            asked(r#"{"every": "1h", "window": {"start": "02:30", "end": "03:30", "timeZone": "Mars"}}"#);
        let wrong = next(&nowhere, time("2027-01-10T12:00:00Z"), "a", time("2027-01-10T12:00:00Z"));
        assert!(wrong.is_err_and(|why| why.contains("timeZone: Mars")));
    }

    #[test]
    fn clusters_do_not_begin_all_at_once() {
        let spread = asked(r#"{"every": "1d", "jitter": "6h"}"#);
        let since = time("2027-01-01T00:00:00Z");
        let at = |cluster: &str| next(&spread, since, cluster, since).expect("read").expect("scheduled").at;
        let times: Vec<Timestamp> = ('a'..='z').map(|name| at(&name.to_string())).collect();
        let spreads = |times: &[Timestamp], first: &str, amid: &str, last: &str| {
            assert!(times.iter().all(|at| (time(first)..time(last)).contains(at)), "{times:?}");
            let early = times.iter().filter(|at| **at < time(amid)).count();
            assert!((5..=21).contains(&early), "{early} of 26 in the first half");
        };
        spreads(&times, "2027-01-02T00:00:00Z", "2027-01-02T03:00:00Z", "2027-01-02T06:00:00Z");
        // Those that wait for a window don't begin all when it opens, and none falls behind it.
        let window = r#"{"every": "1d", "jitter": "6h", "window": {"start": "12:00", "end": "14:00"}}"#;
        let windowed = asked(window);
        let at_noon =
            |cluster: &str| next(&windowed, since, cluster, since).expect("read").expect("scheduled").at;
        let times: Vec<Timestamp> = ('a'..='z').map(|name| at_noon(&name.to_string())).collect();
        spreads(&times, "2027-01-02T12:00:00Z", "2027-01-02T13:00:00Z", "2027-01-02T14:00:00Z");
        assert_eq!(fnv(b"foobar".iter().copied()), 0x8594_4171_f739_67e8, "as published");
    }

    #[test]
    fn a_key_grows_too_old() {
        let most = Some("30d".parse().expect("a period"));
        let created = time("2027-01-01T00:00:00Z");
        assert!(!is_too_old(most, created, time("2027-01-31T00:00:00Z")));
        assert!(is_too_old(most, created, time("2027-01-31T00:00:01Z")));
        assert!(!is_too_old(most, created, time("2026-01-01T00:00:00Z")), "a clock that was set back");
        assert!(!is_too_old(None, created, time("2037-01-01T00:00:00Z")));
    }
}
