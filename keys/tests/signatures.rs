//! Signatures: what holds, what is refused, and that the crate below would not have refused it.

use kubeveil_keys::{PrivateKey, PublicKey, Signature, VerifyError};
use proptest::prelude::*;
use xeddsa::Verify as _;

/// What the crate below says, without our checks.
fn leniently(key: PublicKey, message: &[u8], signature: &Signature) -> bool {
    xeddsa::xed25519::PublicKey(*key.as_bytes()).verify(message, signature.as_bytes()).is_ok()
}

#[test]
fn the_public_half_is_that_of_rfc_7748() {
    // Section 6.1, Bob.
    let private = hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    let public = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    assert_eq!(PrivateKey::copied_from(&private).public().as_bytes(), &public);
}

/// Vectors from the pseudo code of the XEdDSA specification in Python, which shares no code with this crate.
/// Private key: 32 times the number; message `kubeveil`; nonce Z: 0, 1, … 63.
#[test]
fn vectors_made_elsewhere_verify() {
    for (number, public, signature) in [
        (
            1,
            "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=",
            "w624KxHbAUuNQOZLx01B5ZXlCFti+DTYX5pGSEtbda+ppcA7W+tuczT25iX+1RWA8ox3NrQouTW9F09i7BN/Aw==",
        ),
        (
            3,
            "Xf7dO2vUf2+ijuFdlp1bsOpTd01Ii9r53xxuASSz7yI=",
            "uOjDqo+d5LgBjV7qSkU6FFRoPOjgYdcfRw9z//rQu42gx+0Xn+wbGJDHJuxznlEkFiLtQV7LvaS0YrurBJHwDg==",
        ),
        (
            6,
            "9bLW5g+Ud+MQwpgtqqbJE2wQihd3xZR+RI+jfWgXRVc=",
            "DDmFGshkdovMDlXzbLbHfgh9gQYxZWsAJjlc8ETeNBKamN15TqkIruGhR3bxnot3qDWfoztNLJhmkjrFhkmjBg==",
        ),
    ] {
        let key = PrivateKey::copied_from(&[number; 32]);
        assert_eq!(key.public().to_string(), public);
        let signature: Signature = signature.parse().expect("a signature");
        assert_eq!(key.public().verify(b"kubeveil", &signature), Ok(()), "key {number}");
    }
}

/// Pinned, so that a change of the crate below does not go unseen.
#[test]
fn a_signature_with_a_fixed_nonce_is_pinned() {
    let nonce: [u8; 64] = std::array::from_fn(|index| u8::try_from(index).expect("small"));
    let signature = PrivateKey::copied_from(&[3; 32]).sign_with_fixed_nonce(b"kubeveil", &nonce);
    assert_eq!(
        signature.to_string(),
        "uOjDqo+d5LgBjV7qSkU6FFRoPOjgYdcfRw9z//rQu42gx+0Xn+wbGJDHJuxznlEkFiLtQV7LvaS0YrurBJHwDg=="
    );
}

#[test]
fn two_signatures_of_one_message_differ_and_hold() {
    let key = PrivateKey::generate().expect("randomness");
    let (one, two) = (key.sign(b"message"), key.sign(b"message"));
    assert_ne!(one, two);
    assert_eq!(key.public().verify(b"message", &one), Ok(()));
    assert_eq!(key.public().verify(b"message", &two), Ok(()));
}

/// Under a key of order 2, R = identity and s = 0 fit every second message: anybody can sign.
#[test]
fn a_key_of_low_order_is_refused_where_the_crate_below_takes_it() {
    let key = PublicKey::from_bytes([0; 32]);
    let mut forged = [0; 64];
    forged[0] = 1;
    let forged = Signature::from_bytes(forged);
    let message = (0_u8..64).map(|number| [number]).find(|message| leniently(key, message, &forged));
    let message = message.expect("the control: the forgery passes below");
    assert_eq!(key.verify(&message, &forged), Err(VerifyError::UnusableKey));
}

#[test]
fn a_second_name_of_a_key_is_refused_where_the_crate_below_takes_it() {
    let key = PrivateKey::copied_from(&[1; 32]);
    let signature = key.sign(b"message");
    let mut bytes = *key.public().as_bytes();
    bytes[31] |= 0x80;
    let alias = PublicKey::from_bytes(bytes);
    assert!(leniently(alias, b"message", &signature), "the control");
    assert_eq!(alias.verify(b"message", &signature), Err(VerifyError::UnusableKey));
}

#[test]
fn a_point_of_the_twist_is_refused() {
    let mut bytes = [0; 32];
    bytes[0] = 2;
    let signature = Signature::from_bytes([0; 64]);
    assert_eq!(PublicKey::from_bytes(bytes).verify(b"", &signature), Err(VerifyError::UnusableKey));
}

proptest! {
    // Curve arithmetic is slow without optimisation.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_a_key_signed_verifies_and_nothing_else(
        bytes: [u8; 32], other: [u8; 32], message in proptest::collection::vec(any::<u8>(), 1..200),
        at: proptest::sample::Index, flip in 1..=255_u8,
    ) {
        let (key, other) = (PrivateKey::copied_from(&bytes), PrivateKey::copied_from(&other));
        prop_assume!(key.public() != other.public());
        let signature = key.sign(&message);
        prop_assert_eq!(key.public().verify(&message, &signature), Ok(()));
        prop_assert_eq!(other.public().verify(&message, &signature), Err(VerifyError::Mismatch));

        let mut altered = message.clone();
        altered[at.index(message.len())] ^= flip;
        prop_assert_eq!(key.public().verify(&altered, &signature), Err(VerifyError::Mismatch));

        let mut altered = *signature.as_bytes();
        altered[at.index(64)] ^= flip;
        prop_assert_eq!(key.public().verify(&message, &Signature::from_bytes(altered)), Err(VerifyError::Mismatch));
    }

    #[test]
    fn texts_round_trip(key: [u8; 32], signature in proptest::collection::vec(any::<u8>(), 64)) {
        let key = PublicKey::from_bytes(key);
        prop_assert_eq!(key.to_string().len(), 44);
        prop_assert_eq!(key.to_string().parse(), Ok(key));
        let json = serde_json::to_string(&key).expect("json");
        prop_assert_eq!(&json, &format!("\"{key}\""));
        prop_assert_eq!(serde_json::from_str::<PublicKey>(&json).expect("json"), key);

        let signature = Signature::from_bytes(signature.try_into().expect("64 bytes"));
        prop_assert_eq!(signature.to_string().len(), 88);
        prop_assert_eq!(signature.to_string().parse(), Ok(signature));
        let json = serde_json::to_string(&signature).expect("json");
        prop_assert_eq!(serde_json::from_str::<Signature>(&json).expect("json"), signature);
    }
}

fn hex(text: &str) -> [u8; 32] {
    std::array::from_fn(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).expect("hex"))
}
