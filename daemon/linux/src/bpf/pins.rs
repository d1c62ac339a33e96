//! Where everything is pinned.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kubeveil_abi::ABI_VERSION;
use kubeveil_core::observed::{Hook, Program};

use crate::KernelError;

/// Paths below the daemon's folder on the BPF file system. (bpffs refuses names with a dot.)
#[derive(Clone, Debug)]
pub struct Pins {
    base: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// Below `bpf_dir`, under this ABI's version.
    pub fn new(bpf_dir: &Path) -> Self {
        Self::of_version(bpf_dir, ABI_VERSION)
    }

    /// Below `bpf_dir`, under another version's.
    pub fn of_version(bpf_dir: &Path, version: u32) -> Self {
        Self { base: bpf_dir.to_owned(), root: bpf_dir.join(format!("v{version}")) }
    }

    /// Those of other versions that are there. A folder of such a name that shows nothing of ours is somebody else's.
    pub fn others(&self) -> Vec<Self> {
        let names = names_in(&self.base).unwrap_or_default();
        let versions = names.iter().filter_map(|name| name.strip_prefix('v')?.parse().ok());
        let all = versions.map(|version| Self::of_version(&self.base, version));
        all.filter(|pins| pins.root != self.root && pins.are_ours()).collect()
    }

    /// By any of what a version of ours pins, for of one whose removal was cut short any part may be left.
    fn are_ours(&self) -> bool {
        self.map(kubeveil_abi::names::CONFIG).exists()
            || self.links().is_ok_and(|links| !links.is_empty())
            || self.has_backstop()
            || !self.other_programs("").is_empty()
    }

    /// The version's folder, by its name.
    pub(super) fn version(&self) -> String {
        self.root.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether links of a backstop are pinned.
    pub(super) fn has_backstop(&self) -> bool {
        names_in(&self.backstop_links()).is_ok_and(|names| !names.is_empty())
    }

    /// The folder that was given.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Every pin that there is of `build` and of what all builds share. What is on its way to another name is left out.
    pub(super) fn all(&self, build: &str) -> Vec<PathBuf> {
        let folders =
            [self.root.join("maps"), self.root.join("links"), self.programs(build), self.backstop_links()];
        let pins = folders.iter().flat_map(|folder| {
            let names = names_in(folder).unwrap_or_default();
            names.into_iter().filter(|name| !name.starts_with("new-")).map(|name| folder.join(name))
        });
        pins.collect()
    }

    /// The attachment that is pinned at this path.
    pub(super) fn hook(&self, path: &Path) -> Option<Hook> {
        let name = path.strip_prefix(self.root.join("links")).ok()?;
        parse_link(name.to_str()?)
    }

    /// Makes the folders.
    pub fn create(&self, build: &str) -> Result<(), KernelError> {
        for dir in [self.root.join("maps"), self.root.join("links"), self.programs(build)] {
            fs::create_dir_all(&dir).map_err(|e| KernelError::new("create", dir.display().to_string(), e))?;
        }
        Ok(())
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Folder of the programs of one object file.
    pub fn programs(&self, build: &str) -> PathBuf {
        self.root.join(format!("programs-{build}"))
    }

    /// Pin of a program.
    pub fn program(&self, build: &str, program: Program) -> PathBuf {
        self.programs(build).join(program.name())
    }

    /// Pin of an attachment.
    pub fn link(&self, (program, ifindex): Hook) -> PathBuf {
        self.root.join("links").join(format!("{}-{ifindex}", program.name()))
    }

    /// Pin of the backstop's program of one object file.
    pub fn backstop_program(&self, build: &str) -> PathBuf {
        self.programs(build).join(kubeveil_abi::names::BACKSTOP)
    }

    /// Folder of the backstop's links.
    pub fn backstop_links(&self) -> PathBuf {
        self.root.join("backstop")
    }

    /// Pin of the backstop's link for a family.
    pub fn backstop_link(&self, family: &str) -> PathBuf {
        self.backstop_links().join(family)
    }

    /// Attachments that are pinned.
    pub fn links(&self) -> Result<Vec<Hook>, KernelError> {
        let dir = self.root.join("links");
        let names = names_in(&dir).map_err(|e| KernelError::new("list", dir.display().to_string(), e))?;
        Ok(names.iter().filter_map(|name| parse_link(name)).collect())
    }

    /// Folders of programs of other object files.
    pub fn other_programs(&self, build: &str) -> Vec<PathBuf> {
        let ours = format!("programs-{build}");
        let names = names_in(&self.root).unwrap_or_default();
        let other = names.iter().filter(|n| n.starts_with("programs-") && **n != ours);
        other.map(|n| self.root.join(n)).collect()
    }

    /// Removes the attachments to devices, and nothing else. Goes on where one can't be removed.
    pub fn remove_links(&self) -> Vec<KernelError> {
        let dir = self.root.join("links");
        let names = names_in(&dir).unwrap_or_default();
        let paths = names.iter().map(|name| dir.join(name));
        let failed = paths.filter_map(|path| Some((fs::remove_file(&path).err()?, path)));
        failed.map(|(e, path)| KernelError::new("remove", path.display().to_string(), e)).collect()
    }

    /// Removes what this ABI's version has pinned, and nothing else: the folder above may be shared.
    /// Programs stay attached only as long as their links are pinned, so this detaches them too.
    /// Returns whether there was anything.
    pub fn remove_all(&self) -> Result<bool, KernelError> {
        match remove_tree(&self.root) {
            Ok(()) => {
                // The folder above goes too if it is empty and no mount point: then it was ours alone.
                let _ = fs::remove_dir(&self.base);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(KernelError::new("remove", self.root.display().to_string(), e)),
        }
    }
}

fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn parse_link(name: &str) -> Option<Hook> {
    let (program, index) = name.rsplit_once('-')?;
    let program = Program::ALL.into_iter().find(|p| p.name() == program)?;
    Some((program, index.parse().ok()?))
}

/// Like `fs::remove_dir_all`, which asks for directory entry types that bpffs doesn't tell.
pub(super) fn remove_tree(dir: &Path) -> io::Result<()> {
    for name in fs::read_dir(dir)?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>()? {
        let path = dir.join(name);
        if path.is_dir() { remove_tree(&path)? } else { fs::remove_file(&path)? }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever part of them is left; and what somebody else calls like a version stays his.
    #[test]
    fn other_versions_are_told_from_strangers() {
        let dir = tempfile::tempdir().expect("temp dir");
        let ours = ["v101/maps/CONFIG", "v102/links/guard-3", "v103/backstop/v6", "v104/programs-abc/steer"];
        let strangers = ["v105/maps/somebodys", "v106/links/somebodys-3", "v107/somebody", "vx/maps/CONFIG"];
        for path in ours.iter().chain(&strangers) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "").expect("written");
        }
        let mut others: Vec<_> = Pins::new(dir.path()).others().iter().map(Pins::version).collect();
        others.sort();
        assert_eq!(others, ["v101", "v102", "v103", "v104"]);
    }

    #[test]
    fn a_link_says_what_it_is() {
        assert_eq!(parse_link("steer-12"), Some((Program::Steer, 12)));
        assert_eq!(parse_link("somebody-12"), None);
        assert_eq!(parse_link("steer-x"), None);
        let pins = Pins::new(Path::new("/bpf"));
        assert_eq!(pins.link((Program::Guard, 3)), Path::new(&format!("/bpf/v{ABI_VERSION}/links/guard-3")));
    }
}
