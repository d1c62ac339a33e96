//! Reading and watching the folder.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kubeveil_api::{
    condition::keep_transitions,
    names,
    node::Node,
    object::{Metadata, TypeMeta},
    veil_node::{VeilNode, VeilNodeStatus},
};
use kubeveil_core::{
    problem::{Problem, ProblemKind},
    source::{Changes, Source, SourceState},
};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use serde::Serialize;

use crate::{
    index::{Content, Index},
    touched::Touched,
    yaml,
};

/// Largest file that is read: 5,000 Nodes as `kubectl` prints them are some 50 MB.
pub(crate) const MAX_BYTES: u64 = 256 << 20;
/// The same of an announcement, which other nodes write: a Node with one annotation of at most 8 KiB. It also bounds
/// the time that a hostile one takes to be read.
pub(crate) const MAX_ANNOUNCEMENT_BYTES: u64 = 64 << 10;

/// A folder of manifests.
pub struct Folder {
    path: PathBuf,
    index: Index,
    wake: Wake,
    /// What has changed since it was read.
    touched: Arc<Mutex<Touched>>,
    /// What wakes us; where it could not be had, the reason.
    watcher: Result<RecommendedWatcher, notify::Error>,
}

/// Called when something has changed.
type Wake = Arc<dyn Fn() + Send + Sync>;

impl Folder {
    /// Reads `path` and calls `wake` whenever something in it changes. Where it can't be watched (too many
    /// inotify instances on the machine) it is read all the same, whenever [`Source::read`] is called.
    pub fn open(path: &Path, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let wake: Wake = Arc::new(wake);
        let touched = Arc::new(Mutex::new(Touched::Any));
        let watcher = watch(path, wake.clone(), touched.clone());
        Self { path: path.to_owned(), index: Index::default(), wake, touched, watcher }
    }

    /// What has changed since this was called last.
    fn touched(&self) -> Touched {
        std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Every file of the folder at `path`, and of announcements in it.
pub(crate) fn contents(path: &Path) -> Result<BTreeMap<String, Content>, Problem> {
    let mut out = BTreeMap::new();
    for folder in ["", names::ANNOUNCEMENTS_DIR] {
        let (dir, most) = if folder.is_empty() {
            (path.to_owned(), MAX_BYTES)
        } else {
            (path.join(folder), MAX_ANNOUNCEMENT_BYTES)
        };
        let entries = fs::read_dir(&dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let entries = match entries {
            // Nobody has announced anything yet.
            Err(e) if !folder.is_empty() && e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        };
        for entry in entries.map_err(|e| unreadable(&dir, &e))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_manifest(&name) {
                let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                match read(&entry.path(), most) {
                    Ok(text) => out.insert(key, Ok(text)),
                    // Renamed away between the listing and now.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                    Err(e) => out.insert(key, Err(e.to_string())),
                };
            }
        }
    }
    Ok(out)
}

/// A pipe would keep us waiting for ever, and nobody's manifest is that large.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    // It may grow while it is read.
    let mut text = String::new();
    fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::other(format!("is larger than {most} bytes")));
    }
    Ok(text)
}

fn watch(path: &Path, wake: Wake, touched: Arc<Mutex<Touched>>) -> Result<RecommendedWatcher, notify::Error> {
    let announcements = path.join(names::ANNOUNCEMENTS_DIR);
    // Not `path` itself: a misspelt one must not pass for an empty cluster.
    match fs::create_dir(&announcements) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(notify::Error::io(e)),
        _ => {}
    }
    let folder = announcements.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let mut touched = touched.lock().unwrap_or_else(PoisonError::into_inner);
        if touched.note(&folder, event) {
            drop(touched);
            wake();
        }
    })?;
    for dir in [path, &announcements] {
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

fn unwatched(dir: &Path, error: &notify::Error) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: format!("folder {}", dir.display()),
        field: String::new(),
        message: format!("can't be watched: {error}"),
        advice: "Changes are found some seconds late. Does the folder exist, and may it be written to? Is \
                 fs.inotify.max_user_instances large enough?"
            .to_owned(),
    }
}

