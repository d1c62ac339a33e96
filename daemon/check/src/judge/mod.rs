//! Findings, from what is known of a cluster. Pure.

mod cluster;
mod mesh;
mod nodes;
#[cfg(test)]
mod tests;

use kubeveil_api::{
    check::{Finding, Severity},
    probe::Probe,
    problem::few,
};

use crate::facts::Facts;

/// Most names in a text.
const MOST_NAMED: usize = 5;

/// All that there is to say of a cluster.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::default();
    cluster::judge(facts, &mut findings);
    nodes::judge(facts, &mut findings);
    if let Some(installed) = &facts.installed {
        mesh::judge(facts, installed, &mut findings);
    }
    findings.0
}

/// All that there is to say of one machine, of which nothing is known but what its probe says.
pub fn judge_machine(probe: Result<Probe, String>) -> Vec<Finding> {
    let mut findings = Findings::default();
    match probe {
        Ok(probe) => nodes::machine(&probe, &mut findings),
        Err(why) => findings.unknown(
            "probe",
            "this machine",
            why,
            "kubeveild probe    # as root; it is in the same image as kubeveil",
        ),
    }
    findings.0
}

/// Of a run that never came to its end.
pub fn left_behind(namespace: &str) -> Finding {
    let mut findings = Findings::default();
    findings.warning(
        "probe",
        format!("Namespace {namespace}"),
        "an earlier check, or one that runs just now, has its probes there",
        "it costs a pod on each node, and stands in the way of the ports that are looked at",
        &format!("kubectl delete namespace {namespace}"),
    );
    findings.0.remove(0)
}

/// What has been found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &str, object: impl Into<String>, found: impl Into<String>) {
        self.add(Severity::Ok, check, object.into(), found.into(), "", "");
    }

    fn warning(
        &mut self,
        check: &str,
        object: impl Into<String>,
        found: impl Into<String>,
        means: &str,
        mend: &str,
    ) {
        self.add(Severity::Warning, check, object.into(), found.into(), means, mend);
    }

    fn failed(
        &mut self,
        check: &str,
        object: impl Into<String>,
        found: impl Into<String>,
        means: &str,
        mend: &str,
    ) {
        self.add(Severity::Failed, check, object.into(), found.into(), means, mend);
    }

    /// It could not be found out, for this reason.
    fn unknown(&mut self, check: &str, object: impl Into<String>, why: impl Into<String>, mend: &str) {
        self.add(
            Severity::Unknown,
            check,
            object.into(),
            why.into(),
            "nobody knows whether it is well",
            mend,
        );
    }

    fn add(
        &mut self,
        severity: Severity,
        check: &str,
        object: String,
        found: String,
        means: &str,
        mend: &str,
    ) {
        let check = check.to_owned();
        self.0.push(Finding {
            severity,
            check,
            object,
            found,
            means: means.to_owned(),
            mend: mend.to_owned(),
        });
    }

    /// Of a part that can't be read.
    fn unread(&mut self, check: &str, object: &str, why: &str, resource: &str) {
        self.unknown(check, object, why, &format!("kubectl auth can-i list {resource} --all-namespaces"));
    }
}

/// `Node a`, `Nodes a, b`, with the number of those that are too many to be named.
fn nodes_named<S: AsRef<str>>(names: &[S]) -> String {
    let plural = if names.len() == 1 { "Node" } else { "Nodes" };
    format!("{plural} {}", some(names))
}

fn some<S: AsRef<str>>(names: &[S]) -> String {
    few(names.iter().map(AsRef::as_ref), MOST_NAMED)
}
