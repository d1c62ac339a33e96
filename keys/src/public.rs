use crate::text;

/// The public half of a WireGuard key: a point of Curve25519, as 32 bytes.
///
/// Written as WireGuard writes it, 44 characters of base64. Any 32 bytes make one, since a device may
/// hold any; where a key is trusted ([`PublicKey::verify`](crate::PublicKey::verify)) the bad ones are refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// A text that is not a public key. The text is not repeated: it might be a private key in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard public key: must be 44 characters of base64")]
pub struct InvalidPublicKey;

impl PublicKey {
    /// The key of these bytes, unchecked.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, as they stand in a WireGuard message.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether every exchange with this key gives the same well-known secret: it is one of the points of
    /// order 1, 2, 4 or 8 of the curve or its twist, in any encoding.
    ///
    /// Source: <https://cr.yp.to/ecdh.html#validate>.
    pub fn is_low_order(&self) -> bool {
        // X25519 ignores the highest bit (RFC 7748 section 5).
        let mut bytes = self.0;
        bytes[31] &= 0x7f;
        LOW_ORDER.contains(&bytes)
    }

    /// Whether the bytes are the one encoding that X25519 would write: less than 2^255 - 19.
    ///
    /// Every other encoding is a second name for the same point; XEdDSA (section 2.2, "u >= p") refuses it.
    pub fn is_canonical(&self) -> bool {
        self.0.iter().rev().cmp(P.iter().rev()).is_lt()
    }
}

/// 2^255 - 19, the order of the field, little endian.
const P: [u8; 32] = p_plus(0);

/// 2^255 - 19 + `offset`, little endian; -1 to 18.
const fn p_plus(offset: i16) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = (0xed + offset).to_le_bytes()[0];
    bytes[31] = 0x7f;
    bytes
}

/// A small number, little endian.
const fn small(number: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = number;
    bytes
}

/// The u-coordinates of low order, and their encodings that are not reduced. Highest bit clear.
const LOW_ORDER: [[u8; 32]; 7] = [
    small(0),
    small(1),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    p_plus(-1),
    p_plus(0),
    p_plus(1),
];

text::base64_text!(PublicKey, 32, InvalidPublicKey, "a WireGuard public key in base64");

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`LOW_ORDER`] claims, asked of the exchange itself: the shared secret is zero.
    #[test]
    fn a_key_of_low_order_contributes_nothing() {
        let secret = x25519_dalek::StaticSecret::from([0x55; 32]);
        for low in LOW_ORDER {
            for high_bit in [0, 0x80] {
                let mut bytes = low;
                bytes[31] |= high_bit;
                assert!(PublicKey::from_bytes(bytes).is_low_order());
                let shared = secret.diffie_hellman(&bytes.into());
                assert_eq!(shared.to_bytes(), [0; 32], "{bytes:02x?}");
            }
        }
        let ordinary = PublicKey::from_bytes(small(9));
        assert!(!ordinary.is_low_order());
    }

    #[test]
    fn only_reduced_encodings_are_canonical() {
        assert!(PublicKey::from_bytes(small(9)).is_canonical());
        assert!(PublicKey::from_bytes(p_plus(-1)).is_canonical());
        for offset in 0..=18 {
            assert!(!PublicKey::from_bytes(p_plus(offset)).is_canonical(), "p + {offset}");
        }
        let mut high_bit = small(9);
        high_bit[31] = 0x80;
        assert!(!PublicKey::from_bytes(high_bit).is_canonical());
    }

    #[test]
    fn the_text_is_strict() {
        let text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        let key: PublicKey = text.parse().expect("a key");
        assert_eq!(key.to_string(), text);
        assert_eq!(format!("{key:?}"), "PublicKey(HIgo9xNz…)");
        for wrong in [
            "",
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw",
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykx=",
            " HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=\n",
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8yk==",
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw-",
            "HIgo-xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(InvalidPublicKey), "{wrong:?}");
        }
    }
}
