//! Which packets must not be plain, apart from what daemons have on record and maps hold.
//!
//! A node is **held** to encryption when it has heard that this is required, and its programs stand over maps that say so and know the pods'
//! range, or its way round has come to its end in any case; and where its file says that it is, from the first program on, since the
//! maps are written before that. From there on a packet of its pods to
//! others is encrypted or dropped. Where the mesh is being adopted a packet may be plain, until it has gone by a tunnel to
//! that node once, or until the deadline. What is no program's to decide is excused: a node without one, as one that was made or rebooted a
//! moment ago is. The mesh goes from prefer to require and never back.

use std::{collections::BTreeSet, time::Duration};

use kubeveil_abi::Mode;
use kubeveil_core::{action::Action, observed::Program};

use crate::{
    daemon::Known,
    kernel::{RANGE, place_of_index},
    maps::UNDERLAY,
    world::{Machine, NAMES, World},
};

/// What is told to the programs in seconds since boot differs from the deadline by so much at the most (`core::desired`, `SLACK`, and what is
/// cut off of both).
const SLACK: Duration = Duration::from_secs(4);

/// What a node is held to by its own daemon's knowledge; what that makes of it is looked at from outside.
#[derive(Default)]
pub(crate) struct Held {
    /// Its packets are encrypted or dropped, but for adoption.
    is_held: bool,
    /// Nodes to which they have gone by a tunnel since, by place; not undone by anything but another machine.
    proven: BTreeSet<usize>,
    /// Those of them of whom no disk knows, since it was full.
    unrecorded: BTreeSet<usize>,
}

impl Held {
    #[cfg(test)]
    pub(crate) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Packets go by a tunnel to those `places`; a disk that is full takes no record of it.
    fn proves(&mut self, places: impl IntoIterator<Item = usize>, is_full: bool) {
        for place in places {
            self.proven.insert(place);
            if is_full {
                self.unrecorded.insert(place);
            }
        }
    }

    /// No program stands any more.
    pub(crate) fn reboot(&mut self) {
        self.is_held = false;
        // Nor a map, and the disk had taken nothing: nobody can know.
        self.proven.retain(|place| !self.unrecorded.contains(place));
        self.unrecorded.clear();
    }
}

impl World {
    /// `action` was carried out at a node.
    pub(crate) fn is_held_by(&mut self, place: usize, action: &Action) {
        let now = self.now;
        let machine = &mut self.machines[place];
        let Some(datapath) = &machine.kernel.seen.datapath else { return };
        let is_attached = datapath.attached.contains_key(&(Program::Steer, UNDERLAY));
        let requires = |known: Option<&Known>| {
            known.and_then(|known| known.mesh.as_ref()).is_some_and(|mesh| !mesh.prefers)
        };
        let is_told = requires(machine.daemon.as_ref().map(|daemon| &daemon.known))
            && Mode::from_raw(datapath.config.mode) == Mode::Require
            && datapath.prefixes.contains_key(&RANGE);
        let is_kept = matches!(action, Action::Attach(_)) && requires(machine.kept.as_ref());
        if is_attached && (is_told || is_kept) && !machine.held.is_held {
            self.holds(place);
        } else if let Action::SetPeer(index, value) = action
            && machine.held.is_held
            && value.has_tunnel()
        {
            let is_full = machine.is_full(now);
            machine.held.proves([place_of_index(*index)], is_full);
        }
    }

    /// A way round has come to its end with nothing left to do.
    pub(crate) fn is_held_by_all(&mut self, place: usize) {
        let now = self.now;
        let machine = &mut self.machines[place];
        if !machine.is_full(now) {
            machine.held.unrecorded.clear();
        }
        let mesh = machine.daemon.as_ref().and_then(|daemon| daemon.known.mesh.as_ref());
        if mesh.is_some_and(|mesh| !mesh.prefers) && !machine.held.is_held {
            self.holds(place);
        }
    }

    fn holds(&mut self, place: usize) {
        let is_full = self.machines[place].is_full(self.now);
        let Machine { kernel, held, .. } = &mut self.machines[place];
        held.is_held = true;
        let values = kernel.seen.datapath.iter().flat_map(|datapath| &datapath.peers);
        let proven = values.filter(|(_, value)| value.has_tunnel());
        held.proves(proven.map(|(index, _)| place_of_index(*index)), is_full);
        self.note(|| format!("{} is held to encryption", NAMES[place]));
    }

    /// Another machine by the same name: nothing has been proven of it.
    pub(crate) fn is_another(&mut self, place: usize) {
        for machine in &mut self.machines {
            machine.held.proven.remove(&place);
        }
    }

    /// A packet goes in plain.
    pub(crate) fn goes_in_plain(&mut self, from: usize, to: usize, why: impl std::fmt::Debug) {
        self.figures.plain += 1;
        let machine = &self.machines[from];
        let is_over = |deadline: Duration| !machine.has_jumped && self.wall(from) > deadline + SLACK;
        let too_much = match &self.api.mesh.adoption {
            _ if !machine.held.is_held => None,
            None => Some("encryption is required"),
            Some(_) if machine.held.proven.contains(&to) => Some("they have gone by a tunnel before"),
            Some(adoption) if is_over(adoption.deadline()) => Some("adoption's deadline is over"),
            Some(_) => None,
        };
        if let Some(too_much) = too_much {
            self.fail(
                "what policy wants encrypted is never plain",
                format_args!("{} sends to {} in plain ({why:?}), and {too_much}", NAMES[from], NAMES[to]),
            );
        }
    }
}
