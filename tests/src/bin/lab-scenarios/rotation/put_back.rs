//! A key that was given up comes back, out of a backup of its file or of the whole disk.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use kubeveil_tests::{
    address::Node,
    lab::batch,
    stage::{Stage, encrypted},
    status::{said_in, wireguard_devices},
};

use super::{announced, wait_for, want};
use crate::support::{DEVICE, index, public_key};

/// Whose disk it is.
const NODE: Node = Node(1);
/// File of the key that is given up.
const FILE: &str = "generation-0.key";

/// A copy as a backup has it: with modes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let to = to.join(path.file_name().context("a name")?);
        if path.is_dir() { copy(&path, &to)? } else { fs::copy(&path, &to).map(drop)? }
    }
    Ok(())
}

/// The number that the next device of the node would have: devices are numbered in a row.
fn next_index() -> Result<u32> {
    const PROBE: &str = "next";
    batch(Some(&NODE.name()), &[format!("link add {PROBE} type dummy")])?;
    let next = index(NODE, PROBE)?;
    batch(Some(&NODE.name()), &[format!("link del dev {PROBE}")])?;
    Ok(next)
}

/// To the second generation, with a copy of the node's disk of before; and its keys of both.
fn rotated(stage: &mut Stage) -> Result<[String; 2]> {
    stage.start()?;
    let old = public_key(stage, NODE)?;
    let daemon = stage.lab.daemon(NODE);
    copy(&daemon.file("state"), &daemon.file("before"))?;
    want(stage, 1, serde_json::json!({}))?;
    wait_for(stage, 1)?;
    let now = public_key(stage, NODE)?;
    stage.lab.daemon(NODE).stop()?;
    Ok([old, now])
}

/// The daemon starts: it goes by a key of the newest generation, no device is made for the old one, and that is told.
fn goes_on(stage: &mut Stage, old: &str) -> Result<()> {
    let before = next_index()?;
    stage.lab.daemon(NODE).start()?;
    wait_for(stage, 1)?;
    stage.wait_proven()?;
    let made = next_index()? - before - 1;
    ensure!(made == 0, "{made} devices were made, though {DEVICE} is not to come back even for a moment");
    ensure!(wireguard_devices(NODE)? == ["kubeveil1"], "it has {:?}", wireguard_devices(NODE)?);
    let keys = said_in(NODE, "wg", &["show", "all", "public-key"])?;
    ensure!(!keys.contains(old), "the old key is in use: {keys}");
    ensure!(announced(stage, NODE)? == [1], "it says {:?}", announced(stage, NODE)?);
    let problems = stage.status(NODE)?["problems"].to_string();
    ensure!(problems.contains(FILE) && problems.contains("given up"), "it does not tell: {problems}");
    let keys = stage.lab.daemon(NODE).file("state/keys");
    ensure!(!keys.join(FILE).exists(), "{FILE} lies where a key is looked for");
    let names = fs::read_dir(&keys)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let aside: Vec<String> = names.filter(|name| name.starts_with("generation-0.key.set-aside-")).collect();
    ensure!(aside.len() == 1, "it was not set aside: {aside:?}");
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 200)?;
    encrypted(&tally, &census)
}

pub(super) fn key_file(stage: &mut Stage) -> Result<()> {
    let [old, now] = rotated(stage)?;
    let daemon = stage.lab.daemon(NODE);
    fs::copy(daemon.file("before/keys").join(FILE), daemon.file("state/keys").join(FILE))?;
    goes_on(stage, &old)?;
    let goes_by = public_key(stage, NODE)?;
    ensure!(goes_by == now, "it goes by {goes_by}, not by {now} as before");
    Ok(())
}

pub(super) fn disk(stage: &mut Stage) -> Result<()> {
    let [old, gone] = rotated(stage)?;
    let daemon = stage.lab.daemon(NODE);
    fs::remove_dir_all(daemon.file("state"))?;
    copy(&daemon.file("before"), &daemon.file("state"))?;
    goes_on(stage, &old)?;
    let goes_by = public_key(stage, NODE)?;
    ensure!(goes_by != gone, "it says that it has a key that the disk does not have: {goes_by}");
    Ok(())
}
