//! What is asked of a folder: by two people at once, and what comes of it.

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
    node(dir.path(), "a", &[1], NotFlipped::nobody());
    dir
}

/// A node with keys of these generations, that has not moved to some.
fn node(dir: &Path, name: &str, generations: &[u32], not_flipped: NotFlipped) {
    let keys: Vec<PrivateKey> =
        generations.iter().map(|_| PrivateKey::generate().expect("randomness")).collect();
    let newest = generations.last();
    let entry = |(number, key): (&u32, &PrivateKey)| GenerationEntry {
        generation: Generation::new(*number),
        public_key: key.public(),
        port: Generation::new(*number).port(51871).and_then(|port| port.try_into().ok()).expect("a port"),
        state: if Some(number) == newest { GenerationState::Active } else { GenerationState::Retiring },
    };
    let entries = generations.iter().zip(&keys).map(entry).collect();
    let keys: Vec<&PrivateKey> = keys.iter().collect();
    let said = Announcement::sign(name, "uid", entries, not_flipped, &keys).expect("signed");
    writes(dir, name, &said.to_json());
}

/// A node that announces this.
fn writes(dir: &Path, name: &str, said: &str) {
    let annotations = BTreeMap::from([(names::ANNOUNCEMENT, said)]);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": "uid", "annotations": annotations}});
    fs::write(dir.join(format!("{name}.yaml")), node.to_string()).expect("written");
}

/// What the mesh's file says now.
fn mesh(dir: &Path) -> String {
    fs::read_to_string(dir.join("mesh.yaml")).expect("there")
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
        keys: Vec::new(),
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

/// Nobody looked at one that ended meanwhile: it is done on record, and not taken for one that was given up for the next.
#[test]
fn one_that_is_done_is_done_on_record_before_the_next() {
    let dir = folder();
    let status =
        "status:\n  rotations:\n  - {generation: 1, startedAt: \"2026-01-31T12:00:00Z\", result: running}\n";
    fs::write(dir.path().join("mesh.yaml"), format!("{MESH}{status}")).expect("written");
    deed::rotate(&mut desk(FolderControl::new(dir.path(), "alice".to_owned())), &rotate(""))
        .expect("asked for");
    let mesh = mesh(dir.path());
    let results: Vec<&str> = mesh.lines().filter_map(|line| line.trim().strip_prefix("result: ")).collect();
    assert_eq!(results, ["done", "running"], "{mesh}");
}

/// Two nodes that have not moved to each other keep their old keys for that: by force they lose each other, and whoever forces it is told.
#[test]
fn who_would_lose_each_other_by_force_is_named() {
    let dir = folder();
    for (name, other) in [("a", "b"), ("b", "a")] {
        node(dir.path(), name, &[0, 1], NotFlipped::of([other.to_owned()]));
    }
    let path = dir.path().to_owned();
    let both_give_up =
        move || ["a", "b"].iter().for_each(|name| node(&path, name, &[1], NotFlipped::nobody()));
    let control = FolderControl::new(dir.path(), "alice".to_owned());
    let mut desk = desk(Overtaken { control, by: Some(both_give_up) });
    let end = deed::finish(&mut desk, true, Duration::from_secs(60)).expect("forced");
    assert_eq!(end, End::Stragglers);
    assert!(mesh(dir.path()).contains("retireBefore: 1"));
}

/// By force some would give their old keys up, and a pause keeps others from making new ones.
#[test]
fn nothing_is_forced_while_all_wait() {
    let dir = folder();
    node(dir.path(), "b", &[0], NotFlipped::nobody());
    let mut desk = desk(FolderControl::new(dir.path(), "alice".to_owned()));
    deed::pause(&mut desk, true).expect("paused");
    let told = deed::finish(&mut desk, true, Duration::ZERO);
    let Err(Stop::Finding(words)) = told else { panic!("{told:?}") };
    assert!(words.contains("rotation is paused: `kubeveil rotate resume` first"), "{words}");
    assert!(!mesh(dir.path()).contains("retireBefore"));
}

/// Whoever has a node's credential can write its annotation, so a key can be named beside it.
#[test]
fn a_key_is_revoked_whatever_its_node_announces() {
    let dir = folder();
    writes(dir.path(), "b", "nothing of sense");
    let mut desk = desk(FolderControl::new(dir.path(), "alice".to_owned()));
    let of_b = Rotate { compromised: Some("b".to_owned()), ..rotate("stolen") };
    let told = deed::rotate(&mut desk, &of_b);
    let Err(Stop::Usage(words)) = told else { panic!("{told:?}") };
    assert!(words.contains("name it with --key"), "{words}");
    let stolen = PrivateKey::generate().expect("randomness").public();
    deed::rotate(&mut desk, &Rotate { keys: vec![stolen], ..of_b }).expect("revoked");
    assert!(mesh(dir.path()).contains(&stolen.to_string()));
}
