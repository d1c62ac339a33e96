//! A row, as `kubeveil-bench` prints it (`tests/bench/src/row.rs`), and the table for people.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableStyle};
use serde::{Deserialize, Serialize};

/// One thing that was measured.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Row {
    name: String,
    /// None where it was not measured; the note says why.
    value: Option<f64>,
    unit: String,
    /// None where it is for information.
    bar: Option<f64>,
    bound: Option<Bound>,
    holds: Option<bool>,
    /// Lower and upper quartile of the rounds.
    spread: Option<[f64; 2]>,
    rounds: usize,
    note: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast,
    AtMost,
}

impl Row {
    /// A part that can't be measured here.
    pub(super) fn skipped(name: &str, why: &str) -> Self {
        Self { name: name.to_owned(), note: Some(format!("skipped: {why}")), ..Self::default() }
    }

    /// It was measured in a VM that is emulated: a ratio counts there, a time is that of no machine, and its bar is not
    /// judged.
    pub(super) fn emulated(mut self) -> Self {
        if ["s", "ms", "ns"].contains(&self.unit.as_str()) {
            self.holds = None;
            let said = self.note.map_or(String::new(), |note| format!("{note}; "));
            self.note = Some(format!("{said}in an emulated VM, where a time is no machine's: not judged"));
        }
        self
    }

    pub(super) fn has_bar(&self) -> bool {
        self.bar.is_some()
    }

    pub(super) fn misses(&self) -> bool {
        self.holds == Some(false)
    }

    fn cells(&self) -> [Cell; 5] {
        let value = self.value.map_or("SKIP".to_owned(), |value| {
            format!("{} {}", short(value), self.unit).trim_end().to_owned()
        });
        let sign = if self.bound == Some(Bound::AtLeast) { ">=" } else { "<=" };
        let bar = self.bar.map_or(String::new(), |bar| format!("{sign} {}", short(bar)));
        let holds = self.holds.map_or("", |holds| if holds { "yes" } else { "NO" });
        let spread = self.spread.filter(|_| self.rounds > 1);
        let spread = spread.map_or(String::new(), |[low, high]| format!("{} to {}", short(low), short(high)));
        [Cell::new(&self.name), right(value), right(bar), Cell::new(holds), Cell::new(spread)]
    }
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 || value.fract() == 0.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 1.0 => 2,
        small if small >= 0.01 => 3,
        _ => 5,
    };
    format!("{value:.digits$}")
}

/// The table, and below it what there is to say of its rows.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["name", "value", "bar", "holds", "spread"]);
    for row in rows {
        table.add_row(row.cells());
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    let notes = rows.iter().filter_map(|row| Some(format!("{}: {}", row.name, row.note.as_ref()?)));
    lines.chain([String::new()]).chain(notes).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Row {
        serde_json::from_str(json).expect("a row")
    }

    #[test]
    fn people_see_what_holds_and_what_was_skipped() {
        let rows = [
            row(
                r#"{"name":"a","value":0.9133,"unit":"ratio","bar":0.95,"bound":"at_least","holds":false,"spread":[0.9,0.92],"rounds":5}"#,
            ),
            row(
                r#"{"name":"b","value":102.4,"unit":"ns","bar":null,"holds":null,"rounds":1,"spread":[1.0,1.0],"note":"so"}"#,
            ),
            Row::skipped("c", "no root"),
        ];
        let text = table(&rows);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["a", "0.913", "ratio", ">=", "0.950", "NO", "0.900", "to", "0.920"]);
        assert_eq!(words[2], ["b", "102", "ns"]);
        assert_eq!(words[3], ["c", "SKIP"]);
        assert_eq!(text.lines().skip(5).collect::<Vec<_>>(), ["b: so", "c: skipped: no root"]);
        assert_eq!(rows.iter().filter(|row| row.misses()).count(), 1);
    }

    #[test]
    fn emulated_times_are_not_judged() {
        let json = |unit| {
            format!(
                r#"{{"name":"a","value":9.0,"unit":"{unit}","bar":1.0,"bound":"at_most","holds":false,"rounds":1}}"#
            )
        };
        assert!(!row(&json("ms")).emulated().misses());
        assert!(row(&json("ms")).misses() && row(&json("ratio")).emulated().misses());
    }

    #[test]
    fn programs_find_the_fields_that_they_were_promised() {
        let json = serde_json::to_value(Row::skipped("c", "no root")).expect("JSON");
        for field in ["name", "value", "unit", "bar", "holds"] {
            assert!(json.get(field).is_some(), "{field}");
        }
    }
}
