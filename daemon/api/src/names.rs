//! Names that others depend on.

/// API group of our own objects.
pub const GROUP: &str = "kubeveil.io";
/// `apiVersion` of our own objects.
pub const API_VERSION: &str = "kubeveil.io/v1alpha1";
/// Annotation of a Node that holds its announcement.
pub const ANNOUNCEMENT: &str = "kubeveil.io/announcement";
/// Name of the one `EncryptionMesh`.
pub const MESH: &str = "default";
/// Folder of a manifest source in which agents write their announcements.
pub const ANNOUNCEMENTS_DIR: &str = "announcements";
