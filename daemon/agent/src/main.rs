//! The program; all of it is in the library beside it.

use std::process::ExitCode;

/// What held a private key for a moment is not left lying about.
#[global_allocator]
static ALLOCATOR: kubeveil_linux::Forgetful = kubeveil_linux::Forgetful;

fn main() -> ExitCode {
    kubeveild::main()
}
