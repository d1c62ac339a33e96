//! The one program of the image: static, small, and the same wherever the checkout lies.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{build, process, workspace::Workspace};

/// The package whose program it is.
pub(super) const PACKAGE: &str = "kubeveil-agent";
const PROGRAM: &str = "kubeveild";
const PROFILE: &str = "image";

/// Builds it for `triple` around this eBPF object; gives its bytes.
pub(super) fn build(workspace: &Workspace, triple: &str, object: &Path) -> Result<Vec<u8>> {
    let target = workspace.target.join("image-build");
    let mut build = process::cargo();
    build.args(["build", "--locked", "--profile", PROFILE, "--target", triple]);
    build.args(["--package", PACKAGE, "--bin", PROGRAM, "--message-format=json-render-diagnostics"]);
    build
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&places(workspace, &target)?))
        .env(build::EBPF_OBJECT, object);
    let built = build::executables(&mut build)?;
    let program = built.into_iter().find_map(|built| built.executable).context("cargo built no program")?;
    process::output(process::command(&program).arg("--version"))
        .with_context(|| format!("{} was built and does not run", program.display()))?;
    let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let object = fs::read(object).with_context(|| format!("read {}", object.display()))?;
    ensure!(
        !object.is_empty() && bytes.windows(object.len()).any(|part| part == object),
        "{} does not hold the eBPF object that was built for it",
        program.display()
    );
    Ok(bytes)
}

/// Folders of this machine that the compiler writes into programs, and what stands there instead. One that lies in another
/// comes after it: the last that fits is taken.
fn places(workspace: &Workspace, target: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let home = match env::var_os("CARGO_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => {
            PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo")
        }
    };
    let sysroot = process::output(process::command(process::rustc()).args(["--print", "sysroot"]))?;
    let places = [
        (home, "/cargo"),
        (PathBuf::from(sysroot.trim_end()), "/rust"),
        (workspace.root.clone(), "/kubeveil"),
        (target.to_owned(), "/target"),
    ];
    Ok(places.into())
}

/// Static; and what is relocated at its start is told by bits in place of 24 bytes each (glibc 2.36, binutils 2.38 or lld 15).
const STATIC: [&str; 2] = ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,pack-relative-relocs"];

/// As CARGO_ENCODED_RUSTFLAGS takes them.
fn flags(places: &[(PathBuf, &str)]) -> String {
    let remaps = places.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    STATIC.into_iter().map(str::to_owned).chain(remaps).collect::<Vec<_>>().join("\u{1f}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_one_by_one() {
        let places = [(PathBuf::from("/a b"), "/x"), (PathBuf::from("/a b/c"), "/y")];
        let flags = flags(&places);
        let words: Vec<&str> = flags.split('\u{1f}').collect();
        assert_eq!(
            words,
            [STATIC[0], STATIC[1], "--remap-path-prefix=/a b=/x", "--remap-path-prefix=/a b/c=/y"]
        );
    }
}
