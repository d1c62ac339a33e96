//! Moments as people write them (RFC 3339).

use jiff::Timestamp;
use serde::{Deserialize as _, Deserializer};

/// The API server says the same.
pub(crate) const NO_TIME: &str = "is no time with its zone, as in 2027-01-31T12:00:00Z (RFC 3339), on a day that there is in the years 0001 to 9998";

pub(crate) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom(NO_TIME))
}

/// `null`, a key without a value, is none.
pub(crate) fn some_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(|_| serde::de::Error::custom(NO_TIME))).transpose()
}

/// A day that there is: the 29th of February in leap years only.
#[cfg(any(test, feature = "schema"))]
const DAY: &str = "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))\
     |([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)";

/// What the API server holds a moment to, as a regular expression: its own `timestamp()` fails with words of its own, and takes no small
/// letters.
#[cfg(any(test, feature = "schema"))]
pub(crate) fn pattern() -> String {
    const CLOCK: &str = "([01][0-9]|2[0-3]):[0-5][0-9]";
    format!("^{DAY}[Tt ]{CLOCK}:[0-5][0-9]([.][0-9]{{1,9}})?([Zz]|[+-]{CLOCK})$")
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    /// What the API server lets through an agent can read: else it stands by what was before, or by nothing.
    #[test]
    fn no_day_is_taken_that_there_is_not() {
        let pattern = Regex::new(&pattern()).expect("a pattern");
        let agree = |text: &str| {
            assert_eq!(pattern.is_match(text), text.parse::<Timestamp>().is_ok(), "{text}");
        };
        for year in [1, 4, 100, 400, 1900, 1970, 2000, 2024, 2026, 2100, 2400, 9998] {
            for (month, day) in (0..=13).flat_map(|month| (0..=32).map(move |day| (month, day))) {
                agree(&format!("{year:04}-{month:02}-{day:02}T12:00:00Z"));
            }
        }
        for text in [
            "2027-01-31T24:00:00Z",
            "2027-01-31T12:60:00Z",
            "2027-01-31T12:00:61Z",
            "2027-01-31t12:00:00.123456789z",
            "2027-01-31 12:00:00+23:59",
            "2027-01-31T12:00:00+00:60",
            "2027-01-31T12:00:00",
            "2027-01-31",
            "0001-01-01T00:00:00+23:59",
            "9998-12-31T23:59:59-23:59",
        ] {
            agree(text);
        }
    }
}
