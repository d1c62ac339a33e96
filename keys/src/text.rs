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

/// Serde by `Display` and `FromStr`, as a string.
macro_rules! serde_as_string {
    ($type:ty, $expecting:literal) => {
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
pub(crate) use serde_as_string;
