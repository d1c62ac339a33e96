//! For tests that search output for a private key.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// Every way in which a program is likely to have printed these bytes by accident: hexadecimal (lower and upper
/// case, plain, colon-separated, as Rust's `{:02x?}`), base64 (both alphabets, padded and not), decimal lists.
pub fn encodings(bytes: &[u8; 32]) -> Vec<String> {
    let join = |format: fn(&u8) -> String, by: &str| bytes.iter().map(format).collect::<Vec<_>>().join(by);
    vec![
        join(|byte| format!("{byte:02x}"), ""),
        join(|byte| format!("{byte:02X}"), ""),
        join(|byte| format!("{byte:02x}"), ":"),
        join(|byte| format!("{byte:02x}"), ", "),
        join(|byte| format!("{byte:#04x}"), ", "),
        join(|byte| format!("{byte:x}"), ", "),
        STANDARD.encode(bytes),
        STANDARD_NO_PAD.encode(bytes),
        URL_SAFE.encode(bytes),
        URL_SAFE_NO_PAD.encode(bytes),
        join(u8::to_string, ", "),
        join(u8::to_string, ","),
        join(u8::to_string, " "),
        // `{:#?}`: one a line.
        join(u8::to_string, ",\n    "),
    ]
}
