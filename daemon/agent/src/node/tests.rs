//! The way round over the fake kernel: what is done, what is not done, and what stands when calls fail.

mod adoption;
mod backstop;
mod bench;
mod bypass;
mod convergence;
mod faults;
mod flows;
mod hear;
mod hearsay;
mod leave;
mod panics;
mod policies;
mod predecessors;
mod proof;
mod removal;
mod rotation;
mod told;
mod undone;
