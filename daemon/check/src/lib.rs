//! `kubeveil check`: whether a cluster is fit for kubeveil, and whether what is installed does its work.
//!
//! [`facts`] is what is known of the cluster, [`gather`] asks the API server for it, [`probes`] has code run on the nodes for a
//! moment, and [`judge`] makes findings of it all (pure).

pub mod approve;
pub mod facts;
pub mod gather;
pub mod judge;
pub mod probes;
pub mod ranges;
mod webhook;
