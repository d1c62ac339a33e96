//! A bypass over a folder: who may begin one of what, who is on record, and how it ends.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread::sleep,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

const MESH: &str = "# Ours.
apiVersion: kubeveil.io/v1alpha1
kind: EncryptionMesh
metadata: {name: default}
spec:
  mode: require   # always
  podCIDRs: [10.244.0.0/16]
";

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("mesh.yaml"), MESH).expect("written");
    for name in ["node-1", "node-2", "node-3"] {
        let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, uid: u}}\n");
        fs::write(dir.path().join(format!("{name}.yaml")), node).expect("written");
        says(dir.path(), name, Some("True"));
    }
    dir
}

/// What the daemon of a node says of itself, if it has said something.
fn says(dir: &Path, node: &str, ready: Option<&str>) {
    let file = dir.join("status").join(format!("{node}.yaml"));
    let Some(ready) = ready else { return fs::remove_file(file).expect("removed") };
    fs::create_dir_all(dir.join("status")).expect("a folder");
    let status = format!(
        "apiVersion: kubeveil.io/v1alpha1\nkind: VeilNode\nmetadata: {{name: {node}}}\nstatus:\n  conditions:\n  - {{type: Ready, \
         status: '{ready}', reason: R, message: waits for the disk, lastTransitionTime: '2026-11-30T00:00:00Z'}}\n"
    );
    fs::write(file, status).expect("written");
}

fn bypass(dir: &Path, user: &str, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kubeveil"));
    program.arg("bypass").args(arguments).arg("--source").arg(format!("dir:{}", dir.display()));
    program.env("SUDO_USER", user).output().expect("it runs")
}

/// How it ends, and what it says on standard output and standard error.
fn said(dir: &Path, user: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = bypass(dir, user, arguments);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (done.status.code(), text(done.stdout), text(done.stderr))
}

fn listed(dir: &Path) -> (Option<i32>, Vec<Value>) {
    let (code, told, _) = said(dir, "eve", &["list", "-o", "json"]);
    let object: Value = serde_json::from_str(&told).expect("JSON");
    (code, object["bypasses"].as_array().expect("a list").clone())
}

const BEGIN: [&str; 8] = ["--node", "node-1", "--peer", "node-2", "--for", "10m", "--reason", "INC-1: slow"];

#[test]
fn it_is_begun_on_record_and_ended() {
    let dir = folder();
    let dir = dir.path();
    assert_eq!(listed(dir), (Some(0), vec![]));
    let (code, told, _) = said(dir, "alice", &BEGIN);
    assert_eq!(code, Some(0));
    for words in ["between node-1 and node-2 travel in plain until", "can read them", "a policy requires"] {
        assert!(told.contains(words), "{told}");
    }
    let text = fs::read_to_string(dir.join("mesh.yaml")).expect("there");
    assert!(text.contains("# Ours.") && text.contains("require   # always"), "{text}");
    let (code, all) = listed(dir);
    assert_eq!((code, all.len()), (Some(1), 1), "one is on");
    let one = &all[0];
    let time = |field: &str| one[field].as_str().and_then(|at| at.parse::<Timestamp>().ok()).expect("a time");
    assert_eq!(time("until").as_second() - time("at").as_second(), 600);
    assert!((0..60).contains(&(Timestamp::now().as_second() - time("at").as_second())), "{one}");
    assert!(one["by"].as_str().is_some_and(|by| by.starts_with("alice@")), "{one}");
    assert_eq!((one["reason"].as_str(), one["on"].as_bool()), (Some("INC-1: slow"), Some(true)));
    // Whichever way round both are named.
    let end = |one, other| said(dir, "bob", &["end", "--node", one, "--peer", other]);
    assert_eq!(end("node-1", "node-3").0, Some(1), "there is none");
    assert_eq!(end("node-2", "node-1").0, Some(0));
    assert_eq!(end("node-2", "node-1").0, Some(1), "not any more");
    // It has lasted a second at least.
    sleep(Duration::from_millis(1_100));
    let (code, all) = listed(dir);
    assert_eq!((code, all.len(), all[0]["on"].as_bool()), (Some(0), 1, Some(false)), "it stays on record");
    assert_eq!(all[0]["by"], one["by"]);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_written() {
    let dir = folder();
    let with = |at: usize, value: &'static str| {
        let mut arguments = BEGIN;
        arguments[at] = value;
        arguments
    };
    let long = "x".repeat(257);
    let mut too_long = BEGIN;
    too_long[7] = &long;
    for (arguments, names) in [
        (with(1, "node-9"), "there is no Node node-9; there are node-1, node-2, node-3"),
        (with(3, "node-9"), "--peer"),
        (with(3, "node-1"), "two different Nodes"),
        (with(5, "25h"), "24 hours"),
        (with(5, "1s"), "10 seconds"),
        (with(7, " "), "must say why"),
        (too_long, "256"),
    ] {
        let (code, told, why) = said(dir.path(), "alice", &arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {told}{why}");
        assert!(why.contains(names), "{why}");
    }
    for left_out in [0, 2, 4, 6] {
        let mut arguments = BEGIN.to_vec();
        arguments.drain(left_out..left_out + 2);
        assert_eq!(said(dir.path(), "alice", &arguments).0, Some(2), "{arguments:?}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("mesh.yaml")).expect("there"), MESH);
}

/// Towards a node that does not carry it out a bypass is an outage: nobody begins one unawares.
#[test]
fn a_node_that_would_not_carry_it_out_is_named() {
    let dir = folder();
    let dir = dir.path();
    let forced = [&BEGIN[..], &["--force"]].concat();
    for (ready, why) in [
        (Some("False"), "node-2: waits for the disk"),
        (Some("Unknown"), "node-2: waits for the disk"),
        (None, "node-2: its agent has said nothing yet"),
    ] {
        says(dir, "node-2", ready);
        let (code, told, refused) = said(dir, "alice", &BEGIN);
        assert_eq!(code, Some(1), "{ready:?}: {told}");
        assert!(refused.contains(why) && !refused.contains("node-1:"), "{refused}");
        assert!(refused.contains("--force") && refused.contains("kubeveil status` there"), "{refused}");
        assert_eq!(listed(dir), (Some(0), vec![]), "nothing was begun");
        if ready.is_none() {
            let (code, told, _) = said(dir, "alice", &forced);
            assert_eq!(code, Some(0));
            assert!(told.contains(&format!("By force, though {why}")), "{told}");
            assert_eq!(listed(dir).1.len(), 1);
            says(dir, "node-2", Some("True"));
        }
    }
    // What can't be known is said.
    let (code, told, _) = said(dir, "alice", &BEGIN);
    assert_eq!(code, Some(0));
    assert!(
        told.contains("Whether the daemons of node-1 and node-2 live can't be told from a folder"),
        "{told}"
    );
    fs::write(dir.join("status/node-1.yaml"), "status: {conditions: 5}").expect("written");
    let (code, _, why) = said(dir, "alice", &BEGIN);
    assert_eq!(code, Some(3));
    assert!(why.contains("status/node-1.yaml: can't be read") && why.contains("--force"), "{why}");
    assert_eq!(said(dir, "alice", &forced).0, Some(0));
}

#[test]
fn nobody_answers() {
    let nowhere = Path::new("/nonexistent");
    for arguments in [&BEGIN[..], &["list"], &["end", "--node", "a", "--peer", "b"]] {
        assert_eq!(said(nowhere, "alice", arguments).0, Some(3), "{arguments:?}");
    }
}
