//! What the fake kernel of the daemon's unit tests claims, asked of the real one.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use kubeveil_linux::{Kernel as _, RealKernel, claims};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::batch;
use kubeveil_tests::stage::Stage;
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;

use crate::Scenario;
use crate::support::embedded_object;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("the_kernel_holds_to_what_the_fake_claims", settings).nodes(2),
    Scenario::new("the_kernel_shakes_hands_as_the_fake_claims", handshakes).nodes(2),
    Scenario::new("the_kernel_has_the_backstop_that_the_fake_claims", backstop).nodes(2),
];

fn settings(_: &mut Stage) -> Result<()> {
    // Nothing is loaded, so nothing is pinned anywhere.
    ask(Path::new("/nonexistent"), Vec::new(), claims::check)
}

fn handshakes(_: &mut Stage) -> Result<()> {
    ask(Path::new("/nonexistent"), Vec::new(), claims::check_handshake)
}

fn backstop(stage: &mut Stage) -> Result<()> {
    // On the BPF file system of a node.
    let pins = stage.lab.daemon(Node(1)).file("bpf/claims");
    ask(&pins, embedded_object()?, claims::check_backstop)
}

/// In a network namespace of its own, which ends with the thread.
fn ask(
    pins: &Path,
    object: Vec<u8>,
    check: fn(&mut dyn kubeveil_linux::Kernel) -> Result<(), String>,
) -> Result<()> {
    let pins = pins.to_owned();
    let asked = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        batch(None, &["link set lo up".to_owned()])?;
        // Several threads: calls of the kernel's port wait for a socket that another one drives.
        let runtime = Runtime::new()?;
        let _guard = runtime.enter();
        let mut kernel = RealKernel::new(&pins, object)?;
        let checked = check(&mut kernel).map_err(|claim| anyhow!(claim));
        let (_, left) = kernel.remove_everything();
        checked?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
    asked.join().map_err(|_| anyhow!("the thread panicked"))?
}
