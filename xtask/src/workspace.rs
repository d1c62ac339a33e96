//! Where things are: the checkout, its target folder, the cache outside of it.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// The checkout and the folders that belong to it.
pub(crate) struct Workspace {
    /// The folder of the workspace's Cargo.toml.
    pub(crate) root: PathBuf,
    /// Cargo's target folder, wherever its configuration puts it.
    pub(crate) target: PathBuf,
    /// What is fetched or made once for all checkouts: toolchain, kernel, tools.
    pub(crate) cache: PathBuf,
    /// The packages of the workspace.
    pub(crate) packages: Vec<Package>,
}

/// A package of the workspace, as far as cargo's metadata is read here.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) manifest_path: PathBuf,
    pub(crate) name: String,
    pub(crate) targets: Vec<Target>,
}

/// Something that a package builds.
#[derive(Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    pub(crate) name: String,
}

#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Package>,
}

impl Workspace {
    /// Asks cargo about the workspace that the caller stands in.
    pub(crate) fn find() -> Result<Self> {
        let json = process::output(process::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
        let metadata: Metadata = serde_json::from_str(&json).context("read cargo's metadata")?;
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
            cache: cache()?,
            packages: metadata.packages,
        })
    }

    /// The eBPF object that the daemon embeds.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.target.join("ebpf/kubeveil")
    }

    /// The folder of the programs that the lab has on its PATH.
    pub(crate) fn lab_programs(&self) -> Result<PathBuf> {
        let folder = self.target.join("lab-programs");
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(folder)
    }

    /// An empty folder below the target folder: what an earlier run left must not pass for new.
    pub(crate) fn fresh_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.target.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(folder)
    }

    /// A script of xtask's.
    pub(crate) fn script(&self, path: &str) -> PathBuf {
        self.root.join("xtask").join(path)
    }
}

impl Target {
    /// Whether it is of that kind: `bin`, `lib`, `test` …
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.kind.iter().any(|k| k == kind)
    }
}

fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    let cache = base.join("kubeveil");
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    Ok(cache)
}
