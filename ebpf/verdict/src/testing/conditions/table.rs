use std::{fmt, string::String, vec::Vec};

use super::{Fate, Kind, WAYS};

/// What was found, as a table: a line for each kind of packet, a column for each way.
#[derive(Clone, Debug, Default)]
pub struct Table {
    found: Vec<(&'static str, Kind, bool, Fate)>,
}

impl Table {
    /// Adds what became of a packet.
    pub fn add(&mut self, way: &'static str, kind: Kind, is_v6: bool, fate: Fate) {
        self.found.push((way, kind, is_v6, fate));
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    fn cell(&self, way: &str, kind: Kind) -> String {
        let letter = |is_v6| {
            let found = self.found.iter().find(|(w, k, v6, _)| *w == way && *k == kind && *v6 == is_v6);
            found.map(|(.., fate)| fate.letter())
        };
        match (letter(false), letter(true)) {
            (Some(v4), Some(v6)) if v4 == v6 => v4.into(),
            (v4, v6) => [v4, v6].map(|l| l.unwrap_or(' ')).iter().collect(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways: Vec<_> =
            WAYS.iter().filter(|way| self.found.iter().any(|(w, ..)| *w == way.name)).collect();
        for (number, way) in (1..).zip(&ways) {
            writeln!(f, "  {number:>2} {}", way.name)?;
        }
        write!(f, "  {:<26}", "")?;
        (1..=ways.len()).try_for_each(|number| write!(f, "{number:>3}"))?;
        writeln!(f)?;
        for &kind in Kind::ALL {
            if self.found.iter().any(|(_, k, ..)| *k == kind) {
                write!(f, "  {:<26}", kind.name())?;
                ways.iter().try_for_each(|way| write!(f, "{:>3}", self.cell(way.name, kind)))?;
                writeln!(f)?;
            }
        }
        write!(f, "  E encrypted, x dropped, - left alone; two letters: IPv4, IPv6; a blank: there is none")
    }
}
