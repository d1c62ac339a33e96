//! Every system call of the store, each through [`Folder::call`], where tests make them fail.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::{self, Errno};
use zeroize::Zeroizing;

use super::{Problem, StoreError, format};

/// What stands between a file's name and time and number in the name of a file that was moved aside.
pub(super) const SET_ASIDE: &str = ".key.set-aside-";
/// Every bit that lets somebody else in.
const OTHERS: u32 = 0o077;
/// Every bit that lets somebody else write.
const OTHERS_WRITE: u32 = 0o022;

/// The open folder. Files are reached by name from here, so that a path swapped meanwhile changes nothing.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    fd: OwnedFd,
    /// User that must own every file.
    pub(super) owner: u32,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

/// What lies under a name.
pub(super) enum Found {
    Nothing,
    Bad(Problem),
    Content(Zeroizing<Vec<u8>>),
}

/// A complete file under a temporary name. Deleted when it goes without having been published.
pub(super) struct Written<'a> {
    folder: &'a Folder,
    temporary: String,
    name: &'a str,
    published: bool,
}

impl Folder {
    /// Opens `path`, and makes it if need be. The number is the mode that it had, if that was too open.
    pub(super) fn open(path: &Path, owner: u32) -> Result<(Self, Option<u32>), StoreError> {
        let failed =
            |operation, source: std::io::Error| StoreError::Io { operation, path: path.to_owned(), source };
        make_folder(path).map_err(|error| failed("make folder", error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).map_err(|error| failed("open folder", error.into()))?;
        let stat = fs::fstat(&fd).map_err(|error| failed("examine folder", error.into()))?;
        if stat.st_uid != owner {
            return Err(StoreError::FolderNotOurs {
                path: path.to_owned(),
                owner: stat.st_uid,
                expected: owner,
            });
        }
        let mode = stat.st_mode & 0o7777;
        if mode & OTHERS_WRITE != 0 {
            return Err(StoreError::FolderWritable { path: path.to_owned(), mode });
        }
        let tightened_from = (mode & OTHERS != 0).then_some(mode);
        if tightened_from.is_some() {
            fs::fchmod(&fd, Mode::RWXU).map_err(|error| failed("chmod 0700 folder", error.into()))?;
        }
        let folder = Self {
            path: path.to_owned(),
            fd,
            owner,
            #[cfg(test)]
            faults: super::tests::Faults::default(),
        };
        Ok((folder, tightened_from))
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Runs one system call, again if a signal interrupts it, and says what it was if it fails.
    fn call<T>(
        &self,
        operation: &'static str,
        name: &str,
        mut system_call: impl FnMut() -> io::Result<T>,
    ) -> Result<T, StoreError> {
        self.raw_call(&mut system_call).map_err(|errno| self.failed(operation, name, errno))
    }

    fn raw_call<T>(&self, system_call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        #[cfg(test)]
        self.faults.next()?;
        io::retry_on_intr(system_call)
    }

    fn failed(&self, operation: &'static str, name: &str, errno: Errno) -> StoreError {
        StoreError::Io { operation, path: self.path_of(name), source: errno.into() }
    }

    /// Excludes every other call that changes the folder, until the result is dropped.
    pub(super) fn lock(&self) -> Result<OwnedFd, StoreError> {
        // A descriptor of its own: locks belong to the open file, and two threads may share this folder.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.call("open", "", || fs::openat(&self.fd, ".", flags, Mode::empty()))?;
        self.call("lock", "", || fs::flock(&fd, FlockOperation::LockExclusive))?;
        Ok(fd)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.call("fsync", "", || fs::fsync(&self.fd))
    }

    /// The names of everything in the folder; what is not UTF-8 is none of ours.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let entries = self.call("list", "", || fs::Dir::read_from(&self.fd))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|errno| self.failed("list", "", errno))?;
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// What a file must be before its content means anything.
    fn inspect(&self, stat: &Stat) -> Result<(), Problem> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(Problem::NotAFile("a symbolic link")),
            FileType::Directory => return Err(Problem::NotAFile("a folder")),
            _ => return Err(Problem::NotAFile("a pipe, a socket or a device")),
        }
        if stat.st_uid != self.owner {
            return Err(Problem::NotOurs { owner: stat.st_uid, expected: self.owner });
        }
        match stat.st_mode & 0o7777 {
            mode if mode & OTHERS != 0 => Err(Problem::TooOpen { mode }),
            _ => Ok(()),
        }
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        match self.raw_call(|| fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("examine", name, errno)),
        }
    }

    fn open_file(&self, name: &str, access: OFlags) -> Result<OwnedFd, StoreError> {
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.call("open", name, || fs::openat(&self.fd, name, flags, Mode::empty()))
    }

    /// Reads a file, if it can be trusted from outside.
    pub(super) fn read(&self, name: &str) -> Result<Found, StoreError> {
        let Some(stat) = self.stat(name)? else {
            return Ok(Found::Nothing);
        };
        // Asked before it is opened, since opening a device does something, ...
        if let Err(problem) = self.inspect(&stat) {
            return Ok(Found::Bad(problem));
        }
        let file = self.open_file(name, OFlags::RDONLY)?;
        // ... and of what was opened, since it may be another one by now.
        let stat = self.call("examine", name, || fs::fstat(&file))?;
        if let Err(problem) = self.inspect(&stat) {
            return Ok(Found::Bad(problem));
        }
        // One byte more than the longest, to notice what is longer; whole from the start, because a
        // vector that grows leaves a copy.
        let mut content = Zeroizing::new(vec![0; format::LIMIT + 1]);
        let mut length = 0;
        while length < content.len() {
            match self.call("read", name, || io::read(&file, &mut content[length..]))? {
                0 => break,
                more => length += more,
            }
        }
        content.truncate(length);
        Ok(Found::Content(content))
    }

    /// Writes a whole file under a temporary name, down to the disk.
    pub(super) fn write_new<'a>(&'a self, name: &'a str, content: &[u8]) -> Result<Written<'a>, StoreError> {
        let temporary = format!(".{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.call("create", &temporary, || {
            fs::openat(&self.fd, &*temporary, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let written = Written { folder: self, temporary, name, published: false };
        self.write_all(&file, &written.temporary, content)?;
        self.call("fsync", &written.temporary, || fs::fsync(&file))?;
        Ok(written)
    }

    fn write_all(&self, file: impl AsFd, name: &str, mut content: &[u8]) -> Result<(), StoreError> {
        while !content.is_empty() {
            match self.call("write", name, || io::write(&file, content))? {
                0 => return Err(self.failed("write", name, Errno::NOSPC)),
                more => content = &content[more..],
            }
        }
        Ok(())
    }

    /// Moves a file out of the way, to the first free name of this second.
    pub(super) fn set_aside(&self, name: &str, now: u64) -> Result<PathBuf, StoreError> {
        self.close_to_others(name)?;
        let stem = name.strip_suffix(".key").unwrap_or(name);
        let mut number = 0_u32;
        loop {
            let target = format!("{stem}{SET_ASIDE}{now}-{number}");
            match self.raw_call(|| self.rename(name, &target)) {
                Ok(()) => {
                    self.sync()?;
                    return Ok(self.path_of(&target));
                }
                Err(Errno::EXIST) => number += 1,
                Err(errno) => return Err(self.failed("move aside", name, errno)),
            }
        }
    }

    /// Makes a file of ours 0600. What is not a file, or not ours, is left as it is.
    fn close_to_others(&self, name: &str) -> Result<(), StoreError> {
        match self.stat(name)?.map(|stat| self.inspect(&stat)) {
            Some(Err(Problem::TooOpen { .. })) => {
                let file = self.open_file(name, OFlags::RDONLY)?;
                self.call("chmod 0600", name, || fs::fchmod(&file, Mode::RUSR | Mode::WUSR))
            }
            _ => Ok(()),
        }
    }

    /// Renames and never replaces. Every local file system that Kubernetes runs on can (Linux 3.15 and later).
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE)
    }

    /// Wipes and deletes a file. It is renamed first: stopped half-way, it is no key file any more.
    pub(super) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let Some(stat) = self.stat(name)? else {
            return Ok(false);
        };
        let problem = self.inspect(&stat).err().filter(|problem| !matches!(problem, Problem::TooOpen { .. }));
        if let Some(problem) = problem {
            return Err(StoreError::BadFile { path: self.path_of(name), problem });
        }
        let removed = format!(".{name}.removed");
        self.call("rename", name, || self.rename(name, &removed))?;
        self.wipe(&removed)?;
        Ok(true)
    }

    /// Overwrites a file with zeros, down to the disk, and deletes it.
    fn wipe(&self, name: &str) -> Result<(), StoreError> {
        if let Some(stat) = self.stat(name)?
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        {
            let file = self.open_file(name, OFlags::WRONLY)?;
            let length = usize::try_from(stat.st_size).unwrap_or(0).min(format::LIMIT);
            self.write_all(&file, name, &vec![0; length])?;
            self.call("fsync", name, || fs::fsync(&file))?;
        }
        self.delete(name)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.call("delete", name, || fs::unlinkat(&self.fd, name, AtFlags::empty()))?;
        self.sync()
    }

    /// Takes away what a call that was stopped half-way left. Under the lock nobody else is at work.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        for name in self.names()?.iter().filter(|name| name.starts_with(".generation-")) {
            if name.ends_with(".key.removed") {
                self.wipe(name)?;
            } else if name.ends_with(".key.new") {
                // Its key never served, so nothing is lost if the disk keeps it.
                self.delete(name)?;
            }
        }
        Ok(())
    }
}

/// Makes a folder and the missing ones above it, down to the disk: a key in a folder that is gone after a
/// power cut would have been announced for nothing.
fn make_folder(path: &Path) -> std::io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for parent in missing.iter().filter_map(|folder| folder.parent()) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

impl Written<'_> {
    /// Gives the file its name, down to the disk.
    pub(super) fn publish(mut self) -> Result<(), StoreError> {
        let folder = self.folder;
        folder.call("rename", &self.temporary, || folder.rename(&self.temporary, self.name))?;
        self.published = true;
        folder.sync()
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        if !self.published {
            // The caller reports the first error; what this one leaves is swept by the next call.
            let _ = self.folder.delete(&self.temporary);
        }
    }
}
