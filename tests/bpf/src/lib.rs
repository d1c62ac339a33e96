//! What tests and benches of the eBPF programs share: the programs under BPF_PROG_TEST_RUN, and a node of one
//! namespace with everything of the daemon's that is in the kernel. Needs root.

pub mod cell;
pub mod kernel;
