//! What must be known after a restart, though nobody else is there to tell.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use kubeveil_core::{ownership::Owners, snapshot::Snapshot};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of the files.
const VERSION: u32 = 1;

/// File of [`Kept`], in the state folder.
pub(crate) const KNOWN: &str = "known.json";
/// File of the pairs that are open, beside it.
pub(crate) const ADOPTION: &str = "adoption.json";
/// File of the bypasses that were heard of, beside it.
pub(crate) const BYPASSES: &str = "bypasses.json";
/// File of which keys there are and were, beside it.
pub(crate) const GENERATIONS: &str = "generations.json";
/// All that the state folder holds.
pub(crate) const FILES: [&str; 6] = [KNOWN, ADOPTION, BYPASSES, "keys", GENERATIONS, "lock"];

/// The last whole knowledge of the cluster, and who owns which prefix. No secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Kept {
    /// The cluster.
    pub(crate) snapshot: Snapshot,
    /// Recorded owners. A list: a map's key would have to be a string.
    #[serde(with = "pairs")]
    pub(crate) owners: Owners,
}

#[derive(Deserialize, Serialize)]
struct File<T> {
    version: u32,
    #[serde(flatten)]
    kept: T,
}

/// Where something is kept, and what was written last.
#[derive(Debug)]
pub(crate) struct KeptFile<T> {
    path: PathBuf,
    written: Option<T>,
    /// The file that it was written to.
    stamp: Option<Stamp>,
}

/// Tells whether a file is the one that it was: file system, number, size, and when it was last changed in any way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp([u64; 3], [i64; 2]);

impl Stamp {
    /// Of the file at `path`, if there is one.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self([file.dev(), file.ino(), file.size()], [file.ctime(), file.ctime_nsec()]))
    }
}

impl<T: Clone + Default + PartialEq + DeserializeOwned + Serialize> KeptFile<T> {
    /// Reads it; nothing is known if there is no file. A file that can't be read is an error that says
    /// so, and is left alone until it is overwritten by whole knowledge.
    pub(crate) fn open(state_dir: &Path, name: &str) -> (Self, T, Option<String>) {
        let path = state_dir.join(name);
        let read = match fs::read(&path) {
            Ok(bytes) => parse(&bytes).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.to_string()),
        };
        let stamp = Stamp::of(&path);
        match read {
            Ok(kept) => (Self { path, written: kept.clone(), stamp }, kept.unwrap_or_default(), None),
            Err(e) => {
                let message = format!("{} can't be read: {e}", path.display());
                (Self { path, written: None, stamp }, T::default(), Some(message))
            }
        }
    }

    /// Writes it, by rename, if it differs from what was written last, or the file is another than was written.
    pub(crate) fn keep(&mut self, kept: &T) -> io::Result<()> {
        let is_same = self.written.as_ref() == Some(kept);
        let stands = self.stamp == Stamp::of(&self.path);
        if is_same && stands {
            return Ok(());
        }
        #[cfg(test)]
        tests::before_write(&self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // The temporary name, which tempfile puts into its errors, tells nobody anything.
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|e| io::Error::from(e.kind()))?;
        file.write_all(&serde_json::to_vec(&File { version: VERSION, kept })?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|e| e.error)?;
        fs::File::open(dir)?.sync_all()?;
        if is_same {
            tracing::warn!("{}: somebody changed or removed it; it is written again", self.path.display());
        }
        self.written = Some(kept.clone());
        self.stamp = Stamp::of(&self.path);
        Ok(())
    }

    /// For error messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let file: File<T> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if file.version == VERSION {
        Ok(file.kept)
    } else {
        Err(format!("version {} is not known", file.version))
    }
}

mod pairs {
    use std::sync::Arc;

    use ipnet::IpNet;
    use kubeveil_core::ownership::{Owner, Owners};
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(owners: &Owners, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(owners)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Owners, D::Error> {
        Ok(Vec::<(IpNet, Arc<Owner>)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;

    type BeforeWrite = Box<dyn Fn(&Path) -> io::Result<()>>;

    thread_local! {
        static BEFORE_WRITE: RefCell<Option<BeforeWrite>> = const { RefCell::new(None) };
    }

    /// Has `then` be asked before a file is written from this thread: it can refuse that, or end the daemon.
    pub(crate) fn ask_before_write(then: impl Fn(&Path) -> io::Result<()> + 'static) {
        BEFORE_WRITE.set(Some(Box::new(then)));
    }

    pub(super) fn before_write(path: &Path) -> io::Result<()> {
        BEFORE_WRITE.with_borrow(|then| then.as_ref().map_or(Ok(()), |then| then(path)))
    }

    #[test]
    fn it_comes_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (mut file, nothing, problem) = KeptFile::open(dir.path(), "known.json");
        assert_eq!((nothing, problem), (Kept::default(), None));
        let mut kept = Kept::default();
        kept.snapshot.nodes.insert("a".to_owned(), Default::default());
        kept.owners.insert(
            "10.0.0.0/8".parse().expect("net"),
            kubeveil_core::ownership::Owner { name: "a".to_owned(), uid: "u".to_owned() }.into(),
        );
        file.keep(&kept).expect("written");
        assert_eq!(KeptFile::<Kept>::open(dir.path(), "known.json").1, kept);
        // What somebody else wrote, or removed, is written again; nothing else is.
        let path = dir.path().join("known.json");
        let stamp = Stamp::of(&path);
        file.keep(&kept).expect("kept");
        assert_eq!(Stamp::of(&path), stamp);
        for deed in [|path: &Path| fs::write(path, b"{}"), |path: &Path| fs::remove_file(path)] {
            deed(&path).expect("done");
            file.keep(&kept).expect("written again");
            assert_eq!(KeptFile::<Kept>::open(dir.path(), "known.json").1, kept);
        }
        fs::write(&path, b"{\"version\":9").expect("written");
        assert!(KeptFile::<Kept>::open(dir.path(), "known.json").2.is_some());
    }
}
