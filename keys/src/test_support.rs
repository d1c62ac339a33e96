//! For tests that search output for a private key.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// Every way in which a program is likely to have printed these bytes by accident: hexadecimal (lower and upper
/// case, plain, colon-separated, as Rust's `{:02x?}`), base64 (both alphabets, padded, not, and cut), decimal lists.
pub fn encodings(bytes: &[u8; 32]) -> Vec<String> {
    let join = |format: fn(&u8) -> String, by: &str| bytes.iter().map(format).collect::<Vec<_>>().join(by);
    let base64 = |engine: &GeneralPurpose| engine.encode(bytes);
    let cut = |engine: &GeneralPurpose| base64(engine)[..42].to_owned();
    vec![
        join(|byte| format!("{byte:02x}"), ""),
        join(|byte| format!("{byte:02X}"), ""),
        join(|byte| format!("{byte:02x}"), ":"),
        join(|byte| format!("{byte:02x}"), ", "),
        join(|byte| format!("{byte:#04x}"), ", "),
        join(|byte| format!("{byte:x}"), ", "),
        base64(&STANDARD),
        base64(&STANDARD_NO_PAD),
        base64(&URL_SAFE),
        base64(&URL_SAFE_NO_PAD),
        join(u8::to_string, ", "),
        join(u8::to_string, ","),
        join(u8::to_string, " "),
        // `{:#?}`: one a line.
        join(u8::to_string, ",\n    "),
        // Without the last two characters: the bits that are left over may be anything, and be followed by anything.
        cut(&STANDARD),
        cut(&URL_SAFE),
    ]
}

/// As [`encodings`], and the bytes themselves, forwards and backwards: for what need not be text.
pub fn spellings(bytes: &[u8; 32]) -> Vec<Vec<u8>> {
    let mut backwards = *bytes;
    backwards.reverse();
    let raw = [bytes.to_vec(), backwards.to_vec()];
    raw.into_iter().chain(encodings(bytes).into_iter().map(String::into_bytes)).collect()
}
