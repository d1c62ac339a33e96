//! This node's keys and what it says of them.

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    path::{Path, PathBuf},
};

use kubeveil_abi::BASE_PORT;
use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_core::problem::{Problem, ProblemKind};
use kubeveil_keys::{Generation, KeptAside, KeyInfo, KeyStore, LoadedKey, PrivateKey, PublicKey, StoreError};
use kubeveil_linux::Secrets;

use crate::kept::Stamp;

/// Holds the keys, once the node's UID is known.
#[derive(Debug)]
pub(crate) struct Keeper {
    dir: PathBuf,
    node: String,
    /// The UID that the keys are bound to.
    uid: Option<String>,
    held: BTreeMap<Generation, Held>,
    /// The public halves of those.
    publics: Vec<(Generation, PublicKey)>,
    announcement: Option<Announcement>,
    /// Why there are no keys, or why one can't be made or removed; over as soon as that succeeds.
    locked: Option<Problem>,
    /// Files that were set aside: shown until the daemon ends.
    aside: Vec<Problem>,
}

#[derive(Debug)]
struct Held {
    private: PrivateKey,
    info: KeyInfo,
    /// Its file, as it last held this key.
    path: PathBuf,
    stamp: Option<Stamp>,
    /// It does not hold it any more.
    lost: Option<Problem>,
}

impl Keeper {
    /// Keys of `node` below `state_dir`.
    pub(crate) fn new(state_dir: &Path, node: &str) -> Self {
        Self {
            dir: state_dir.join("keys"),
            node: node.to_owned(),
            uid: None,
            held: BTreeMap::new(),
            publics: Vec::new(),
            announcement: None,
            locked: None,
            aside: Vec::new(),
        }
    }

    /// Public facts of the newest key.
    pub(crate) fn info(&self) -> Option<&KeyInfo> {
        self.infos().last()
    }

    /// Public facts of all keys, the oldest generation first.
    pub(crate) fn infos(&self) -> impl DoubleEndedIterator<Item = &KeyInfo> {
        self.held.values().map(|held| &held.info)
    }

    /// The public halves of all keys, the oldest generation first.
    pub(crate) fn publics(&self) -> &[(Generation, PublicKey)] {
        &self.publics
    }

    fn has_changed(&mut self) {
        self.announcement = None;
        self.publics = self.held.values().map(|held| (held.info.generation, held.info.public)).collect();
    }

    /// What is wrong with the store, and what was set aside.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let lost = self.held.values().filter_map(|held| held.lost.as_ref());
        self.locked.iter().chain(&self.aside).chain(lost)
    }

    /// Has the store of the node with `uid` been opened?
    pub(crate) fn is_open(&self) -> bool {
        self.uid.is_some()
    }

    /// Loads the keys of the node with `uid`, all that the store has. `epoch` is the time, seconds since 1970.
    pub(crate) fn unlock(&mut self, uid: &str, epoch: u64) {
        if self.uid.as_deref() == Some(uid) {
            for held in self.held.values_mut() {
                held.look(&self.dir, uid);
            }
            return;
        }
        self.uid = None;
        self.held.clear();
        self.has_changed();
        match self.load(uid, epoch) {
            Ok(()) => (self.uid, self.locked) = (Some(uid.to_owned()), None),
            Err(e) => self.locked = Some(store_problem(&self.dir, &e)),
        }
    }

    fn load(&mut self, uid: &str, epoch: u64) -> Result<(), StoreError> {
        let store = KeyStore::open(&self.dir, uid)?;
        if let Some(mode) = store.tightened_from() {
            tracing::warn!("{} was open to others (mode {mode:04o}); it is 0700 now", self.dir.display());
        }
        let earlier = store.set_aside_files()?;
        let listed = store.list()?;
        let newest = listed.last().map(|listed| listed.generation);
        for listed in listed {
            // The newest is the one that the others know, or are about to: where it can't be trusted another is made in its place.
            if listed.key.is_ok() || Some(listed.generation) == newest {
                self.take(&store, listed.generation, epoch)?;
            } else if let Err(problem) = listed.key {
                self.aside.push(not_served(&store.path(listed.generation), &problem));
            }
        }
        self.aside.extend(earlier.iter().map(|path| set_aside_earlier(path)));
        Ok(())
    }

    /// Loads the key of `generation`, or makes it.
    fn take(&mut self, store: &KeyStore, generation: Generation, epoch: u64) -> Result<(), StoreError> {
        self.hold(store, store.load_or_create(generation, epoch)?);
        Ok(())
    }

    fn hold(&mut self, store: &KeyStore, loaded: LoadedKey) {
        let LoadedKey { private, info, kept_aside } = loaded;
        let generation = info.generation;
        tracing::info!(%generation, public_key = %info.public, "key in use");
        self.aside.extend(kept_aside.iter().map(set_aside_now));
        let path = store.path(generation);
        let stamp = Stamp::of(&path);
        self.held.insert(generation, Held { private, info, path, stamp, lost: None });
        self.has_changed();
    }

    /// Makes the key of `generation`, which is that of the one before where it `reuses` that; false if it failed, which is told.
    pub(crate) fn make(&mut self, generation: Generation, reuses: bool, epoch: u64) -> bool {
        let older = self.info().map(|info| info.generation).filter(|_| reuses);
        self.change(|keeper, store| {
            let loaded = match older {
                Some(older) => store.load_or_reuse(generation, older, epoch)?,
                None => store.load_or_create(generation, epoch)?,
            };
            keeper.hold(store, loaded);
            Ok(())
        })
    }

    /// Overwrites and removes the key of `generation`, on disk and here; false if that failed, which is told.
    pub(crate) fn retire(&mut self, generation: Generation) -> bool {
        self.change(|keeper, store| {
            store.remove(generation)?;
            if let Some(held) = keeper.held.remove(&generation) {
                tracing::info!(%generation, public_key = %held.info.public, "key given up");
            }
            keeper.has_changed();
            Ok(())
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut Self, &KeyStore) -> Result<(), StoreError>) -> bool {
        let Some(uid) = self.uid.clone() else { return false };
        let done = KeyStore::open(&self.dir, &uid).and_then(|store| change(self, &store));
        self.locked = done.err().map(|e| store_problem(&self.dir, &e));
        self.locked.is_none()
    }

    /// The announcement to publish, of these generations: `published`, where it says the right thing already, since each new
    /// signature is another text.
    pub(crate) fn announcement(
        &mut self,
        generations: &[(Generation, GenerationState)],
        not_flipped: &NotFlipped,
        published: Option<&Announcement>,
    ) -> Option<(String, String)> {
        let uid = self.uid.clone()?;
        let entry = |(generation, state): &(Generation, GenerationState)| {
            let (generation, state) = (*generation, *state);
            let public_key = self.held.get(&generation)?.info.public;
            let port = generation.port(BASE_PORT).and_then(NonZeroU16::new)?;
            Some(GenerationEntry { generation, public_key, port, state })
        };
        let entries: Vec<GenerationEntry> = generations.iter().filter_map(entry).collect();
        let says = |announcement: &&Announcement| announcement.says(&entries, not_flipped);
        let said = self.announcement.as_ref().filter(says).or(published.filter(says)).cloned();
        self.announcement = said.or_else(|| {
            let keys: Vec<&PrivateKey> = self.held.values().map(|held| &held.private).collect();
            Announcement::sign(&self.node, &uid, entries, not_flipped.clone(), &keys)
                .inspect_err(|e| tracing::error!("the announcement can't be signed: {e}"))
                .ok()
        });
        self.announcement.as_ref().map(|a| (uid, a.to_json()))
    }
}

