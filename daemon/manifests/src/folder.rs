//! Reading and watching the folder.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kubeveil_api::{
    names,
    node::Node,
    object::{Metadata, TypeMeta},
};
use kubeveil_core::{
    problem::{Problem, ProblemKind},
    source::{Source, SourceState},
};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use crate::index::{Content, Index};

/// Largest file that is read: 5,000 Nodes as `kubectl` prints them are some 50 MB.
const MAX_BYTES: u64 = 256 << 20;
/// The same of an announcement, which other nodes write: a Node with one annotation of at most 8 KiB. It also bounds
/// the time that a hostile one takes to be read.
const MAX_ANNOUNCEMENT_BYTES: u64 = 64 << 10;

/// A folder of manifests.
pub struct Folder {
    path: PathBuf,
    index: Index,
    wake: Wake,
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
        let watcher = watch(path, wake.clone());
        Self { path: path.to_owned(), index: Index::default(), wake, watcher }
    }

    fn contents(&self) -> Result<BTreeMap<String, Content>, Problem> {
        let mut out = BTreeMap::new();
        for folder in ["", names::ANNOUNCEMENTS_DIR] {
            let (dir, most) = if folder.is_empty() {
                (self.path.clone(), MAX_BYTES)
            } else {
                (self.path.join(folder), MAX_ANNOUNCEMENT_BYTES)
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
}

/// A pipe would keep us waiting for ever, and nobody's manifest is that large.
fn read(path: &Path, most: u64) -> io::Result<String> {
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

fn watch(path: &Path, wake: Wake) -> Result<RecommendedWatcher, notify::Error> {
    let announcements = path.join(names::ANNOUNCEMENTS_DIR);
    // Not `path` itself: a misspelt one must not pass for an empty cluster.
    match fs::create_dir(&announcements) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(notify::Error::io(e)),
        _ => {}
    }
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading must not wake us.
        if !event.is_ok_and(|e| e.kind.is_access()) {
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
fn is_manifest(name: &str) -> bool {
    let known = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
    known && !name.starts_with('.')
}

impl Source for Folder {
    fn name(&self) -> String {
        format!("dir:{}", self.path.display())
    }

    fn read(&mut self, now: Duration) -> SourceState {
        if self.watcher.is_err() {
            self.watcher = watch(&self.path, self.wake.clone());
        }
        let contents = self.contents();
        let unwatched = self.watcher.as_ref().err().map(|e| unwatched(&self.path, e));
        // Who has no folder is told so once.
        let unwatched = unwatched.filter(|_| contents.is_ok());
        let mut state = self.index.update(contents, now);
        state.problems.extend(unwatched);
        state
    }

    fn announce(&mut self, node: &str, uid: &str, announcement: &str) -> Result<(), Problem> {
        let object = Node {
            types: TypeMeta { api_version: "v1".to_owned(), kind: "Node".to_owned() },
            metadata: Metadata {
                name: node.to_owned(),
                uid: uid.to_owned(),
                annotations: [(names::ANNOUNCEMENT.to_owned(), announcement.to_owned())].into(),
            },
            spec: Default::default(),
            status: Default::default(),
        };
        let path = self.path.join(names::ANNOUNCEMENTS_DIR).join(format!("{node}.yaml"));
        let written =
            serde_norway::to_string(&object).map_err(io::Error::other).and_then(|text| write(&path, &text));
        written.map_err(|e| Problem {
            kind: ProblemKind::State,
            object: format!("file {}", path.display()),
            field: String::new(),
            message: format!("the announcement can't be written: {e}"),
            advice: "Other nodes can't learn this node's key until it can; it is tried again".to_owned(),
        })
    }
}

/// By rename, so that nobody reads half of it; not at all if it stands there already.
fn write(path: &Path, text: &str) -> io::Result<()> {
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

    #[test]
    fn a_folder_that_is_missing_is_one_problem() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("none");
        let mut folder = Folder::open(&path, || {});
        let state = folder.read(Duration::ZERO);
        let told: Vec<_> = state.problems.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("none: does not exist. Create it"), "{told:?}");
        let refused = folder.announce("a", "u", "said").expect_err("no folder").to_string();
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
        folder.announce("a", "u", "said").expect("announced");
        let path = dir.path().join("announcements/a.yaml");
        let written = fs::metadata(&path).expect("there").modified().expect("time");
        folder.announce("a", "u", "said").expect("announced");
        assert_eq!(fs::metadata(&path).expect("there").modified().expect("time"), written);
        let state = folder.read(Duration::ZERO);
        assert_eq!(state.problems, []);
        assert_eq!(state.knowledge.snapshot().nodes["a"].announcement.as_deref(), Some("said"));
    }
}
