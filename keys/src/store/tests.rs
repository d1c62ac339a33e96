//! The store when system calls fail, one after the other, and when the process dies between two of them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Mutex;

use rustix::io::Errno;
use tempfile::TempDir;

use super::*;

const UID: &str = "0b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1";
const NOW: u64 = 1_700_000_000;
const ZERO: Generation = Generation::FIRST;

/// Makes system calls of one folder fail.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    calls: usize,
    plan: Option<Plan>,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The call that fails first, counted from 0.
    at: usize,
    errno: Errno,
    /// Whether all after it fail too: to the disk that looks as if the process had died there.
    dies: bool,
}

impl Faults {
    /// Called before every system call.
    pub(super) fn next(&self) -> rustix::io::Result<()> {
        let mut state = self.0.lock().expect("not poisoned");
        let call = state.calls;
        state.calls += 1;
        match state.plan {
            Some(plan) if call == plan.at || plan.dies && call > plan.at => Err(plan.errno),
            _ => Ok(()),
        }
    }

    fn set(&self, plan: Option<Plan>) {
        *self.0.lock().expect("not poisoned") = State { calls: 0, plan };
    }

    fn calls(&self) -> usize {
        self.0.lock().expect("not poisoned").calls
    }
}

fn open() -> (TempDir, KeyStore) {
    let folder = tempfile::tempdir().expect("folder");
    let store = KeyStore::open(folder.path().join("keys"), UID).expect("store");
    (folder, store)
}

#[test]
fn a_key_serves_two_generations_and_keeps_its_age() {
    let (_folder, store) = open();
    let one = ZERO.next().expect("one");
    let first = store.load_or_create(ZERO, NOW).expect("a key");
    let again = store.load_or_reuse(one, ZERO, NOW + 9).expect("the same");
    assert_eq!((again.info.public, again.info.created), (first.info.public, NOW));
    assert_eq!((again.info.generation, again.private.public()), (one, first.info.public));
    assert!(store.remove(ZERO).expect("removed"));
    let kept = store.load(one).expect("read").expect("it is there");
    assert_eq!(kept.1, again.info, "it does not go with the other");
    // What is there already stands; and where there is nothing to use again there is a new one.
    assert_eq!(store.load_or_reuse(one, ZERO, NOW + 9).expect("loaded").info, again.info);
    let new = store.load_or_reuse(ZERO, Generation::new(7), NOW + 9).expect("a new one").info;
    assert_eq!((new.created, new.public == first.info.public), (NOW + 9, false));
}

fn names(store: &KeyStore) -> Vec<String> {
    let mut names = store.folder.names().expect("names");
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

/// Runs `attempt` on a fresh store for each of its system calls, which fails, and then `check`.
fn at_every_call<T>(
    prepare: impl Fn(&KeyStore),
    attempt: impl Fn(&KeyStore) -> Result<T, StoreError>,
    check: impl Fn(&KeyStore, Result<T, StoreError>, Plan),
) {
    let (_folder, store) = open();
    prepare(&store);
    store.folder.faults.set(None);
    attempt(&store).expect("works without faults");
    let calls = store.folder.faults.calls();
    assert!(calls > 5, "the faults see the calls: {calls}");
    for at in 0..calls {
        for (errno, dies) in [(Errno::NOSPC, false), (Errno::IO, false), (Errno::IO, true)] {
            let (_folder, store) = open();
            prepare(&store);
            let plan = Plan { at, errno, dies };
            store.folder.faults.set(Some(plan));
            let result = attempt(&store);
            store.folder.faults.set(None);
            check(&store, result, plan);
        }
    }
}

fn is_planned(error: &StoreError, plan: Plan) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.raw_os_error() == Some(plan.errno.raw_os_error()))
}

#[test]
fn a_failing_creation_leaves_no_half_file() {
    at_every_call(
        |_| {},
        |store| store.load_or_create(ZERO, NOW),
        |store, result, plan| {
            let error = result.expect_err("every call counts");
            assert!(is_planned(&error, plan), "{error}");
            // Either nothing, or the whole key: only the last fsync can fail after the rename.
            let left = store.load(ZERO).expect("nothing that is not a key");
            if !plan.dies {
                let expected: &[&str] = if left.is_some() { &["generation-0.key"] } else { &[] };
                assert_eq!(names(store), expected, "{plan:?}");
            }
            let again = store.load_or_create(ZERO, NOW + 1).expect("works again");
            assert_eq!(names(store), ["generation-0.key"], "{plan:?}");
            assert_eq!(again.kept_aside, None);
            if let Some((private, info)) = left {
                assert_eq!((again.private.public(), again.info), (private.public(), info));
            }
        },
    );
}

