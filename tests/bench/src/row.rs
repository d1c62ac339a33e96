//! A line of the table, and what it is made of.

use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

/// One thing that was measured, as a line of JSON (`xtask/src/bench/row.rs` reads it).
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    name: String,
    /// None where it could not be measured; `note` says why.
    value: Option<f64>,
    unit: &'static str,
    bar: Option<f64>,
    bound: Option<Bound>,
    holds: Option<bool>,
    /// Lower and upper quartile of the rounds.
    spread: Option<[f64; 2]>,
    rounds: usize,
    note: Option<String>,
}

/// On which side of the bar a value has to be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast,
    AtMost,
}

impl Row {
    /// The median of what the rounds gave.
    pub(crate) fn of(name: impl Into<String>, unit: &'static str, series: &Series) -> Self {
        Self {
            name: name.into(),
            value: series.quantile(0.5),
            unit,
            spread: series.quantile(0.25).zip(series.quantile(0.75)).map(|(low, high)| [low, high]),
            rounds: series.0.len(),
            ..Self::default()
        }
    }

    /// A quantile of what the rounds gave.
    pub(crate) fn of_quantile(name: &str, unit: &'static str, series: &Series, part: f64) -> Self {
        Self { value: series.quantile(part), ..Self::of(name, unit, series) }
    }

    /// What can't be measured here, and why.
    pub(crate) fn skipped(name: impl Into<String>, unit: &'static str, why: impl Into<String>) -> Self {
        Self { name: name.into(), unit, note: Some(format!("skipped: {}", why.into())), ..Self::default() }
    }

    pub(crate) fn at_least(self, bar: f64) -> Self {
        let holds = self.value.map(|value| value >= bar);
        Self { bar: Some(bar), bound: Some(Bound::AtLeast), holds, ..self }
    }

    pub(crate) fn at_most(self, bar: f64) -> Self {
        let holds = self.value.map(|value| value <= bar);
        Self { bar: Some(bar), bound: Some(Bound::AtMost), holds, ..self }
    }

    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// Hands it to who started us.
    pub(crate) fn tell(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        writeln!(out)?;
        Ok(out.flush()?)
    }
}

/// One value a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Of the last round.
    pub(crate) fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// Round by round, this one by that one: what disturbs a round disturbs both.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5).unwrap_or(f64::NAN)
    }

    /// Between its neighbours where it falls between two values; `None` of nothing.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "a few rounds")]
        let at = part * sorted.len().checked_sub(1)? as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the rounds")]
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        Some(sorted[low] + (sorted[high] - sorted[low]) * at.fract())
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_rounds_and_where_most_of_them_lie() {
        let series: Series = [4.0, 1.0, 2.0, 3.0].into_iter().collect();
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|part| series.quantile(part)), [1.0, 1.75, 2.5, 4.0].map(Some));
        assert_eq!(Series::default().quantile(0.5), None);
        let row = Row::of("a", "ns", &series);
        assert_eq!((row.spread, row.rounds, row.holds), (Some([1.75, 3.25]), 4, None));
        assert_eq!(row.at_least(2.5).holds, Some(true));
        assert_eq!(Row::of("a", "ns", &series).at_most(2.4).holds, Some(false));
        assert_eq!(
            Row::skipped("a", "ns", "no").at_most(1.0).holds,
            None,
            "not measured, so it holds nothing"
        );
    }

    #[test]
    fn rounds_are_compared_one_by_one() {
        let (a, b) = ([2.0, 20.0].into_iter().collect::<Series>(), [1.0, 10.0].into_iter().collect());
        assert_eq!(a.over(&b).0, [2.0, 2.0]);
    }
}
