//! The daemon's way round at 5,000 nodes: over the real kernel with WireGuard, but for [`rotation`], [`pods`], [`window`] and [`scale`], which
//! have one of memory.
//!
//! Of those over the real kernel:
//! The peers' keys are lower than this node's and the clock that the daemon is told stands still, so nobody is spoken
//! to: thousands of handshakes would take the machine from what is measured. What `wg` is given is what the daemon has
//! made, as `wg showconf` tells it: the same peers, addresses and endpoints.

pub(crate) mod cluster;
pub(crate) mod latency;
pub(crate) mod memory;
pub(crate) mod pods;
mod profile;
pub(crate) mod reconcile;
pub(crate) mod rotation;
pub(crate) mod scale;
pub(crate) mod window;

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use kubeveil_core::source::Source;
use kubeveil_linux::{Kernel, RealKernel};
use kubeveil_tests_bpf::cell::{Cell, run};
use kubeveild::node::{Node, Now};

use self::{
    cluster::Own,
    profile::{Profile, Profiled},
};

/// Nodes beside this one.
const NODES: u16 = 5_000;
/// The moment that it is for the daemon, always.
const NOW: Now = Now { monotonic: Duration::from_secs(1_000), epoch: Duration::from_secs(1_800_000_000) };

/// Why nothing of this can be measured here, if it can't.
pub(crate) fn missing() -> Option<&'static str> {
    const PROBE: &str = "probe-bench";
    if run("ip", &["link", "add", PROBE, "type", "wireguard"]).is_err() {
        return Some("needs WireGuard, and root");
    }
    run("ip", &["link", "del", PROBE]).err().map(|_| "a device that was made can't be deleted")
}

/// A daemon over the cell's kernel, and what it did there.
fn start(
    cell: &Cell,
    own: &Own,
    source: impl Source + 'static,
) -> Result<(Node<Profiled<RealKernel>>, Profile)> {
    let object = kubeveil_tests_bpf::kernel::object()?;
    let kernel = RealKernel::new(cell.dir.path(), std::fs::read(object)?)?;
    let build = kernel.build().to_owned();
    let (kernel, profile) = Profiled::new(kernel);
    Ok((Node::new(cluster::OWN, &[], &build, kernel, Box::new(source), own.state()), profile))
}

/// Once round, to the end.
fn settle<K: Kernel>(node: &mut Node<K>) -> Result<()> {
    node.pass(NOW);
    ensure!(node.is_settled(), "it is not settled: {:?}", node.problems());
    Ok(())
}

/// What the source says otherwise is taken in.
fn hear<K: Kernel>(node: &mut Node<K>) -> Result<()> {
    node.hear(NOW);
    ensure!(node.is_settled(), "it is not settled: {:?}", node.problems());
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
