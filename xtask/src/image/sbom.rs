//! What the program is made of, as CycloneDX 1.5 has it. The same dependencies give the same bytes: neither a time nor a
//! serial number is in it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::layout::sha256;
use crate::{process, workspace::Workspace};

/// Fields of a line of cargo's tree; a depth stands before them.
const FORMAT: &str = " {p}|{l}";

/// A component by its package URL.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tree {
    root: String,
    components: BTreeMap<String, Component>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Component {
    name: String,
    version: String,
    licence: String,
    needs: BTreeSet<String>,
}

/// Tells what `package` links on `triple`, and what the eBPF programs in it are made of.
pub(super) fn make(workspace: &Workspace, package: &str, triple: &str, program: &[u8]) -> Result<Vec<u8>> {
    let mut tree =
        Tree::read(&cargo_tree(workspace, "Cargo.toml", &["--package", package, "--target", triple])?)?;
    let programs = Tree::read(&cargo_tree(workspace, "ebpf/programs/Cargo.toml", &[])?)?;
    let root = tree.root.clone();
    let mut links = vec![programs.root.clone()];
    for (url, component) in programs.components {
        tree.components.entry(url).or_insert(component);
    }
    for runtime in [standard_library()?, c_library()?] {
        let url = format!("pkg:generic/{}@{}", runtime.name, runtime.version);
        links.push(url.clone());
        tree.components.insert(url, runtime);
    }
    tree.components.get_mut(&root).context("cargo's tree has no root")?.needs.extend(links);
    Ok(serde_json::to_vec_pretty(&tree.to_json(&sha256(program)))?)
}

/// Edges by which code gets into the program: no macros, no build scripts, no tests; with the features it is built with.
fn cargo_tree(workspace: &Workspace, manifest: &str, words: &[&str]) -> Result<String> {
    let mut tree = process::cargo();
    tree.args([
        "tree",
        "--locked",
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "depth",
        "--format",
        FORMAT,
    ]);
    tree.args(["--charset", "ascii", "--color", "never", "--manifest-path"])
        .arg(workspace.root.join(manifest));
    process::output(tree.args(words))
}

fn standard_library() -> Result<Component> {
    let version = process::output(process::command(process::rustc()).arg("--version"))?;
    let version = version.split_whitespace().nth(1).context("rustc tells no version")?;
    Ok(Component::runtime("rust-std", version, "MIT OR Apache-2.0"))
}

fn c_library() -> Result<Component> {
    let version = process::output(process::command("getconf").arg("GNU_LIBC_VERSION"))?;
    let version = version.trim().strip_prefix("glibc ").context("getconf tells no version of glibc")?;
    Ok(Component::runtime("glibc", version, "LGPL-2.1-or-later"))
}

impl Component {
    fn runtime(name: &str, version: &str, licence: &str) -> Self {
        let [name, version, licence] = [name, version, licence].map(str::to_owned);
        Self { name, version, licence, needs: BTreeSet::new() }
    }

    /// As CycloneDX has it; `kind` is application or library.
    fn to_json(&self, url: &str, kind: &str) -> Value {
        let mut json =
            json!({"type": kind, "bom-ref": url, "purl": url, "name": self.name, "version": self.version});
        if !self.licence.is_empty() {
            // Older manifests have a slash, which SPDX does not know.
            json["licenses"] = json!([{"expression": self.licence.replace('/', " OR ")}]);
        }
        json
    }
}

impl Tree {
    /// Reads lines of `2 name v1.2.3 (where it is)|licence`; one whose dependencies were told before ends with `(*)`.
    fn read(text: &str) -> Result<Self> {
        let mut tree = Self::default();
        let mut above: Vec<String> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let read = || format!("read `{line}` of cargo's tree");
            let (depth, rest) = line.split_once(' ').with_context(read)?;
            let depth: usize = depth.parse().with_context(read)?;
            let (package, licence) = rest.split_once('|').with_context(read)?;
            let mut words = package.split(' ');
            let name = words.next().with_context(read)?;
            let version = words.next().and_then(|word| word.strip_prefix('v')).with_context(read)?;
            let url = format!("pkg:cargo/{name}@{version}");
            let licence = licence.trim_end_matches("(*)").trim();
            tree.components.entry(url.clone()).or_insert_with(|| Component::runtime(name, version, licence));
            above.truncate(depth);
            match above.last().and_then(|parent| tree.components.get_mut(parent)) {
                Some(parent) => _ = parent.needs.insert(url.clone()),
                None => tree.root.clone_from(&url),
            }
            above.push(url);
        }
        Ok(tree)
    }

    fn to_json(&self, program: &str) -> Value {
        let root = self.components.get(&self.root).map(|component| {
            let mut json = component.to_json(&self.root, "application");
            json["hashes"] = json!([{"alg": "SHA-256", "content": program}]);
            json
        });
        let others = self.components.iter().filter(|(url, _)| **url != self.root);
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": root},
            "components": others.map(|(url, component)| component.to_json(url, "library")).collect::<Vec<_>>(),
            "dependencies": self.components.iter()
                .map(|(url, component)| json!({"ref": url, "dependsOn": component.needs}))
                .collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "0 top v0.1.0 (/somewhere/top)|Apache-2.0\n1 left v1.0.0|MIT/Apache-2.0\n2 deep v2.0.0|MIT\n\
                        1 right v1.0.0|\n2 left v1.0.0|MIT/Apache-2.0 (*)\n";

    #[test]
    fn who_needs_whom_is_read() {
        let tree = Tree::read(TREE).expect("read");
        let needs = |name: &str| {
            tree.components[&format!("pkg:cargo/{name}")].needs.iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(tree.root, "pkg:cargo/top@0.1.0");
        assert_eq!(needs("top@0.1.0"), ["pkg:cargo/left@1.0.0", "pkg:cargo/right@1.0.0"]);
        assert_eq!(needs("left@1.0.0"), ["pkg:cargo/deep@2.0.0"]);
        assert_eq!(needs("right@1.0.0"), ["pkg:cargo/left@1.0.0"]);
        assert!(Tree::read("0 top without a version|MIT").is_err());
    }

    #[test]
    fn a_place_is_not_told_and_a_licence_is_an_expression() {
        let json = Tree::read(TREE).expect("read").to_json("abc");
        assert!(!json.to_string().contains("somewhere"));
        assert_eq!(json["metadata"]["component"]["hashes"][0]["content"], "abc");
        let licences: Vec<_> =
            json["components"].as_array().expect("components").iter().map(|c| &c["licenses"]).collect();
        assert_eq!(
            licences,
            [&json!([{"expression": "MIT"}]), &json!([{"expression": "MIT OR Apache-2.0"}]), &Value::Null]
        );
    }
}
