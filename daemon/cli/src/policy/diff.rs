//! `kubeveil policy diff`: which flows would be held to something else.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr};

use jiff::Timestamp;
use kubeveil_api::problem::{Problem, ProblemKind, few};
use kubeveil_core::policy::{
    Policies, PolicyId,
    census::Census,
    diff::{Class, Diff, Group, diff},
    ruling::Law,
};
use kubeveil_manifests::{Gathered, gather};
use serde::Serialize;

use super::by;
use crate::{FINDING, Output, UNREACHABLE, USAGE, show, source::SourceArg};

/// Changes that people are shown; programs get all.
const MOST_CHANGES: usize = 20;
/// The same of classes, of either end.
const MOST_CLASSES: usize = 6;

/// The value of `--remove`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Removed(PolicyId);

impl FromStr for Removed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, name) = match parts[..] {
            ["EncryptionPolicy", namespace, name] if !namespace.is_empty() => {
                (Some(namespace.to_owned()), name)
            }
            ["ClusterEncryptionPolicy", name] => (None, name),
            _ => (None, ""),
        };
        if name.is_empty() {
            return Err("must be EncryptionPolicy/NAMESPACE/NAME or ClusterEncryptionPolicy/NAME".to_owned());
        }
        Ok(Self(PolicyId { namespace, name: name.to_owned() }))
    }
}

/// The document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(flatten)]
    diff: Diff,
}

/// Exit code 0: nothing would change; 1: something would.
pub(super) fn run(
    files: &[PathBuf],
    remove: &[Removed],
    pods: Option<&Vec<PathBuf>>,
    source: &SourceArg,
    output: Output,
) -> anyhow::Result<u8> {
    let failed = |code: u8, problem: &Problem| {
        eprintln!("kubeveil: {problem}");
        Ok(code)
    };
    let new = match gather(files) {
        Ok(new) => new,
        Err(problem) => return failed(USAGE, &problem),
    };
    let census = match pods {
        Some(pods) => gather(pods).and_then(|cluster| cluster.census(None)).map_err(|e| (USAGE, e)),
        None => source.census()?.map_err(|e| (UNREACHABLE, e)),
    };
    let census = match census {
        Ok(census) => census,
        Err((code, problem)) => return failed(code, &problem),
    };
    let after = match changed(&census, &new, remove) {
        Ok(after) => after,
        Err(problem) => return failed(USAGE, &problem),
    };
    let diff = diff(&census, &census.law(), &after, Timestamp::now());
    let code = if diff.changes.is_empty() { 0 } else { FINDING };
    let document = Document { schema_version: 1, diff };
    show(output, || table(&document.diff), &document);
    Ok(code)
}

/// What would decide then.
fn changed(census: &Census, new: &Gathered, remove: &[Removed]) -> Result<Law, Problem> {
    let law = census.law();
    if new.policies().next().is_none() && new.mode().is_none() && remove.is_empty() {
        return Err(refused(
            "files of -f",
            "hold no policy and no EncryptionMesh",
            "Name those that are to change",
        ));
    }
    let mut policies: BTreeMap<_, _> =
        law.policies.iter().map(|(id, policy)| (id.clone(), policy.clone())).collect();
    for Removed(id) in remove {
        if policies.remove(id).is_none() {
            let known = match policies.len() {
                0 => "there is no policy at all".to_owned(),
                _ => format!("there is {}", few(policies.keys(), 5)),
            };
            return Err(refused(&id.to_string(), &format!("does not exist; {known}"), "Correct --remove"));
        }
    }
    policies.extend(new.policies().map(|(id, policy)| (id.clone(), policy.clone())));
    Ok(Law { mesh: new.mode().unwrap_or(law.mesh), policies: Policies::new(policies) })
}

fn refused(object: &str, message: &str, advice: &str) -> Problem {
    Problem {
        kind: ProblemKind::Missing,
        object: object.to_owned(),
        field: String::new(),
        message: message.to_owned(),
        advice: advice.to_owned(),
    }
}

fn table(diff: &Diff) -> String {
    let mut out = String::new();
    for change in diff.changes.iter().take(MOST_CHANGES) {
        let word = if change.after.mode < change.before.mode { "LOOSENS" } else { "TIGHTENS" };
        out += &format!("{word:<8}  {} -> {}\n", change.before.mode, change.after.mode);
        let [one, other] = change.between.map(|at| &diff.groups[at]);
        if change.between[0] == change.between[1] {
            out += &format!("  among   {}\n", group(one));
        } else {
            out += &format!("  between {}\n  and     {}\n", group(one), group(other));
        }
        out += &format!("  now     {}\n  then    {}\n", by(&change.before.rules), by(&change.after.rules));
    }
    let more = diff.changes.len().saturating_sub(MOST_CHANGES);
    if more > 0 {
        out += &format!("and {more} more (-o json has all)\n");
    }
    if diff.changes.is_empty() {
        out += "Nothing changes: every flow would be held to what it is held to now.\n";
    }
    out
}

fn group(group: &Group) -> String {
    let classes = group.classes.iter().map(|class| match class {
        Class::Nodes => "nodes".to_owned(),
        Class::Pods { namespace, labels, count, example } => {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!(" {}", labels.join(",")) };
            match count {
                1 => format!("{namespace}{labels} (pod {})", example.name),
                _ => format!("{namespace}{labels} ({count} pods such as {})", example.name),
            }
        }
    });
    few(classes.collect::<Vec<_>>().into_iter(), MOST_CLASSES)
}
