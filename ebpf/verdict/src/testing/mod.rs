//! A world to decide in, packets to decide about, and strategies that make up both.

pub mod conditions;
mod packets;
mod strategies;
mod world;

pub use packets::{Build, Envelope, Extension, GENEVE_PORT, Transport, VXLAN_PORT, address, ip_of};
pub use strategies::{Place, Policies, Scene, Situation, envelope, policies, scene, situation};
pub use world::{Slice, World};
