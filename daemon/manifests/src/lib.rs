//! The cluster as a folder of manifests, as `kubectl get -o yaml` prints them.
//!
//! `parse` turns a file's text into objects, `index` remembers the last good state of each
//! file, [`Folder`] reads and watches.

mod folder;
mod index;
mod parse;

pub use folder::Folder;
