//! `kubeveil policy test`: what people expect, held to what policies come to.

use std::path::PathBuf;

use jiff::Timestamp;
use kubeveil_api::{
    mesh::Mode,
    policy::FlowMode,
    policy_test::{Expectation, Subject},
    problem::{Problem, ProblemKind},
};
use kubeveil_core::policy::{expect, ruling::FlowRuling};
use kubeveil_manifests::{Gathered, gather};
use serde::Serialize;

use super::by;
use crate::{FINDING, Output, USAGE, show};

/// What came of all.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    passed: usize,
    failed: usize,
    results: Vec<Outcome>,
}

/// What came of one expectation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    pass: bool,
    /// The file that it stands in, and where.
    file: String,
    field: String,
    from: Subject,
    to: Subject,
    expected: FlowMode,
    found: FlowRuling,
}

/// Exit code 0: all is as expected; 1: something is not; 2: what was given makes no sense.
pub(super) fn run(files: &[PathBuf], pods: &[PathBuf], mesh_mode: Option<Mode>, output: Output) -> u8 {
    let paths: Vec<PathBuf> = files.iter().chain(pods).cloned().collect();
    let judged = gather(&paths).and_then(|gathered| judge(&gathered, mesh_mode, Timestamp::now()));
    match judged {
        Ok(document) => {
            show(output, || table(&document), &document);
            if document.failed == 0 { 0 } else { FINDING }
        }
        Err(problem) => {
            eprintln!("kubeveil: {problem}");
            USAGE
        }
    }
}

fn judge(gathered: &Gathered, mesh_mode: Option<Mode>, now: Timestamp) -> Result<Document, Problem> {
    let census = gathered.census(mesh_mode)?;
    let law = census.law();
    let mut results = Vec::new();
    for (file, test) in &gathered.tests {
        if test.spec.expect.is_empty() {
            return Err(refused(file, "spec.expect", "is empty, so nothing would be tested"));
        }
        for (at, Expectation { from, to, mode }) in test.spec.expect.iter().enumerate() {
            let field = format!("spec.expect[{at}]");
            let found = expect::found(&census, &law, [from, to], now)
                .map_err(|(inner, why)| refused(file, &format!("{field}.{inner}"), &why))?;
            let (pass, file) = (found.mode == *mode, file.clone());
            let (from, to) = (from.clone(), to.clone());
            results.push(Outcome { pass, file, field, from, to, expected: *mode, found });
        }
    }
    if results.is_empty() {
        return Err(nothing());
    }
    let passed = results.iter().filter(|outcome| outcome.pass).count();
    Ok(Document { schema_version: 1, passed, failed: results.len() - passed, results })
}

fn refused(file: &str, field: &str, why: &str) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: format!("file {file}, PolicyTest"),
        field: field.to_owned(),
        message: why.to_owned(),
        advice: "Correct the file".to_owned(),
    }
}

fn nothing() -> Problem {
    Problem {
        kind: ProblemKind::Missing,
        object: "PolicyTest".to_owned(),
        field: String::new(),
        message: "none of the files says what is expected, so nothing would be tested".to_owned(),
        advice: "Add a document of kind PolicyTest (README, \"Try policies before they hold\")".to_owned(),
    }
}

fn table(document: &Document) -> String {
    let mut out = String::new();
    for Outcome { pass, file, field, from, to, expected, found } in &document.results {
        let ends = format!("{} -> {}", name(from), name(to));
        let rules = by(&found.rules);
        if *pass {
            out += &format!("PASS  {ends}: {}, {rules}\n", found.mode);
        } else {
            out += &format!("FAIL  {ends}: {expected} is expected, and it is {}, {rules}\n", found.mode);
            out += &format!("      {file} {field}\n");
        }
    }
    out + &format!("\n{} failed, {} passed\n", document.failed, document.passed)
}

/// As one would write it in a line.
fn name(subject: &Subject) -> String {
    let namespace = subject.namespace.as_deref().unwrap_or_default();
    let labels: Vec<String> = subject.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    match &subject.pod {
        Some(pod) => pod.clone(),
        None if labels.is_empty() => format!("{namespace} (no labels)"),
        None => format!("{namespace} {}", labels.join(",")),
    }
}
