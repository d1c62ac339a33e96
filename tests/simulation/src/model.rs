//! Rotation of two nodes, or of three of which one or two are prompt, in every order that things can happen in.
//!
//! What a node does about its keys, what it says and which way it may take are the production functions' (`core::rotation`: `keys`, `says`, `may_use`,
//! `choose`). What its devices hold, and which way is proven, is written down here once more (`node.rs`). Around them:
//! - **Announcements** stand on a board; a node reads it whenever it does, all of it at once, since a watch tells in order. What is told
//!   twice or late is what a node read before, and changes nothing. A request to publish arrives at any time, also after its daemon died, but
//!   before what the next daemon publishes: a later one is not looked at.
//! - **Handshakes**: each of two nodes that have each other on standing devices may see at any time that the other answers there, and may cease
//!   to hear from it as often as the bounds say.
//! - **Packets**: a pair is always about to send by its way. When a node changes a way, a packet may be on the way by the one before, until some seconds
//!   pass for either end. So an old key waits for no more than that: silence of a device is taken as given, always.
//! - **Time** is what is remembered of it: now, more than five seconds ago, more than ten. Seconds pass for each node by itself, and a node's place
//!   in the row of all nodes comes at once.
//! - **Crashes** end a daemon before its way round, after the keys, the devices or the ways of it, and take its memory but not its files,
//!   its devices, or what is on the network. Actions between those are taken one by one by the simulator (`agent.rs`), not here.
//!
//! What must hold in each state: every node has a way to every other, by a device whose key the other has, and nothing that is on its way
//! arrives where it can't be decrypted; no two keys of a node share a device, and none is made twice; and from each state on, all nodes
//! come to the generation that is wanted without anybody's help.
//!
//! It is our own search, breadth first over all states, and not `stateright`'s: that can't say "from each state on", since its `eventually`
//! does not see a path that ends in a circle (its documentation says so), and time that passes goes in circles. Left out: revoked keys, lost
//! devices, nodes that come and go, how often something is written; all of that is the simulator's. How far bounds were taken, and what that came to, is
//! in ARCHITECTURE.md.

mod node;
mod said;
mod search;
mod state;

pub use search::{Broken, Checked, check};

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Nodes: two or three.
    pub nodes: u8,
    /// How many of them, the last ones, do at once what they can do, with what all others say and answer by then. Only seconds pass for
    /// them as they will.
    pub prompt: u8,
    /// The mesh wants another generation so often; at most three times.
    pub rotations: u8,
    /// Daemons die so often, all together.
    pub crashes: u8,
    /// Nodes cease to hear from one another so often.
    pub silences: u8,
}
