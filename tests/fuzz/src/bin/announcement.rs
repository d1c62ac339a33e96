//! Reading what a node says of itself.
#![no_main]

use kubeveil_api::announcement::{Announcement, MAX_BYTES, MAX_GENERATIONS};
use kubeveil_tests_fuzz::{NODE, UID, is_fit_to_print};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(json) = std::str::from_utf8(data) else { return };
    match Announcement::parse_and_verify(json, NODE, UID) {
        Err(error) => is_fit_to_print(&error.to_string()),
        Ok(announcement) => {
            assert!(json.len() <= MAX_BYTES && announcement.generations().len() <= MAX_GENERATIONS);
            // What was taken is taken again, as it is written by ourselves, and is nobody else's.
            let written = announcement.to_json();
            assert_eq!(Announcement::parse_and_verify(&written, NODE, UID).as_ref(), Ok(&announcement));
            assert!(Announcement::parse_and_verify(json, "node-2", UID).is_err());
            assert!(Announcement::parse_and_verify(json, NODE, "another").is_err());
        }
    }
});
