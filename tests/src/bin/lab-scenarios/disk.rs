//! What the daemon keeps on disk and on the BPF file system: taken away whole, or without room.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_abi::ABI_VERSION;
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{READY, node_manifest};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_plain};
use kubeveil_tests::status::read;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::Scenario;
use crate::rotation::{LIMIT, announced, everybody, expect, wait_for, want};
use crate::support::{by_links, empty, public_key, stir};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("the_bpf_file_system_is_unmounted", bpffs).nodes(2),
    Scenario::new("state_and_pins_are_wiped_while_the_daemon_is_dead", wiped).nodes(2),
    Scenario::new("the_disk_is_full", full),
    Scenario::new("the_disk_is_full_in_a_rotation", full_in_a_rotation),
];

const NODE: Node = Node(1);
/// Longer than the daemon's regular look at everything, and than it waits after a failure.
const SOON: Duration = Duration::from_secs(40);

/// A file system of this kind at a folder.
fn mount_at(kind: &str, folder: &Path, options: Option<&std::ffi::CStr>) -> Result<()> {
    mount(kind, folder, kind, MountFlags::NOSUID | MountFlags::NODEV, options)
        .with_context(|| format!("mount a {kind} on {}", folder.display()))
}

fn unmount_at(folder: &Path) -> Result<()> {
    unmount(folder, UnmountFlags::DETACH).with_context(|| format!("unmount {}", folder.display()))
}

/// Waits until the node's log says this, from `since` on.
fn says(stage: &Stage, since: usize, words: &str) -> Result<()> {
    let said = wait_until(SOON, Duration::from_millis(100), || {
        Ok(stage.lab.daemon(NODE).log().get(since..).is_some_and(|log| log.contains(words)))
    })?;
    ensure!(said, "{} does not say: {words}", NODE.name());
    Ok(())
}

/// The daemon holds what was pinned; it says that nothing would outlive it, and pins it again as soon as it can.
fn bpffs(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let daemon = stage.lab.daemon(NODE);
    let (folder, log) = (daemon.file("bpf"), daemon.log().len());
    let by_links = by_links(stage, NODE);
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        unmount_at(&folder)?;
        says(stage, log, "The BPF file system is not there any more")?;
        ensure!(!folder.join("kubeveil").exists(), "it fills the folder below with its own");
        mount_at("bpf", &folder, None)?;
        let back = wait_until(SOON, Duration::from_millis(100), || {
            Ok(folder.join(format!("kubeveil/v{ABI_VERSION}/maps/PEERS")).exists())
        })?;
        ensure!(back, "nothing is pinned again");
        // What it pinned again is all that the next one needs.
        says(stage, log, "over: ")?;
        stage.lab.daemon(NODE).kill()?;
        sleep(Duration::from_millis(500));
        stage.lab.daemon(NODE).start()
    })?;
    eprintln!("  unmounted and mounted again: {tally}; {census}");
    encrypted(&tally, &census).context("unmounted, mounted again, and the daemon killed")?;

    // Unmounted, and the daemon killed: nothing holds the links any more, and the daemon refuses to go without.
    unmount_at(&folder)?;
    stage.open()?;
    stage.lab.daemon(NODE).kill()?;
    let log = stage.lab.daemon(NODE).log().len();
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 60)?;
    eprintln!("  unmounted, and the daemon dead: {} of {} plain", census.plaintext, tally.sent);
    ensure!((census.plaintext > 0) == by_links, "SECURITY.md says otherwise: {census}");
    stage.lab.daemon(NODE).spawn(&[])?;
    says(stage, log, "it is not on a BPF file system")?;
    mount_at("bpf", &folder, None)?;
    wait_until(SOON, Duration::from_millis(50), || Ok(stage.lab.daemon(NODE).running()?.is_none()))?;
    stage.lab.daemon(NODE).start()?;
    stage.close()?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 40)?;
    encrypted(&tally, &census).context("after the daemon came back")
}

/// The node comes back with another key; what stands in the kernel holds meanwhile.
fn wiped(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let state = stage.lab.daemon(NODE).file("state");
    let key = public_key(stage, NODE)?;
    let by_links = by_links(stage, NODE);
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(NODE).kill()?;
        empty(&state)?;
        stage.lab.daemon(NODE).start()?;
        stage.wait_proven()
    })?;
    eprintln!("  state wiped: {tally}; {census}");
    none_plain(&census).context("state wiped")?;
    ensure!(public_key(stage, NODE)? != key, "the key that was wiped is there again");
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 40)?;
    encrypted(&tally, &census).context("after the state was wiped")?;

    // Both: now the node is as after a reboot, and open until the daemon has started.
    stage.lab.daemon(NODE).kill()?;
    stage.open()?;
    empty(&state)?;
    empty(&stage.lab.daemon(NODE).file("bpf/kubeveil"))?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 60)?;
    eprintln!("  both wiped, and the daemon dead: {} of {} plain", census.plaintext, tally.sent);
    ensure!((census.plaintext > 0) == by_links, "SECURITY.md says otherwise: {census}");
    stage.lab.daemon(NODE).start()?;
    stage.close()?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 40)?;
    encrypted(&tally, &census).context("after both were wiped")
}

