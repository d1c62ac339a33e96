//! The way round over the fake kernel: what is done, what is not done, and what stands when calls fail.

mod backstop;
mod bench;
mod convergence;
mod failures;
mod faults;
mod panics;
mod proof;
mod removal;
mod told;
