//! Private keys on disk: one file for each generation, in a folder that is nobody else's.
//!
//! A file is written whole or not at all (temporary file, fsync, rename, fsync of the folder) and never
//! overwritten. One that can't be trusted is moved aside and a new key is made, because a node with a new
//! key comes back by itself, and one that refuses to start does not. What could not be read at all (an I/O
//! error) is no reason for a new key: that is an error.
//!
//! Times are seconds since the Unix epoch and are passed in.

mod error;
mod folder;
mod format;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use rustix::process::geteuid;

pub use error::{KeptAside, Problem, StoreError};
use folder::{Folder, Found};

use crate::{Generation, PrivateKey, PublicKey};

/// What may be told of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The generation that it serves.
    pub generation: Generation,
    /// Its public half.
    pub public: PublicKey,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
}

/// A key out of the store.
#[derive(Debug)]
pub struct LoadedKey {
    /// The key.
    pub private: PrivateKey,
    /// What may be told of it.
    pub info: KeyInfo,
    /// The file that this call moved aside to make it, for status, log and metric.
    pub kept_aside: Option<KeptAside>,
}

/// A key file as [`KeyStore::list`] finds it.
#[derive(Debug)]
pub struct ListedKey {
    /// The generation in the file's name.
    pub generation: Generation,
    /// What it holds, or why it can't be trusted.
    pub key: Result<KeyInfo, Problem>,
}

/// The folder of one node's private keys.
///
/// Calls that change it exclude each other, also between processes, by a lock on the folder.
#[derive(Debug)]
pub struct KeyStore {
    folder: Folder,
    node_uid: String,
    tightened_from: Option<u32>,
}

impl KeyStore {
    /// Opens the folder `dir` of the node whose Kubernetes UID is `node_uid`, and makes it (0700) if it is missing.
    ///
    /// A folder that others can only read is tightened to 0700, see [`KeyStore::tightened_from`]: that is
    /// what kubelet's `DirectoryOrCreate` leaves, and the files in it are 0600 all the same.
    ///
    /// # Errors
    /// If the folder belongs to another user or others can write to it (then a person has to look who put
    /// what there), if `node_uid` can't be one, or if the file system fails.
    pub fn open(dir: impl AsRef<Path>, node_uid: &str) -> Result<Self, StoreError> {
        if !format::is_node_uid(node_uid) {
            return Err(StoreError::NodeUid);
        }
        let (folder, tightened_from) = Folder::open(dir.as_ref(), geteuid().as_raw())?;
        Ok(Self { folder, node_uid: node_uid.to_owned(), tightened_from })
    }

    /// The mode that the folder had, if [`KeyStore::open`] had to tighten it.
    pub const fn tightened_from(&self) -> Option<u32> {
        self.tightened_from
    }

    /// The file of `generation`, whether it exists or not.
    pub fn path(&self, generation: Generation) -> PathBuf {
        self.folder.path_of(&file_name(generation))
    }

    /// The key of `generation`; made at `now` if there is none, or none that can be trusted.
    ///
    /// # Errors
    /// If the file system fails or gives no randomness. No half-written file is left: what was there
    /// before still is, or is moved aside. [`LoadedKey::kept_aside`] is told once, by the call that made the new
    /// key; [`KeyStore::set_aside_files`] knows them all.
    pub fn load_or_create(&self, generation: Generation, now: u64) -> Result<LoadedKey, StoreError> {
        self.load_or(generation, now, || Ok((PrivateKey::generate()?, now)))
    }

    /// The same, but where there is no key of `generation` it gets that of `older`, which is to have one. It keeps its age.
    ///
    /// # Errors
    /// As [`KeyStore::load_or_create`]; and [`StoreError::BadFile`] where `older` has a key that can't be trusted.
    pub fn load_or_reuse(
        &self,
        generation: Generation,
        older: Generation,
        now: u64,
    ) -> Result<LoadedKey, StoreError> {
        self.load_or(generation, now, || match self.load(older)? {
            Some((private, info)) => Ok((private, info.created)),
            None => Ok((PrivateKey::generate()?, now)),
        })
    }

