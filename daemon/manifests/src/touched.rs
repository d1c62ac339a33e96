//! Which files of a folder have changed since it was read.

use std::{collections::BTreeSet, path::Path};

use kubeveil_api::names;

use crate::folder::is_manifest;

/// What the watcher told.
#[derive(Debug)]
pub(crate) enum Touched {
    /// Anything.
    Any,
    /// These files, as the index names them, and nothing else.
    Announcements(BTreeSet<String>),
}

impl Default for Touched {
    fn default() -> Self {
        Self::Announcements(BTreeSet::new())
    }
}

impl Touched {
    /// Takes note of `event`; `announcements` is the folder of that name. False if it says nothing of a manifest: our own
    /// reading must not wake us, nor must names that nobody reads.
    pub(crate) fn note(&mut self, announcements: &Path, event: notify::Result<notify::Event>) -> bool {
        let event = match event {
            Ok(event) if event.kind.is_access() => return false,
            Ok(event) if !event.need_rescan() && !event.paths.is_empty() => event,
            _ => {
                *self = Self::Any;
                return true;
            }
        };
        let mut is_news = false;
        for path in &event.paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_among_announcements = path.parent() == Some(announcements);
            if is_among_announcements && !is_manifest(&name) {
                continue;
            }
            is_news = true;
            match self {
                Self::Announcements(files) if is_among_announcements => {
                    files.insert(format!("{}/{name}", names::ANNOUNCEMENTS_DIR));
                }
                _ => *self = Self::Any,
            }
        }
        is_news
    }
}
