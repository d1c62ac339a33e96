//! The key store, from outside.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kubeveil_keys::{Generation, KeptAside, KeyStore, PrivateKey, Problem, StoreError};
use tempfile::TempDir;

const UID: &str = "0b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1";
const OTHER_UID: &str = "9f1e5b52-90b5-4b2a-8a4d-5b1f6b7d3c11";
const NOW: u64 = 1_700_000_000;
const ZERO: Generation = Generation::FIRST;

struct Fixture {
    _temporary: TempDir,
    folder: PathBuf,
    store: KeyStore,
}

fn fixture() -> Fixture {
    let temporary = tempfile::tempdir().expect("folder");
    let folder = temporary.path().join("state").join("keys");
    let store = KeyStore::open(&folder, UID).expect("store");
    Fixture { _temporary: temporary, folder, store }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("mode");
}

/// Writes `content` over the file of the first generation.
fn overwrite(fixture: &Fixture, content: &[u8]) {
    fs::write(fixture.store.path(ZERO), content).expect("written");
    chmod(&fixture.store.path(ZERO), 0o600);
}

/// What the store makes of the file that lies there: the problem, by both calls.
fn set_aside(fixture: &Fixture) -> KeptAside {
    let path = fixture.store.path(ZERO);
    let error = fixture.store.load(ZERO).expect_err("not to be trusted");
    let loaded = fixture.store.load_or_create(ZERO, NOW + 9).expect("a new key");
    let kept = loaded.kept_aside.expect("the event");
    assert_eq!(error.to_string(), format!("key file {} cannot be trusted: {}", path.display(), kept.problem));
    assert_eq!(kept.path, path);
    assert!(kept.to_string().contains(&path.display().to_string()), "{kept}");
    assert!(kept.to_string().contains(kept.problem.advice()), "{kept}");
    assert_eq!(fixture.store.set_aside_files().expect("listed"), std::slice::from_ref(&kept.moved_to));
    assert_eq!(mode(&path), 0o600);
    let again = fixture.store.load_or_create(ZERO, NOW + 10).expect("the same key");
    assert_eq!((again.info, again.kept_aside), (loaded.info, None));
    kept
}

/// As [`set_aside`], for a file whose content must survive.
fn kept_whole(fixture: &Fixture) -> Problem {
    let before = fs::read(fixture.store.path(ZERO)).expect("read");
    let kept = set_aside(fixture);
    assert_eq!(fs::read(&kept.moved_to).expect("read"), before);
    assert_eq!(mode(&kept.moved_to), 0o600);
    kept.problem
}

#[test]
fn a_new_key_is_private_to_us_and_comes_back() {
    let Fixture { folder, store, .. } = &fixture();
    let made = store.load_or_create(ZERO, NOW).expect("made");
    assert_eq!(made.kept_aside, None);
    assert_eq!((made.info.generation, made.info.created), (ZERO, NOW));
    assert_eq!(made.info.public, made.private.public());
    assert_eq!(mode(folder), 0o700);
    assert_eq!(mode(folder.parent().expect("parent")), 0o700);
    assert_eq!(mode(&store.path(ZERO)), 0o600);
    assert_eq!(store.tightened_from(), None);

    let again = store.load_or_create(ZERO, NOW + 5).expect("read");
    assert_eq!(again.info, made.info);
    let (private, info) = store.load(ZERO).expect("read").expect("there");
    assert_eq!((private.public(), info), (made.info.public, made.info));
    assert!(made.private.expose(|one| private.expose(|two| one == two)));
    assert!(store.load(Generation::new(1)).expect("read").is_none());
}

/// The text on disk, and that of a key that is known.
#[test]
fn the_format_is_pinned() {
    let fixture = fixture();
    let content = "kubeveil key 1\n\
        node-uid: 0b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1\n\
        generation: 0\n\
        created: 1700000000\n\
        public-key: 3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=\n\
        private-key: WKsIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Gs=\n";
    overwrite(&fixture, content.as_bytes());
    let (private, info) = fixture.store.load(ZERO).expect("read").expect("there");
    assert_eq!((info.created, info.generation), (NOW, ZERO));
    assert_eq!(private.public().to_string(), "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=");

    let made = fixture.store.load_or_create(Generation::new(1), NOW).expect("made");
    let written = fs::read_to_string(fixture.store.path(Generation::new(1))).expect("read");
    let head = format!(
        "kubeveil key 1\nnode-uid: {UID}\ngeneration: 1\ncreated: 1700000000\npublic-key: {}\n",
        made.info.public
    );
    assert_eq!(written.strip_prefix(&head).expect("the head").len(), "private-key: ".len() + 44 + 1);
}

#[test]
fn a_file_that_others_can_read_or_write_is_kept_aside() {
    for open in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610] {
        let fixture = fixture();
        fixture.store.load_or_create(ZERO, NOW).expect("made");
        chmod(&fixture.store.path(ZERO), open);
        assert_eq!(kept_whole(&fixture), Problem::TooOpen { mode: open });
    }
}

