//! When rotations begin by themselves: lengths of time, and the hours in which they may.

use std::{fmt, str::FromStr, time::Duration};

use jiff::civil::Time;
use serde::{Deserialize, Serialize};

use crate::words::words;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A length of time in days of 24 hours, hours and minutes, written `30d` or `12h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    minutes: u32,
}

/// A text is no [`Period`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no length of time of a minute or more in days, hours and minutes, such as 30d or 12h30m")]
pub struct NoPeriod;

impl Period {
    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.seconds())
    }

    /// In seconds.
    pub fn seconds(self) -> u64 {
        u64::from(self.minutes) * MINUTE
    }
}

impl FromStr for Period {
    type Err = NoPeriod;

    fn from_str(text: &str) -> Result<Self, NoPeriod> {
        let (mut seconds, mut rest) = (0_u64, text);
        for (unit, letter) in [(DAY, 'd'), (HOUR, 'h'), (MINUTE, 'm')] {
            let Some((number, after)) = rest.split_once(letter) else { continue };
            // `parse` would take a sign.
            let is_number = (1..=5).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
            let number: u64 = number.parse().ok().filter(|_| is_number).ok_or(NoPeriod)?;
            (seconds, rest) = (seconds + number * unit, after);
        }
        let minutes = u32::try_from(seconds / MINUTE).ok().filter(|minutes| *minutes > 0 && rest.is_empty());
        Ok(Self { minutes: minutes.ok_or(NoPeriod)? })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.seconds();
        for (unit, letter) in [(DAY, 'd'), (HOUR, 'h'), (MINUTE, 'm')] {
            if left >= unit {
                write!(f, "{}{letter}", left / unit)?;
            }
            left %= unit;
        }
        Ok(())
    }
}

impl Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

words! {
    /// A day of the week.
    pub enum Day {
        /// Monday.
        Mon = "Mon",
        /// Tuesday.
        Tue = "Tue",
        /// Wednesday.
        Wed = "Wed",
        /// Thursday.
        Thu = "Thu",
        /// Friday.
        Fri = "Fri",
        /// Saturday.
        Sat = "Sat",
        /// Sunday.
        Sun = "Sun",
    }
}

/// Hours in which a rotation may begin by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Window {
    /// Days on which it opens; without any, every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 7)))]
    pub days: Vec<Day>,
    /// When it opens, such as "02:00".
    #[serde(with = "time_of_day")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time_of_day"))]
    pub start: Time,
    /// When it closes; where that is not after `start`, on the next day.
    #[serde(with = "time_of_day")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time_of_day"))]
    pub end: Time,
    /// Whose clock that is, such as Europe/Berlin (IANA); UTC where this is left out.
    #[serde(default = "utc")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::crd::time_zone"))]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// Hours and minutes, as a clock shows them.
mod time_of_day {
    use jiff::civil::Time;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    const FORMAT: &str = "%H:%M";

    pub(super) fn serialize<S: Serializer>(time: &Time, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&time.strftime(FORMAT))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = Time::strptime(FORMAT, &text).ok().filter(|_| text.len() == "hh:mm".len());
        time.ok_or_else(|| D::Error::custom("is no time of day, such as 02:00"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_read_and_written() {
        for (text, seconds, again) in [
            ("30d", 30 * DAY, "30d"),
            ("36h", 36 * HOUR, "1d12h"),
            ("1d2h3m", DAY + 2 * HOUR + 3 * MINUTE, "1d2h3m"),
            ("90m", 90 * MINUTE, "1h30m"),
        ] {
            let period: Period = text.parse().expect(text);
            assert_eq!((period.seconds(), period.to_string().as_str()), (seconds, again));
        }
        for text in
            ["", "30", "d", "0d", "-1d", "+1d", "1.5h", "1h2d", "1d ", "30s", "1d1d", "123456h", "1w", "٣d"]
        {
            assert_eq!(text.parse::<Period>(), Err(NoPeriod), "{text}");
        }
    }

    #[test]
    fn a_window_is_read_and_written() {
        let read = |text: &str| serde_json::from_str::<Window>(text);
        let night =
            read(r#"{"days": ["Sat"], "start": "22:30", "end": "04:00", "timeZone": "Europe/Berlin"}"#)
                .expect("a window");
        assert_eq!((night.start, night.end), (Time::constant(22, 30, 0, 0), Time::constant(4, 0, 0, 0)));
        let text = serde_json::to_string(&night).expect("a text");
        assert_eq!(read(&text).expect("the same"), night);
        assert_eq!(read(r#"{"start": "00:00", "end": "00:00"}"#).expect("a window").time_zone, "UTC");
        for text in [
            r#"{"start": "2:00", "end": "04:00"}"#,
            r#"{"start": "24:00", "end": "04:00"}"#,
            r#"{"start": "02:00:00", "end": "04:00"}"#,
            r#"{"start": "02:00"}"#,
            r#"{"start": "02:00", "end": "04:00", "days": ["Someday"]}"#,
            r#"{"start": "02:00", "end": "04:00", "zone": "UTC"}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
