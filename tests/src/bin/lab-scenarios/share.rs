//! Which scenarios are played here, where several VMs play them at once.

use anyhow::{Context, Result, ensure};

/// `K/N`: the K-th of N shares, from 1.
const VARIABLE: &str = "LAB_SHARE";

/// One share of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// From 0.
    index: usize,
    of: usize,
}

impl Share {
    /// The one that the environment asks for; else all there is.
    pub(crate) fn asked() -> Result<Self> {
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(Self { index: 0, of: 1 }) };
        Self::read(&text).with_context(|| format!("{VARIABLE}={text}: should be K/N, as 1/2"))
    }

    fn read(text: &str) -> Result<Self> {
        let (number, of) = text.split_once('/').context("no slash")?;
        let (number, of): (usize, usize) = (number.parse()?, of.parse()?);
        ensure!((1..=of).contains(&number), "{number} is not within 1 and {of}");
        Ok(Self { index: number - 1, of })
    }

    /// Which of so long tasks are in it: the longest first, each to the share that has least to do yet.
    pub(crate) fn takes(self, seconds: &[u32]) -> Vec<bool> {
        let mut order: Vec<usize> = (0..seconds.len()).collect();
        order.sort_by_key(|&task| std::cmp::Reverse(seconds[task]));
        let mut loads = vec![0_u32; self.of];
        let mut taken = vec![false; seconds.len()];
        for task in order {
            let lightest = (0..self.of).min_by_key(|&share| loads[share]).unwrap_or(0);
            loads[lightest] += seconds[task];
            taken[task] = lightest == self.index;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read() {
        assert_eq!(Share::read("2/3").expect("a share"), Share { index: 1, of: 3 });
        for wrong in ["", "1", "0/2", "3/2", "a/2", "1/0"] {
            Share::read(wrong).expect_err(wrong);
        }
    }

    /// None is left out, none is played twice, and no share is much longer than another.
    #[test]
    fn each_is_in_one_share() {
        let seconds = [20, 532, 20, 60, 180, 20, 20, 70, 50, 20, 250];
        for of in 1..=4 {
            let shares: Vec<_> = (0..of).map(|index| Share { index, of }.takes(&seconds)).collect();
            for task in 0..seconds.len() {
                assert_eq!(shares.iter().filter(|share| share[task]).count(), 1, "{task} of {of}");
            }
        }
        let load = |index| {
            let taken = Share { index, of: 2 }.takes(&seconds);
            seconds.iter().zip(taken).filter(|(_, is)| *is).map(|(s, _)| s).sum::<u32>()
        };
        assert!(load(0).abs_diff(load(1)) <= 20, "{} and {}", load(0), load(1));
    }
}
