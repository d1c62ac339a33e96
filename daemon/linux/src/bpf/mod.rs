//! The datapath in the kernel: programs, maps and attachments, all pinned.
//!
//! ```text
//! <bpf-dir>/v3/maps/CONFIG …           shared by every build of this ABI
//!              programs-<build>/steer …  the programs of one object file
//!              links/steer-<ifindex> …   attachments; an upgrade updates them in place
//!                                      (before Linux 6.6: filters, which need no pin)
//!              backstop/v4, v6           links to netfilter; an upgrade renames new ones over them
//! ```

mod attach;
mod batch;
pub(crate) mod call;
mod held;
mod load;
mod maps;
mod peers;
mod pins;
mod trial;
mod watches;

pub use attach::remove_filters;
pub(crate) use held::Held;
pub use load::{Bpf, build_of};
pub use maps::Maps;
pub use pins::Pins;
pub(crate) use trial::{has_tcx, others, ours, try_load};
