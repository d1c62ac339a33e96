//! The datapath's decision: what is to become of a packet.
//!
//! Pure and `no_std`: the packet comes through [`Bytes`], the maps through [`Tables`], so the very
//! code that the kernel runs is tested on the host. Nothing here ends a packet's journey; a
//! [`Decision`] says what should, and the thin programs around it do it.
//!
//! Both families take one path: an IPv4 address is handled as `::ffff:a.b.c.d`
//! (see [`kubeveil_abi::Address`]).
#![no_std]

#[cfg(feature = "testing")]
extern crate std;

mod backstop;
mod decision;
mod deliver;
mod envelope;
mod fit;
mod flow;
mod guard;
mod mode;
mod packet;
mod steer;
mod tables;
mod tcp;
pub mod too_big;
mod transport;

#[cfg(feature = "testing")]
pub mod testing;

pub use backstop::{Hop, backstop, ends_of_ip};
pub use decision::Decision;
pub use deliver::deliver;
pub use envelope::{Content, Ends, inside};
pub use fit::{Fit, Fitting, fitting};
pub use flow::{Sight, follow};
pub use guard::guard;
pub use mode::{Ask, Held, Owner, held};
pub use packet::{Bytes, Meta, Packet, Parsed, ends, is_vlan, parse};
pub use steer::{clamp_of_bypassed, replace, steer};
pub use tables::{Route, Tables};
pub use tcp::MssClamp;
pub use transport::{Transport, walk};
