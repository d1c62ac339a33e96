//! Who may depend on whom (ARCHITECTURE.md draws it).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Check;
use crate::{process, workspace::Workspace};

/// For each package of ours, the packages of ours that it may depend on (development
/// dependencies apart). A package that is not in the table is a finding: it has to find its place.
const ALLOWED: &[(&str, &[&str])] = &[
    ("kubeveil-abi", &[]),
    ("kubeveil-verdict", &["kubeveil-abi"]),
    ("kubeveil-programs", &["kubeveil-abi", "kubeveil-verdict"]),
    ("kubeveil-keys", &[]),
    ("kubeveil-api", &["kubeveil-keys"]),
    ("kubeveil-core", &["kubeveil-abi", "kubeveil-api", "kubeveil-keys"]),
    ("kubeveil-manifests", &["kubeveil-api", "kubeveil-core", "kubeveil-keys"]),
    ("kubeveil-kubernetes", &["kubeveil-api", "kubeveil-core", "kubeveil-keys"]),
    ("kubeveil-linux", &["kubeveil-abi", "kubeveil-api", "kubeveil-core", "kubeveil-keys"]),
    ("kubeveil-agent", AGENT),
    ("kubeveil-controller", &["kubeveil-api", "kubeveil-core", "kubeveil-keys", "kubeveil-kubernetes"]),
    ("kubeveil-check", &["kubeveil-api", "kubeveil-core", "kubeveil-kubernetes"]),
    ("kubeveil-cli", CLI),
    ("kubeveil-tests", LIBRARIES),
    ("kubeveil-tests-bpf", LIBRARIES),
    ("kubeveil-tests-kubernetes", KUBERNETES),
    ("kubeveil-tests-bench", BENCH),
    ("kubeveil-tests-simulation", SIMULATION),
    ("xtask", &[]),
];

/// For those who put the parts together or test them: every library.
const LIBRARIES: &[&str] = &[
    "kubeveil-abi",
    "kubeveil-api",
    "kubeveil-core",
    "kubeveil-keys",
    "kubeveil-kubernetes",
    "kubeveil-linux",
    "kubeveil-manifests",
    "kubeveil-verdict",
];

/// What is decided, and nothing that does it.
const SIMULATION: &[&str] =
    &["kubeveil-abi", "kubeveil-api", "kubeveil-core", "kubeveil-keys", "kubeveil-verdict"];

/// A command sees the cluster where the daemons do, and has nothing to do with a kernel.
const CLI: &[&str] = &[
    "kubeveil-api",
    "kubeveil-check",
    "kubeveil-core",
    "kubeveil-keys",
    "kubeveil-kubernetes",
    "kubeveil-manifests",
];

/// One program is the daemon, the controller and the command for people.
const AGENT: &[&str] = &[
    "kubeveil-abi",
    "kubeveil-api",
    "kubeveil-cli",
    "kubeveil-controller",
    "kubeveil-core",
    "kubeveil-keys",
    "kubeveil-kubernetes",
    "kubeveil-linux",
    "kubeveil-manifests",
];

/// The controller, and all that it has to do with.
const KUBERNETES: &[&str] = &[
    "kubeveil-api",
    "kubeveil-check",
    "kubeveil-controller",
    "kubeveil-core",
    "kubeveil-keys",
    "kubeveil-kubernetes",
    "kubeveil-linux",
    "kubeveil-manifests",
];

/// Benches drive the daemon's own way round, and what the programs are tested with.
const BENCH: &[&str] = &[
    "kubeveil-abi",
    "kubeveil-agent",
    "kubeveil-api",
    "kubeveil-controller",
    "kubeveil-core",
    "kubeveil-keys",
    "kubeveil-kubernetes",
    "kubeveil-linux",
    "kubeveil-manifests",
    "kubeveil-tests-bpf",
    "kubeveil-tests-kubernetes",
    "kubeveil-verdict",
];

