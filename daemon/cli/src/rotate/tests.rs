//! Two people at once.

use std::{collections::BTreeMap, fs, path::Path};

use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    names,
};
use kubeveil_core::{
    agent::Agent,
    control::Refusal,
    policy::{census::Census, services::Services},
};
use kubeveil_keys::{Generation, PrivateKey};
use kubeveil_manifests::FolderControl;

use super::*;

const MESH: &str = "apiVersion: kubeveil.io/v1alpha1\nkind: EncryptionMesh\nmetadata: {name: default}\nspec:\n  mode: require\n  podCIDRs: [10.244.0.0/16]\n  keyGeneration: 1\n";

/// A mesh and a node that has a key of its generation.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("mesh.yaml"), MESH).expect("written");
    let key = PrivateKey::generate().expect("randomness");
    let entry = GenerationEntry {
        generation: Generation::new(1),
        public_key: key.public(),
        port: 51872.try_into().expect("a port"),
        state: GenerationState::Active,
    };
    let said = Announcement::sign("a", "uid", vec![entry], NotFlipped::nobody(), &[&key]).expect("signed");
    let annotations = BTreeMap::from([(names::ANNOUNCEMENT, said.to_json())]);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "uid": "uid", "annotations": annotations}});
    fs::write(dir.path().join("a.yaml"), node.to_string()).expect("written");
    dir
}

/// The folder as somebody sees it who is overtaken by somebody else between the look and the change.
struct Overtaken<F> {
    control: FolderControl,
    by: Option<F>,
}

impl<F: FnOnce()> Control for Overtaken<F> {
    fn name(&self) -> String {
        self.control.name()
    }
    fn look(&mut self) -> Result<Sight, Problem> {
        self.control.look()
    }
    fn census(&mut self) -> Result<Census, Problem> {
        self.control.census()
    }
    fn services(&mut self) -> Result<Services, Problem> {
        self.control.services()
    }
    fn agent(&mut self, node: &str) -> Result<Agent, Problem> {
        self.control.agent(node)
    }
    fn who(&mut self) -> Result<String, Problem> {
        self.control.who()
    }
    fn change(&mut self, seen: &Sight, patch: &serde_json::Value) -> Result<(), Refusal> {
        if let Some(by) = self.by.take() {
            by();
        }
        self.control.change(seen, patch)
    }
    fn keeps_status(&self) -> bool {
        self.control.keeps_status()
    }
}

fn desk(control: impl Control + 'static) -> Desk {
    Desk { control: Box::new(control), announced: Announced::default(), json: true }
}

fn rotate(reason: &str) -> Rotate {
    Rotate {
        command: None,
        reason: reason.to_owned(),
        nodes: None,
        deadline: Duration::from_secs(600),
        no_wait: true,
        compromised: None,
        source: "kubernetes".parse().expect("a source"),
        output: Output::Json,
    }
}

/// What bob is told whom somebody overtakes.
fn overtaken(dir: &Path, by: impl FnOnce() + 'static) -> String {
    let control = FolderControl::new(dir, "bob".to_owned());
    let told = deed::rotate(&mut desk(Overtaken { control, by: Some(by) }), &rotate("bob's"));
    let Err(Stop::Finding(words)) = told else { panic!("{told:?}") };
    words
}

#[test]
fn who_comes_second_is_told_of_the_first() {
    let dir = folder();
    let path = dir.path().to_owned();
    let told = overtaken(dir.path(), move || {
        let mut alice = desk(FolderControl::new(&path, "alice".to_owned()));
        deed::rotate(&mut alice, &rotate("quarterly")).expect("asked for");
    });
    assert!(told.starts_with("alice has asked for generation 2 meanwhile at 2"), "{told}");
    assert!(
        told.contains(": quarterly. Nothing was changed by you; look at `kubeveil rotate status`"),
        "{told}"
    );
    let text = fs::read_to_string(dir.path().join("mesh.yaml")).expect("there");
    assert!(text.contains("keyGeneration: 2") && !text.contains("bob"), "{text}");
}

#[test]
fn so_is_who_meets_with_another_deed() {
    let dir = folder();
    let path = dir.path().to_owned();
    let told = overtaken(dir.path(), move || {
        deed::pause(&mut desk(FolderControl::new(&path, "alice".to_owned())), true).expect("paused");
    });
    assert!(
        told.starts_with("alice has done something else to the keys meanwhile: paused, generation 1, at 2"),
        "{told}"
    );
    // Nobody asked for anything: somebody edits the mesh.
    let dir = folder();
    let mesh = dir.path().join("mesh.yaml");
    let told =
        overtaken(dir.path(), move || fs::write(mesh, MESH.replace("require", "prefer")).expect("written"));
    assert!(told.starts_with("somebody else has changed EncryptionMesh default meanwhile"), "{told}");
}
