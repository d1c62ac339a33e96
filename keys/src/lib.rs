//! WireGuard keys: one type for private keys, their signatures, and the folder they are kept in.
//!
//! Only [`store`] touches the file system. A private key is born in [`PrivateKey::generate`] or read
//! by the store, and leaves by [`PrivateKey::expose`] alone, for the netlink call that sets a device.

mod generation;
mod private;
mod public;
mod randomness;
mod signature;
pub mod store;
#[cfg(feature = "test-support")]
pub mod test_support;
mod text;

pub use generation::Generation;
pub use private::{PrivateKey, RandomnessError, scrub_stack};
pub use public::{InvalidPublicKey, PublicKey};
pub use signature::{InvalidSignature, Signature, VerifyError};
pub use store::{KeptAside, KeyInfo, KeyStore, ListedKey, LoadedKey, Problem, StoreError};