#[test]
fn a_failing_replacement_never_loses_the_bad_file() {
    let bad = b"what somebody else wrote";
    at_every_call(
        |store| {
            fs::write(store.path(ZERO), bad).expect("written");
            fs::set_permissions(store.path(ZERO), fs::Permissions::from_mode(0o600)).expect("mode");
        },
        |store| store.load_or_create(ZERO, NOW),
        |store, result, plan| {
            let error = result.expect_err("every call counts");
            assert!(is_planned(&error, plan), "{error}");
            store.load_or_create(ZERO, NOW + 1).expect("works again");
            let aside = store.set_aside_files().expect("listed");
            assert_eq!(aside.len(), 1, "{plan:?}");
            assert_eq!(fs::read(&aside[0]).expect("kept"), bad, "{plan:?}");
            assert_eq!(names(store).len(), 2, "{plan:?}");
        },
    );
}

#[test]
fn a_failing_removal_is_finished_by_the_next_call() {
    at_every_call(
        |store| drop(store.load_or_create(ZERO, NOW).expect("made")),
        |store| store.remove(ZERO),
        |store, result, plan| {
            let error = result.expect_err("every call counts");
            assert!(is_planned(&error, plan), "{error}");
            // It is whole or gone, never a thing to be set aside.
            store.load(ZERO).expect("trusted or not there");
            store.remove(ZERO).expect("works again");
            assert_eq!(names(store), <[&str; 0]>::default(), "{plan:?}");
        },
    );
}

#[test]
fn on_a_full_disk_a_bad_file_stays_where_it_is() {
    let (_folder, store) = open();
    fs::write(store.path(ZERO), b"bad").expect("written");
    store.folder.faults.set(None);
    store.load(ZERO).expect_err("bad");
    store.folder.faults.set(None);
    // lock: 2, sweep: 1, look: 1 (too open to be opened), create, write.
    store.folder.faults.set(Some(Plan { at: 5, errno: Errno::NOSPC, dies: false }));
    let error = store.load_or_create(ZERO, NOW).expect_err("disk full");
    let path = store.folder.path_of(".generation-0.key.new");
    assert_eq!(error.to_string(), format!("cannot write {}", path.display()));
    assert_eq!(names(&store), ["generation-0.key"]);
}

#[test]
fn a_file_of_another_user_is_set_aside() {
    let (_folder, mut store) = open();
    let before = store.load_or_create(ZERO, NOW).expect("made");
    let owner = store.folder.owner;
    store.folder.owner += 1;
    let problem = Problem::NotOurs { owner, expected: owner + 1 };
    assert!(matches!(store.load(ZERO), Err(StoreError::BadFile { problem: found, .. }) if found == problem));
    let after = store.load_or_create(ZERO, NOW).expect("made");
    assert_eq!(after.kept_aside.expect("told").problem, problem);
    assert_ne!(before.info.public, after.info.public);
}

#[test]
fn a_folder_of_another_user_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let owner = fs::metadata(folder.path()).expect("folder").uid();
    let error = Folder::open(folder.path(), owner + 1).expect_err("not ours");
    assert!(matches!(error, StoreError::FolderNotOurs { .. }));
    let path = folder.path().display();
    assert_eq!(
        error.to_string(),
        format!(
            "key folder {path} belongs to user {owner}: `chown {} {path}`, or choose another folder",
            owner + 1
        )
    );
}

/// A second name of the same file shows what removal did to its blocks.
#[test]
fn removal_overwrites_the_secret() {
    let (folder, store) = open();
    store.load_or_create(ZERO, NOW).expect("made");
    let second_name = folder.path().join("second");
    fs::hard_link(store.path(ZERO), &second_name).expect("linked");
    let before = fs::read(&second_name).expect("read");
    assert!(store.remove(ZERO).expect("removed"));
    assert_eq!(fs::read(&second_name).expect("read"), vec![0; before.len()]);
    assert!(!store.remove(ZERO).expect("nothing left to do"));
}

#[test]
fn the_longest_file_fits_the_limit() {
    let info = KeyInfo {
        generation: Generation::new(u32::MAX),
        public: PublicKey::from_bytes([0xff; 32]),
        created: u64::MAX,
    };
    let content = format::render(&"u".repeat(128), &info, &PrivateKey::copied_from(&[7; 32]));
    assert_eq!(content.len(), 322);
    assert_eq!(content.capacity(), format::LIMIT, "it never grew");
}
