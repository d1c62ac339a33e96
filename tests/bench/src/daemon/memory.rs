//! What the daemon keeps in memory (VmRSS): the program itself at rest; and its way round in this process, over the
//! folder source, as nodes come and as they change again and again.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use kubeveil_manifests::Folder;
use kubeveil_tests_bpf::cell::{self, Cell};

use super::{
    NODES,
    cluster::{self, Own, folder},
    path, pods, settle, start,
};
use crate::{
    row::{Row, Series},
    say,
};

/// Nodes, and times that one of them changes, while growth is looked for.
const FEW: u16 = 20;
const RECONCILES: u32 = 10_000;
/// Of these, what the process may take to find its size.
const WARMING: u32 = 1_000;

/// Each of the three in a process of its own: what one has freed would hide what the next one takes.
pub(crate) fn measure(_: usize) -> Result<Vec<Row>> {
    let rest = at_rest()?;
    say(format!("memory: {NODES} nodes"));
    let [few, many] = in_child("nodes")?;
    say("memory: exceptions among pods");
    let [entries, exceptions] = in_child("exceptions")?;
    say(format!("memory: {RECONCILES} reconciles"));
    let [warm, grown] = in_child("growth")?;
    let one = |value: f64| [value].into_iter().collect::<Series>();
    let a_peer = (many - few) / f64::from(NODES - FEW);
    Ok(vec![
        Row::of("memory of the daemon at rest", "MiB", &one(rest / 1024.0)).at_most(20.0).note("kubeveild itself, VmRSS"),
        Row::of("memory a peer, at 5,000 peers", "KiB", &one(a_peer)).at_most(1.0).note(format!(
            "VmRSS of the way round over the folder source: {:.1} MiB at {FEW} nodes, {:.1} MiB at {NODES}",
            few / 1024.0,
            many / 1024.0
        )),
        Row::of("memory of 500 exceptions among other nodes' pods", "KiB", &one(exceptions)).note(format!(
            "250 pods of this node, {NODES} nodes, over a kernel of memory; {entries:.0} entries more in the kernel's maps"
        )),
        Row::of("growth of memory from reconcile 1,000 to 10,000", "KiB", &one(grown - warm)).at_most(512.0).note(format!(
            "over the real kernel, one of {FEW} nodes changed each time: VmRSS {warm:.0} KiB, then {grown:.0} KiB; \
             the bar is what an allocator may take to settle: 0.05 KiB a reconcile would be a leak"
        )),
    ])
}

/// The same program again, for one of the two below; what it prints.
fn in_child(what: &str) -> Result<[f64; 2]> {
    let output = Command::new(std::env::current_exe()?).args(["memory-of", "--of", what]).output()?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// In the process of its own: two sizes, KiB.
pub(crate) fn of(what: &str) -> Result<[f64; 2]> {
    match what {
        "exceptions" => pods::exceptions_cost(),
        "growth" => cell::within(growth),
        _ => cell::within(nodes),
    }
}

/// `kubeveild` with two others, some seconds after it has nothing left to do.
fn at_rest() -> Result<f64> {
    cell::within(|cell| {
        say("memory: the daemon at rest");
        let own = Own::make()?;
        let manifests = tempfile::tempdir()?;
        folder::write(manifests.path(), &cluster::others(2, &own)?)?;
        let run = tempfile::tempdir()?;
        let log = fs::File::create(run.path().join("log"))?;
        let mut daemon = Command::new("kubeveild")
            .args(["--source", &format!("dir:{}", path(manifests.path())), "--node", cluster::OWN])
            .args(["--bpf-dir", &cell.bpf_dir(), "--state-dir", &path(own.state())])
            .args(["--socket", &path(&run.path().join("socket"))])
            .env_remove("RUST_LOG")
            .stderr(log)
            .spawn()
            .context("start kubeveild")?;
        thread::sleep(Duration::from_secs(15));
        let rested = resident(&daemon.id().to_string());
        daemon.kill().and_then(|()| daemon.wait()).context("end kubeveild")?;
        let told = fs::read_to_string(run.path().join("log"))?;
        ensure!(told.contains("ready"), "it never was ready: {told}");
        rested
    })
}

/// At few nodes, then at all.
fn nodes(cell: &mut Cell) -> Result<[f64; 2]> {
    let own = Own::make()?;
    let manifests = tempfile::tempdir()?;
    // Keys and signatures are another process' work, or what that leaves behind would be counted.
    let write = |count: u16| {
        let status = Command::new(std::env::current_exe()?)
            .args(["folder", "--of", &path(manifests.path()), "--nodes", &count.to_string()])
            .args(["--below", &own.key.to_string()])
            .status()?;
        ensure!(status.success(), "the folder was not written");
        anyhow::Ok(())
    };
    write(FEW)?;
    let (mut node, _) = start(cell, &own, Folder::open(manifests.path(), || {}))?;
    let mut sizes = [0.0; 2];
    for (size, count) in sizes.iter_mut().zip([FEW, NODES]) {
        if count != FEW {
            write(count)?;
        }
        for _ in 0..3 {
            settle(&mut node)?;
        }
        *size = resident("self")?;
    }
    Ok(sizes)
}

/// After some reconciles, then after all.
fn growth(cell: &mut Cell) -> Result<[f64; 2]> {
    let own = Own::make()?;
    let mut others = cluster::others(FEW, &own)?;
    let source = cluster::Memory::of(&others);
    let (mesh, facts) = (cluster::mesh()?, cluster::own()?);
    source.change(|snapshot| {
        snapshot.mesh = Some(mesh);
        snapshot.nodes.insert(cluster::OWN.to_owned(), facts.into());
    });
    let (mut node, profile) = start(cell, &own, source.clone())?;
    settle(&mut node)?;
    let mut warm = 0.0;
    for number in 1..=RECONCILES {
        let other = &mut others[usize::try_from(number)? % usize::from(FEW)];
        other.announce(40_000 + u16::try_from(number / u32::from(FEW))?)?;
        source.hear(other);
        profile.take();
        settle(&mut node)?;
        ensure!(profile.take().writes == 1, "a change is one write");
        if number == WARMING {
            warm = resident("self")?;
        }
    }
    Ok([warm, resident("self")?])
}

/// VmRSS of a process, KiB.
pub(super) fn resident(process: &str) -> Result<f64> {
    let status = fs::read_to_string(Path::new("/proc").join(process).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
