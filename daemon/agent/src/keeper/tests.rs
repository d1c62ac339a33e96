//! Key files that somebody changes, takes away or puts back.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

fn start(dir: &Path) -> Keeper {
    let mut keeper = Keeper::new(dir, "node-1");
    keeper.unlock("uid-1", 1);
    keeper
}

fn generations(keeper: &Keeper) -> Vec<u32> {
    keeper.infos().map(|info| info.generation.number()).collect()
}

fn makes(keeper: &mut Keeper, generation: u32) {
    assert!(keeper.make(Generation::new(generation), false, 1));
}

/// What somebody who copies files would write.
fn put_back(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("put back");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
}

/// Key files, and those that were set aside, by name.
fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir.join("keys")).expect("listed");
    let mut names: Vec<_> =
        names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Its file comes back out of a backup: it is moved, which is told with what to do, and whoever looks for it finds it whole.
#[test]
fn a_key_that_was_given_up_is_not_used_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let dir = dir.path();
    let of = |generation: u32| dir.join(format!("keys/generation-{generation}.key"));
    let mut keeper = start(dir);
    makes(&mut keeper, 4);
    let old = fs::read(of(4)).expect("the file");
    makes(&mut keeper, 5);
    assert_eq!(generations(&start(dir)), [4, 5], "both are in use");
    assert!(keeper.retire(Generation::new(4)));
    put_back(&of(4), &old);
    let mut keeper = start(dir);
    assert_eq!(generations(&keeper), [5]);
    assert_eq!(files(dir), ["generation-4.key.set-aside-1-0", "generation-5.key"]);
    assert_eq!(fs::read(dir.join("keys/generation-4.key.set-aside-1-0")).expect("there"), old);
    let [told] = keeper.problems().collect::<Vec<_>>()[..] else { panic!("{keeper:?}") };
    assert!(told.object.ends_with("generation-4.key"), "{told}");
    assert!(told.message.contains("given up") && told.message.contains("set-aside-1-0"), "{told}");
    assert!(told.advice.contains("delete it"), "{told}");
    // One that was replaced in its own generation, as after a revocation.
    let replaced = fs::read(of(5)).expect("the file");
    assert!(keeper.retire(Generation::new(5)));
    makes(&mut keeper, 5);
    let key = keeper.info().expect("a key").public;
    put_back(&of(5), &replaced);
    let mut keeper = start(dir);
    assert_eq!(generations(&keeper), [0; 0], "there is another one to make");
    assert!(!of(5).exists());
    // Nor is it found where one of its generation is made.
    put_back(&of(5), &replaced);
    makes(&mut keeper, 5);
    let made = keeper.info().expect("a key").public;
    assert_ne!(made, key);
    assert_eq!(keeper.problems().filter(|told| told.message.contains("given up")).count(), 2);
    assert_eq!(start(dir).info().map(|info| info.public), Some(made));
}

/// One that was made and could not be recorded any more, as its daemon ended, was never given up.
#[test]
fn a_key_that_was_just_made_is_used() {
    let dir = tempfile::tempdir().expect("temp dir");
    let dir = dir.path();
    let mut keeper = start(dir);
    makes(&mut keeper, 4);
    let before = fs::read(dir.join(GENERATIONS)).expect("a record");
    makes(&mut keeper, 5);
    fs::write(dir.join(GENERATIONS), before).expect("put back");
    let keeper = start(dir);
    assert_eq!(generations(&keeper), [4, 5]);
    assert_eq!(keeper.problems().count(), 0);
}

/// A whole disk of an earlier time has an earlier record: then counts what the node has told others since. What is older than all of that is
/// not used, once it is known.
#[test]
fn a_disk_of_an_earlier_time_is_known_by_what_was_said_since() {
    let said = |generations: &[u32]| -> Announcement {
        let keys: Vec<_> = generations.iter().map(|_| PrivateKey::generate().expect("a key")).collect();
        let entries = generations.iter().zip(&keys).map(|(generation, key)| GenerationEntry {
            generation: Generation::new(*generation),
            public_key: key.public(),
            port: 51871.try_into().expect("a port"),
            state: GenerationState::Active,
        });
        let keys: Vec<&PrivateKey> = keys.iter().collect();
        Announcement::sign("node-1", "uid-1", entries.collect(), NotFlipped::nobody(), &keys).expect("signed")
    };
    // What is said of older ones tells of a source that lags behind.
    for (says, uses) in [
        (None, &[4, 5][..]),
        (Some(&[3][..]), &[4, 5][..]),
        (Some(&[4, 5][..]), &[4, 5][..]),
        (Some(&[5, 6][..]), &[5][..]),
        (Some(&[6][..]), &[][..]),
    ] {
        let dir = tempfile::tempdir().expect("temp dir");
        let dir = dir.path();
        let mut keeper = start(dir);
        [4, 5].into_iter().for_each(|generation| makes(&mut keeper, generation));
        let mut keeper = start(dir);
        assert!(!keeper.has_been_told());
        keeper.hear_own(says.map(said).as_ref(), 1);
        assert_eq!(generations(&keeper), uses, "{says:?}");
        assert!(keeper.has_been_told());
        assert_eq!(keeper.problems().count(), 2 - uses.len(), "{says:?}");
        // So it stays for the next one, whatever that is told.
        assert_eq!(generations(&start(dir)), uses, "{says:?}");
        // What was made since is no older, whatever the number.
        makes(&mut keeper, 5);
        keeper.hear_own(Some(&said(&[9])), 1);
        assert_eq!(keeper.info().map(|info| info.generation.number()), Some(5), "{says:?}");
    }
}

/// Without a record every key that can be trusted counts, and it is told that nobody knows.
#[test]
fn a_record_that_can_not_be_read_is_told() {
    let dir = tempfile::tempdir().expect("temp dir");
    let dir = dir.path();
    makes(&mut start(dir), 4);
    fs::write(dir.join(GENERATIONS), "{").expect("garbled");
    let keeper = start(dir);
    assert_eq!(generations(&keeper), [4]);
    let [told] = keeper.problems().collect::<Vec<_>>()[..] else { panic!("{keeper:?}") };
    assert!(told.object.ends_with(GENERATIONS) && told.advice.contains("begun anew"), "{told}");
    assert_eq!(start(dir).problems().count(), 0);
}

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
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    assert_eq!(told(&mut keeper), [""; 0]);
}
