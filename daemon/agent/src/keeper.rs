//! This node's keys and what it says of them.

mod problems;
mod record;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    path::{Path, PathBuf},
};

use kubeveil_abi::BASE_PORT;
use kubeveil_api::announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped};
use kubeveil_core::problem::Problem;
use kubeveil_keys::{Generation, KeyInfo, KeyStore, LoadedKey, PrivateKey, PublicKey, StoreError};
use kubeveil_linux::Secrets;

use crate::kept::{GENERATIONS, KeptFile, Stamp};
use problems::{given_up, key_lost, not_served, set_aside_earlier, set_aside_now, store_problem};
use record::Record;

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
    /// Which keys this node has and had, and where that is kept.
    record: Record,
    file: KeptFile<Record>,
    /// Why that can't be kept.
    unrecorded: Option<Problem>,
    /// The source has told of this node, and what it says of itself there has been gone by.
    is_told: bool,
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
        let dir = state_dir.join("keys");
        let (file, record, unreadable) = KeptFile::open(state_dir, GENERATIONS);
        let unreadable = unreadable.map(|message| problems::record_unreadable(file.path(), &dir, message));
        Self {
            dir,
            node: node.to_owned(),
            uid: None,
            held: BTreeMap::new(),
            publics: Vec::new(),
            announcement: None,
            locked: None,
            aside: unreadable.into_iter().collect(),
            record,
            file,
            unrecorded: None,
            is_told: false,
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

    fn refresh(&mut self) {
        self.announcement = None;
        self.publics = self.held.values().map(|held| (held.info.generation, held.info.public)).collect();
    }

    /// What is wrong with the store, and what was set aside.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let lost = self.held.values().filter_map(|held| held.lost.as_ref());
        self.locked.iter().chain(&self.unrecorded).chain(&self.aside).chain(lost)
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
            self.keep_record();
            return;
        }
        (self.uid, self.is_told) = (None, false);
        self.held.clear();
        self.refresh();
        match self.load(uid, epoch) {
            Ok(()) => (self.uid, self.locked) = (Some(uid.to_owned()), None),
            Err(e) => self.locked = Some(store_problem(&self.dir, &e)),
        }
        self.keep_record();
    }

    /// The source tells of this node, which says `said` of itself there. Whoever puts a whole disk back puts the record back too, but not
    /// what the others were told: of generations before all of those the keys were given up. Once is enough, since what is made from now on
    /// is no older.
    pub(crate) fn hear_own(&mut self, said: Option<&Announcement>, epoch: u64) {
        if self.is_told || !self.is_open() {
            return;
        }
        self.is_told = true;
        let Some(oldest) = said.and_then(|said| said.generations().first()).map(|entry| entry.generation)
        else {
            return;
        };
        let older: Vec<Generation> = self.held.keys().copied().filter(|held| *held < oldest).collect();
        for generation in older {
            // It is not used, though its file can't be moved now: the record has it no more, so the next start tries again.
            self.held.remove(&generation);
            self.refresh();
            self.change(|keeper, store| keeper.set_aside(store, generation, epoch));
        }
    }

    /// Has that been gone by? Before, nothing is said that would take its place.
    pub(crate) const fn has_been_told(&self) -> bool {
        self.is_told
    }

    /// Puts on disk which keys there are now.
    fn keep_record(&mut self) {
        let Some(uid) = &self.uid else { return };
        self.record.set_held(uid, &self.publics);
        let kept = self.file.keep(&self.record);
        self.unrecorded = kept.err().map(|e| problems::record_unwritable(self.file.path(), &e));
    }

    /// Moves a key that was given up out of the way, which is told.
    fn set_aside(&mut self, store: &KeyStore, generation: Generation, epoch: u64) -> Result<(), StoreError> {
        let moved_to = store.set_aside(generation, epoch)?;
        self.aside.push(given_up(&store.path(generation), generation, &moved_to));
        Ok(())
    }

    fn load(&mut self, uid: &str, epoch: u64) -> Result<(), StoreError> {
        let store = KeyStore::open(&self.dir, uid)?;
        if let Some(mode) = store.tightened_from() {
            tracing::warn!("{} was open to others (mode {mode:04o}); it is 0700 now", self.dir.display());
        }
        let earlier = store.set_aside_files()?;
        let (given_up, listed): (Vec<_>, Vec<_>) = store.list()?.into_iter().partition(|listed| {
            listed.key.as_ref().is_ok_and(|info| self.record.has_given_up(uid, info.generation, info.public))
        });
        for listed in given_up {
            // Where the disk takes nothing, the keys in use can be read all the same.
            if let Err(e) = self.set_aside(&store, listed.generation, epoch) {
                self.aside.push(problems::stays(&store.path(listed.generation), listed.generation, &e));
            }
        }
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
        self.refresh();
    }

    /// Makes the key of `generation`, which is that of the one before where it `reuses` that; false if it failed, which is told.
    pub(crate) fn make(&mut self, generation: Generation, reuses: bool, epoch: u64) -> bool {
        let older = self.info().map(|info| info.generation).filter(|_| reuses);
        self.change(|keeper, store| {
            keeper.make_way(store, generation, epoch)?;
            let loaded = match older {
                Some(older) => store.load_or_reuse(generation, older, epoch)?,
                None => store.load_or_create(generation, epoch)?,
            };
            keeper.hold(store, loaded);
            Ok(())
        })
    }

    /// Where a key of `generation` is to be made, none may lie that was put there meanwhile.
    fn make_way(&mut self, store: &KeyStore, generation: Generation, epoch: u64) -> Result<(), StoreError> {
        let there = store.list()?.into_iter().find(|listed| listed.generation == generation);
        let uid = self.uid.as_deref().unwrap_or_default();
        let is_given_up = there
            .and_then(|listed| listed.key.ok())
            .is_some_and(|info| self.record.has_given_up(uid, generation, info.public));
        if is_given_up { self.set_aside(store, generation, epoch) } else { Ok(()) }
    }

    /// Overwrites and removes the key of `generation`, on disk and here; false if that failed, which is told.
    pub(crate) fn retire(&mut self, generation: Generation) -> bool {
        self.change(|keeper, store| {
            store.remove(generation)?;
            if let Some(held) = keeper.held.remove(&generation) {
                tracing::info!(%generation, public_key = %held.info.public, "key given up");
            }
            keeper.refresh();
            Ok(())
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut Self, &KeyStore) -> Result<(), StoreError>) -> bool {
        let Some(uid) = self.uid.clone() else { return false };
        let done = KeyStore::open(&self.dir, &uid).and_then(|store| change(self, &store));
        self.locked = done.err().map(|e| store_problem(&self.dir, &e));
        self.keep_record();
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

impl Secrets for Keeper {
    fn private_key(&self, generation: Generation) -> Option<&PrivateKey> {
        self.held.get(&generation).map(|held| &held.private)
    }
}
