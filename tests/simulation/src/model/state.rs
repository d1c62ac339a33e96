//! All nodes, what is between them, and what can happen next.

use std::fmt;

use super::{
    Bounds,
    node::{Death, NONE, Node},
    said::{Code, MOST, bits, generations},
};
use crate::world::NAMES;

/// Everything. Nodes are numbers of what is known of them (`Nodes`), which is much less than there are states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) nodes: [u32; MOST],
    /// What the API server has of each.
    pub(super) board: [Code; MOST],
    /// Requests to publish that are under way; and of a daemon that has died since.
    pub(super) flight: [Code; MOST],
    pub(super) ghost: [Code; MOST],
    /// Generations by which a packet may still be on its way, from and to.
    pub(super) on_its_way: [[u8; MOST]; MOST],
    pub(super) wanted: u8,
    pub(super) left: Bounds,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The mesh wants the next generation.
    Raise,
    /// A way round of a node; it takes in first what all others say now, what the mesh wants now.
    Pass {
        node: usize,
        reads: bool,
        hears: bool,
        death: Option<Death>,
    },
    /// More than five seconds pass for a node.
    Wait(usize),
    /// A node sees that another answers on a device.
    Shake {
        node: usize,
        with: usize,
        parity: usize,
    },
    /// A node hears nothing from another on a device any more.
    Silence {
        node: usize,
        with: usize,
        parity: usize,
    },
    /// What a node publishes arrives; or what an earlier daemon of it sent.
    Arrive(usize),
    Haunt(usize),
}

impl Action {
    /// Is it nobody's deed, but what goes on by itself?
    pub(super) fn is_course(self) -> bool {
        !matches!(self, Self::Raise | Self::Silence { .. } | Self::Pass { death: Some(_), .. })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Raise => f.write_str("the mesh wants the next generation"),
            Self::Pass { node, reads, hears, death } => {
                let news = match (reads, hears) {
                    (false, false) => "by what it knew",
                    (true, false) => "reads what all say",
                    (false, true) => "hears what is wanted",
                    (true, true) => "reads and hears all",
                };
                write!(f, "{}: way round, {news}", NAMES[node])?;
                death.map_or(Ok(()), |death| write!(f, ", dies {death:?}"))
            }
            Self::Wait(node) => write!(f, "{}: some seconds pass", NAMES[node]),
            Self::Shake { node, with, parity } => {
                write!(f, "{}: {} answers on device {parity}", NAMES[node], NAMES[with])
            }
            Self::Silence { node, with, parity } => {
                write!(f, "{}: {} answers no more on device {parity}", NAMES[node], NAMES[with])
            }
            Self::Arrive(node) => write!(f, "{}: what it publishes arrives", NAMES[node]),
            Self::Haunt(node) => write!(f, "{}: what its earlier daemon sent arrives", NAMES[node]),
        }
    }
}

/// Can `to` decrypt what comes from `from` by `generation`?
fn decrypts(nodes: &[Node], from: usize, to: usize, generation: u8) -> bool {
    let parity = usize::from(generation & 1);
    nodes[to].device[parity] == generation && nodes[to].peers[parity] & 1 << from != 0
}

impl State {
    /// A node sends what is to be published, if that is not under way and not what its source has. What another overtakes before it
    /// is sent, is as if nobody had read it.
    pub(super) fn publish(&mut self, place: usize, node: &Node) {
        let stands = [node.seen[place], self.board[place]].contains(&node.says);
        if self.flight[place] == 0 && node.says != 0 && !stands {
            self.flight[place] = node.says;
        }
    }

    /// What does not hold here, if anything does not.
    pub(super) fn broken(&self, nodes: &[Node]) -> Option<String> {
        for (from, node) in nodes.iter().enumerate() {
            let parities = bits(node.held).fold([0, 0], |mut all, number| {
                all[usize::from(number & 1)] += 1;
                all
            });
            if parities.iter().any(|count| *count > 1) {
                return Some(format!("{} has two keys for one device", NAMES[from]));
            }
            for to in (0..nodes.len()).filter(|to| *to != from) {
                let (by, pair) = (node.ways[to], format_args!("{} to {}", NAMES[from], NAMES[to]));
                if by == NONE {
                    return Some(format!("no way from {pair}"));
                }
                let parity = usize::from(by & 1);
                if node.device[parity] != by || node.peers[parity] & 1 << to == 0 {
                    return Some(format!("from {pair} by generation {by}, which the sender has not"));
                }
                if !decrypts(nodes, from, to, by) {
                    return Some(format!("from {pair} by generation {by}, which the receiver has not"));
                }
                if let Some(by) = bits(self.on_its_way[from][to]).find(|by| !decrypts(nodes, from, to, *by)) {
                    return Some(format!("a packet from {pair} by generation {by} arrives too late"));
                }
            }
        }
        None
    }

