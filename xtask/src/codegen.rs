//! `cargo xtask codegen`: what is made from the types, written to `deploy/`.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::{process, report, workspace::Workspace};

/// Where the definitions are: for kubectl, and for helm, which follows no links out of a chart.
const FOLDERS: [&str; 2] = ["deploy/crds", "deploy/helm/kubeveil/crds"];

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only say what differs, and fail if anything does
    #[arg(long)]
    check: bool,
}

/// Writes the files, or compares them.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if arguments.check {
        let findings = differences(workspace)?;
        findings.iter().for_each(report::say);
        return Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let made = make(workspace)?;
    for folder in FOLDERS.map(|folder| workspace.root.join(folder)) {
        for name in read(&folder)?.into_keys().filter(|name| !made.contains_key(name)) {
            fs::remove_file(folder.join(name))?;
        }
        for (name, text) in &made {
            fs::write(folder.join(name), text).with_context(|| format!("write {name}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Files that are not what the types make of them.
pub(crate) fn differences(workspace: &Workspace) -> Result<Vec<String>> {
    let made = make(workspace)?;
    let mut findings = Vec::new();
    for folder in FOLDERS {
        findings.extend(compare(folder, &made, &read(&workspace.root.join(folder))?));
    }
    Ok(findings)
}

type Files = BTreeMap<String, String>;

fn compare(folder: &str, made: &Files, there: &Files) -> Vec<String> {
    let names = made.keys().chain(there.keys().filter(|name| !made.contains_key(*name)));
    let differ = names.filter(|name| made.get(*name) != there.get(*name));
    differ
        .map(|name| format!("{folder}/{name} is not what the types make: run `cargo xtask codegen`"))
        .collect()
}

/// By a program of the daemon's, as xtask depends on nothing of it.
fn make(workspace: &Workspace) -> Result<Files> {
    let folder = workspace.target.join("codegen");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut program = process::cargo();
    program.args([
        "run",
        "--quiet",
        "--package",
        "kubeveil-api",
        "--features",
        "schema",
        "--bin",
        "kubeveil-codegen",
    ]);
    program.arg("--").arg(&folder).current_dir(&workspace.root);
    process::run(&mut program)?;
    read(&folder)
}

fn read(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, fs::read_to_string(&path)?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let files = |files: &[(&str, &str)]| -> Files {
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        let made = files(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(compare("x", &made, &made), [""; 0]);
        let found = compare("x", &made, &files(&[("a", "1"), ("b", "x"), ("d", "4")]));
        let named: Vec<&str> = found.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(named, ["x/b", "x/c", "x/d"]);
    }
}
