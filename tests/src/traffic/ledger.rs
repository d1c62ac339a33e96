//! Which numbers arrived. Pure.

/// What a receiver has seen of one flow.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    seen: Vec<u64>,
    highest: Option<u64>,
    /// How many different numbers.
    pub received: u64,
    /// How many came again.
    pub duplicated: u64,
    /// How many came after a higher one.
    pub reordered: u64,
}

impl Ledger {
    /// Enters one number.
    pub fn enter(&mut self, number: u64) {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.received += 1;
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_counts_once() {
        let mut ledger = Ledger::default();
        for number in [0, 1, 3, 2, 2, 200, 199, 200] {
            ledger.enter(number);
        }
        assert_eq!((ledger.received, ledger.duplicated, ledger.reordered), (6, 2, 2));
    }
}
