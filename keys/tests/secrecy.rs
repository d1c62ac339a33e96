//! Nothing that this crate prints holds a private key, whatever was wrong.

use std::fmt::{Debug, Display};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use kubeveil_keys::test_support::encodings;
use kubeveil_keys::{Generation, KeyStore, PrivateKey};
use proptest::prelude::*;

const UID: &str = "0b5c8f0e-27a7-4b0f-9c5f-0a3ad0c9b0f1";
const LINES: [&str; 6] =
    ["kubeveil key ", "node-uid: ", "generation: ", "created: ", "public-key: ", "private-key: "];

fn spellings(key: &PrivateKey) -> Vec<String> {
    key.expose(encodings)
}

fn leak(spellings: &[String], text: &str) -> bool {
    spellings.iter().any(|spelling| text.contains(spelling.as_str()))
}

fn all_forms(value: &(impl Debug + Display)) -> String {
    format!("{value} {value:?} {value:#?}")
}

/// The control: what the search is for is found.
#[test]
fn every_spelling_is_found() {
    let bytes: [u8; 32] = std::array::from_fn(|index| 250 - u8::try_from(index).expect("small") * 3);
    let spellings = encodings(&bytes);
    for text in [
        format!("{bytes:?}"),
        format!("{bytes:#?}"),
        format!("{bytes:02x?}"),
        format!("{bytes:x?}"),
        format!("{bytes:#04x?}").replace('\n', " ").replace("    ", "").replace(", ]", "]"),
        serde_json::to_string(&bytes).expect("json"),
        kubeveil_keys::PublicKey::from_bytes(bytes).to_string(),
        bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
    ] {
        assert!(leak(&spellings, &text), "{text}");
    }
    assert!(!leak(&spellings, &format!("{:?}", [0; 32])));
}

#[test]
fn what_holds_a_key_prints_its_public_half() {
    let folder = tempfile::tempdir().expect("folder");
    let store = KeyStore::open(folder.path().join("keys"), UID).expect("store");
    let loaded = store.load_or_create(Generation::FIRST, 1).expect("made");
    let spellings = spellings(&loaded.private);
    let printed = format!("{loaded:?} {loaded:#?} {store:?} {:?}", store.list());
    assert!(!leak(&spellings, &printed), "{}", loaded.info.public);
    assert!(printed.contains(&format!("PrivateKey(public: {})", loaded.info.public)));
    let signature = loaded.private.sign(b"message");
    assert!(!leak(&spellings, &format!("{} {:?}", signature, signature)));
}

/// A store in which the file of the first generation holds `content`.
fn store_with(content: &[u8]) -> (tempfile::TempDir, KeyStore) {
    let folder = tempfile::tempdir().expect("folder");
    let store = KeyStore::open(folder.path().join("keys"), UID).expect("store");
    fs::write(store.path(Generation::FIRST), content).expect("written");
    fs::set_permissions(store.path(Generation::FIRST), Permissions::from_mode(0o600)).expect("mode");
    (folder, store)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The private key in a wrong place, in any spelling, in a file of any version: no error repeats it.
    #[test]
    fn no_error_repeats_a_misplaced_key(bytes: [u8; 32], line in 0..6_usize, spelling: prop::sample::Index, whole: bool) {
        let key = PrivateKey::copied_from(&bytes);
        let spellings = spellings(&key);
        let misplaced = spelling.get(&spellings[6..]);
        let (public, private) = (key.public().to_string(), &spellings[6]);
        let mut values = ["1", UID, "0", "7", &public, private];
        values[line] = misplaced;
        let mut content = String::new();
        for (index, (name, value)) in LINES.iter().zip(values).enumerate() {
            let name = if whole && index == line { "" } else { name };
            content.push_str(&format!("{name}{value}\n"));
        }
        let (_folder, store) = store_with(content.as_bytes());
        let Err(error) = store.load(Generation::FIRST) else {
            // Where it belongs, and whole.
            prop_assert_eq!((line, misplaced), (5, private));
            return Ok(());
        };
        prop_assert!(!leak(&spellings, &all_forms(&error)));
        let kept = store.load_or_create(Generation::FIRST, 1).expect("made").kept_aside.expect("the event");
        prop_assert!(!leak(&spellings, &all_forms(&kept)));
        let listed = format!("{:?}", store.list());
        prop_assert!(!leak(&spellings, &listed));
    }

    /// One byte of the file altered: the same key, or none, and never in a message.
    #[test]
    fn an_altered_file_gives_no_other_key(at: prop::sample::Index, flip in 1..=255_u8) {
        let (_folder, store) = store_with(b"");
        let made = store.load_or_create(Generation::FIRST, 1).expect("made");
        let mut content = fs::read(store.path(Generation::FIRST)).expect("read");
        let at = at.index(content.len());
        content[at] ^= flip;
        let (_folder, store) = store_with(&content);
        match store.load(Generation::FIRST) {
            Ok(read) => prop_assert_eq!(read.expect("there").1.public, made.info.public),
            Err(error) => prop_assert!(!leak(&spellings(&made.private), &all_forms(&error))),
        }
    }

    #[test]
    fn no_file_at_all_makes_it_panic(content in prop::collection::vec(any::<u8>(), 0..1500)) {
        let (_folder, store) = store_with(&content);
        store.load(Generation::FIRST).expect_err("no key");
        store.load_or_create(Generation::FIRST, 1).expect("a new one");
    }
}
