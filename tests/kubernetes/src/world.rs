//! What is done to a cluster, whatever keeps it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kubeveil_api::names;
use kubeveil_core::{
    control::Control,
    source::{Source, SourceState},
};
use kubeveil_manifests::{Folder, FolderControl};
use serde_json::{Value, json};

/// Within which what was done is seen: far more than any source needs, so that only what never comes fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Something that keeps a cluster, and what people and others do to it.
pub trait World {
    /// A Node, made or changed; it keeps its announcement.
    fn put_node(&mut self, name: &str, pod_cidrs: &[&str], addresses: &[&str]) -> Result<()>;
    /// It announces this, or nothing any more.
    fn annotate(&mut self, name: &str, said: Option<&str>) -> Result<()>;
    /// It is gone.
    fn delete_node(&mut self, name: &str) -> Result<()>;
    /// The mesh, with this `spec`.
    fn put_mesh(&mut self, spec: &Value) -> Result<()>;
    /// It is gone.
    fn delete_mesh(&mut self) -> Result<()>;
    /// Any other object, as `kubectl` prints it: made, or what it was is no more.
    fn put_object(&mut self, object: &Value) -> Result<()>;
    /// It is gone.
    fn delete_object(&mut self, object: &Value) -> Result<()>;
    /// What others see that it announces.
    fn announced(&self, name: &str) -> Result<Option<String>>;
    /// As a person's command sees it.
    fn control(&self) -> Result<Box<dyn Control>>;
    /// A daemon on `own` looks at it.
    fn open(&self, own: &str) -> Result<Watching>;
}

/// A source, and what it woke.
pub struct Watching {
    /// The source.
    pub source: Box<dyn Source>,
    /// A word for each time that it woke us.
    pub woken: Receiver<()>,
}

impl Watching {
    /// Over `open`, which is given what to call.
    pub fn new<S: Source + 'static>(open: impl FnOnce(Box<dyn Fn() + Send + Sync>) -> S) -> Self {
        let (wake, woken) = mpsc::channel();
        let source = open(Box::new(move || {
            wake.send(()).ok();
        }));
        Self { source: Box::new(source), woken }
    }

    /// What it says now.
    pub fn read(&mut self) -> SourceState {
        self.source.read(now())
    }

    /// What `node` announces.
    pub fn read_announcement(&mut self, node: &str) -> Option<String> {
        self.read().knowledge.snapshot().nodes.get(node)?.announcement.clone()
    }

    /// Reads whenever it wakes us or wants to be read, until it says what is wanted; panics if it never does.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&SourceState) -> bool) -> SourceState {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.read();
            if is_so(&state) {
                return state;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {what}: {state:#?}");
            // What is wrong wakes nobody, so it is looked for.
            let wait = state.look_again.unwrap_or(Duration::from_millis(100)).min(left);
            self.woken.recv_timeout(wait).ok();
            while self.woken.try_recv().is_ok() {}
        }
    }
}

/// Time since the start of the test, as a daemon's monotonic clock.
fn now() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Waits until `is_so`; panics if it never is.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder of manifests.
pub struct InFolder {
    dir: PathBuf,
    nodes: BTreeMap<String, Value>,
    /// Nodes that ever were: each has a UID of its own.
    born: u32,
}

impl InFolder {
    /// In `dir`, which is empty.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), nodes: BTreeMap::new(), born: 0 }
    }

    fn write(&self, file: &str, object: &Value) -> Result<()> {
        // By rename, so that nobody reads half of it.
        let path = self.dir.join(file);
        let new = path.with_file_name(".new");
        fs::write(&new, serde_saphyr::to_string(object)?)?;
        Ok(fs::rename(new, path)?)
    }
}

impl World for InFolder {
    fn put_node(&mut self, name: &str, pod_cidrs: &[&str], addresses: &[&str]) -> Result<()> {
        let object = self.nodes.entry(name.to_owned()).or_insert_with(|| {
            self.born += 1;
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("uid-{}", self.born)}})
        });
        object["spec"] = json!({"podCIDRs": pod_cidrs});
        object["status"] = addresses_of(addresses);
        let object = object.clone();
        self.write(&format!("{name}.yaml"), &object)
    }

    fn annotate(&mut self, name: &str, said: Option<&str>) -> Result<()> {
        let file = format!("{}/{name}.yaml", names::ANNOUNCEMENTS_DIR);
        let Some(said) = said else { return Ok(fs::remove_file(self.dir.join(file))?) };
        let mut object = self.nodes.get(name).with_context(|| format!("no {name}"))?.clone();
        object["metadata"]["annotations"] = json!({names::ANNOUNCEMENT: said});
        fs::create_dir_all(self.dir.join(names::ANNOUNCEMENTS_DIR))?;
        self.write(&file, &object)
    }

    fn delete_node(&mut self, name: &str) -> Result<()> {
        self.nodes.remove(name);
        Ok(fs::remove_file(self.dir.join(format!("{name}.yaml")))?)
    }

    fn put_mesh(&mut self, spec: &Value) -> Result<()> {
        let object = json!({
            "apiVersion": names::API_VERSION, "kind": "EncryptionMesh",
            "metadata": {"name": names::MESH}, "spec": spec,
        });
        self.write("mesh.yaml", &object)
    }

    fn delete_mesh(&mut self) -> Result<()> {
        Ok(fs::remove_file(self.dir.join("mesh.yaml"))?)
    }

    fn put_object(&mut self, object: &Value) -> Result<()> {
        self.write(&file_of(object), object)
    }

    fn delete_object(&mut self, object: &Value) -> Result<()> {
        Ok(fs::remove_file(self.dir.join(file_of(object)))?)
    }

    fn announced(&self, name: &str) -> Result<Option<String>> {
        let file = self.dir.join(names::ANNOUNCEMENTS_DIR).join(format!("{name}.yaml"));
        if !file.exists() {
            return Ok(None);
        }
        Ok(annotation(&serde_saphyr::from_str(&fs::read_to_string(file)?)?))
    }

    fn control(&self) -> Result<Box<dyn Control>> {
        Ok(Box::new(FolderControl::new(&self.dir, "alice".to_owned())))
    }

    fn open(&self, _: &str) -> Result<Watching> {
        Ok(Watching::new(|wake| Folder::open(&self.dir, wake)))
    }
}

fn file_of(object: &Value) -> String {
    let part = |field: &Value| field.as_str().unwrap_or_default().to_lowercase();
    let metadata = &object["metadata"];
    format!("{}-{}-{}.yaml", part(&object["kind"]), part(&metadata["namespace"]), part(&metadata["name"]))
}

/// `status` of a Node with these addresses.
pub(crate) fn addresses_of(addresses: &[&str]) -> Value {
    let entries = addresses.iter().map(|address| json!({"type": "InternalIP", "address": address}));
    json!({"addresses": entries.collect::<Vec<_>>()})
}

/// Its announcement.
pub(crate) fn annotation(node: &Value) -> Option<String> {
    node["metadata"]["annotations"][names::ANNOUNCEMENT].as_str().map(str::to_owned)
}
