use xeddsa::Verify as _;

use crate::{PublicKey, text};

/// An XEdDSA signature: made with a WireGuard key, checked with its public half.
///
/// Written as 88 characters of base64. Source: <https://signal.org/docs/specifications/xeddsa/>.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; 64]);

/// A text that is not a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a signature: must be 88 characters of base64")]
pub struct InvalidSignature;

/// Why a signature proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Of low order, not in the one encoding, or not on the curve: a signature by it proves nothing.
    #[error("the public key is not one that a private key can have")]
    UnusableKey,
    /// Made by another key, or over something else.
    #[error("the signature does not belong to this key and this content")]
    Mismatch,
}

impl Signature {
    /// The signature of these bytes: R, then s.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The bytes: R, then s.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl PublicKey {
    /// Checks that the owner of this key signed `message`.
    ///
    /// # Errors
    /// [`VerifyError::UnusableKey`] for a key by which anybody could have signed, and
    /// [`VerifyError::Mismatch`] for a signature of another key or another message.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), VerifyError> {
        // The crate verifies leniently: it reduces what is not reduced, and under a point of low order
        // one signature fits many messages. Section 2.2 of the specification refuses both.
        if self.is_low_order() || !self.is_canonical() {
            return Err(VerifyError::UnusableKey);
        }
        let key = xeddsa::xed25519::PublicKey(*self.as_bytes());
        key.verify(message, &signature.0).map_err(|error| match error {
            xeddsa::Error::UnusablePublicKey => VerifyError::UnusableKey,
            xeddsa::Error::InvalidSignature => VerifyError::Mismatch,
        })
    }
}

text::base64_text!(Signature, 64, InvalidSignature, "a signature in base64");
