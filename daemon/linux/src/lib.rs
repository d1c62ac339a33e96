//! Everything that talks to the kernel, behind one port: [`Kernel`].
//!
//! [`RealKernel`] is made of WireGuard over netlink ([`wireguard`]), links ([`link`]), [`sysctl`]s, [`bpf`] and
//! the [`backstop`]. A stateful fake with the same semantics stands in [`fake`]; what it claims is held to on
//! the real kernel by the lab. Beside the port stands [`route`], which only reads.

pub mod backstop;
pub mod bpf;
#[cfg(any(test, feature = "fake"))]
pub mod claims;
pub mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod harden;
pub mod link;
mod memory;
mod neighbours;
pub mod port;
pub mod preflight;
mod real;
pub mod route;
pub mod survey;
pub mod sysctl;
pub mod wireguard;

pub use error::KernelError;
pub use kubeveil_api::watch::Flow;
pub use memory::Forgetful;
pub use port::{Count, Kernel, Removed, Secrets, Sighting, Sightings};
pub use real::RealKernel;
