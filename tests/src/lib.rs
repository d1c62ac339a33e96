//! The lab: nodes, pods and a wire in network namespaces, traffic between the pods, a capture on the
//! wire, and the judgement of what the capture saw. `tests/README.md` is the contract.

pub mod address;
pub mod analysis;
pub mod capture;
pub mod http;
pub mod lab;
pub mod memory;
pub mod metrics;
pub mod missing;
pub mod namespace;
pub mod packet;
pub mod process;
#[cfg(test)]
mod readme;
pub mod stage;
pub mod status;
pub mod traffic;