fn unreadable(dir: &Path, error: &io::Error) -> Problem {
    let (message, advice) = if error.kind() == io::ErrorKind::NotFound {
        ("does not exist".to_owned(), "Create it, or correct --source; what was known stands until then")
    } else {
        (format!("can't be read: {error}"), "Make it readable again; what was known stands until then")
    };
    Problem {
        kind: ProblemKind::Manifest,
        object: format!("folder {}", dir.display()),
        field: String::new(),
        message,
        advice: advice.to_owned(),
    }
}

/// Not what editors and renames leave lying about.
pub(crate) fn is_manifest(name: &str) -> bool {
    let known = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
    known && !name.starts_with('.')
}

impl Source for Folder {
    fn name(&self) -> String {
        format!("dir:{}", self.path.display())
    }

    fn read(&mut self, now: Duration) -> SourceState {
        if self.watcher.is_err() {
            self.watcher = watch(&self.path, self.wake.clone(), self.touched.clone());
        }
        // First, so that what changes meanwhile is read again.
        self.touched();
        let contents = contents(&self.path);
        let unwatched = self.watcher.as_ref().err().map(|e| unwatched(&self.path, e));
        // Who has no folder is told so once.
        let unwatched = unwatched.filter(|_| contents.is_ok());
        let mut state = self.index.update(contents, now);
        state.problems.extend(unwatched);
        state
    }

    fn changes(&mut self) -> Changes {
        let Touched::Announcements(files) = self.touched() else { return Changes::Any };
        if self.watcher.is_err() {
            return Changes::Any;
        }
        let mut changes = BTreeMap::new();
        for file in files {
            let content = read(&self.path.join(&file), MAX_ANNOUNCEMENT_BYTES).map_err(|e| e.to_string());
            let Some((node, announcement)) = self.index.hear(&file, content) else { return Changes::Any };
            changes.insert(node, Some(announcement));
        }
        Changes::Announcements(changes)
    }

    fn announce(&mut self, node: &str, uid: &str, announcement: Option<&str>) -> Result<(), Problem> {
        let path = self.path.join(names::ANNOUNCEMENTS_DIR).join(format!("{node}.yaml"));
        let Some(announcement) = announcement else {
            return remove(&path).map_err(|e| Problem {
                kind: ProblemKind::State,
                object: format!("file {}", path.display()),
                field: String::new(),
                message: format!("the announcement can't be removed: {e}"),
                advice: "Other nodes encrypt to this one until it is; it is tried again".to_owned(),
            });
        };
        let object = Node {
            types: TypeMeta { api_version: "v1".to_owned(), kind: "Node".to_owned() },
            metadata: Metadata {
                name: node.to_owned(),
                uid: uid.to_owned(),
                annotations: [(names::ANNOUNCEMENT.to_owned(), announcement.to_owned())].into(),
                ..Metadata::default()
            },
            spec: Default::default(),
            status: Default::default(),
        };
        write_object(&path, &object).map_err(|e| Problem {
            kind: ProblemKind::State,
            object: format!("file {}", path.display()),
            field: String::new(),
            message: format!("the announcement can't be written: {e}"),
            advice: "Other nodes can't learn this node's key until it can; it is tried again".to_owned(),
        })
    }

    fn report(&mut self, node: &str, mut status: VeilNodeStatus) -> Result<(), Problem> {
        let path = self.path.join(names::STATUS_DIR).join(format!("{node}.yaml"));
        let stands = read(&path, MAX_ANNOUNCEMENT_BYTES).ok().and_then(|text| yaml::read(&text).ok());
        let before = stands.and_then(|stands: VeilNode| stands.status).unwrap_or_default();
        keep_transitions(&mut status.conditions, &before.conditions);
        let object = VeilNode {
            types: TypeMeta { api_version: names::API_VERSION.to_owned(), kind: "VeilNode".to_owned() },
            metadata: Metadata { name: node.to_owned(), ..Metadata::default() },
            status: Some(status),
        };
        let folder = fs::create_dir(self.path.join(names::STATUS_DIR));
        let folder =
            folder.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) });
        folder.and_then(|()| write_object(&path, &object)).map_err(|e| Problem {
            kind: ProblemKind::State,
            object: format!("file {}", path.display()),
            field: String::new(),
            message: format!("this node's status can't be written: {e}"),
            advice: "It is tried again; encryption goes on without".to_owned(),
        })
    }
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn write_object(path: &Path, object: &impl Serialize) -> io::Result<()> {
    write(path, &yaml::write(object).map_err(io::Error::other)?)
}

