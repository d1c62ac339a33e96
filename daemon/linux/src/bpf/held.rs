//! What is pinned, held open too: a pin that somebody removes takes nothing out of the kernel while the daemon lives, and
//! can be made again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::{Pins, call};
use crate::{KernelError, error::PIN, preflight::is_bpffs};

/// Open objects by the path of their pin.
#[derive(Debug, Default)]
pub(crate) struct Held {
    objects: BTreeMap<PathBuf, OwnedFd>,
}

impl Held {
    /// Opens all that is pinned now for `build`. What was pinned at the same path before is let go.
    pub(crate) fn hold(&mut self, pins: &Pins, build: &str) -> Result<(), KernelError> {
        for path in pins.all(build) {
            let object =
                call::get(&path).map_err(|e| KernelError::new("open", path.display().to_string(), e))?;
            self.objects.insert(path, object);
        }
        Ok(())
    }

    /// Lets go of what we unpin ourselves: a pin, or all in a folder.
    pub(crate) fn let_go(&mut self, path: &Path) {
        self.objects.retain(|pin, _| !pin.starts_with(path));
    }

    /// Pins that are not there any more.
    pub(crate) fn unpinned(&self) -> BTreeSet<PathBuf> {
        self.objects.keys().filter(|path| !path.exists()).cloned().collect()
    }

    /// Makes them again.
    pub(crate) fn pin_again(&self, pins: &Pins) -> Result<(), KernelError> {
        for path in self.unpinned() {
            let failed = |e: std::io::Error| KernelError::new(PIN, path.display().to_string(), e);
            // What is not mounted must not be filled with folders of the same names.
            if !is_bpffs(pins.base()) {
                return Err(failed(rustix::io::Errno::PERM.into()));
            }
            if let (Some(folder), Some(object)) = (path.parent(), self.objects.get(&path)) {
                fs::create_dir_all(folder).map_err(failed)?;
                call::pin(object.as_raw_fd(), &path).map_err(failed)?;
            }
        }
        Ok(())
    }
}
