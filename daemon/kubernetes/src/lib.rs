//! The cluster as an API server tells it: Nodes and `EncryptionMesh/default`.
//!
//! `object` turns what the API server sends into what is known of a node and of the mesh, [`store`] holds that and judges
//! what lists and watches say (pure), `watch` asks for them, `publish` writes this node's announcement, `report` what
//! it says of itself, `trouble` says
//! what is wrong with a request, [`KubernetesControl`] is what a person's command does there. [`Kubernetes`] is the source that the node's own thread reads: it never waits for the network.

mod connect;
mod control;
mod object;
mod pace;
mod publish;
mod report;
mod source;
mod store;
mod trouble;
mod watch;

pub use connect::{Origin, entries, holds, ours, theirs};
pub use control::KubernetesControl;
pub use object::{Named, PodSpec, PodStatus, read_policy, resident};
pub use pace::Pace;
pub use source::Kubernetes;