/// By rename, so that nobody reads half of it; not at all if it stands there already.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    // The temporary name, which tempfile puts into its errors, tells nobody anything.
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|e| io::Error::from(e.kind()))?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, sync::mpsc};

    use kubeveil_api::condition::Condition;

    use super::*;

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("temp dir");
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("pipe.yaml"), 0o600.into()).expect("pipe");
        let mut folder = Folder::open(dir.path(), || {});
        let state = folder.read(Duration::ZERO);
        assert!(state.problems[0].to_string().contains("no regular file"), "{:?}", state.problems);
        assert!(state.knowledge.synced().is_none());
    }

    /// What a node says of itself: written where it changes, and a condition is as old as it is. Nothing of it is read as a manifest.
    #[test]
    fn what_a_node_says_is_kept() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut folder = Folder::open(dir.path(), || {});
        let file = dir.path().join("status/a.yaml");
        let says = |second, peers| {
            let at = jiff::Timestamp::from_second(second).expect("time");
            let ready = Condition::new("Ready", true, "Enforcing", String::new(), at);
            VeilNodeStatus { peers, conditions: vec![ready], ..VeilNodeStatus::default() }
        };
        folder.report("a", says(1, 2)).expect("written");
        let first = (fs::read_to_string(&file).expect("read"), fs::metadata(&file).expect("file").ino());
        folder.report("a", says(9, 2)).expect("nothing to write");
        let same = (fs::read_to_string(&file).expect("read"), fs::metadata(&file).expect("file").ino());
        assert_eq!(first, same);
        folder.report("a", says(9, 3)).expect("written");
        let read: VeilNode = yaml::read(&fs::read_to_string(&file).expect("read")).expect("a VeilNode");
        let status = read.status.expect("a status");
        assert_eq!((status.peers, status.conditions[0].last_transition_time.as_second()), (3, 1));
        assert_eq!(folder.read(Duration::ZERO).problems, []);
    }

    /// What another node wrote costs this one little, and concerns nobody else.
    #[test]
    fn an_announcement_of_a_megabyte_is_not_read() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut folder = Folder::open(dir.path(), || {});
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a, uid: u}\n";
        fs::write(dir.path().join("a.yaml"), node).expect("written");
        for text in ["[".repeat(1 << 20), format!("{node}#{}", "x".repeat(1 << 20))] {
            fs::write(dir.path().join("announcements/b.yaml"), text).expect("written");
            let state = folder.read(Duration::ZERO);
            assert_eq!(state.problems.len(), 1, "{:?}", state.problems);
            let told = state.problems[0].to_string();
            assert!(
                told.contains("announcements/b.yaml: can't be read: is larger than 65536 bytes"),
                "{told}"
            );
            assert!(state.knowledge.synced().is_some(), "it stops no removal");
        }
    }

    /// Reads all, once everything that was written has been told of.
    fn read_all(folder: &mut Folder, woken: &mpsc::Receiver<()>) -> SourceState {
        while woken.recv_timeout(Duration::from_millis(300)).is_ok() {}
        folder.read(Duration::ZERO)
    }

    /// What `changes` says in the end, and the announcements that it told of by name until then.
    fn changes(folder: &mut Folder, woken: &mpsc::Receiver<()>) -> (bool, BTreeMap<String, Option<String>>) {
        let mut told = BTreeMap::new();
        while woken.recv_timeout(Duration::from_millis(500)).is_ok() {
            match folder.changes() {
                Changes::Announcements(more) => told.extend(more),
                Changes::Any | Changes::Pods(_) => return (true, told),
            }
        }
        (false, told)
    }

    /// One announcement is told by its node's name, and the folder says the same to whoever reads it all; whatever else
    /// changes needs that.
    #[test]
    fn an_announcement_is_told_by_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (wake, woken) = mpsc::channel();
        let mut folder = Folder::open(dir.path(), move || {
            wake.send(()).ok();
        });
        for (name, node) in [("a", "u"), ("b", "v")] {
            let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, uid: {node}}}\n");
            fs::write(dir.path().join(format!("{name}.yaml")), node).expect("written");
        }
        assert!(changes(&mut folder, &woken).0, "nodes are new");
        read_all(&mut folder, &woken);
        // New, and said otherwise.
        for said in ["first", "second"] {
            folder.announce("a", "u", Some(said)).expect("announced");
            let told = [("a".to_owned(), Some(said.to_owned()))].into();
            assert_eq!(changes(&mut folder, &woken), (false, told));
            let state = read_all(&mut folder, &woken);
            assert_eq!(state.knowledge.snapshot().nodes["a"].announcement.as_deref(), Some(said));
        }
        // What others leave lying about is nobody's business.
        fs::write(dir.path().join("announcements/.a.yaml.swp"), "").expect("written");
        assert_eq!(changes(&mut folder, &woken), (false, BTreeMap::new()));
        // Nothing of these can be told by name: a file that can't be read, for a node that does not exist, for another one,
        // under two names, one that is gone, and any other manifest.
        let of = |name: &str, uid: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  uid: {uid}\n  annotations: {{{}: said}}\n",
                names::ANNOUNCEMENT
            )
        };
        let written: [(&str, Option<String>); 7] = [
            ("announcements/b.yaml", Some("{".to_owned())),
            ("announcements/c.yaml", Some(of("c", "w"))),
            ("announcements/b.yaml", Some(of("a", "u"))),
            ("announcements/a.json", Some(of("a", "u"))),
            ("announcements/b.yaml", Some(of("b", "another"))),
            ("announcements/a.yaml", None),
            ("a.yaml", Some(of("a", "u"))),
        ];
        for (file, text) in written {
            match &text {
                Some(text) => fs::write(dir.path().join(file), text).expect("written"),
                None => fs::remove_file(dir.path().join(file)).expect("removed"),
            }
            assert!(changes(&mut folder, &woken).0, "{file}: {text:?}");
            read_all(&mut folder, &woken);
        }
    }

    #[test]
    fn a_folder_that_is_missing_is_one_problem() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("none");
        let mut folder = Folder::open(&path, || {});
        let state = folder.read(Duration::ZERO);
        let told: Vec<_> = state.problems.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("none: does not exist. Create it"), "{told:?}");
        let refused = folder.announce("a", "u", Some("said")).expect_err("no folder").to_string();
        // That of the test's own folder.
        assert_eq!(refused.matches(".tmp").count(), 1, "{refused}");
        fs::create_dir(&path).expect("made");
        assert_eq!(folder.read(Duration::ZERO).problems, []);
    }

    #[test]
    fn an_announcement_is_written_once_and_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut folder = Folder::open(dir.path(), || {});
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a, uid: u}\n";
        fs::write(dir.path().join("a.yaml"), node).expect("written");
        folder.announce("a", "u", Some("said")).expect("announced");
        let path = dir.path().join("announcements/a.yaml");
        let written = fs::metadata(&path).expect("there").modified().expect("time");
        folder.announce("a", "u", Some("said")).expect("announced");
        assert_eq!(fs::metadata(&path).expect("there").modified().expect("time"), written);
        let state = folder.read(Duration::ZERO);
        assert_eq!(state.problems, []);
        assert_eq!(state.knowledge.snapshot().nodes["a"].announcement.as_deref(), Some("said"));
    }
}
