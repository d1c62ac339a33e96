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
    /// How many stretches of numbers without a gap: more than one where some came before and after others that did not.
    pub fn stretches(&self) -> u64 {
        let ends = |(word, next): (&u64, u64)| u64::from((word & !(word >> 1 | next << 63)).count_ones());
        let next = self.seen.iter().skip(1).copied().chain([0]);
        self.seen.iter().zip(next).map(ends).sum()
    }

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

    #[test]
    fn a_stretch_ends_where_a_number_is_missing() {
        let stretches = |numbers: &mut dyn Iterator<Item = u64>| {
            let mut ledger = Ledger::default();
            numbers.for_each(|number| ledger.enter(number));
            ledger.stretches()
        };
        assert_eq!(stretches(&mut [].into_iter()), 0);
        // Over the words' ends, and in any order.
        assert_eq!(stretches(&mut (3..200).rev()), 1);
        assert_eq!(stretches(&mut (0..64).chain(65..128).chain(128..130)), 2);
        assert_eq!(stretches(&mut (0..300).filter(|number| number % 3 != 0)), 100);
    }
}
