//! A private key lies in memory once while it lives, and not at all after: this process reads its own memory.
//!
//! One test in a file of its own, since it looks at the whole process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::panic::AssertUnwindSafe;
use std::sync::{Barrier, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubeveil_keys::{Generation, KeyStore, PrivateKey};

/// What to look for, each complemented, so that the search does not find it in its own hands.
struct Needles(Vec<Vec<u8>>);

impl Needles {
    /// The second half of the key's bytes, and of its base64: an allocator writes its own notes over the first
    /// bytes of what was freed.
    fn of(key: &PrivateKey) -> Self {
        let mut text = zeroize::Zeroizing::new(vec![0; 44]);
        key.expose(|bytes| STANDARD.encode_slice(bytes, &mut text)).expect("44 characters");
        let complement = |bytes: &[u8]| bytes[bytes.len() / 2..].iter().map(|byte| !byte).collect();
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
                // What this buffer holds was read from elsewhere, and counted there.
                let end_of_chunk = at + length as u64;
                if own.start < end_of_chunk && at < own.end {
                    let from = usize::try_from(own.start.saturating_sub(at)).expect("within the chunk");
                    let to = usize::try_from(own.end.min(end_of_chunk) - at).expect("within the chunk");
                    chunk[from..to].fill(0);
                }
                for (count, needle) in found.iter_mut().zip(&self.0) {
                    // Chunks overlap, so that what crosses their border is found, and found once.
                    let last = if end_of_chunk == end {
                        length
                    } else {
                        length.saturating_sub(OVERLAP - needle.len())
                    };
                    *count += occurrences(&chunk[..last], needle);
                }
                chunk.fill(0);
                std::hint::black_box(&chunk);
                at += match length {
                    0 => CHUNK as u64,
                    _ if end_of_chunk == end => length as u64,
                    _ => (length - OVERLAP + 1) as u64,
                };
            }
        }
        found
    }
}

/// How often what `complement` is the complement of lies in `memory`.
fn occurrences(memory: &[u8], complement: &[u8]) -> usize {
    let (mut found, mut rest) = (0, memory);
    while let Some(at) = rest.iter().position(|&byte| byte == !complement[0]) {
        rest = &rest[at..];
        let begins = rest.len() >= complement.len();
        found += usize::from(begins && rest.iter().zip(complement).all(|(byte, wanted)| *byte == !wanted));
        rest = &rest[1..];
    }
    found
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

/// Does `work` in a thread that then stands still, so that `look` finds on its stack what the work left there.
fn then_look<R: Send>(work: impl FnOnce() -> R + Send, look: impl FnOnce(&R)) -> R {
    let (done, seen) = (Barrier::new(2), Barrier::new(2));
    let result = Mutex::new(None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let value = work();
            *result.lock().expect("not poisoned") = Some(value);
            done.wait();
            seen.wait();
        });
        done.wait();
        // A failed look must not leave the thread waiting.
        let looked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            look(result.lock().expect("not poisoned").as_ref().expect("worked"));
        }));
        seen.wait();
        looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    result.into_inner().unwrap_or_else(PoisonError::into_inner).expect("worked")
}

#[test]
fn a_key_lies_in_memory_once_and_never_after() {
    let generate = || PrivateKey::generate().expect("randomness");
    let generated = then_look(generate, |key| assert_eq!(Needles::of(key).copies(), [1, 0], "generated"));
    let key = Needles::of(&generated);
    then_look(|| generated.sign(b"message"), |_| assert_eq!(key.copies(), [1, 0], "signed"));

    let leak = || generated.expose(|bytes| std::hint::black_box(bytes.to_vec()));
    let leaked = then_look(leak, |_| assert_eq!(key.copies(), [2, 0], "the control: a copy is found"));
    drop(zeroize::Zeroizing::new(leaked));
    then_look(|| drop(generated), |()| assert_eq!(key.copies(), [0, 0], "gone"));

    let folder = tempfile::tempdir().expect("folder");
    let store = KeyStore::open(folder.path().join("keys"), "node-uid").expect("store");
    let make = || store.load_or_create(Generation::FIRST, 0).expect("made").private;
    let made = then_look(make, |made| assert_eq!(Needles::of(made).copies(), [1, 0], "made and written"));
    let key = Needles::of(&made);
    let load = || store.load(Generation::FIRST).expect("read").expect("there");
    let loaded = then_look(load, |_| assert_eq!(key.copies(), [2, 0], "read a second time"));
    then_look(|| drop((made, loaded)), |()| assert_eq!(key.copies(), [0, 0], "gone"));
}
