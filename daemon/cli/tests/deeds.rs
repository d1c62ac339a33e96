//! What people do beside asking for new keys goes on record, over a folder.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use jiff::Timestamp;
use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    names,
};
use kubeveil_keys::{Generation, PrivateKey};
use serde_json::{Value, json};

const MESH: &str = "# Ours.\napiVersion: kubeveil.io/v1alpha1\nkind: EncryptionMesh\nmetadata: {name: default}\nspec:\n  mode: require\n  podCIDRs: [10.244.0.0/16]\n  keyGeneration: 1\n";

/// A node that has one key, of this generation.
fn node(dir: &Path, name: &str, generation: u32) {
    let key = PrivateKey::generate().expect("randomness");
    let entry = GenerationEntry {
        generation: Generation::new(generation),
        public_key: key.public(),
        port: 51871.try_into().expect("a port"),
        state: GenerationState::Active,
    };
    let said = Announcement::sign(name, "uid", vec![entry], NotFlipped::nobody(), &[&key]).expect("signed");
    let node = |annotations: Value| {
        let metadata = json!({"name": name, "uid": "uid", "annotations": annotations});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}).to_string()
    };
    let announcements = dir.join(names::ANNOUNCEMENTS_DIR);
    fs::create_dir_all(&announcements).expect("made");
    let file = format!("{name}.yaml");
    fs::write(dir.join(&file), node(json!({}))).expect("written");
    fs::write(announcements.join(&file), node(json!({names::ANNOUNCEMENT: said.to_json()})))
        .expect("written");
}

/// `kubeveil rotate …` by `user`.
fn program(dir: &Path, user: &str, arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kubeveil"));
    program.arg("rotate").args(arguments).arg("--source").arg(format!("dir:{}", dir.display()));
    program.env("SUDO_USER", user).stdout(Stdio::piped()).stderr(Stdio::piped());
    program
}

/// How it ends, and what it says.
fn rotate(dir: &Path, user: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let done = program(dir, user, arguments).output().expect("it runs");
    (done.status.code(), String::from_utf8(done.stdout).expect("text"))
}

#[test]
fn who_paused_forced_or_revoked_is_on_record() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    fs::write(dir.join("mesh.yaml"), MESH).expect("written");
    node(dir, "node-1", 1);
    node(dir, "node-2", 0);
    let since = Timestamp::now().as_second();
    let forced = ["finish", "--force", "--deadline", "0s"];
    let compromised = ["--compromised", "node-2", "--no-wait"];
    for (user, code, arguments) in [
        ("alice", 0, &["pause"][..]),
        ("bob", 0, &["resume"]),
        // One is cut off.
        ("carol", 1, &forced),
        ("dave", 0, &compromised),
    ] {
        let (ended, told) = rotate(dir, user, arguments);
        assert_eq!(ended, Some(code), "rotate {arguments:?}: {told}");
    }
    let (_, told) = rotate(dir, "eve", &["history", "-o", "json"]);
    let history: Value = serde_json::from_str(&told).expect("JSON");
    let deeds = history["deeds"].as_array().expect("deeds");
    let mut found = Vec::new();
    for deed in deeds {
        let at: Timestamp = deed["at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
        assert!((since..=Timestamp::now().as_second()).contains(&at.as_second()), "{deed}");
        assert_eq!(deed["generation"], 1, "{deed}");
        let (by, _machine) = deed["by"].as_str().and_then(|by| by.split_once('@')).expect("who");
        found.push([
            by,
            deed["what"].as_str().unwrap_or_default(),
            deed["node"].as_str().unwrap_or_default(),
        ]);
    }
    assert_eq!(
        found,
        [
            ["alice", "paused", ""],
            ["bob", "resumed", ""],
            ["carol", "forced", ""],
            ["dave", "compromised", "node-2"],
        ]
    );
    assert_eq!(history["rotations"][0]["generation"], 1);
    let (_, table) = rotate(dir, "eve", &["history"]);
    let rows: Vec<&str> = table.lines().skip_while(|line| !line.contains("DEED")).skip(1).collect();
    assert_eq!(rows.len(), 4, "{table}");
    assert!(rows[0].contains("compromised") && rows[0].contains("dave@"), "the newest first: {table}");
    // Another rotation takes nothing of it away.
    node(dir, "node-2", 1);
    assert_eq!(rotate(dir, "eve", &["--no-wait"]).0, Some(0));
    let text = fs::read_to_string(dir.join("mesh.yaml")).expect("there");
    assert!(text.contains("# Ours.") && text.contains("keyGeneration: 2"), "{text}");
    let (_, told) = rotate(dir, "eve", &["history", "-o", "json"]);
    let after: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(after["deeds"], history["deeds"]);
}

/// Two people at once: one rotates, and the other is told who did and for which generation, whichever way it went.
#[test]
fn of_two_at_once_one_is_told_of_the_other() {
    for round in 0..10 {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path();
        fs::write(dir.join("mesh.yaml"), MESH).expect("written");
        node(dir, "node-1", 1);
        node(dir, "node-2", 1);
        let people = ["alice", "bob"];
        let both = people.map(|user| program(dir, user, &["--no-wait"]).spawn().expect("it runs"));
        let both = both.map(|child| child.wait_with_output().expect("it ends"));
        let winners = both.iter().filter(|done| done.status.code() == Some(0)).count();
        let told = both.iter().map(|done| String::from_utf8_lossy(&done.stderr)).collect::<Vec<_>>();
        assert_eq!(winners, 1, "round {round}: {told:?}");
        let (loser, winner) = if both[0].status.success() { (1, "alice@") } else { (0, "bob@") };
        assert_eq!(both[loser].status.code(), Some(1), "round {round}: {told:?}");
        assert!(
            told[loser].contains(winner) && told[loser].contains("generation 2"),
            "round {round}: {told:?}"
        );
        let text = fs::read_to_string(dir.join("mesh.yaml")).expect("there");
        assert!(text.contains("keyGeneration: 2") && text.contains(winner), "{text}");
    }
}
