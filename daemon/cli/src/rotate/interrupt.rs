//! Ctrl-C ends the command, not what it asked for: it says which, and how to look again.

use std::sync::atomic::{AtomicU8, Ordering};

/// How far the command is.
static STAGE: AtomicU8 = AtomicU8::new(LOOKS);
const LOOKS: u8 = 0;
const ASKS: u8 = 1;
const HAS_ASKED: u8 = 2;

/// The shell's exit code of what ended by SIGINT.
const INTERRUPTED: i32 = 130;

/// From now on it is told; `goes_on` says what does, once it is asked for. To be called before anything is.
pub(super) fn watch(goes_on: impl Fn() -> String + Send + 'static) {
    // Who is told twice would be told by the signal's own way too.
    let _ = ctrlc::set_handler(move || {
        eprintln!("\nkubeveil: {}", words(STAGE.load(Ordering::SeqCst), &goes_on()));
        std::process::exit(INTERRUPTED);
    });
}

/// The change is on its way.
pub(super) fn is_asking() {
    STAGE.store(ASKS, Ordering::SeqCst);
}

/// It is made.
pub(super) fn has_asked() {
    STAGE.store(HAS_ASKED, Ordering::SeqCst);
}

fn words(stage: u8, goes_on: &str) -> String {
    match stage {
        LOOKS => "nothing was asked for".to_owned(),
        ASKS => format!("it may have been asked for already. If so, {goes_on}"),
        _ => goes_on.to_owned(),
    }
}

/// Of a rotation.
pub(super) fn rotation() -> String {
    "the rotation goes on; `kubeveil rotate status` tells how far it is, `kubeveil rotate pause` has it wait"
        .to_owned()
}

/// Of a node whose keys are refused.
pub(super) fn revocation(node: &str) -> String {
    format!(
        "the keys of {node} stay refused, and its traffic is dropped until it has announced another, which it does by itself; \
         `kubeveil rotate status` tells of all nodes, and `kubeveil rotate history` of who did it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_told_once_it_is_asked_for() {
        let said = [LOOKS, ASKS, HAS_ASKED].map(|stage| words(stage, &rotation()));
        assert_eq!(said[0], "nothing was asked for");
        assert!(said[1].starts_with("it may have been asked for already. If so, the rotation goes on"));
        assert!(said[2].starts_with("the rotation goes on; `kubeveil rotate status` tells"));
        assert!(revocation("node-1").contains("`kubeveil rotate status`"));
    }
}
