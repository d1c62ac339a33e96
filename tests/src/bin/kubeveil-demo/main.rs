//! `kubeveil-demo`: the main job as a story, told from a capture on the wire.
//!
//! Three nodes, two pods each, IPv4 and IPv6. First with encryption off, to show that a leak would be
//! seen; then on; then with everything going wrong that is likely to. Exit 0 only if all held.

mod facts;
mod show;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use kubeveil_tests::lab;

use facts::Facts;
use show::Screen;

/// Three nodes encrypt their pods' traffic in the kernel, and a capture on the wire tells the truth.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where the facts are written for programs.
    #[arg(long, default_value = "/out/summary.json")]
    summary: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = Screen::new();
    let mut facts = Facts::default();
    let told = lab::make_private().and_then(|()| story::tell(&screen, &mut facts));
    let written = write(&arguments, &facts);
    screen.summary(&facts);
    for error in [told.err(), written.err()].into_iter().flatten() {
        screen.error(&error);
        facts.failed = true;
    }
    if facts.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write(arguments: &Arguments, facts: &Facts) -> Result<()> {
    let path = &arguments.summary;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(&facts.to_json())? + "\n";
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
