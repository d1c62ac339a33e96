//! What is done to the cluster while keys are rotated.

use std::time::Duration;

use jiff::Timestamp;
use kubeveil_api::mesh::Adoption;
use kubeveil_keys::Generation;

use crate::{
    api::Stream,
    wire::Faults,
    world::{EPOCH, Event, Machine, NAMES, PLACES, World},
};

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed {
    /// The mesh wants a generation that is newer by so many, and leaves these nodes their keys.
    Raise(u32, u32),
    Pause,
    Resume,
    /// The mesh requires encryption from here on; it is adopted until then.
    Require(Option<Adoption>),
    /// Generations before the wanted one go at once.
    RetireBefore,
    Join,
    Leave(usize),
    /// Another machine by the same name, with nothing on it.
    Replace(usize),
    /// Down for so long; devices and maps are gone, the disk is not.
    Reboot(usize, Duration),
    /// The daemon ends at once, and starts again so much later.
    Kill(usize, Duration),
    /// The daemon ends after so many steps.
    Fuse(usize, u32),
    /// Somebody deletes a device, by parity.
    DeleteDevice(usize, usize),
    /// Packets between two nodes don't pass for so long: by both ports, or by the second of the newest generation only.
    Cut(usize, usize, bool, Duration),
    /// The API server answers nobody, or not this node.
    Away(Option<usize>, Duration),
    /// A watch tells nothing.
    Deaf(usize, Duration),
    /// The daemon ends, and the one that starts a little later hears for so long what the nodes said before, by so many changes.
    Past(usize, usize, Duration),
    /// Nothing can be written.
    Full(usize, Duration),
    /// The wall clock jumps an hour, forward or back.
    Clock(usize, bool),
    /// The newest key of a node is revoked.
    Revoke(usize),
}

/// How rough a schedule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Delays, and rotations.
    Calm,
    /// Messages get lost or arrive twice; no device is lost and no key revoked.
    Rough,
    /// Anything.
    Storm,
}

impl World {
    /// The mesh as it is at first: one of four prefers, and requires later; of the others, and of those, some are being adopted.
    pub(crate) fn found(&mut self) {
        let adoption = self.once_in(3).then(|| self.some_adoption());
        self.api.change_mesh(|mesh| mesh.adoption = adoption);
        if self.once_in(4) {
            self.api.change_mesh(|mesh| (mesh.prefers, mesh.adoption) = (true, None));
            let wait = self.millis(2000, 40_000);
            self.after(wait, Event::Deed(Deed::Require(adoption)));
        }
    }

