//! What kubeveil says to the outside: API objects, the announcement, names, the status document.
//!
//! Data only. Each type reads what a person or an API server wrote and says precisely what is wrong
//! with it; what it means is decided in `kubeveil-core`.

pub mod announcement;
pub mod bypass;
pub mod check;
pub mod condition;
#[cfg(feature = "schema")]
pub mod crd;
pub mod mesh;
mod moment;
pub mod names;
pub mod node;
pub mod object;
pub mod peer_slice;
pub mod pod;
pub mod pod_slice;
pub mod policy;
pub mod policy_test;
pub mod probe;
pub mod problem;
pub mod rotation;
pub mod schedule;
pub mod selector;
pub mod service;
pub mod status;
pub mod veil_node;
pub mod watch;
mod words;