    /// Are all where they should be?
    pub(super) fn is_done(&self, nodes: &[Node]) -> bool {
        let only = 1 << self.wanted;
        nodes.iter().enumerate().all(|(place, node)| {
            node.held == only
                && node.device.iter().all(|device| [NONE, self.wanted].contains(device))
                && (0..nodes.len()).all(|to| to == place || node.ways[to] == self.wanted)
                && self.board[place] == only
                && generations(self.board[place]) == only
        })
    }

    /// All that can happen to nodes that are so.
    pub(super) fn actions(&self, nodes: &[Node]) -> Vec<Action> {
        let mut out = Vec::new();
        if self.left.rotations > 0 {
            out.push(Action::Raise);
        }
        for (place, node) in nodes.iter().enumerate() {
            out.push(Action::Wait(place));
            if self.is_prompt(place) {
                continue;
            }
            self.passes(place, node, &mut out);
            if self.flight[place] != 0 {
                out.push(Action::Arrive(place));
            }
            if self.ghost[place] != 0 {
                out.push(Action::Haunt(place));
            }
            self.answers(place, nodes, &mut out);
        }
        out
    }

    /// Does a node what it can do at once?
    fn is_prompt(&self, place: usize) -> bool {
        place + usize::from(self.left.prompt) >= usize::from(self.left.nodes)
    }

    /// What a node that is prompt does next, if there is anything.
    pub(super) fn at_once(&self, nodes: &[Node]) -> Vec<Action> {
        let mut out = Vec::new();
        for place in (0..nodes.len()).filter(|place| self.is_prompt(*place)) {
            if self.flight[place] != 0 {
                out.push(Action::Arrive(place));
            }
            self.answers(place, nodes, &mut out);
            out.push(Action::Pass { node: place, reads: true, hears: true, death: None });
        }
        out.retain(|action| action.is_course());
        out
    }

    /// Who begins to answer a node, and who may cease to.
    fn answers(&self, place: usize, nodes: &[Node], out: &mut Vec<Action>) {
        let node = &nodes[place];
        for (with, other) in nodes.iter().enumerate().filter(|(with, _)| *with != place) {
            for parity in 0..2 {
                let stands = node.device[parity] != NONE && node.device[parity] == other.device[parity];
                let is_new = node.shaken[parity] & 1 << with == 0 || node.stale[parity] & 1 << with != 0;
                let are_peers = node.peers[parity] & 1 << with != 0 && other.peers[parity] & 1 << place != 0;
                if stands && are_peers && is_new {
                    out.push(Action::Shake { node: place, with, parity });
                }
                if self.left.silences > 0 && !is_new && node.held.count_ones() > 1 {
                    out.push(Action::Silence { node: place, with, parity });
                }
            }
        }
    }

    fn passes(&self, place: usize, node: &Node, out: &mut Vec<Action>) {
        let deaths = [None, Some(Death::AfterKeys), Some(Death::AfterDevices), Some(Death::AfterWays)];
        let deaths = if self.left.crashes > 0 { &deaths[..] } else { &deaths[..1] };
        let can_read = !node.whole || node.seen != self.board;
        let can_hear = node.wanted != self.wanted;
        for reads in [false, true].into_iter().filter(|reads| !reads || can_read) {
            // Who has not begun does nothing by what he reads; so of three nodes each hears what is wanted when it first looks.
            let hears_all = self.left.nodes > 2 && can_hear;
            for hears in [false, true].into_iter().filter(|hears| if *hears { can_hear } else { !hears_all })
            {
                out.extend(deaths.iter().map(|death| Action::Pass {
                    node: place,
                    reads,
                    hears,
                    death: *death,
                }));
            }
        }
        if self.left.crashes > 0 {
            out.push(Action::Pass { node: place, reads: false, hears: false, death: Some(Death::Before) });
        }
    }
}
