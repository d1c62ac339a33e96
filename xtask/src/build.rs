//! The programs: eBPF first, since the daemon embeds its object; then those of the host,
//! static, so that they run in the guest as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    object::without_dwarf,
    process,
    report::say,
    toolchain,
    workspace::{Target, Workspace},
};

/// Packages whose programs the lab has on its PATH.
const LAB_PACKAGES: [&str; 4] = ["kubeveil-agent", "kubeveil-cli", "kubeveil-tests", "kubeveil-tests-bpf"];

/// What the eBPF object is called beside the program that measures.
pub(crate) const BENCH_OBJECT: &str = "kubeveil.bpf";

/// Where host builds learn what to embed.
pub(crate) const EBPF_OBJECT: &str = "KUBEVEIL_EBPF_OBJECT";

/// Builds the eBPF programs; gives the path of the object.
pub(crate) fn ebpf(workspace: &Workspace) -> Result<PathBuf> {
    let cargo = toolchain::ensure(workspace)?;
    let target = workspace.target.join("ebpf-build");
    let mut build = process::command(cargo);
    build.args(["build", "--release", "--package", "kubeveil-programs", "--bin", "kubeveil"]);
    // Where the sources lie would stand in the BTF: one object wherever it is built.
    build.args(["-Ztrim-paths", "--config", r#"profile.release.trim-paths="all""#]);
    build.current_dir(workspace.root.join("ebpf/programs")).env("CARGO_TARGET_DIR", &target);
    process::run(&mut build).context("build the eBPF programs (ebpf/programs)")?;
    let object = workspace.ebpf_object();
    let linked = target.join("bpfel-unknown-none/release/kubeveil");
    put_if_changed(&without_dwarf(&read(&linked)?)?, &linked, &object)?;
    Ok(object)
}

/// Says what is to come before the first build in a target folder.
pub(crate) fn tell_first_time(workspace: &Workspace) {
    if !workspace.target.join("lab").exists() {
        say("the first time everything is compiled, which takes about ten minutes on two cores");
    }
}

/// Builds everything that the lab runs; gives the folder that holds it.
pub(crate) fn programs(workspace: &Workspace) -> Result<PathBuf> {
    let object = ebpf(workspace)?;
    let mut build = static_build(workspace, &object)?;
    build.arg("--bins");
    for package in workspace.packages.iter().filter(|p| LAB_PACKAGES.contains(&p.name.as_str())) {
        build.args(["--package", &package.name]);
        for test in package.targets.iter().filter(|t| t.is("test")) {
            build.args(["--test", &test.name]);
        }
    }
    let programs = workspace.lab_programs()?;
    collect(&mut build, &programs)?;
    say(format!("programs are in {}", programs.display()));
    Ok(programs)
}

/// Builds what benches measure with; gives the folder that holds it.
pub(crate) fn bench(workspace: &Workspace) -> Result<PathBuf> {
    let object = ebpf(workspace)?;
    let mut build = static_build(workspace, &object)?;
    build.args(["--bins", "--package", "kubeveil-tests-bench"]);
    let programs = workspace.target.join("bench/programs");
    fs::create_dir_all(&programs).with_context(|| format!("make {}", programs.display()))?;
    collect(&mut build, &programs)?;
    copy_if_changed(&object, &programs.join(BENCH_OBJECT))?;
    Ok(programs)
}

/// A cargo build of host programs that need nothing of the machine they run on. It has a
/// target folder of its own: other flags would make cargo build everything anew each time.
fn static_build(workspace: &Workspace, object: &Path) -> Result<Command> {
    let triple = host_triple()?;
    let mut build = process::cargo();
    build.args([
        "build",
        "--profile",
        "lab",
        "--target",
        &triple,
        "--message-format=json-render-diagnostics",
    ]);
    build
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_DIR", workspace.target.join("lab"))
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env(EBPF_OBJECT, object);
    Ok(build)
}

/// Cargo's words on something it has built.
#[derive(Deserialize)]
pub(crate) struct Built {
    /// The file, if it is one to run.
    pub(crate) executable: Option<PathBuf>,
    /// The package's Cargo.toml.
    pub(crate) manifest_path: PathBuf,
    /// What of the package it is.
    pub(crate) target: Target,
    profile: Profile,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Built {
    /// Whether it runs tests: those of a library or program, or an integration test.
    pub(crate) fn is_test(&self) -> bool {
        self.profile.test
    }

    /// Programs and integration tests, not the unit tests within a library or a program.
    fn is_for_lab(&self) -> bool {
        if self.is_test() { self.target.is("test") } else { self.target.is("bin") }
    }
}

/// Runs a cargo build that reports in JSON; gives the executables that it made.
pub(crate) fn executables(build: &mut Command) -> Result<Vec<Built>> {
    let child = build.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the build failed: {}", process::name_of(build));
    }
    let messages = output.stdout.split(|b| *b == b'\n');
    let built = messages.filter_map(|line| serde_json::from_slice::<Built>(line).ok());
    Ok(built.filter(|b| b.executable.is_some()).collect())
}

/// Runs the build and lays what it makes into `folder`, without what lay there before.
fn collect(build: &mut Command, folder: &Path) -> Result<()> {
    let mut names = Vec::new();
    for built in executables(build)?.into_iter().filter(Built::is_for_lab) {
        if let Some(executable) = &built.executable {
            copy_if_changed(executable, &folder.join(&built.target.name))?;
            names.push(built.target.name);
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !names.iter().any(|name| entry.file_name() == name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The triple of this machine, as its compiler says it.
pub(crate) fn host_triple() -> Result<String> {
    let version = process::output(process::command(process::rustc()).arg("-vV"))?;
    let triple = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.context("rustc -vV names no host")?.to_owned())
}

/// A copy that leaves an equal file alone, so that nothing that depends on it is built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    put_if_changed(&read(from)?, from, to)
}

/// The same, of what was made of the bytes of `from`.
fn put_if_changed(new: &[u8], from: &Path, to: &Path) -> Result<()> {
    let what = || format!("write {}", to.display());
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    // By rename: a program that is running can't be written to.
    let beside = to.with_extension("new");
    fs::write(&beside, new).with_context(what)?;
    let mode = fs::metadata(from).with_context(what)?.permissions();
    fs::set_permissions(&beside, mode).with_context(what)?;
    fs::rename(&beside, to).with_context(what)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_file_keeps_its_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("deep/to"));
        fs::write(&from, "object").expect("written");
        copy_if_changed(&from, &to).expect("copied");
        let before = fs::metadata(&to).and_then(|m| m.modified()).expect("a time");
        fs::write(&from, "object").expect("written");
        copy_if_changed(&from, &to).expect("copied");
        assert_eq!(before, fs::metadata(&to).and_then(|m| m.modified()).expect("a time"));
        fs::write(&from, "another").expect("written");
        copy_if_changed(&from, &to).expect("copied");
        assert_eq!(fs::read(&to).expect("read"), b"another");
    }

    #[test]
    fn unit_tests_are_no_programs() {
        let built = |kind: &str, test: bool| {
            let json = format!(
                r#"{{"executable":"/x","manifest_path":"/m","target":{{"name":"n","kind":["{kind}"]}},"profile":{{"test":{test}}}}}"#
            );
            serde_json::from_str::<Built>(&json).expect("parsed").is_for_lab()
        };
        assert!(built("bin", false) && built("test", true));
        assert!(!built("bin", true) && !built("lib", true));
    }
}