#[test]
fn every_truncation_is_kept_aside() {
    let fixture = fixture();
    fixture.store.load_or_create(ZERO, NOW).expect("made");
    let whole = fs::read(fixture.store.path(ZERO)).expect("read");
    for length in 0..whole.len() {
        overwrite(&fixture, &whole[..length]);
        let problem = match fixture.store.load(ZERO) {
            Err(StoreError::BadFile { problem, .. }) => problem,
            other => panic!("{length} bytes: {other:?}"),
        };
        // Cut within a value, the line has no end; that is the same.
        assert_eq!(problem, Problem::Truncated, "{length} bytes");
    }
    overwrite(&fixture, &whole[..whole.len() - 1]);
    assert_eq!(kept_whole(&fixture), Problem::Truncated);
}

#[test]
fn what_is_no_key_is_kept_aside() {
    let good = {
        let fixture = fixture();
        fixture.store.load_or_create(ZERO, NOW).expect("made");
        fs::read_to_string(fixture.store.path(ZERO)).expect("read")
    };
    for (content, line) in [
        ("WKsIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Gs=\n".to_owned(), 1),
        ("\0".repeat(300), 1),
        ("\u{ff}\n".to_owned(), 1),
        ("kubeveil key 1".repeat(1000), 1),
        (good.replace("kubeveil key 1", "kubeveil key 01"), 1),
        (good.replace("kubeveil key 1", "kubeveil key one"), 1),
        (good.replace(UID, "a uid"), 2),
        (good.replace("generation: 0", "generation: -0"), 3),
        (good.replace("created: ", "created: +"), 4),
        (good.replace("public-key: ", "public-key:  "), 5),
        (good.replace("private-key: ", "private-key: A"), 6),
        (good.replace("private-key: ", "secret-key: "), 6),
        (good.replace('\n', "\r\n"), 1),
        (format!("{good}\n"), 7),
    ] {
        let fixture = fixture();
        overwrite(&fixture, content.as_bytes());
        assert_eq!(kept_whole(&fixture), Problem::NotAKey { line }, "{content:?}");
    }
}

#[test]
fn another_nodes_key_is_kept_aside() {
    let fixture = fixture();
    let other = KeyStore::open(&fixture.folder, OTHER_UID).expect("store");
    let cloned = other.load_or_create(ZERO, NOW).expect("made");
    let problem = kept_whole(&fixture);
    assert_eq!(problem, Problem::OtherNode { expected: UID.to_owned() });
    assert_ne!(fixture.store.load(ZERO).expect("read").expect("there").1.public, cloned.info.public);
}

#[test]
fn another_version_is_kept_aside_whatever_follows() {
    let fixture = fixture();
    overwrite(&fixture, b"kubeveil key 2\nalgorithm: ml-kem\n");
    assert_eq!(kept_whole(&fixture), Problem::OtherVersion { found: 2 });
}

#[test]
fn another_generations_key_is_kept_aside() {
    let fixture = fixture();
    let one = Generation::new(1);
    fixture.store.load_or_create(one, NOW).expect("made");
    fs::rename(fixture.store.path(one), fixture.store.path(ZERO)).expect("renamed");
    assert_eq!(kept_whole(&fixture), Problem::OtherGeneration { found: one });
}

#[test]
fn a_public_key_of_another_private_key_is_kept_aside() {
    let fixture = fixture();
    let made = fixture.store.load_or_create(ZERO, NOW).expect("made");
    let content = fs::read_to_string(fixture.store.path(ZERO)).expect("read");
    let other = PrivateKey::generate().expect("randomness").public();
    overwrite(&fixture, content.replace(&made.info.public.to_string(), &other.to_string()).as_bytes());
    assert_eq!(kept_whole(&fixture), Problem::Mismatch);
}

#[test]
fn a_symbolic_link_is_kept_aside_and_its_target_left_alone() {
    let fixture = fixture();
    fixture.store.load_or_create(ZERO, NOW).expect("made");
    let target = fixture.folder.join("elsewhere");
    fs::rename(fixture.store.path(ZERO), &target).expect("renamed");
    chmod(&target, 0o644);
    let before = fs::read(&target).expect("read");
    symlink(&target, fixture.store.path(ZERO)).expect("linked");
    let kept = set_aside(&fixture);
    assert_eq!(kept.problem, Problem::NotAFile("a symbolic link"));
    assert_eq!(fs::read_link(kept.moved_to).expect("a link"), target);
    assert_eq!((fs::read(&target).expect("read"), mode(&target)), (before, 0o644));
}

#[test]
fn a_folder_in_the_place_of_a_key_is_kept_aside() {
    let fixture = fixture();
    fs::create_dir(fixture.store.path(ZERO)).expect("made");
    assert_eq!(set_aside(&fixture).problem, Problem::NotAFile("a folder"));
}

