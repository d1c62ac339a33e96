//! Rotation apart from the kernel: some nodes go from one key generation to the next, while daemons end between any two of their steps, watches
//! are late, networks are cut, nodes come, go and lose what they had. Keys, tunnels and plans are by the functions that the daemon runs
//! (`core::rotation`, `core::tunnels`, `core::plan`); by which generation packets go (the rule of evidence) and which peers there are is written
//! down here once more (`desired`), as is what a source holds and publishes (`api`).
//!
//! A schedule is a seed: the same one plays the same way. What the simulation takes for the kernel, the API server and the agent is in
//! `kernel`, `wire`, `api` and `agent`, each with the file that it stands for; what becomes of a packet the programs' code decides, over the maps
//! (`maps`). What must hold is in `ledger`, and in `plain`.
//!
//! Chance does not come to everything: [`model`] looks at two nodes, and three that are not all free, in every order, and [`scale`] counts what
//! thousands of them say.
//!
//! Taken as given: who starts is told what each node says now, or what it said with an older newest key (`announced::Heard::Past`), and
//! not an older list of nodes of the same generation, which nobody can tell from a newer one (lists are asked for without a
//! `resourceVersion`, so they are read from etcd's majority); nor of a mesh or a census of the past. Signatures hold; a pair that has each
//! other's keys on standing devices can make a session. Whom a rotation leaves its key goes by the mesh's word (`left_out`), not by labels.

mod agent;
mod api;
mod chaos;
mod daemon;
mod desired;
#[cfg(test)]
mod directed;
mod kernel;
mod ledger;
mod maps;
pub mod model;
mod plain;
mod rules;
pub mod scale;
mod wire;
mod world;

use std::{
    fmt,
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use chaos::Weather;
use clap::ValueEnum;
pub use rules::Rules;
use world::{Event, World};

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub invariant: &'static str,
    /// What happened.
    pub what: String,
    /// When, since the schedule began.
    pub at: Duration,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, after {:.3} s", self.invariant, self.what, self.at.as_secs_f64())
    }
}

/// What was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Things that happened.
    pub events: u64,
    /// Ways round of all daemons.
    pub rounds: u64,
    /// Daemons killed.
    pub kills: u64,
    /// Of those, between what they said and what they kept of it.
    pub unkept: u64,
    /// Packets sent.
    pub packets: u64,
    /// Of those, delivered. The rest were lost by the network, or in a way that is excused.
    pub delivered: u64,
    /// Packets that went in plain, since no program stood yet, or the mode let them pass, or adoption.
    pub plain: u64,
    /// Messages that the network lost: packets, WireGuard's own, and those of handshakes.
    pub lost: u64,
    /// Messages that the network delivered twice.
    pub doubled: u64,
    /// Announcements written.
    pub writes: u64,
    /// Watch events that were news to a daemon.
    pub deliveries: u64,
    /// From the last deed to the end of all rotations.
    pub settled_in: Duration,
}

impl Figures {
    /// Both together; of the time to settle, the longer.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.rounds += other.rounds;
        self.kills += other.kills;
        self.unkept += other.unkept;
        self.packets += other.packets;
        self.delivered += other.delivered;
        self.plain += other.plain;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.writes += other.writes;
        self.deliveries += other.deliveries;
        self.settled_in = self.settled_in.max(other.settled_in);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events, {} ways round, {} daemons killed, {} of them before they kept what they had said; {} packets sent, {} delivered, {} more in plain; the network lost {} messages and doubled {}; {} announcements written, {} watch events taken in; settled within {:.1} s",
            self.events,
            self.rounds,
            self.kills,
            self.unkept,
            self.packets,
            self.delivered,
            self.plain,
            self.lost,
            self.doubled,
            self.writes,
            self.deliveries,
            self.settled_in.as_secs_f64()
        )
    }
}

/// One schedule.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Everything follows from it.
    pub seed: u64,
    /// How many nodes at the start; `None`: two to eight, by the seed.
    pub nodes: Option<usize>,
    /// What they go by.
    pub rules: Rules,
}

/// What became of a schedule.
#[derive(Debug)]
pub struct Played {
    /// What was played.
    pub figures: Figures,
    /// What did not hold.
    pub failure: Option<Failure>,
    /// All that happened, a line each, if that was asked for.
    pub trace: Vec<String>,
}