    fn some_adoption(&mut self) -> Adoption {
        let deadline = EPOCH + self.millis(3000, 90_000);
        let seconds = i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX);
        Adoption { deadline: Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX) }
    }

    /// Lays down what will happen within `length`.
    pub(crate) fn lay(&mut self, weather: Weather, length: Duration) {
        let rotations = self.random.u32(1..=3);
        for _ in 0..rotations {
            let by = if weather == Weather::Calm || !self.once_in(6) { 1 } else { self.random.u32(2..=3) };
            let left_out = if self.random.bool() { self.random.u32(..) } else { 0 };
            self.lay_one(Deed::Raise(by, left_out), length);
        }
        let deeds = match weather {
            Weather::Calm => 0,
            Weather::Rough | Weather::Storm => self.random.u32(2..=10),
        };
        self.has_silent = self.once_in(4);
        if weather != Weather::Calm {
            let mut often = || [0, 0, 50, 8, 2][self.random.usize(0..5)];
            let [lost, doubled] = [(); 2].map(|()| [(); 4].map(|()| often()));
            self.faults = Faults { lost, doubled };
            self.note(|| format!("one in so many: {:?}", Faults { lost, doubled }));
        }
        for _ in 0..deeds {
            let deed = self.some_deed(weather);
            self.lay_one(deed, length);
        }
    }

    fn lay_one(&mut self, deed: Deed, length: Duration) {
        let most = u64::try_from(length.as_millis()).unwrap_or(1);
        let at = self.millis(1000, most);
        self.after(at, Event::Deed(deed));
    }

    fn some_deed(&mut self, weather: Weather) -> Deed {
        let count = self.machines.len();
        let (one, other) = (self.random.usize(0..count), self.random.usize(0..count));
        let (short, long) = (self.millis(50, 8000), self.millis(1000, 40_000));
        let kinds = if weather == Weather::Storm { 18 } else { 12 };
        match self.random.u32(0..kinds) {
            0 | 1 => Deed::Kill(one, short),
            2 | 3 => Deed::Fuse(one, self.random.u32(1..60)),
            4 => Deed::Cut(one, other, self.random.bool(), long),
            5 => Deed::Away(self.random.bool().then_some(one), long),
            6 => Deed::Deaf(one, long),
            7 => Deed::Full(one, long),
            8 => Deed::Clock(one, self.random.bool()),
            9 => Deed::Pause,
            10 => Deed::Join,
            11 => Deed::Past(one, self.random.usize(1..30), long),
            12 => Deed::Leave(one),
            13 => Deed::Replace(one),
            14 => Deed::Reboot(one, long),
            15 => Deed::DeleteDevice(one, self.random.usize(0..2)),
            16 => Deed::RetireBefore,
            _ => Deed::Revoke(one),
        }
    }

    pub(crate) fn deed(&mut self, deed: Deed) {
        if self.is_over {
            return;
        }
        let is_gone = |world: &Self, place: usize| world.machines[place].is_gone;
        self.note(|| format!("*** {deed:?}"));
        match deed {
            Deed::Raise(by, left_out) => self.change_mesh(|mesh| {
                mesh.generation += by;
                mesh.left_out = left_out;
            }),
            Deed::Pause => {
                self.change_mesh(|mesh| mesh.paused = true);
                let wait = self.millis(1000, 20_000);
                self.after(wait, Event::Deed(Deed::Resume));
            }
            Deed::Resume => self.change_mesh(|mesh| mesh.paused = false),
            Deed::Require(adoption) => {
                self.change_mesh(|mesh| (mesh.prefers, mesh.adoption) = (false, adoption));
            }
            Deed::RetireBefore => self.change_mesh(|mesh| mesh.retire_before = mesh.generation),
            Deed::Join if self.machines.len() < PLACES => {
                self.ledger.disturbed_all();
                let place = self.machines.len();
                self.install(place);
            }
            Deed::Join => {}
            Deed::Leave(place) if !is_gone(self, place) && self.standing() > 2 => self.leave(place),
            Deed::Replace(place) if !is_gone(self, place) => {
                self.kill(place);
                self.ledger.wound_all(place);
                self.ledger.disturbed_all();
                self.is_another(place);
                self.api.remove(NAMES[place]);
                self.tell(Stream::Nodes);
                self.install(place);
            }
            Deed::Reboot(place, down) if !is_gone(self, place) => {
                self.kill(place);
                self.ledger.wound_all(place);
                self.ledger.disturbed_all();
                self.machines[place].is_powered = false;
                self.machines[place].kernel.reboot();
                self.machines[place].held.reboot();
                self.after(down, Event::PowerOn(place));
            }
            Deed::Kill(place, wait) => {
                self.kill(place);
                self.after(wait, Event::Start(place));
            }
            Deed::Fuse(place, steps) => self.machines[place].fuse = Some(steps),
            Deed::DeleteDevice(place, parity) => {
                if self.machines[place].kernel.delete(parity) {
                    self.machines[place].hurt = self.now;
                    self.ledger.wound_all(place);
                    self.ledger.disturbed_all();
                    self.stir(place);
                }
            }
            Deed::Cut(one, other, both, length) if one != other => {
                let second = usize::from(self.api.mesh.generation % 2 == 1);
                let until = self.now + length;
                let blocked = self.blocked.entry((one.min(other), one.max(other))).or_default();
                blocked[second] = until;
                if both {
                    blocked[1 - second] = until;
                }
            }
            Deed::Away(place, length) => match place {
                Some(place) => self.machines[place].cut_until = self.now + length,
                None => self.away_until = self.now + length,
            },
            Deed::Deaf(place, length) => self.machines[place].deaf_until = self.now + length,
            Deed::Past(place, back, length) => {
                let machine = &mut self.machines[place];
                // By a file that is behind the kernel, and a source that is as well, nobody can know what stands there.
                let Some(daemon) = machine.daemon.as_ref().filter(|daemon| daemon.is_whole) else { return };
                machine.kept = Some(daemon.keeps());
                self.kill(place);
                let version = self.api.version().saturating_sub(back);
                self.machines[place].past = Some((version, self.now + length));
                let wait = self.millis(50, 1000);
                self.after(wait, Event::Start(place));
            }
            Deed::Full(place, length) => self.machines[place].full_until = self.now + length,
            Deed::Clock(place, is_forward) => {
                let hour = Duration::from_secs(3600);
                let Machine { wall, has_jumped, is_set_back, .. } = &mut self.machines[place];
                *has_jumped = true;
                *is_set_back |= !is_forward;
                *wall = if is_forward { *wall + hour } else { wall.saturating_sub(hour) };
            }
            Deed::Revoke(place) => {
                let Some(key) = self.machines[place].disk.values().next_back().copied() else { return };
                [0, 1].into_iter().for_each(|parity| self.ledger.destroy(key, parity));
                self.ledger.wound_all(place);
                self.ledger.disturbed_all();
                self.change_mesh(|mesh| mesh.revoked.push(key));
            }
            Deed::Leave(_) | Deed::Replace(_) | Deed::Reboot(..) | Deed::Cut(..) => {}
        }
    }

    pub(crate) fn change_mesh(&mut self, change: impl FnOnce(&mut crate::api::Mesh)) {
        self.api.change_mesh(change);
        self.tell(Stream::Mesh);
    }

    fn leave(&mut self, place: usize) {
        self.kill(place);
        self.ledger.wound_all(place);
        self.ledger.disturbed_all();
        let machine = &mut self.machines[place];
        (machine.is_gone, machine.is_powered) = (true, false);
        self.api.remove(NAMES[place]);
        self.tell(Stream::Nodes);
    }

    fn standing(&self) -> usize {
        self.machines.iter().filter(|machine| !machine.is_gone).count()
    }

    pub(crate) fn power_on(&mut self, place: usize) {
        if !self.machines[place].is_gone && !self.machines[place].is_powered {
            self.machines[place].is_powered = true;
            self.note(|| format!("{} is up again", NAMES[place]));
            self.start(place);
        }
    }

    /// Everything is well again from here on.
    pub(crate) fn calm(&mut self) {
        self.is_over = true;
        self.note(|| "*** nothing more is done".to_owned());
        self.away_until = Duration::ZERO;
        self.blocked.clear();
        self.faults = Faults::default();
        self.change_mesh(|mesh| (mesh.paused, mesh.prefers) = (false, false));
        for place in 0..self.machines.len() {
            let machine = &mut self.machines[place];
            (machine.cut_until, machine.deaf_until, machine.full_until) = Default::default();
            (machine.fuse, machine.past) = (None, None);
            if machine.is_gone {
                continue;
            }
            if !machine.is_powered {
                self.power_on(place);
            } else if machine.daemon.is_none() {
                self.start(place);
            }
        }
    }

    /// What of the cluster is not as it should be in the end; `None` when all of it is.
    pub(crate) fn unfinished(&self) -> Option<String> {
        let wanted = Generation::new(self.api.mesh.generation);
        let alive: Vec<usize> =
            (0..self.machines.len()).filter(|place| !self.machines[*place].is_gone).collect();
        for place in &alive {
            let (name, machine) = (NAMES[*place], &self.machines[*place]);
            let held: Vec<Generation> = machine.disk.keys().copied().collect();
            if held != [wanted] {
                return Some(format!("{name} has generations {held:?}, and {wanted} is wanted"));
            }
            let devices = machine.kernel.seen.tunnels.values();
            let keys: Vec<_> = devices.map(|device| device.public_key).collect();
            if keys != [machine.disk.get(&wanted).copied()] {
                return Some(format!("{name} has other devices than keys"));
            }
            let said = self.api.nodes.get(name).and_then(|node| node.said.as_ref());
            let is_said = said.is_some_and(|said| {
                said.generations.len() == 1 && said.key(wanted) == machine.disk.get(&wanted).copied()
            });
            if !is_said {
                return Some(format!("{name} does not say what it has"));
            }
            for other in alive.iter().filter(|other| *other != place) {
                let way = machine.kernel.way(*place, *other, self.moment(*place));
                let key = self.machines[*other].disk.get(&wanted);
                if way.is_none_or(|way| Some(&way.keys.1) != key) {
                    return Some(format!("{name} does not send to {}", NAMES[*other]));
                }
            }
        }
        None
    }
}