    /// The key of `generation`, or what `make` gives with the time at which it was made.
    fn load_or(
        &self,
        generation: Generation,
        now: u64,
        make: impl FnOnce() -> Result<(PrivateKey, u64), StoreError>,
    ) -> Result<LoadedKey, StoreError> {
        let _lock = self.folder.lock()?;
        self.folder.sweep()?;
        let problem = match self.read(generation)? {
            Some(Ok((private, info))) => {
                return Ok(LoadedKey { private, info, kept_aside: None });
            }
            Some(Err(problem)) => Some(problem),
            None => None,
        };
        let (private, created) = make()?;
        let info = KeyInfo { generation, public: private.public(), created };
        let name = file_name(generation);
        // Written before the old file is moved: on a full disk everything stays as it was.
        let written = self.folder.write_new(&name, &format::render(&self.node_uid, &info, &private))?;
        let kept_aside = match problem {
            Some(problem) => Some(KeptAside {
                path: self.path(generation),
                moved_to: self.folder.set_aside(&name, now)?,
                problem,
            }),
            None => None,
        };
        written.publish()?;
        Ok(LoadedKey { private, info, kept_aside })
    }

    /// The key of `generation`, if there is one. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::BadFile`] for a file that can't be trusted, or if the file system fails.
    pub fn load(&self, generation: Generation) -> Result<Option<(PrivateKey, KeyInfo)>, StoreError> {
        match self.read(generation)? {
            Some(Ok(key)) => Ok(Some(key)),
            Some(Err(problem)) => Err(StoreError::BadFile { path: self.path(generation), problem }),
            None => Ok(None),
        }
    }

    /// Every generation that has a file, in order.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn list(&self) -> Result<Vec<ListedKey>, StoreError> {
        let mut generations: Vec<_> =
            self.folder.names()?.iter().filter_map(|name| generation_of(name)).collect();
        generations.sort_unstable();
        let mut listed = Vec::new();
        for generation in generations {
            if let Some(read) = self.read(generation)? {
                listed.push(ListedKey { generation, key: read.map(|(_, info)| info) });
            }
        }
        Ok(listed)
    }

    /// Every file that was ever moved aside and is still there, in order of name.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn set_aside_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut names = self.folder.names()?;
        names.retain(|name| name.contains(folder::SET_ASIDE));
        names.sort_unstable();
        Ok(names.iter().map(|name| self.folder.path_of(name)).collect())
    }

    /// Moves the file of `generation` aside at `now`, whatever it holds, and says where it is: it is never loaded again.
    ///
    /// # Errors
    /// If there is none, or the file system fails.
    pub fn set_aside(&self, generation: Generation, now: u64) -> Result<PathBuf, StoreError> {
        let _lock = self.folder.lock()?;
        self.folder.sweep()?;
        self.folder.set_aside(&file_name(generation), now)
    }

    /// Overwrites the key of `generation` with zeros and deletes it. False if there was none.
    ///
    /// The zeros replace the secret where a file system writes in place. One that copies on write (btrfs,
    /// ZFS, a snapshot below), a journal of data, and a flash disk that remaps its blocks may keep the old
    /// block: only encrypting the disk helps there.
    ///
    /// # Errors
    /// If the file system fails. A key whose removal stopped half-way is never loaded again; the next
    /// call that changes the store finishes it.
    pub fn remove(&self, generation: Generation) -> Result<bool, StoreError> {
        let _lock = self.folder.lock()?;
        self.folder.sweep()?;
        self.folder.remove(&file_name(generation))
    }

    /// `None`: no file. `Some(Err(..))`: one that can't be trusted.
    #[allow(clippy::type_complexity)] // Three outcomes, told apart by every caller in one match.
    fn read(
        &self,
        generation: Generation,
    ) -> Result<Option<Result<(PrivateKey, KeyInfo), Problem>>, StoreError> {
        Ok(match self.folder.read(&file_name(generation))? {
            Found::Nothing => None,
            Found::Bad(problem) => Some(Err(problem)),
            Found::Content(content) => Some(format::parse(&content, &self.node_uid, generation)),
        })
    }
}

fn file_name(generation: Generation) -> String {
    format!("generation-{generation}.key")
}

/// The generation of a key file's name, if it is exactly what [`file_name`] makes.
fn generation_of(name: &str) -> Option<Generation> {
    let number = name.strip_prefix("generation-")?.strip_suffix(".key")?.parse().ok()?;
    let generation = Generation::new(number);
    (file_name(generation) == name).then_some(generation)
}
