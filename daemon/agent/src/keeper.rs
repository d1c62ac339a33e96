//! This node's keys and what it says of them.

use std::path::{Path, PathBuf};

use kubeveil_abi::BASE_PORT;
use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_core::problem::{Problem, ProblemKind};
use kubeveil_keys::{Generation, KeptAside, KeyInfo, KeyStore, PrivateKey, StoreError};
use kubeveil_linux::Secrets;

use crate::kept::Stamp;

/// Holds the key, once the node's UID is known.
#[derive(Debug)]
pub(crate) struct Keeper {
    dir: PathBuf,
    node: String,
    held: Option<Held>,
    /// Why there is no key; over as soon as there is one.
    locked: Option<Problem>,
    /// Files that were set aside: shown until the daemon ends.
    aside: Vec<Problem>,
}

#[derive(Debug)]
struct Held {
    uid: String,
    private: PrivateKey,
    info: KeyInfo,
    announcement: Option<Announcement>,
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
            held: None,
            locked: None,
            aside: Vec::new(),
        }
    }

    /// Public facts of the key in use.
    pub(crate) fn info(&self) -> Option<&KeyInfo> {
        self.held.as_ref().map(|held| &held.info)
    }

    /// What is wrong with the store, and what was set aside.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let lost = self.held.as_ref().and_then(|held| held.lost.as_ref());
        self.locked.iter().chain(&self.aside).chain(lost)
    }

    /// Loads or makes the key of the node with `uid`: the highest generation that the store has, else the
    /// first. `epoch` is the time, seconds since 1970.
    pub(crate) fn unlock(&mut self, uid: &str, epoch: u64) {
        if let Some(held) = self.held.as_mut().filter(|held| held.uid == uid) {
            held.look(&self.dir);
            return;
        }
        self.held = None;
        match load(&self.dir, uid, epoch) {
            Ok((private, info, path, aside)) => {
                tracing::info!(generation = %info.generation, public_key = %info.public, "key in use");
                self.locked = None;
                self.aside.extend(aside);
                let (uid, stamp) = (uid.to_owned(), Stamp::of(&path));
                self.held = Some(Held { uid, private, info, announcement: None, path, stamp, lost: None });
            }
            Err(e) => self.locked = Some(store_problem(&self.dir, &e)),
        }
    }

    /// The announcement to publish: `published`, where it says the right thing already, since each new
    /// signature is another text.
    pub(crate) fn announcement(&mut self, published: Option<&Announcement>) -> Option<(String, String)> {
        let held = self.held.as_mut()?;
        let port = held.info.generation.port(BASE_PORT).and_then(std::num::NonZeroU16::new)?;
        let entry = GenerationEntry {
            generation: held.info.generation,
            public_key: held.info.public,
            port,
            state: GenerationState::Active,
        };
        let nobody = NotFlipped::nobody();
        if held.announcement.is_none() {
            held.announcement = published.filter(|a| a.says(&[entry], &nobody)).cloned();
        }
        if held.announcement.is_none() {
            match Announcement::sign(&self.node, &held.uid, vec![entry], nobody, &[&held.private]) {
                Ok(announcement) => held.announcement = Some(announcement),
                Err(e) => tracing::error!("the announcement can't be signed: {e}"),
            }
        }
        held.announcement.as_ref().map(|a| (held.uid.clone(), a.to_json()))
    }
}

impl Held {
    /// Does the file still hold the key? It is not written again: whoever wants another key removes just that file.
    fn look(&mut self, dir: &Path) {
        let stamp = Stamp::of(&self.path);
        if stamp == self.stamp {
            self.lost = None;
            return;
        }
        let read = KeyStore::open(dir, &self.uid).and_then(|store| store.load(self.info.generation));
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
        self.held.as_ref().filter(|held| held.info.generation == generation).map(|held| &held.private)
    }
}

/// The key, what may be told of it, its file, and what is wrong with the store.
type Loaded = (PrivateKey, KeyInfo, PathBuf, Vec<Problem>);

fn load(dir: &Path, uid: &str, epoch: u64) -> Result<Loaded, StoreError> {
    let store = KeyStore::open(dir, uid)?;
    if let Some(mode) = store.tightened_from() {
        tracing::warn!("{} was open to others (mode {mode:04o}); it is 0700 now", dir.display());
    }
    let highest = store.list()?.iter().map(|listed| listed.generation).max();
    let loaded = store.load_or_create(highest.unwrap_or(Generation::FIRST), epoch)?;
    let mut problems: Vec<Problem> = loaded.kept_aside.iter().map(set_aside_now).collect();
    let told = loaded.kept_aside.map(|kept| kept.moved_to);
    let earlier = store.set_aside_files()?.into_iter().filter(|path| Some(path) != told.as_ref());
    problems.extend(earlier.map(|path| set_aside_earlier(&path)));
    let path = store.path(loaded.info.generation);
    Ok((loaded.private, loaded.info, path, problems))
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
        advice: "Without a key this node has no tunnels; it is tried again".to_owned(),
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
            keeper.problems().map(|problem| problem.object.clone()).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut keeper), [""; 0]);
        let held = keeper.held.as_ref().expect("a key");
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