/// Fills what is left of a file system; removing the file makes room again.
fn fill(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("filler");
    let mut file = fs::File::create(&path)?;
    let block = [0_u8; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    Ok(path)
}

/// Nothing that is known is lost, what is new works and is said to be at risk, and a key that can't be kept isn't used.
fn full(stage: &mut Stage) -> Result<()> {
    let state = stage.lab.daemon(NODE).file("state");
    mount_at("tmpfs", &state, Some(c"size=256k,mode=0700"))?;
    let newcomer = stage.manifest("node-3.yaml");
    fs::remove_file(&newcomer)?;
    [NODE, Node(2)].iter().try_for_each(|&node| stage.lab.daemon(node).start())?;
    stage.close()?;
    stage.wait_peers(NODE, 1)?;
    let key = public_key(stage, NODE)?;
    let filler = fill(&state)?;
    let kept = fs::read(state.join("known.json"))?;
    let log = stage.lab.daemon(NODE).log().len();
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        node_manifest(Node(3), stage.lab.spec().families).write(&stage.lab.manifests())?;
        stage.lab.daemon(Node(3)).start()?;
        stage.wait_proven()?;
        says(stage, log, "known.json: can't be written")
    })?;
    eprintln!("  a full disk: {tally}; {census}");
    encrypted(&tally, &census).context("a node joins while the disk is full")?;
    ensure!(fs::read(state.join("known.json"))? == kept, "what was kept is not whole any more");
    let (tally, census) = stage.send(stage.load("1a", "3a", 200), 40)?;
    encrypted(&tally, &census).context("to the newcomer")?;
    // A restart finds what it had, and the rest in the source.
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(NODE).kill()?;
        stage.lab.daemon(NODE).start()
    })?;
    encrypted(&tally, &census).context("a restart while the disk is full")?;
    ensure!(public_key(stage, NODE)? == key, "another key, though the old one was there");
    stage.wait_proven()?;
    fs::remove_file(&filler)?;
    stir(stage)?;
    let kept_anew =
        wait_until(SOON, Duration::from_millis(200), || Ok(fs::read(state.join("known.json"))? != kept))?;
    ensure!(kept_anew, "it is not written when there is room again");

    // Without its key, and without room for another: it has none, says so, and drops.
    stage.lab.daemon(NODE).kill()?;
    empty(&state)?;
    let filler = fill(&state)?;
    let log = stage.lab.daemon(NODE).log().len();
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(NODE).spawn(&[])?;
        says(stage, log, "Without a key this node has no tunnels")?;
        fs::remove_file(&filler)?;
        stir(stage)?;
        stage.lab.daemon(NODE).wait_ready(READY)?;
        stage.wait_proven()
    })?;
    eprintln!("  no room for a key: {tally}; {census}");
    none_plain(&census).context("no room for a key")?;
    ensure!(tally.received > 0, "it does not recover: {tally}");
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 40)?;
    encrypted(&tally, &census).context("with room again")
}

/// A key that can't be kept isn't made, which is said; the old one does until there is room. To give one up needs none.
fn full_in_a_rotation(stage: &mut Stage) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(200);
    let state = stage.lab.daemon(NODE).file("state");
    mount_at("tmpfs", &state, Some(c"size=256k,mode=0700"))?;
    stage.start()?;
    let (key, filler) = (public_key(stage, NODE)?, fill(&state)?);
    let load = everybody(stage, 200);
    let (tally, census) = stage.send_while(load, |stage| {
        let log = stage.lab.daemon(NODE).log().len();
        want(stage, 1, serde_json::json!({}))?;
        says(stage, log, ".generation-1.key.new: No space left on device")?;
        says(stage, log, "a rotation waits; it is tried again")?;
        let begun = wait_until(LIMIT, PAUSE, || {
            Ok([Node(2), Node(3)].iter().all(|&node| announced(stage, node).is_ok_and(|said| said == [0, 1])))
        })?;
        ensure!(begun, "the others do not begin");
        // Nor does a daemon that starts with a full disk lose its key, or go by one that is not there.
        stage.lab.daemon(NODE).kill()?;
        stage.lab.daemon(NODE).start()?;
        // Longer than an old key is kept for its own sake.
        sleep(Duration::from_secs(15));
        for (node, has) in [(NODE, &[0][..]), (Node(2), &[0, 1]), (Node(3), &[0, 1])] {
            ensure!(announced(stage, node)? == has, "{} says {:?}", node.name(), announced(stage, node)?);
        }
        ensure!(public_key(stage, NODE)? == key, "another key, though it can't be kept");
        expect(stage, &["status"], 1, &["node-1 has no key of generation 1", "`kubeveil status` there"])?;
        let (is_well, said) = read(&stage.lab.daemon(NODE))?;
        let words = ["No space left on device", "a full disk: make room"];
        ensure!(
            !is_well && words.iter().all(|word| said.contains(word)),
            "it does not say {words:?}: {said}"
        );
        fs::remove_file(&filler)?;
        stir(stage)?;
        let goes_on = wait_until(LIMIT, PAUSE, || Ok(announced(stage, NODE)? == [0, 1]))?;
        ensure!(goes_on, "there is room, and it says {:?}", announced(stage, NODE)?);
        fill(&state)?;
        wait_for(stage, 1)
    })?;
    eprintln!("  a full disk in a rotation: {tally}");
    encrypted(&tally, &census)?;
    fs::remove_file(&filler)?;
    stir(stage)?;
    let is_well = |stage: &Stage| Ok(stage.status(NODE)?["problems"].as_array().is_some_and(Vec::is_empty));
    ensure!(wait_until(SOON, PAUSE, || is_well(stage))?, "{}", stage.status(NODE)?["problems"]);
    Ok(())
}
