//! The systemd unit that people are given is one that works.

use std::{fs, path::Path, process::Command};

use crate::{cell::Cell, contains};

fn text() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd/kubeveild.service");
    fs::read_to_string(path).unwrap()
}

/// The value of a setting.
fn setting(name: &str) -> String {
    let text = text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
    value.to_owned()
}

/// systemd finds nothing to say about it, once its program is where this one is.
pub(crate) fn verified() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeveild.service");
    let ours = text().replace("/usr/local/bin/kubeveild", env!("CARGO_BIN_EXE_kubeveild"));
    fs::write(&file, ours).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // It looks at what it finds of the machine's own units too.
    let of_ours: Vec<_> = said.lines().filter(|line| line.contains("kubeveild.service")).collect();
    assert!(output.status.success() && of_ours.is_empty(), "{said}");
}

/// The daemon does its work with the capabilities of the unit and no others.
pub(crate) fn capabilities() {
    let set: Vec<_> = setting("CapabilityBoundingSet")
        .split_whitespace()
        .map(|name| name.replace("CAP_", "+").to_lowercase())
        .collect();
    let cell = Cell::start().stop().start_bounded(&format!("-all,{}", set.join(",")));
    let status = cell.wait_for(|status| {
        let programs = status["programs"].as_array().unwrap();
        let attached = programs.len() >= 2 && programs.iter().all(|p| p["attached"] == true);
        attached && status["backstop"]["form"] != "none"
    });
    assert!(!status.to_string().contains("not permitted"), "{status}");
    contains(&setting("ExecStart"), &["--source dir:/etc/kubeveil", "--node "]);
}
