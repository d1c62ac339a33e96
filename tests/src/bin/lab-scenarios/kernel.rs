//! What the fake kernel of the daemon's unit tests claims, asked of the real one.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use kubeveil_linux::{RealKernel, claims};
use kubeveil_tests::lab::batch;
use kubeveil_tests::stage::Stage;
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("the_kernel_holds_to_what_the_fake_claims", settings).nodes(2),
    Scenario::new("the_kernel_shakes_hands_as_the_fake_claims", handshakes).nodes(2),
];

fn settings(_: &mut Stage) -> Result<()> {
    ask(claims::check)
}

fn handshakes(_: &mut Stage) -> Result<()> {
    ask(claims::check_handshake)
}

/// In a network namespace of its own, which ends with the thread.
fn ask(check: fn(&mut dyn kubeveil_linux::Kernel) -> Result<(), String>) -> Result<()> {
    let asked = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        batch(None, &["link set lo up".to_owned()])?;
        // Several threads: calls of the kernel's port wait for a socket that another one drives.
        let runtime = Runtime::new()?;
        let _guard = runtime.enter();
        // Nothing is loaded, so nothing is pinned anywhere.
        let mut kernel = RealKernel::new(Path::new("/nonexistent"), Vec::new())?;
        check(&mut kernel).map_err(|claim| anyhow!(claim))
    });
    asked.join().map_err(|_| anyhow!("the thread panicked"))?
}