#[test]
fn a_pipe_in_the_place_of_a_key_does_not_block() {
    let fixture = fixture();
    let pipe = rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.store.path(ZERO),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    );
    pipe.expect("made");
    assert_eq!(set_aside(&fixture).problem, Problem::NotAFile("a pipe, a socket or a device"));
}

#[test]
fn files_kept_aside_are_never_overwritten() {
    let fixture = fixture();
    for number in 0..5 {
        overwrite(&fixture, format!("bad {number}\n").as_bytes());
        let kept = fixture.store.load_or_create(ZERO, NOW).expect("made").kept_aside.expect("the event");
        let name = format!("generation-0.key.set-aside-{NOW}-{number}");
        assert_eq!(kept.moved_to, fixture.folder.join(name));
    }
    let kept = fixture.store.set_aside_files().expect("listed");
    for (number, path) in kept.iter().enumerate() {
        assert_eq!(fs::read_to_string(path).expect("read"), format!("bad {number}\n"));
    }
    assert_eq!(kept.len(), 5);
}

/// Also one that can be trusted, where the caller knows that it is not to be used.
#[test]
fn a_key_is_set_aside_whole() {
    let Fixture { folder, store, .. } = &fixture();
    let before = store.load_or_create(ZERO, NOW).expect("made").info;
    let content = fs::read(store.path(ZERO)).expect("read");
    let moved_to = store.set_aside(ZERO, NOW).expect("moved");
    assert_eq!(moved_to, folder.join(format!("generation-0.key.set-aside-{NOW}-0")));
    assert_eq!((fs::read(&moved_to).expect("read"), mode(&moved_to)), (content, 0o600));
    assert!(store.list().expect("listed").is_empty());
    assert!(matches!(store.set_aside(ZERO, NOW), Err(StoreError::Io { .. })), "there is none");
    let after = store.load_or_create(ZERO, NOW).expect("made");
    assert!(after.info.public != before.public && after.kept_aside.is_none());
}

#[test]
fn a_folder_that_others_can_read_is_tightened_and_one_they_can_write_is_refused() {
    for (before, tightened) in [(0o755, true), (0o711, true), (0o750, true), (0o700, false)] {
        let fixture = fixture();
        chmod(&fixture.folder, before);
        let store = KeyStore::open(&fixture.folder, UID).expect("store");
        assert_eq!(store.tightened_from(), tightened.then_some(before));
        assert_eq!(mode(&fixture.folder), 0o700);
    }
    for before in [0o777, 0o770, 0o720, 0o702, 0o1777] {
        let fixture = fixture();
        chmod(&fixture.folder, before);
        let error = KeyStore::open(&fixture.folder, UID).expect_err("refused");
        let path = fixture.folder.display();
        assert_eq!(
            error.to_string(),
            format!(
                "others can write to key folder {path} (mode {before:04o}): see what is in it, then `chmod 0700 {path}`"
            )
        );
        assert_eq!(mode(&fixture.folder), before);
    }
}

#[test]
fn a_uid_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    for wrong in ["", "a b", "a\nprivate-key: x", "ä", &"u".repeat(129)] {
        assert!(matches!(KeyStore::open(folder.path(), wrong), Err(StoreError::NodeUid)), "{wrong:?}");
    }
}

#[test]
fn the_list_tells_good_from_bad() {
    let Fixture { folder, store, .. } = &fixture();
    for number in [12, 3] {
        store.load_or_create(Generation::new(number), NOW).expect("made");
    }
    fs::write(store.path(Generation::new(4)), "bad").expect("written");
    chmod(&store.path(Generation::new(4)), 0o600);
    for stranger in ["generation-03.key", "generation-x.key", "generation-5.key.set-aside-1-0", "notes"] {
        fs::write(folder.join(stranger), "").expect("written");
    }
    let listed = store.list().expect("listed");
    let numbers: Vec<_> = listed.iter().map(|key| (key.generation.number(), key.key.is_ok())).collect();
    assert_eq!(numbers, [(3, true), (4, false), (12, true)]);
}

#[test]
fn calls_at_the_same_time_agree() {
    for bad in [false, true] {
        let fixture = fixture();
        if bad {
            overwrite(&fixture, b"bad");
        }
        let call = |number: usize| {
            // Half of them share a store, as threads do; half have their own, as processes do.
            let own = KeyStore::open(&fixture.folder, UID).expect("store");
            let store = if number.is_multiple_of(2) { &fixture.store } else { &own };
            let loaded = store.load_or_create(ZERO, NOW).expect("a key");
            (loaded.info.public, loaded.kept_aside.is_some())
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|number| {
                    scope.spawn({
                        let call = &call;
                        move || call(number)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(results.iter().all(|(public, _)| *public == results[0].0), "{results:?}");
        assert_eq!(results.iter().filter(|(_, kept)| *kept).count(), usize::from(bad));
    }
}
