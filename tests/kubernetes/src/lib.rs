//! A real API server for tests, and what is done to a cluster, whatever keeps it.

pub mod ask;
pub mod certificate;
pub mod chart;
pub mod cluster;
pub mod proxy;
pub mod server;
pub mod world;
