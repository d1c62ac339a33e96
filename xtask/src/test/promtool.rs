//! Prometheus' own opinion of our metrics.

use std::path::PathBuf;

use crate::{process, report::say, workspace::Workspace};

/// Names the promtool for the tests that want one.
pub(crate) const VARIABLE: &str = "KUBEVEIL_PROMTOOL";

/// The machine's own, else Debian's, kept in the cache; `None`, said, where neither is to be had: then
/// the test that wants it is skipped, and says so.
pub(crate) fn find(workspace: &Workspace) -> Option<PathBuf> {
    if let Some(own) = process::find("promtool") {
        return Some(own);
    }
    let mut script = process::command(workspace.script("promtool/get.sh"));
    script.arg(&workspace.cache).env("SUDO", if process::is_root() { "" } else { "sudo" });
    match process::step("promtool (checks the metrics' names and format)", &mut script) {
        Ok(path) => Some(PathBuf::from(path.trim_end())),
        Err(error) => {
            say(format!("no promtool: {error:#}"));
            None
        }
    }
}
