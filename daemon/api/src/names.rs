//! Names that others depend on.

/// API group of our own objects.
pub const GROUP: &str = "kubeveil.io";
/// `apiVersion` of our own objects.
pub const API_VERSION: &str = "kubeveil.io/v1alpha1";
/// CustomResourceDefinitions of this version, by name.
pub const DEFINITIONS: [&str; 6] = [
    "encryptionmeshes.kubeveil.io",
    "veilnodes.kubeveil.io",
    "encryptionpolicies.kubeveil.io",
    "clusterencryptionpolicies.kubeveil.io",
    "veilpodslices.kubeveil.io",
    "veilpeerslices.kubeveil.io",
];
/// Annotation of a Node that holds its announcement.
pub const ANNOUNCEMENT: &str = "kubeveil.io/announcement";
/// Label of Nodes of the control plane, which the API server's NodeRestriction lets no kubelet give itself.
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// Name of the one `EncryptionMesh`.
pub const MESH: &str = "default";
/// Folder of a manifest source in which agents write their announcements.
pub const ANNOUNCEMENTS_DIR: &str = "announcements";
/// Folder of a manifest source in which agents write what they say of themselves.
pub const STATUS_DIR: &str = "status";
/// Labels of agents' pods, as a selector.
pub const AGENTS: &str = "app.kubernetes.io/name=kubeveil,app.kubernetes.io/component=agent";

/// Longest name of a Node: a DNS subdomain (RFC 1123), in bytes.
const MAX_NAME: usize = 253;

/// The characters of a DNS subdomain; which may stand where is for the API server to check.
pub fn is_node_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte))
}
