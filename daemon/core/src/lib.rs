//! What the daemon decides, without any effect: no clock, no file, no system call.
//!
//! Read in this order: [`snapshot`] (what is known of the cluster), [`ownership`] (whose prefix is
//! it), [`tunnels`] (which peer is proven to answer), [`rotation`] (by which key generation), [`adoption`] (who may be
//! spoken to in plain until it is), [`bypass`] (who is, for a while, since people say so), [`desired`] (what the kernel should hold),
//! [`observed`] (what it holds), [`plan`] (the difference, as a list of [`action`]s).

pub mod action;
pub mod adoption;
pub mod agent;
pub mod announced;
pub mod backstop;
pub mod bypass;
pub mod control;
pub mod desired;
pub mod endpoint;
pub mod index;
pub mod lingering;
pub mod mtu;
pub mod observed;
pub mod origin;
pub mod ownership;
pub mod plan;
pub mod policy;
pub use kubeveil_api::problem;
pub mod rotation;
pub mod snapshot;
pub mod source;
pub mod tunnels;
pub mod underlay;

#[cfg(test)]
mod testing;
