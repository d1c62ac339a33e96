//! An OCI image of one layer as an archive (OCI image layout 1.0). The same contents give the same bytes.
//!
//! The layer is not compressed: what a compressor gives depends on its version.

use std::{collections::BTreeMap, io::Write};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Media types of the OCI image specification 1.0.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What lies at a path of an image.
pub(super) enum Entry {
    Folder,
    Program(Vec<u8>),
    File(Vec<u8>),
    /// A symbolic link and where it leads.
    Link(&'static str),
}

/// What an image is made of.
pub(super) struct Contents {
    /// By path, without a slash at its beginning.
    pub(super) files: BTreeMap<&'static str, Entry>,
    /// REPOSITORY:TAG, by which a container runtime knows it once it has been imported.
    pub(super) name: String,
    pub(super) tag: String,
    /// The architecture, as Go names it.
    pub(super) architecture: &'static str,
    pub(super) entrypoint: &'static str,
    /// Labels of the configuration, and annotations of the manifest too.
    pub(super) labels: BTreeMap<String, String>,
    /// Annotations of the manifest alone.
    pub(super) annotations: BTreeMap<String, String>,
}

/// An image, packed.
pub(super) struct Packed {
    pub(super) archive: Vec<u8>,
    /// Of the manifest: by it the image is known in a registry.
    pub(super) digest: String,
}

/// The SHA-256 of these bytes in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Contents {
    /// Bytes of all files, as they lie unpacked.
    pub(super) fn unpacked(&self) -> u64 {
        let sizes = self.files.values().map(|entry| match entry {
            Entry::Program(bytes) | Entry::File(bytes) => bytes.len() as u64,
            Entry::Folder | Entry::Link(_) => 0,
        });
        sizes.sum()
    }

    pub(super) fn pack(&self) -> Result<Packed> {
        let layer = self.layer().context("pack the image's layer")?;
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Entrypoint": [self.entrypoint], "User": "0", "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
        });
        let config = serde_json::to_vec(&config)?;
        let annotations: BTreeMap<_, _> = self.labels.iter().chain(&self.annotations).collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
            "annotations": annotations,
        }))?;
        let mut of_index = descriptor(MANIFEST, &manifest);
        of_index["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        of_index["annotations"] = json!({
            // The first is containerd's, which takes the other for a tag without a repository.
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.tag,
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [of_index]});
        let mut files = BTreeMap::from([
            ("index.json".to_owned(), serde_json::to_vec(&index)?),
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ]);
        let digest = format!("sha256:{}", sha256(&manifest));
        for blob in [layer, config, manifest] {
            files.insert(format!("blobs/sha256/{}", sha256(&blob)), blob);
        }
        Ok(Packed { archive: archive(&files).context("pack the image's archive")?, digest })
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        for (path, entry) in &self.files {
            match entry {
                Entry::Folder => append(&mut layer, EntryType::Directory, 0o755, path, &[])?,
                Entry::Program(bytes) => append(&mut layer, EntryType::Regular, 0o755, path, bytes)?,
                Entry::File(bytes) => append(&mut layer, EntryType::Regular, 0o644, path, bytes)?,
                Entry::Link(to) => layer.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, to)?,
            }
        }
        Ok(layer.into_inner()?)
    }
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(blob)), "size": blob.len()})
}

fn archive(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for (path, bytes) in files {
        append(&mut archive, EntryType::Regular, 0o644, path, bytes)?;
    }
    Ok(archive.into_inner()?)
}

fn append(to: &mut Builder<impl Write>, kind: EntryType, mode: u32, path: &str, bytes: &[u8]) -> Result<()> {
    Ok(to.append_data(&mut header(kind, mode, bytes.len() as u64), path, bytes)?)
}

/// Of root, from the beginning of time: nothing that differs from one build to the next.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn contents(program: &str) -> Contents {
        Contents {
            files: BTreeMap::from([
                ("usr", Entry::Folder),
                ("usr/link", Entry::Link("program")),
                ("usr/program", Entry::Program(program.into())),
                ("usr/text", Entry::File(b"words".to_vec())),
            ]),
            name: "example.org/it:1".to_owned(),
            tag: "1".to_owned(),
            architecture: "amd64",
            entrypoint: "/usr/program",
            labels: ('a'..'k').map(|c| (c.to_string(), "label".to_owned())).collect(),
            annotations: BTreeMap::from([("of.manifest".to_owned(), "x".to_owned())]),
        }
    }

    /// All files of an archive, by path.
    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let files = archive.entries().expect("an archive").map(|entry| {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("read");
            (path, bytes)
        });
        files.collect()
    }

    #[test]
    fn the_same_contents_give_the_same_archive() {
        let (one, same) = (contents("p").pack().expect("packed"), contents("p").pack().expect("packed"));
        assert!(one.archive == same.archive && one.digest == same.digest);
        let other = contents("q").pack().expect("packed");
        assert!(one.archive != other.archive && one.digest != other.digest);
    }

    #[test]
    fn every_digest_names_what_is_there() {
        let packed = contents("p").pack().expect("packed");
        let files = unpack(&packed.archive);
        let index: Value = serde_json::from_slice(&files["index.json"]).expect("an index");
        let blob = |descriptor: &Value| {
            let digest =
                descriptor["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
            let bytes = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(
                (sha256(bytes).as_str(), Some(bytes.len() as u64)),
                (digest, descriptor["size"].as_u64())
            );
            bytes.clone()
        };
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "example.org/it:1");
        assert_eq!(index["manifests"][0]["digest"], *packed.digest);
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).expect("a manifest");
        assert_eq!(
            (&manifest["annotations"]["a"], &manifest["annotations"]["of.manifest"]),
            (&json!("label"), &json!("x"))
        );
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).expect("a configuration");
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&layer)));
        assert_eq!(unpack(&layer)["usr/program"], b"p");
    }

    #[test]
    fn a_layer_tells_neither_time_nor_owner() {
        let layer = contents("p").layer().expect("packed");
        let mut archive = tar::Archive::new(layer.as_slice());
        for entry in archive.entries().expect("an archive") {
            let entry = entry.expect("an entry");
            let header = entry.header();
            let facts = (header.mtime().ok(), header.uid().ok(), header.gid().ok());
            assert_eq!(facts, (Some(0), Some(0), Some(0)), "{:?}", entry.path());
        }
        assert_eq!(contents("four").unpacked(), 9);
    }
}
