//! Base64 as WireGuard writes it: standard alphabet, padded, no spare bits.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Characters of 32 bytes in padded base64.
pub(crate) const KEY_LENGTH: usize = 44;

/// Writes `bytes` as base64 onto `out`, which must have room: a vector that grows leaves a copy.
pub(crate) fn encode_key_into(bytes: &[u8; 32], out: &mut Vec<u8>) {
    let start = out.len();
    debug_assert!(out.capacity() >= start + KEY_LENGTH);
    out.resize(start + KEY_LENGTH, 0);
    // 32 bytes always fit the 44 characters made for them.
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written.ok(), Some(KEY_LENGTH));
}

/// Decodes `text` into `out`. False if it is anything but base64 of exactly `N` bytes.
pub(crate) fn decode_into<const N: usize>(text: &[u8], out: &mut [u8; N]) -> bool {
    if text.len() != N.div_ceil(3) * 4 {
        return false;
    }
    // The decoder wants room for whole groups of three bytes. The room may hold a private key.
    let mut room = zeroize::Zeroizing::new([0_u8; 96]);
    match STANDARD.decode_slice(text, &mut room[..]) {
        Ok(length) if length == N => {
            out.copy_from_slice(&room[..N]);
            true
        }
        _ => false,
    }
}

/// The base64 of `bytes`, which are no secret.
pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// What is no secret and travels as base64, a type of `$length` bytes: `Display`, `FromStr`, and serde as a string.
/// `Debug` shows the first eight characters, enough to tell two apart in a test's output.
macro_rules! base64_text {
    ($type:ident, $length:literal, $invalid:ident, $expecting:literal) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&$crate::text::encode(&self.0))
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({}…)", stringify!($type), &$crate::text::encode(&self.0)[..8])
            }
        }

        impl std::str::FromStr for $type {
            type Err = $invalid;

            fn from_str(text: &str) -> Result<Self, $invalid> {
                let mut bytes = [0; $length];
                let read = $crate::text::decode_into(text.as_bytes(), &mut bytes);
                read.then_some(Self(bytes)).ok_or($invalid)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use base64_text;
