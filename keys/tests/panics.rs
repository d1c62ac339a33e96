//! What a process says that panics while it holds a private key, with all that `RUST_BACKTRACE=full` adds.
//!
//! Each scene is played by this test binary in a process of its own, since a panic's words go to the
//! process' standard error.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use kubeveil_keys::test_support::encodings;
use kubeveil_keys::{Generation, KeyStore, LoadedKey, PrivateKey};

const UID: &str = "0b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1";
const SCENE: &str = "KUBEVEIL_TEST_SCENE";
const FOLDER: &str = "KUBEVEIL_TEST_FOLDER";

type Scene = (&'static str, fn(&KeyStore, LoadedKey));

/// What a programmer may do without a thought.
const SCENES: [Scene; 6] = [
    ("print what holds a key", |_, loaded| panic!("{loaded:?} {loaded:#?}")),
    ("compare keys", |_, loaded| assert_eq!(format!("{:?}", loaded.private), "", "{:?}", loaded.info)),
    ("panic while the bytes are shown", |_, loaded| loaded.private.expose(|_| panic!("in the middle"))),
    ("index by a key", |store, loaded| {
        let _: i32 = [0; 4][usize::from(loaded.private.public().as_bytes()[0]) + 4];
        drop(store.list());
    }),
    ("unwrap the error of a damaged file", |store, loaded| {
        // The private key where another should be.
        let path = store.path(Generation::FIRST);
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replace("private-key: ", "public-key: ")).expect("written");
        drop(loaded);
        panic!("{:?}", store.load(Generation::FIRST).map(drop).map_err(|e| format!("{e} {e:?}")));
    }),
    ("panic again in a destructor", |_, loaded| {
        struct Bomb(PrivateKey);
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("{:?}", self.0);
            }
        }
        let bomb = Bomb(loaded.private);
        panic!("{:?}", bomb.0);
    }),
];

/// What must not be done, so that the search has something to find.
const CONTROLS: [Scene; 3] = [
    ("print the bytes", |_, loaded| loaded.private.expose(|bytes| panic!("{bytes:?}"))),
    ("print them a line each", |_, loaded| loaded.private.expose(|bytes| panic!("{bytes:#?}"))),
    ("print the file", |store, _| panic!("{:?}", fs::read_to_string(store.path(Generation::FIRST)))),
];

/// Plays a scene in a process of its own, over a key of its own; whether what it said holds the key.
fn leaks(name: &str) -> bool {
    let folder = tempfile::tempdir().expect("folder");
    let made = store(folder.path()).load_or_create(Generation::FIRST, 1).expect("made");
    let output = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "no_panic_tells_the_key", "--nocapture"])
        .envs([("RUST_BACKTRACE", "full"), (SCENE, name)])
        .env(FOLDER, folder.path())
        .output()
        .expect("started");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let said = said.concat();
    assert!(!output.status.success(), "{name}: it did not panic: {said}");
    for words in ["panicked at", "stack backtrace:"] {
        assert!(said.contains(words), "{name}: {words:?} is not in {said}");
    }
    made.private.expose(encodings).iter().any(|spelling| said.contains(spelling.as_str()))
}

/// In the process that is to panic.
fn play(wanted: &str, store: &KeyStore) {
    let loaded = store.load_or_create(Generation::FIRST, 1).expect("loaded");
    let (_, scene) = SCENES.iter().chain(&CONTROLS).find(|(name, _)| *name == wanted).expect("a scene");
    scene(store, loaded);
}

fn store(folder: &Path) -> KeyStore {
    KeyStore::open(folder.join("keys"), UID).expect("store")
}

#[test]
fn no_panic_tells_the_key() {
    if let (Ok(wanted), Some(folder)) = (env::var(SCENE), env::var_os(FOLDER)) {
        return play(&wanted, &store(Path::new(&folder)));
    }
    let leaking: Vec<_> = SCENES.iter().map(|(name, _)| *name).filter(|name| leaks(name)).collect();
    assert!(leaking.is_empty(), "the private key is in what a panic said: {leaking:?}");
}

#[test]
fn a_panic_that_does_tell_it_is_found() {
    for (name, _) in CONTROLS {
        assert!(leaks(name), "{name}");
    }
}
