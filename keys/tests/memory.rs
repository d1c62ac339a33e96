//! A private key lies in memory once while it lives, and not at all after: this process reads its own memory.
//!
//! One test in a file of its own, since it looks at the whole process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubeveil_keys::{Generation, KeyStore, PrivateKey};

/// What to look for, each complemented, so that the search does not find it in its own hands.
struct Needles(Vec<Vec<u8>>);

impl Needles {
    /// The key's bytes, and its base64.
    fn of(key: &PrivateKey) -> Self {
        let mut text = zeroize::Zeroizing::new(vec![0; 44]);
        key.expose(|bytes| STANDARD.encode_slice(bytes, &mut text)).expect("44 characters");
        let complement = |bytes: &[u8]| bytes.iter().map(|byte| !byte).collect();
        Self(vec![key.expose(|bytes| complement(bytes)), complement(&text)])
    }

    /// How often each lies in writable memory.
    fn copies(&self) -> Vec<usize> {
        const CHUNK: usize = 64 * 1024;
        let mut found = vec![0; self.0.len()];
        let memory = File::open("/proc/self/mem").expect("own memory");
        let mut chunk = vec![0_u8; CHUNK];
        let own = address_of(&chunk)..address_of(&chunk) + CHUNK as u64;
        for (mut at, end) in writable_regions() {
            while at < end {
                let wanted = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
                let length = memory.read_at(&mut chunk[..wanted], at).unwrap_or(0);
                for (offset, byte) in chunk[..length].iter_mut().enumerate() {
                    // What this buffer holds was read from elsewhere, and counted there.
                    if own.contains(&(at + offset as u64)) {
                        *byte = 0;
                    }
                }
                for (count, needle) in found.iter_mut().zip(&self.0) {
                    // Chunks overlap, so that what crosses their border is found, and found once.
                    let last = if at + length as u64 == end {
                        length
                    } else {
                        length.saturating_sub(OVERLAP - needle.len())
                    };
                    let is_it =
                        |window: &[u8]| window.iter().zip(needle).all(|(byte, wanted)| *byte == !wanted);
                    *count += chunk[..last].windows(needle.len()).filter(|window| is_it(window)).count();
                }
                chunk.fill(0);
                std::hint::black_box(&chunk);
                at += match length {
                    0 => CHUNK as u64,
                    _ if at + length as u64 == end => length as u64,
                    _ => (length - OVERLAP + 1) as u64,
                };
            }
        }
        found
    }
}

/// Bytes by which two chunks overlap, and one more; longer than any needle.
const OVERLAP: usize = 64;

fn writable_regions() -> Vec<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").expect("own maps");
    let region = |line: &str| {
        let (range, rights) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        rights.starts_with("rw").then_some((address(start), address(end)))
    };
    maps.lines().filter_map(region).collect()
}

fn address_of(bytes: &[u8]) -> u64 {
    bytes.as_ptr().addr() as u64
}

fn address(hex: &str) -> u64 {
    u64::from_str_radix(hex, 16).expect("hexadecimal")
}

#[test]
fn a_key_lies_in_memory_once_and_never_after() {
    let folder = tempfile::tempdir().expect("folder");
    let store = KeyStore::open(folder.path().join("keys"), "node-uid").expect("store");

    let made = store.load_or_create(Generation::FIRST, 0).expect("made").private;
    let key = Needles::of(&made);
    made.sign(b"message");
    assert_eq!(key.copies(), [1, 0], "made, written and used");

    let leaked = made.expose(|bytes| std::hint::black_box(bytes.to_vec()));
    assert_eq!(key.copies(), [2, 0], "the control: a copy is found");
    drop(zeroize::Zeroizing::new(leaked));

    let (loaded, _) = store.load(Generation::FIRST).expect("read").expect("there");
    loaded.sign(b"message");
    assert_eq!(key.copies(), [2, 0], "read a second time");

    drop((made, loaded));
    assert_eq!(key.copies(), [0, 0], "gone");
}
