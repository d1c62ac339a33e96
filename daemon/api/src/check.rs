//! What `kubeveil check` tells: findings, each with what to do about it.

use serde::{Deserialize, Serialize};

use crate::words::words;

/// Version of [`Report`].
pub const REPORT_VERSION: u32 = 1;

words! {
    /// How much a finding weighs, the lightest first.
    pub enum Severity {
        /// As it should be.
        Ok = "ok",
        /// It could not be found out.
        Unknown = "unknown",
        /// It works, and somebody should look at it.
        Warning = "warning",
        /// It does not work, or will not.
        Failed = "failed",
    }
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// What was looked at, in one word: `bpffs`, `ports`, …
    pub check: String,
    /// Which objects, for example `Node node-2`.
    pub object: String,
    /// What was found.
    pub found: String,
    /// What that means for kubeveil; empty where it is as it should be.
    pub means: String,
    /// A command that mends it, or shows more where nobody can say what mends it; empty where it is as it should be.
    pub mend: String,
}

/// All findings, the heaviest first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub schema_version: u32,
    /// Before an installation.
    pub pre: bool,
    /// What was waited for did not come in time.
    pub timed_out: bool,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// In the order in which they are told.
    pub fn new(pre: bool, timed_out: bool, mut findings: Vec<Finding>) -> Self {
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        Self { schema_version: REPORT_VERSION, pre, timed_out, findings }
    }

    /// Of the findings the heaviest.
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_comes_first() {
        let finding = |severity, check: &str| Finding {
            severity,
            check: check.to_owned(),
            object: String::new(),
            found: String::new(),
            means: String::new(),
            mend: String::new(),
        };
        let all = vec![
            finding(Severity::Ok, "a"),
            finding(Severity::Failed, "z"),
            finding(Severity::Unknown, "b"),
            finding(Severity::Warning, "c"),
            finding(Severity::Failed, "d"),
        ];
        let report = Report::new(true, false, all);
        let order: Vec<&str> = report.findings.iter().map(|finding| finding.check.as_str()).collect();
        assert_eq!(order, ["d", "z", "c", "b", "a"]);
        assert_eq!(report.worst(), Severity::Failed);
        assert_eq!(Report::new(true, false, vec![]).worst(), Severity::Ok);
    }
}
