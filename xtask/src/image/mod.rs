//! `cargo xtask image`: what is installed on nodes, as an OCI image FROM scratch.

mod layout;
mod program;
mod sbom;

use std::{
    collections::BTreeMap,
    env::consts::ARCH,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::layout::{Contents, Entry, sha256};
use crate::{build, process, report::say, workspace::Workspace};

/// What the image may take on a node, unpacked.
const BAR: u64 = 15 << 20;

const REPOSITORY: &str = "kubeveil.io/kubeveil";
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Args)]
pub(crate) struct Arguments {
    /// Build it once more, from a clone of the last commit in another folder, and compare the digests
    #[arg(long)]
    check: bool,
}

/// An image that lies in the target folder.
#[derive(Clone)]
pub(crate) struct Image {
    /// An OCI layout, packed.
    pub(crate) archive: PathBuf,
    /// REPOSITORY:TAG.
    pub(crate) name: String,
    digest: String,
}

/// Builds the image, and tells what came of it.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if arguments.check && revision(workspace).is_none_or(|revision| revision.ends_with(DIRTY)) {
        bail!("image --check builds from a clone of the last commit: commit what was changed first");
    }
    let image = build(workspace)?;
    if arguments.check {
        check(workspace, &image)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the image into the target folder.
pub(crate) fn build(workspace: &Workspace) -> Result<Image> {
    let object = build::ebpf(workspace)?;
    let triple = build::host_triple()?;
    let program = program::build(workspace, &triple, &object)?;
    let sbom = sbom::make(workspace, program::PACKAGE, &triple, &program)?;
    let command = program.clone();
    let contents = contents(workspace, &object, program, sbom.clone())?;
    let packed = contents.pack()?;
    let folder = workspace.target.join("image");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let archive = folder.join("kubeveil.tar");
    for (file, bytes) in [(&archive, &packed.archive), (&folder.join("sbom.cdx.json"), &sbom)] {
        fs::write(file, bytes).with_context(|| format!("write {}", file.display()))?;
    }
    // For people beside the cluster.
    let file = folder.join("kubeveil");
    fs::write(&file, command)
        .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("write {}", file.display()))?;
    let unpacked = contents.unpacked();
    say(format!("{} is in {}", contents.name, archive.display()));
    say(format!("digest {}, {} unpacked (at most {})", packed.digest, mebibytes(unpacked), mebibytes(BAR)));
    ensure!(unpacked < BAR, "the image is too large: {} unpacked", mebibytes(unpacked));
    Ok(Image { archive, name: contents.name, digest: packed.digest })
}

fn contents(workspace: &Workspace, object: &Path, program: Vec<u8>, sbom: Vec<u8>) -> Result<Contents> {
    let object = fs::read(object).with_context(|| format!("read {}", object.display()))?;
    let files = BTreeMap::from([
        ("usr", Entry::Folder),
        ("usr/bin", Entry::Folder),
        ("usr/bin/kubectl-veil", Entry::Link("kubeveild")),
        ("usr/bin/kubeveil", Entry::Link("kubeveild")),
        ("usr/bin/kubeveild", Entry::Program(program)),
        ("usr/share", Entry::Folder),
        ("usr/share/kubeveil", Entry::Folder),
        ("usr/share/kubeveil/sbom.cdx.json", Entry::File(sbom)),
    ]);
    let revision = revision(workspace).unwrap_or_else(|| "unknown".to_owned());
    let labels = [
        ("title", "kubeveil"),
        ("description", "Encrypts pod traffic between the nodes of a Kubernetes cluster, in the kernel"),
        ("version", VERSION),
        ("revision", &revision),
        ("source", "https://kubeveil.io"),
        ("licenses", "Apache-2.0"),
    ];
    let labels = labels.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.to_owned()));
    Ok(Contents {
        files,
        name: format!("{REPOSITORY}:{VERSION}"),
        tag: VERSION.to_owned(),
        architecture: architecture()?,
        entrypoint: "/usr/bin/kubeveild",
        labels: labels.into(),
        annotations: BTreeMap::from([("io.kubeveil.ebpf.kubeveil.sha256".to_owned(), sha256(&object))]),
    })
}

/// This machine's, as Go names it: an image is built for where it is built.
fn architecture() -> Result<&'static str> {
    match ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image for {other}: kubeveil is built for x86_64, and for aarch64 untried"),
    }
}

/// Ends the revision of a checkout with changes that are in no commit.
const DIRTY: &str = "-dirty";

/// The commit that the checkout is at, as git tells it.
fn revision(workspace: &Workspace) -> Option<String> {
    let git = |words: &[&str]| {
        process::output(process::command("git").arg("-C").arg(&workspace.root).args(words)).ok()
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(commit.trim_end().to_owned() + if changed { DIRTY } else { "" })
}

/// Builds the image from a clone beside the target folder, with a target folder of its own; an error if it differs.
fn check(workspace: &Workspace, image: &Image) -> Result<()> {
    let folder = workspace.fresh_folder("image-check")?;
    let clone = folder.join("another/checkout");
    let mut git = process::command("git");
    git.args(["clone", "--quiet", "--no-hardlinks"]).arg(&workspace.root).arg(&clone);
    process::run(&mut git)?;
    let again = Workspace {
        root: clone,
        target: folder.join("built"),
        cache: workspace.cache.clone(),
        packages: Vec::new(),
    };
    let other = build(&again).context("build the image a second time")?;
    ensure!(
        other.digest == image.digest && fs::read(&other.archive)? == fs::read(&image.archive)?,
        "two folders, two images: {} in {}, {} in {}",
        image.digest,
        image.archive.display(),
        other.digest,
        other.archive.display()
    );
    say(format!("{} was built in two folders: the same digest, {}", image.name, image.digest));
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
}

fn mebibytes(bytes: u64) -> String {
    format!("{}.{:02} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 100) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_mebibytes() {
        assert_eq!(mebibytes(BAR), "15.00 MiB");
        assert_eq!(mebibytes((13 << 20) + (1 << 19)), "13.50 MiB");
    }
}
