//! The folder as a person's command sees it, and the mesh's file as it changes it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use kubeveil_api::{mesh::EncryptionMesh, names, problem::readable, veil_node::VeilNode};
use kubeveil_core::{
    agent::{Agent, Life},
    control::{Control, Refusal, Sight},
    policy::{census::Census, services::Services},
    problem::{Problem, ProblemKind},
};
use serde::Deserialize as _;
use serde_json::Value;

use crate::{edit::edited, folder, index::Index, parse, yaml};

/// Commands that change the mesh wait for each other here; nobody takes it for a manifest.
const LOCK: &str = ".kubeveil.lock";

/// A folder of manifests, to be looked at and changed now and then.
pub struct FolderControl {
    path: PathBuf,
    who: String,
    index: Index,
    opened: Instant,
}

impl FolderControl {
    /// The folder `path`, where changes are on record as those of `who`.
    pub fn new(path: &Path, who: String) -> Self {
        Self { path: path.to_owned(), who, index: Index::default(), opened: Instant::now() }
    }
}

impl Control for FolderControl {
    fn name(&self) -> String {
        format!("dir:{}", self.path.display())
    }

    fn look(&mut self) -> Result<Sight, Problem> {
        let contents = folder::contents(&self.path)?;
        let (_, version, mesh) = mesh_of(&self.path, &contents)?;
        let state = self.index.update(Ok(contents), self.opened.elapsed());
        Ok(Sight { mesh, version, nodes: state.knowledge.snapshot().nodes.clone() })
    }

    fn census(&mut self) -> Result<Census, Problem> {
        let state = self.index.update(Ok(folder::contents(&self.path)?), self.opened.elapsed());
        if state.knowledge.synced().is_none()
            && let Some(problem) = state.problems.into_iter().next()
        {
            return Err(problem);
        }
        let snapshot = state.knowledge.snapshot();
        let mesh = snapshot.mesh.clone().ok_or_else(|| missing(&self.path))?;
        Ok(Census {
            mesh,
            policies: snapshot.policies.clone(),
            namespaces: snapshot.workloads.namespaces.clone(),
            ending: snapshot.ending.clone(),
            pods: self.index.residents(),
            nodes: snapshot.nodes.clone(),
            told: None,
        })
    }

    /// Nothing of the daemons' hangs on these, so what can't be read as one is none.
    fn services(&mut self) -> Result<Services, Problem> {
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for text in folder::contents(&self.path)?.into_values().flatten() {
            for value in yaml::documents(&text).unwrap_or_default() {
                let items = value["items"].as_array().cloned();
                for object in items.unwrap_or_else(|| vec![value]) {
                    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
                        (Some("v1"), Some("Service")) => services.extend(serde_json::from_value(object)),
                        (Some("discovery.k8s.io/v1"), Some("EndpointSlice")) => {
                            slices.extend(serde_json::from_value(object));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(Services::new(services, slices))
    }

    fn agent(&mut self, node: &str) -> Result<Agent, Problem> {
        let path = self.path.join(names::STATUS_DIR).join(format!("{node}.yaml"));
        let said = match folder::read(&path, folder::MAX_ANNOUNCEMENT_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|e| unread(&path, &e.to_string()))?),
        };
        let said = said.map(|text| yaml::read::<VeilNode>(&text)).transpose();
        let said = said.map_err(|why| unread(&path, &why))?;
        Ok(Agent { life: Life::Unknown, said: said.and_then(|said| said.status) })
    }

    fn who(&mut self) -> Result<String, Problem> {
        Ok(self.who.clone())
    }

    fn change(&mut self, seen: &Sight, patch: &Value) -> Result<(), Refusal> {
        let lock = self.path.join(LOCK);
        let lock = fs::File::create(&lock).and_then(|file| file.lock().map(|()| file));
        // Until it is written, and no longer.
        let _lock = lock.map_err(|e| unwritable(&self.path.join(LOCK), &e))?;
        let (file, text, _) = mesh_of(&self.path, &folder::contents(&self.path)?)?;
        if text != seen.version {
            return Err(Refusal::Changed);
        }
        let path = self.path.join(&file);
        let text = edited(&text, patch).map_err(|why| not_edited(&path, why))?;
        // What the daemons would not take is not written.
        parse::parse(&file, &text).map_err(Refusal::Refused)?;
        Ok(folder::write(&path, &text).map_err(|e| unwritable(&path, &e))?)
    }

    fn keeps_status(&self) -> bool {
        true
    }
}

/// The file that holds the mesh alone, its text, and the mesh.
fn mesh_of(
    dir: &Path,
    contents: &BTreeMap<String, Result<String, String>>,
) -> Result<(String, String, EncryptionMesh), Problem> {
    for (file, text) in contents {
        let Ok(text) = text else { continue };
        // Thousands of Nodes need not be read for that.
        if !text.contains("EncryptionMesh") || parse::parse(file, text).is_err() {
            continue;
        }
        let objects = yaml::documents(text).unwrap_or_default();
        let is_mesh = |object: &Value| object["kind"] == "EncryptionMesh";
        let has_one = objects.iter().any(|object| {
            is_mesh(object) || object["items"].as_array().is_some_and(|items| items.iter().any(is_mesh))
        });
        if !has_one {
            continue;
        }
        let [object] = &objects[..] else { return Err(not_alone(&dir.join(file))) };
        let read = EncryptionMesh::deserialize(object);
        return match read {
            Ok(mesh) => Ok((file.clone(), text.clone(), mesh)),
            Err(_) => Err(not_alone(&dir.join(file))),
        };
    }
    // A file of it that can't be read says why.
    let broken = contents.iter().filter_map(|(file, text)| {
        let text = text.as_ref().ok().filter(|text| text.contains("EncryptionMesh"))?;
        parse::parse(file, text).err()
    });
    Err(broken.into_iter().next().unwrap_or_else(|| missing(dir)))
}

fn missing(dir: &Path) -> Problem {
    Problem {
        kind: ProblemKind::Missing,
        object: format!("folder {}", dir.display()),
        field: String::new(),
        message: format!("no file in it holds EncryptionMesh {}", names::MESH),
        advice: "Name the folder that the daemons read (--source dir:PATH), or create the mesh".to_owned(),
    }
}

fn not_alone(path: &Path) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: format!("file {}", path.display()),
        field: String::new(),
        message: format!("holds other objects beside EncryptionMesh {}", names::MESH),
        advice: "Give the mesh a file of its own: a command that changes it leaves others' objects alone"
            .to_owned(),
    }
}