/// Packages that decide and never act, and what would let them act, however deep it lies.
const PURE: &[&str] = &["kubeveil-abi", "kubeveil-verdict", "kubeveil-keys", "kubeveil-api", "kubeveil-core"];
const EFFECTS: &[&str] = &["tokio", "kube", "aya", "rtnetlink", "wireguard-control"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Option<Resolve>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

const DEVELOPMENT: &str = "dev";

/// The two rules, over the workspace and the eBPF programs.
pub(super) fn checks(workspace: &Workspace) -> Result<Vec<Check>> {
    let of_workspace = read(&workspace.root.join("Cargo.toml"))?;
    let programs = workspace.root.join("ebpf/programs/Cargo.toml");
    let of_programs = programs.exists().then(|| read(&programs)).transpose()?;
    let mut findings = direct(&of_workspace);
    findings.extend(of_programs.iter().flat_map(direct));
    Ok(vec![Check::new("dependencies", findings), Check::new("purity", purity(&of_workspace))])
}

fn read(manifest: &std::path::Path) -> Result<Metadata> {
    let mut cargo = process::cargo();
    cargo.args(["metadata", "--format-version=1", "--manifest-path"]).arg(manifest);
    serde_json::from_str(&process::output(&mut cargo)?).context("read cargo's metadata")
}

/// Dependencies of ours on ours that the table does not allow.
fn direct(metadata: &Metadata) -> Vec<String> {
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let mut findings = Vec::new();
    for package in metadata.packages.iter().filter(|p| metadata.workspace_members.contains(&p.id)) {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!(
                "{} has no place in the table of xtask/src/lint/dependencies.rs",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind.as_deref() != Some(DEVELOPMENT)) {
            let name = dependency.name.as_str();
            if ours.contains(name) && !allowed.contains(&name) {
                findings.push(format!("{} depends on {name}, and may not", package.name));
            }
        }
    }
    findings
}

/// Pure packages that could act, with the path by which they got the means.
fn purity(metadata: &Metadata) -> Vec<String> {
    let names: BTreeMap<&str, &str> =
        metadata.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
    let nodes = metadata.resolve.iter().flat_map(|r| &r.nodes).map(|n| (n.id.as_str(), n));
    let nodes: BTreeMap<&str, &Node> = nodes.collect();
    let mut findings = Vec::new();
    for package in metadata.packages.iter().filter(|p| PURE.contains(&p.name.as_str())) {
        let mut seen = BTreeSet::from([package.id.as_str()]);
        let mut waiting = vec![(package.id.as_str(), package.name.clone())];
        while let Some((id, path)) = waiting.pop() {
            let edges = nodes.get(id).map_or(&[][..], |n| &n.deps);
            for edge in edges.iter().filter(|e| e.is_of_program()) {
                let name = names.get(edge.pkg.as_str()).copied().unwrap_or(&edge.pkg);
                let path = format!("{path} -> {name}");
                if EFFECTS.contains(&name) {
                    findings.push(format!("{} is to be pure, and has {name}: {path}", package.name));
                } else if seen.insert(&edge.pkg) {
                    waiting.push((&edge.pkg, path));
                }
            }
        }
    }
    findings
}

impl Edge {
    /// Whether it is there when the program runs: neither for tests nor for building.
    fn is_of_program(&self) -> bool {
        self.dep_kinds.iter().any(|k| k.kind.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packages with their dependencies, as `name -> name` or `name -dev> name`; all members.
    fn metadata(edges: &[(&str, Option<&str>, &str)]) -> Metadata {
        let names: BTreeSet<&str> = edges.iter().flat_map(|(from, _, to)| [*from, *to]).collect();
        let of =
            |name: &str| edges.iter().filter(move |(from, _, _)| *from == name).copied().collect::<Vec<_>>();
        let owned = |kind: Option<&str>| kind.map(str::to_owned);
        let package = |name: &&str| Package {
            id: (*name).to_owned(),
            name: (*name).to_owned(),
            dependencies: of(name)
                .iter()
                .map(|(_, k, to)| Dependency { name: (*to).into(), kind: owned(*k) })
                .collect(),
        };
        let edge = |(_, kind, to): &(&str, Option<&str>, &str)| Edge {
            pkg: (*to).into(),
            dep_kinds: vec![EdgeKind { kind: owned(*kind) }],
        };
        let node = |name: &&str| Node { id: (*name).into(), deps: of(name).iter().map(edge).collect() };
        Metadata {
            packages: names.iter().map(package).collect(),
            workspace_members: names
                .iter()
                .filter(|n| n.starts_with("kubeveil") || **n == "xtask")
                .map(|n| (*n).into())
                .collect(),
            resolve: Some(Resolve { nodes: names.iter().map(node).collect() }),
        }
    }

    #[test]
    fn what_the_table_allows_passes() {
        let edges = [
            ("kubeveil-verdict", None, "kubeveil-abi"),
            ("kubeveil-agent", None, "kubeveil-linux"),
            ("kubeveil-linux", Some(DEVELOPMENT), "kubeveil-manifests"),
        ];
        assert_eq!(direct(&metadata(&edges)), [""; 0]);
    }

    #[test]
    fn a_forbidden_dependency_is_found() {
        for (from, to) in [
            ("kubeveil-linux", "kubeveil-manifests"),
            ("kubeveil-manifests", "kubeveil-linux"),
            ("kubeveil-kubernetes", "kubeveil-manifests"),
            ("kubeveil-linux", "kubeveil-kubernetes"),
            ("kubeveil-cli", "kubeveil-linux"),
            ("kubeveil-cli", "kubeveil-agent"),
            ("kubeveil-keys", "kubeveil-abi"),
            ("kubeveil-abi", "kubeveil-verdict"),
            ("kubeveil-programs", "kubeveil-core"),
            ("xtask", "kubeveil-core"),
        ] {
            let found = direct(&metadata(&[(from, None, to)]));
            assert_eq!(found, [format!("{from} depends on {to}, and may not")]);
        }
    }

    #[test]
    fn a_build_dependency_counts() {
        assert_eq!(direct(&metadata(&[("kubeveil-keys", Some("build"), "kubeveil-abi")])).len(), 1);
    }

    #[test]
    fn a_package_without_a_place_is_found() {
        let found = direct(&metadata(&[("kubeveil-new", None, "serde")]));
        assert!(found.len() == 1 && found[0].starts_with("kubeveil-new has no place"), "{found:?}");
    }

    #[test]
    fn means_to_act_are_found_however_deep() {
        let edges = [("kubeveil-core", None, "ipnet"), ("ipnet", None, "helper"), ("helper", None, "tokio")];
        let found = purity(&metadata(&edges));
        assert_eq!(
            found,
            ["kubeveil-core is to be pure, and has tokio: kubeveil-core -> ipnet -> helper -> tokio"]
        );
    }

    #[test]
    fn tests_of_a_pure_package_may_act() {
        assert_eq!(purity(&metadata(&[("kubeveil-core", Some(DEVELOPMENT), "tokio")])), [""; 0]);
        assert_eq!(purity(&metadata(&[("kubeveil-agent", None, "tokio")])), [""; 0]);
    }
}
