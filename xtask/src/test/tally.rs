//! What test runners say, counted. Understood are the lines of Rust's own test harness and of
//! libtest-mimic, and `skipped: NAME (reason)`, which a runner prints that finds out late.

use std::collections::BTreeSet;

/// Counts and names of one runner, or of many together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Names of what failed, and what else went wrong.
    pub(crate) failures: Vec<String>,
    /// `NAME (reason)` of what was skipped.
    pub(crate) skips: BTreeSet<String>,
}

/// Reads one runner's lines.
#[derive(Default)]
pub(crate) struct Reader {
    tally: Tally,
    started: u64,
    finished: u64,
    ignored: u64,
    told: BTreeSet<String>,
}

impl Reader {
    /// Takes a line of the runner's output.
    pub(crate) fn line(&mut self, line: &str) {
        let line = strip_escapes(line);
        let line = line.trim();
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.finished += 1;
            self.tally.passed += count(counts, "passed");
            self.tally.failed += count(counts, "failed");
            self.ignored += count(counts, "ignored");
        } else if let Some(rest) = without_time(line).strip_prefix("test ") {
            self.test(rest);
        } else if let Some(skip) = line.strip_prefix("skipped: ") {
            self.told.insert(skip.to_owned());
        } else if let Some(rest) = line.strip_prefix("running ")
            && (rest.ends_with(" tests") || rest.ends_with(" test"))
        {
            self.started += 1;
        }
    }

    /// `NAME ... FAILED` or `NAME ... ignored, REASON`
    fn test(&mut self, rest: &str) {
        let Some((name, result)) = rest.rsplit_once(" ... ") else { return };
        let name = name.trim();
        let result = without_time(result);
        if result.starts_with("FAILED") {
            self.tally.failures.push(name.to_owned());
        } else if let Some(reason) = result.strip_prefix("ignored") {
            let reason = reason.trim_start_matches([',', ' ']);
            self.tally
                .skips
                .insert(format!("{name} ({})", if reason.is_empty() { "no reason given" } else { reason }));
        }
    }

    /// The runner has ended. A crash is a failure, and so is a runner that said no result.
    pub(crate) fn end(mut self, runner: &str, success: bool, how: &str) -> Tally {
        let tally = &mut self.tally;
        let unfinished = self.started.saturating_sub(self.finished);
        let silent = self.finished == 0 && unfinished == 0;
        if unfinished > 0 || silent || (!success && tally.failed == 0) {
            tally.failed += unfinished.max(1);
            tally.failures.push(format!("{runner} ended without a result of its own ({how})"));
        }
        // A test that told of a skip itself, and that the harness counted as passed.
        let names: BTreeSet<&str> = tally.skips.iter().map(|s| name_of(s)).collect();
        let late: Vec<String> = self.told.iter().filter(|s| !names.contains(name_of(s))).cloned().collect();
        let told = u64::try_from(self.told.len()).unwrap_or(u64::MAX);
        let as_passed = told.saturating_sub(self.ignored).min(tally.passed);
        tally.passed -= as_passed;
        tally.skipped += self.ignored + as_passed;
        // The runner's own reason is better than the harness' "no reason given".
        tally.skips.retain(|s| !self.told.iter().any(|t| name_of(t) == name_of(s)));
        tally.skips.extend(late);
        tally.skips.extend(self.told);
        self.tally
    }
}

impl Tally {
    /// A failure outside of any runner.
    pub(crate) fn broken(what: String) -> Self {
        Self { failed: 1, failures: vec![what], ..Self::default() }
    }

    /// Adds another's counts.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }

    /// The line that a run ends with.
    pub(crate) fn closing_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `NAME` of `NAME (reason)`.
fn name_of(skip: &str) -> &str {
    skip.split(" (").next().unwrap_or(skip)
}

/// A line, or a result, without the `(11.6 s) ` that a runner of long tests may begin it with.
fn without_time(line: &str) -> &str {
    match line.strip_prefix('(').and_then(|rest| rest.split_once(" s) ")) {
        Some((seconds, rest)) if seconds.parse::<f64>().is_ok() => rest,
        _ => line,
    }
}

/// The number before a word, as in `5 passed; 0 failed`.
fn count(counts: &str, word: &str) -> u64 {
    let words: Vec<&str> = counts.split([' ', ';', '.']).filter(|w| !w.is_empty()).collect();
    let pairs = words.windows(2).filter(|pair| pair[1] == word);
    pairs.filter_map(|pair| pair[0].parse::<u64>().ok()).next().unwrap_or(0)
}

/// The line without colours.
fn strip_escapes(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.find(|c: char| c.is_ascii_alphabetic()).map_or("", |end| &after[end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, success: bool) -> Tally {
        let mut reader = Reader::default();
        output.lines().for_each(|line| reader.line(line));
        reader.end("runner", success, "exit status: 1")
    }

    const RESULT: &str =
        "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s";

    #[test]
    fn counts_are_read() {
        let tally = read(&format!("running 6 tests\ntest a ... ignored, needs wireguard\n{RESULT}"), true);
        assert_eq!(tally.closing_line(), "5 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skips.first().map(String::as_str), Some("a (needs wireguard)"));
    }

    #[test]
    fn failures_are_named() {
        let result = "test result: \u{1b}[31mFAILED\u{1b}[m. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let tally =
            read(&format!("running 2 tests\ntest a::b ... \u{1b}[31mFAILED\u{1b}[m\n{result}"), false);
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures, ["a::b"]);
    }

    #[test]
    fn a_time_before_the_name_is_no_part_of_it() {
        let tally = read(
            "running 1 test\n(11.6 s) test a_node_joins   ... FAILED\ntest result: FAILED. 0 passed; 1 failed",
            false,
        );
        assert_eq!((tally.failed, tally.failures), (1, vec!["a_node_joins".to_owned()]));
        let output =
            "running 1 test\ntest a_node_joins ... (11.6 s) FAILED\ntest result: FAILED. 0 passed; 1 failed";
        assert_eq!(read(output, false).failures, ["a_node_joins"]);
    }

    #[test]
    fn a_crash_is_a_failure() {
        assert_eq!(
            read("running 3 tests\ntest a ... ok", false).closing_line(),
            "0 passed, 1 failed, 0 skipped"
        );
        assert_eq!(read(RESULT, false).failed, 1, "it died after its result");
        assert_eq!(read("", true).failed, 1, "it said nothing, which is not success");
    }

    #[test]
    fn one_crashed_binary_of_many_is_not_covered_by_anothers_failure() {
        let failed = "test result: FAILED. 0 passed; 1 failed; 0 ignored";
        let tally = read(&format!("running 1 test\ntest a ... FAILED\n{failed}\nrunning 2 tests"), false);
        assert_eq!(tally.failed, 2);
    }

    #[test]
    fn a_skip_that_the_harness_took_for_a_pass_is_a_skip() {
        let tally = read(
            "running 2 tests\nskipped: netkit (needs netkit)\ntest result: ok. 2 passed; 0 failed; 0 ignored",
            true,
        );
        assert_eq!(tally.closing_line(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skips.len(), 1);
    }

    #[test]
    fn a_skip_told_twice_counts_once() {
        let output = format!("running 6 tests\nskipped: a (needs kvm)\ntest a ... ignored\n{RESULT}");
        let tally = read(&output, true);
        assert_eq!(tally.closing_line(), "5 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skips.into_iter().collect::<Vec<_>>(), ["a (needs kvm)"]);
    }
}
