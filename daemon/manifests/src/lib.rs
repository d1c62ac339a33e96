//! The cluster as a folder of manifests, as `kubectl get -o yaml` prints them.
//!
//! `parse` turns a file's text into objects, `index` remembers the last good state of each
//! file, `touched` what has changed since, [`Folder`] reads and watches. [`FolderControl`] is what a person's command does there,
//! `gather` reads files that no daemon watches, and `edit` how it changes a file that people wrote.

mod control;
mod edit;
mod folder;
mod gather;
mod index;
mod parse;
mod touched;
mod yaml;

pub use control::FolderControl;
pub use folder::Folder;
pub use gather::{Gathered, gather};

/// What a folder of these files says, by name and text, read for the first time.
#[cfg(feature = "testing")]
pub fn read_once(files: &[(&str, &str)]) -> kubeveil_core::source::SourceState {
    let contents = files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned())));
    index::Index::default().update(Ok(contents.collect()), std::time::Duration::ZERO)
}
