use std::convert::Infallible;
use std::fmt;

use rand_core::{TryCryptoRng, TryRng};
use xeddsa::Sign as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{PublicKey, Signature, randomness, text};

/// A WireGuard private key. The only type of this project that holds one.
///
/// It lives in one heap allocation that is overwritten when it goes. It has neither `Clone` nor
/// `Display` nor serde, and its `Debug` prints the public half:
///
/// ```compile_fail,E0599
/// fn copy(key: &kubeveil_keys::PrivateKey) -> kubeveil_keys::PrivateKey { <kubeveil_keys::PrivateKey>::clone(key) }
/// ```
/// ```compile_fail,E0277
/// fn print(key: &kubeveil_keys::PrivateKey) -> String { format!("{key}") }
/// ```
/// ```compile_fail,E0277
/// fn serialize<T: serde::Serialize>(_: &T) {}
/// fn leak(key: &kubeveil_keys::PrivateKey) { serialize(key) }
/// ```
/// ```compile_fail,E0277
/// fn deserialize<T: serde::de::DeserializeOwned>() -> Option<T> { None }
/// fn forge() { deserialize::<kubeveil_keys::PrivateKey>(); }
/// ```
/// ```compile_fail,E0277
/// fn compare(a: &kubeveil_keys::PrivateKey, b: &[u8]) -> bool { AsRef::<[u8]>::as_ref(a) == b }
/// ```
///
/// ```
/// let key = kubeveil_keys::PrivateKey::generate()?;
/// assert_eq!(format!("{key:?}"), format!("PrivateKey(public: {})", key.public()));
/// # Ok::<(), kubeveil_keys::RandomnessError>(())
/// ```
#[derive(ZeroizeOnDrop)]
pub struct PrivateKey {
    /// Clamped (RFC 7748 section 5), as the kernel keeps it.
    bytes: Box<Zeroizing<[u8; 32]>>,
    #[zeroize(skip)]
    public: PublicKey,
}

/// The operating system gave no randomness, so there is no key.
#[derive(Debug, thiserror::Error)]
#[error("cannot read randomness from the operating system (getrandom)")]
pub struct RandomnessError(#[source] std::io::Error);

impl PrivateKey {
    /// A new key from the randomness of the operating system.
    ///
    /// # Errors
    /// If the operating system gives no randomness; it waits until the kernel's pool is seeded.
    pub fn generate() -> Result<Self, RandomnessError> {
        Self::filled_by(|bytes| randomness::fill(bytes).map_err(RandomnessError))
    }

    /// The key of these bytes, which are copied and clamped. The caller clears its own.
    pub fn copied_from(bytes: &[u8; 32]) -> Self {
        let Ok(key) = Self::filled_by(|to| {
            to.copy_from_slice(bytes);
            Ok::<(), Infallible>(())
        });
        key
    }

    /// The key of 44 characters of base64; `None` if they are none.
    pub(crate) fn from_base64(text: &[u8]) -> Option<Self> {
        Self::filled_by(|to| text::decode_into(text, to).then_some(()).ok_or(())).ok()
    }

    /// The key whose bytes `fill` writes to where they stay: no copy is made on the way.
    fn filled_by<E>(fill: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<Self, E> {
        let mut bytes = Box::new(Zeroizing::new([0; 32]));
        fill(&mut bytes)?;
        bytes[0] &= 0b1111_1000;
        bytes[31] &= 0b0111_1111;
        bytes[31] |= 0b0100_0000;
        let public = public_of(&bytes);
        scrub_stack();
        Ok(Self { bytes, public })
    }

    /// The public half.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `message`; [`PublicKey::verify`] checks it. Two signatures of one message differ.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut nonce = Zeroizing::new([0; 64]);
        // The randomness hardens against faulty hardware. Without it the signature is as safe as one of
        // Ed25519, which has none: what must never repeat is hashed from key and message too (XEdDSA, section 3).
        let _ = randomness::fill(&mut nonce[..]);
        self.sign_with_nonce(message, &nonce)
    }

    /// Signs `message` reproducibly, for test vectors.
    #[cfg(any(test, feature = "test-support"))]
    pub fn sign_with_fixed_nonce(&self, message: &[u8], nonce: &[u8; 64]) -> Signature {
        self.sign_with_nonce(message, nonce)
    }

    fn sign_with_nonce(&self, message: &[u8], nonce: &[u8; 64]) -> Signature {
        let bytes = sign_on_stack(&self.bytes, message, nonce);
        scrub_stack();
        Signature::from_bytes(bytes)
    }

    /// Shows the bytes to `use_bytes`: the one way to them, for setting a device's key. They must not be kept.
    pub fn expose<R>(&self, use_bytes: impl FnOnce(&[u8; 32]) -> R) -> R {
        use_bytes(&self.bytes)
    }
}

// Not inlined, so that what they leave on the stack lies where `scrub_stack` writes.
#[inline(never)]
fn public_of(bytes: &[u8; 32]) -> PublicKey {
    let secret = x25519_dalek::StaticSecret::from(*bytes);
    PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

#[inline(never)]
fn sign_on_stack(bytes: &[u8; 32], message: &[u8], nonce: &[u8; 64]) -> [u8; 64] {
    // The crate builds on an older x25519-dalek than ours, so bytes cross here; its key clears itself.
    let key = xeddsa::xed25519::PrivateKey::from(bytes);
    key.sign(message, Handout(nonce))
}

/// Overwrites the stack below the caller, where arithmetic on a secret by value has left copies of it.
///
/// Best effort: registers and what the compiler moved elsewhere are out of reach.
#[inline(never)]
pub fn scrub_stack() {
    let mut room = [0_u8; 32 * 1024];
    room.zeroize();
    std::hint::black_box(&room);
}

/// Hands out bytes that were drawn before, since the signer's interface has no place for a failure.
struct Handout<'a>(&'a [u8; 64]);

impl TryRng for Handout<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes).map(|()| u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes).map(|()| u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for (to, from) in out.iter_mut().zip(self.0) {
            *to = *from;
        }
        Ok(())
    }
}

impl TryCryptoRng for Handout<'_> {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(public: {})", self.public)
    }
}