fn unread(path: &Path, why: &str) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: format!("file {}", path.display()),
        field: String::new(),
        message: format!("can't be read: {}", readable(why)),
        advice: "The daemon of that node writes it: does it run there, on this folder?".to_owned(),
    }
}

fn not_edited(path: &Path, why: String) -> Problem {
    Problem {
        message: format!("can't be changed: {}", readable(&why)),
        ..unwritable(path, &io::Error::other(""))
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: format!("file {}", path.display()),
        field: String::new(),
        message: format!("can't be written: {error}"),
        advice: "Run the command as somebody who may write there, and make room on the disk".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MESH: &str = "# Ours.
apiVersion: kubeveil.io/v1alpha1
kind: EncryptionMesh
metadata: {name: default}
spec:
  mode: require   # always
  podCIDRs: [10.244.0.0/16]
  keyGeneration: 3
";

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, FolderControl) {
        let dir = tempfile::tempdir().expect("temp dir");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("written");
        }
        let control = FolderControl::new(dir.path(), "alice".to_owned());
        (dir, control)
    }

    #[test]
    fn the_mesh_is_changed_where_it_stands() {
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a, uid: u}\n";
        let (dir, mut control) = folder(&[("a.yaml", node), ("mesh.yaml", MESH)]);
        let seen = control.look().expect("seen");
        assert_eq!((seen.mesh.spec.key_generation, seen.nodes.len()), (3, 1));
        let patch = json!({"spec": {"keyGeneration": 4, "rotation": {"reason": "audit"}}});
        control.change(&seen, &patch).expect("changed");
        let text = fs::read_to_string(dir.path().join("mesh.yaml")).expect("there");
        assert!(text.contains("# Ours.") && text.contains("require   # always"), "{text}");
        let after = control.look().expect("seen").mesh.spec;
        assert_eq!((after.key_generation, after.rotation.expect("asked").reason.as_str()), (4, "audit"));
        // Who has seen another one changes nothing.
        assert_eq!(control.change(&seen, &patch), Err(Refusal::Changed));
        // Nor does anybody write what daemons would refuse.
        let seen = control.look().expect("seen");
        let refused = control.change(&seen, &json!({"spec": {"mode": "on"}})).expect_err("no mode");
        assert!(
            matches!(&refused, Refusal::Refused(_)) && refused.to_string().contains("spec.mode"),
            "{refused}"
        );
        assert_eq!(control.look().expect("seen").version, seen.version);
    }

    #[test]
    fn what_is_wrong_is_told_with_the_file() {
        let told = |files: &[(&str, &str)]| folder(files).1.look().expect_err("refused").to_string();
        assert!(told(&[]).contains("no file in it holds EncryptionMesh default"));
        let both = format!("{MESH}---\napiVersion: v1\nkind: Node\nmetadata: {{name: a, uid: u}}\n");
        assert!(told(&[("all.yaml", &both)]).contains("all.yaml: holds other objects"));
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: kubeveil.io/v1alpha1, kind: EncryptionMesh, metadata: {name: default}, spec: {mode: require, podCIDRs: [10.0.0.0/8]}}\n";
        assert!(told(&[("list.yaml", list)]).contains("list.yaml: holds other objects"));
        let broken = MESH.replace("require", "on");
        assert!(told(&[("mesh.yaml", &broken)]).contains("spec.mode"));
    }
}
