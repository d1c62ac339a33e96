//! Every call fails, and the daemon is killed between any two actions, in whole scenarios: what comes of it is what
//! would have come anyway, and nothing is open meanwhile. Generated: a new action, or a new scenario, is in it.

mod between;
mod both;
mod closing;
mod killed;
mod matrix;
pub(super) mod packets;
mod pair;
mod scenarios;
mod stage;
mod state;
mod stepped;
