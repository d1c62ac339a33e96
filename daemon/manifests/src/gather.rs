//! Files and folders that somebody names, read once and apart from any cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kubeveil_api::{
    mesh::{MeshSpec, Mode},
    names,
    policy_test::PolicyTest,
    selector::Labels,
};
use kubeveil_core::{
    policy::{
        Policies, Policy, PolicyId,
        census::{Census, PodId, Resident},
    },
    problem::{Problem, ProblemKind},
    snapshot::NodeFacts,
};

use crate::{
    folder::{MAX_BYTES, is_manifest, read},
    parse::{Object, parse, problem},
};

const ADVICE: &str = "Correct the file";

/// What they hold.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The mesh's settings, and the file.
    mesh: Option<(MeshSpec, String)>,
    /// Policies by name, with the file.
    policies: BTreeMap<PolicyId, (Policy, String)>,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<PodId, Resident>,
    nodes: BTreeMap<String, Arc<NodeFacts>>,
    /// What people expect, with the file.
    pub tests: Vec<(String, PolicyTest)>,
}

/// Reads `paths`, files or folders of them; of a folder what is named as a manifest, and what lies in folders of it.
pub fn gather(paths: &[PathBuf]) -> Result<Gathered, Problem> {
    let mut gathered = Gathered::default();
    for path in paths {
        let mut files = Vec::new();
        files_of(path, &mut files).map_err(|e| unreadable(path, &e))?;
        if files.is_empty() {
            return Err(unreadable(path, &io::Error::other("no file in it ends in .yaml, .yml or .json")));
        }
        for file in files {
            let name = file.display().to_string();
            let text = read(&file, MAX_BYTES).map_err(|e| unreadable(&file, &e))?;
            for object in parse(&name, &text).map_err(advised)? {
                gathered.take(&name, object)?;
            }
        }
    }
    Ok(gathered)
}

fn advised(problem: Problem) -> Problem {
    Problem { advice: ADVICE.to_owned(), ..problem }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: format!("file {}", path.display()),
        field: String::new(),
        message: format!("can't be read: {error}"),
        advice: "Name files or folders of manifests, as `kubectl get -o yaml` prints them".to_owned(),
    }
}

/// In the order of their names.
fn files_of(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link to a folder could lead round.
        if entry.file_type()?.is_dir() && !name.starts_with('.') {
            files_of(&entry.path(), files)?;
        } else if is_manifest(&name) && fs::metadata(entry.path())?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn twice(file: &str, object: &str, other: &str) -> Problem {
    let message = format!("{other} has one too, which is not the same, and nobody knows which counts");
    Problem { advice: "Take it out of one of the two".to_owned(), ..problem(file, object, "", message) }
}

impl Gathered {
    fn take(&mut self, file: &str, object: Object) -> Result<(), Problem> {
        match object {
            Object::Mesh(mesh) => match &self.mesh {
                Some((spec, other)) if *spec != mesh.spec => {
                    return Err(twice(file, "EncryptionMesh default", other));
                }
                _ => self.mesh = Some((mesh.spec, file.to_owned())),
            },
            Object::Policy(id, policy) => match self.policies.get(&id) {
                Some((known, other)) if *known != *policy => return Err(twice(file, &id.to_string(), other)),
                _ => drop(self.policies.insert(id, (*policy, file.to_owned()))),
            },
            Object::Namespace(namespace) => {
                let (name, labels) = (namespace.metadata.name, namespace.metadata.labels);
                match self.namespaces.get(&name) {
                    Some(known) if *known != labels => {
                        return Err(twice(file, &format!("Namespace {name}"), "another file"));
                    }
                    _ => drop(self.namespaces.insert(name, labels)),
                }
            }
            Object::Pod(pod) => {
                let (id, resident) = Resident::read(&pod);
                self.pods.insert(id, resident);
            }
            Object::Node(node) => {
                let facts = NodeFacts {
                    uid: node.metadata.uid.clone(),
                    pod_cidrs: node.pod_cidrs(),
                    internal_ips: node.internal_ips().0,
                    ..NodeFacts::default()
                };
                self.nodes.insert(node.metadata.name, facts.into());
            }
            Object::Test(test) => self.tests.push((file.to_owned(), *test)),
        }
        Ok(())
    }

    /// The mesh's own mode, where one is among them.
    pub fn mode(&self) -> Option<Mode> {
        self.mesh.as_ref().map(|(spec, _)| spec.mode)
    }

    /// Its policies, by name.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyId, &Policy)> {
        self.policies.iter().map(|(id, (policy, _))| (id, policy))
    }

    /// As a cluster whose mesh has this mode; if not given, that of the mesh among them.
    pub fn census(&self, mode: Option<Mode>) -> Result<Census, Problem> {
        let mesh = self.mesh.as_ref().map(|(spec, _)| spec.clone());
        let mesh = match (mesh, mode) {
            (Some(mesh), None) => mesh,
            (Some(mesh), Some(mode)) => MeshSpec { mode, ..mesh },
            (None, Some(mode)) => MeshSpec::new(mode, Vec::new(), Vec::new()),
            (None, None) => return Err(no_mesh()),
        };
        Ok(Census {
            mesh,
            policies: Policies::new(
                self.policies().map(|(id, policy)| (id.clone(), policy.clone())).collect(),
            ),
            namespaces: self.namespaces.clone(),
            ending: BTreeSet::new(),
            pods: self.pods.clone(),
            nodes: self.nodes.clone(),
            told: None,
        })
    }
}

fn no_mesh() -> Problem {
    Problem {
        kind: ProblemKind::Missing,
        object: format!("EncryptionMesh {}", names::MESH),
        field: "spec.mode".to_owned(),
        message: "is not among the files, and it decides where no policy does".to_owned(),
        advice: "Add it to the files; `kubeveil policy test` also takes --mesh-mode".to_owned(),
    }
}