impl Held {
    /// Does the file still hold the key? It is not written again: whoever wants another key removes just that file.
    fn look(&mut self, dir: &Path, uid: &str) {
        let stamp = Stamp::of(&self.path);
        if stamp == self.stamp {
            self.lost = None;
            return;
        }
        let read = KeyStore::open(dir, uid).and_then(|store| store.load(self.info.generation));
        let is_there = matches!(read, Ok(Some((_, info))) if info.public == self.info.public);
        if is_there {
            self.stamp = stamp;
        }
        self.lost = (!is_there).then(|| key_lost(&self.path));
    }
}

fn key_lost(path: &Path) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", path.display()),
        field: String::new(),
        message: "somebody removed or changed it; the key in use stands as long as kubeveild runs".to_owned(),
        advice:
            "Put it back as it was, or restart kubeveild: it makes another key where it finds none that it \
                 can trust, and pods' traffic of this node is dropped until the others know that one"
                .to_owned(),
    }
}

impl Secrets for Keeper {
    fn private_key(&self, generation: Generation) -> Option<&PrivateKey> {
        self.held.get(&generation).map(|held| &held.private)
    }
}

/// A key of an older generation that can't be trusted: what others still send by it is lost, until they send by the newest.
fn not_served(path: &Path, problem: &kubeveil_keys::Problem) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", path.display()),
        field: String::new(),
        message: format!("{problem}; it is of an older generation, which this node does not serve any more"),
        advice: problem.advice().to_owned(),
    }
}

fn set_aside_now(kept: &KeptAside) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", kept.path.display()),
        field: String::new(),
        message: format!("{}; moved to {} and a new key made", kept.problem, kept.moved_to.display()),
        advice: kept.problem.advice().to_owned(),
    }
}

fn set_aside_earlier(path: &Path) -> Problem {
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key file {}", path.display()),
        field: String::new(),
        message: "was set aside by an earlier start, and may hold a key".to_owned(),
        advice: "Find out how it came to be there, then delete it".to_owned(),
    }
}

fn store_problem(dir: &Path, error: &StoreError) -> Problem {
    let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    Problem {
        kind: ProblemKind::KeyStore,
        object: format!("key store {}", dir.display()),
        field: String::new(),
        message: format!("{error}{cause}"),
        advice: "Without a key this node has no tunnels, and where one can't be made or removed a rotation waits; it is tried again".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The key in use stands, and it is told as long as its file does not hold it.
    #[test]
    fn a_key_file_that_somebody_changes_is_told() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut keeper = Keeper::new(dir.path(), "node-1");
        let told = |keeper: &mut Keeper| {
            keeper.unlock("uid-1", 1);
            if keeper.info().is_none() {
                assert!(keeper.make(Generation::FIRST, false, 1));
            }
            keeper.problems().map(|problem| problem.object.clone()).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut keeper), [""; 0]);
        let held = keeper.held.values().next().expect("a key");
        let (path, public) = (held.path.clone(), held.info.public);
        let whole = fs::read_to_string(&path).expect("the file");
        let object = format!("key file {}", path.display());
        for deed in [|path: &Path| fs::write(path, "another"), |path: &Path| fs::remove_file(path)] {
            deed(&path).expect("done");
            assert_eq!(told(&mut keeper), [object.as_str()]);
            assert_eq!(keeper.info().map(|info| info.public), Some(public), "it stands");
            assert!(
                !path.exists() || fs::read_to_string(&path).is_ok_and(|text| text == "another"),
                "it is not written"
            );
        }
        fs::write(&path, whole).expect("put back");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
        assert_eq!(told(&mut keeper), [""; 0]);
    }
}
