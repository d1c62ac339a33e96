//! What README has an operator do where a rotation sticks or was undone, each as he would do it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_plain};
use kubeveil_tests::status::read;
use serde_json::json;

use super::amid::{HIT, OTHERS, others};
use super::{LIMIT, PAUSE, announced, command, everybody, expect, want};
use crate::support::{nothing_alarming, public_key};

/// The generation that the mesh begins with.
const FIRST: u32 = 5;

pub(super) fn mended(stage: &mut Stage) -> Result<()> {
    want(stage, FIRST, json!({}))?;
    stage.start()?;
    let older = Backup::of(stage)?;
    let (tally, census) = stage.send_while(everybody(stage, 300), |stage| {
        expect(stage, &[], 0, &["generation 6 is asked for", "done in"])
    })?;
    encrypted(&tally, &census).context("a rotation")?;
    // Each node says again at once what it says; until the others have heard that, they go by what it said before.
    let (tally, census) = stage.send_while(everybody(stage, 300), |stage| {
        older.put_back()?;
        all_have(stage, FIRST + 1)?;
        stage.wait_proven()
    })?;
    eprintln!("  an older mesh and announcements, while daemons run: {tally}");
    none_plain(&census).context("an older mesh and announcements, while daemons run")?;
    let (tally, census) = stage.send_while(everybody(stage, 300), |stage| restored(stage, &older))?;
    eprintln!("  an older mesh and announcements, and daemons that begin by them: {tally}");
    encrypted(&tally, &census).context("an older mesh and announcements")?;
    let (tally, census) = stage.send_while(everybody(stage, 300), |stage| anew(stage))?;
    eprintln!("  a mesh made anew: {tally}");
    encrypted(&tally, &census).context("a mesh made anew")?;
    let (tally, census) = stage.send_while(others(stage), |stage| deleted(stage))?;
    eprintln!("  a Node is deleted amid a rotation: {tally}");
    encrypted(&tally, &census).context("a Node is deleted amid a rotation")
}

/// The cluster's objects that a rotation changes, as they once were.
struct Backup(Vec<(PathBuf, Vec<u8>)>);

impl Backup {
    fn of(stage: &Stage) -> Result<Self> {
        let said = stage.lab.nodes().map(|node| format!("announcements/{}.yaml", node.name()));
        let files = ["mesh.yaml".to_owned()].into_iter().chain(said).map(|file| stage.manifest(&file));
        files.map(|file| Ok((file.clone(), fs::read(&file)?))).collect::<Result<_>>().map(Self)
    }

    fn put_back(&self) -> Result<()> {
        for (file, content) in &self.0 {
            // Whole, as a restored object is.
            let aside = file.with_extension("aside");
            fs::write(&aside, content).and_then(|()| fs::rename(&aside, file))?;
        }
        Ok(())
    }
}

fn keys(stage: &Stage) -> Result<Vec<String>> {
    stage.lab.nodes().map(|node| public_key(stage, node)).collect()
}

/// Every node says this in its `kubeveil status`.
fn all_say(stage: &Stage, words: &str) -> Result<()> {
    for node in stage.lab.nodes() {
        let mut said = String::new();
        let is_said = wait_until(LIMIT, PAUSE, || {
            said = read(&stage.lab.daemon(node))?.1;
            Ok(said.contains(words))
        })?;
        ensure!(is_said, "{} does not say {words:?}: {said}", node.name());
    }
    Ok(())
}

fn all_have(stage: &Stage, generation: u32) -> Result<()> {
    let all = || -> Result<Vec<_>> { stage.lab.nodes().map(|node| announced(stage, node)).collect() };
    let have = wait_until(LIMIT, PAUSE, || Ok(all()?.iter().all(|said| *said == [u64::from(generation)])))?;
    ensure!(have, "not generation {generation}: {:?}", all()?);
    Ok(())
}

/// The cluster's objects are put back as they were before a rotation, and the daemons begin by them: `kubeveil rotate` asks for that
/// rotation again, and no key changes.
fn restored(stage: &Stage, older: &Backup) -> Result<()> {
    const NEXT: u32 = FIRST + 1;
    let before = keys(stage)?;
    stage.lab.nodes().try_for_each(|node| stage.lab.daemon(node).stop())?;
    older.put_back()?;
    stage.lab.nodes().try_for_each(|node| stage.lab.daemon(node).start())?;
    all_say(stage, "`kubeveil rotate` asks for generation 6 again")?;
    all_have(stage, NEXT)?;
    expect(stage, &["status"], 0, &["generation 5"])?;
    expect(stage, &[], 0, &["generation 6 is asked for", "done in"])?;
    all_have(stage, NEXT)?;
    ensure!(keys(stage)? == before, "other keys than before: {before:?}, {:?}", keys(stage)?);
    stage.lab.nodes().try_for_each(|node| nothing_alarming(stage, node, &["generation 6"]))
}

/// The mesh was deleted and made anew, with a generation that all are beyond.
fn anew(stage: &Stage) -> Result<()> {
    const NOW: u32 = FIRST + 1;
    let before = keys(stage)?;
    want(stage, 0, json!({}))?;
    let what = "create it with keyGeneration: 6";
    expect(stage, &["status"], 1, &["node-1 has a key of generation 6 already, by another mesh", what])?;
    all_say(stage, what)?;
    fs::remove_file(stage.manifest("mesh.yaml"))?;
    all_say(stage, "it was deleted; its last spec stands")?;
    want(stage, NOW, json!({}))?;
    for node in stage.lab.nodes() {
        let is_well =
            wait_until(LIMIT, PAUSE, || Ok(nothing_alarming(stage, node, &["generation 6"]).is_ok()))?;
        ensure!(is_well, "{}: {}", node.name(), read(&stage.lab.daemon(node))?.1);
    }
    expect(stage, &["status"], 0, &["generation 6", "done"])?;
    all_have(stage, NOW)?;
    ensure!(keys(stage)? == before, "other keys than before: {before:?}, {:?}", keys(stage)?);
    Ok(())
}

/// A node never comes back, so its Node is deleted: who waited for it comes to the end.
fn deleted(stage: &Stage) -> Result<()> {
    const NEXT: u64 = 7;
    stage.lab.daemon(HIT).kill()?;
    expect(
        stage,
        &["--deadline", "5s"],
        4,
        &["node-3 has no key of generation 7", "`kubeveil status` there"],
    )?;
    fs::remove_file(stage.manifest("node-3.yaml"))?;
    // A Node's annotation goes with the Node.
    fs::remove_file(stage.manifest("announcements/node-3.yaml"))?;
    let mut last = (0, String::new());
    let is_over = wait_until(LIMIT, PAUSE, || {
        last = command(stage, &["status"])?;
        Ok(last.0 == 0)
    })?;
    ensure!(is_over, "it is not over: {last:?}");
    for node in OTHERS {
        ensure!(announced(stage, node)? == [NEXT], "{} says {:?}", node.name(), announced(stage, node)?);
        nothing_alarming(stage, node, &["generation 7"])?;
    }
    Ok(())
}