/// By when all is done, at the latest, after the last deed: one rotation after another, each of which waits for lists (every 10 s), for
/// retries that have grown to 30 s, and for silence.
const PATIENCE: Duration = Duration::from_secs(120);
/// For each generation that a node is behind.
const PATIENCE_EACH: Duration = Duration::from_secs(60);

impl Schedule {
    /// Plays it.
    pub fn play(&self, is_traced: bool) -> Played {
        let mut world = World::new(self.seed, self.rules, is_traced);
        let nodes = self.nodes.unwrap_or_else(|| world.random.usize(2..=8)).clamp(2, 8);
        let weather = match world.random.u32(0..4) {
            0 => Weather::Calm,
            1 | 2 => Weather::Rough,
            _ => Weather::Storm,
        };
        world.note(|| format!("{nodes} nodes, {weather:?}"));
        world.found();
        for place in 0..nodes {
            world.install(place);
        }
        world.after(Duration::ZERO, Event::Traffic);
        let begun = Duration::from_secs(3);
        world.run(begun, |_| false);
        let length = world.millis(10_000, 60_000);
        world.lay(weather, length);
        world.run(begun + length, |_| false);
        world.finish();
        let World { figures, failure, trace, .. } = world;
        Played { figures, failure, trace: trace.unwrap_or_default() }
    }

    /// The command that plays it again and shows all of it.
    pub fn replay(&self) -> String {
        let nodes = self.nodes.map_or(String::new(), |nodes| format!(" --nodes {nodes}"));
        let rules = self.rules.to_possible_value().filter(|_| self.rules != Rules::Ours);
        let rules = rules.map_or(String::new(), |rules| format!(" --rules {}", rules.get_name()));
        format!("cargo xtask simulate --seed {}{nodes}{rules} --trace", self.seed)
    }
}

/// What became of many.
#[derive(Debug, Default)]
pub struct All {
    /// Of all together.
    pub figures: Figures,
    /// Those in which something did not hold, by seed.
    pub failures: Vec<(Schedule, Failure)>,
}

/// Plays them on all processors, until so many are broken; `tell` hears of each of those at once.
pub fn play_all(
    schedules: impl Iterator<Item = Schedule> + Send,
    most: usize,
    tell: impl Fn(&Schedule, &Failure) + Sync,
) -> All {
    let (schedules, all) = (Mutex::new(schedules), Mutex::new(All::default()));
    let worker = || {
        loop {
            if all.lock().is_ok_and(|all| all.failures.len() >= most) {
                return;
            }
            let next = schedules.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(schedule) = next else { return };
            let played = schedule.play(false);
            played.failure.iter().for_each(|failure| tell(&schedule, failure));
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.figures.add(&played.figures);
            all.failures.extend(played.failure.map(|failure| (schedule, failure)));
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(worker))));
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.failures.sort_by_key(|(schedule, _)| schedule.seed);
    all
}

/// WireGuard takes a first message whose sender's clock shows no more than when it last heard one of it for an old one that somebody has
/// recorded (`wg_noise_handshake_consume_initiation` in `drivers/net/wireguard/noise.c`). Where the clocks of both ends were set back, after first
/// messages that had no answer, neither takes the other's until they show again what they did: they are set back by an hour here, twice at
/// most. Meanwhile the pair goes on by its older keys, and nothing is lost.
const DEAF: Duration = Duration::from_secs(2 * 3600 + 60);

impl World {
    /// All is well again; goes on until all nodes are where they should be.
    fn finish(&mut self) {
        if self.failure.is_some() {
            return;
        }
        self.calm();
        let began = self.now;
        let oldest = self.machines.iter().filter_map(|machine| machine.disk.keys().next()).min();
        let behind = self.api.mesh.generation - oldest.map_or(0, |oldest| oldest.number());
        let set_back = self.machines.iter().filter(|machine| machine.is_set_back).count();
        let deaf = if set_back < 2 { Duration::ZERO } else { DEAF };
        let patience = PATIENCE + PATIENCE_EACH * behind + deaf;
        let mut next = began;
        self.run(began + patience, |world| {
            if world.now < next {
                return false;
            }
            next = world.now + Duration::from_millis(500);
            world.unfinished().is_none()
        });
        self.figures.settled_in = self.now - began;
        if let Some(left) = self.unfinished().filter(|_| self.failure.is_none()) {
            self.fail(
                "all nodes come to one generation",
                format_args!("{left}, {} s later", patience.as_secs()),
            );
        }
    }
}
