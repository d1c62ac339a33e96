//! The daemon's way round in single steps, between any two of which something else can happen, or the daemon end.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use kubeveil_core::{
    action::Action,
    adoption::Gate,
    observed::Peer,
    plan::{Endpoints, plan},
    rotation::{Step, holdups},
    snapshot::Snapshot,
    tunnels::PROVING_KEEPALIVE,
};
use kubeveil_keys::{Generation, PublicKey};

use crate::{
    api::{Saying, Stream},
    daemon::{Daemon, Outcome, Stage},
    desired::desired,
    kernel::{Way, place_of, place_of_index},
    rules::Rules,
    world::{Event, NAMES, World},
};

/// As in `daemon/agent/src/node/rotation.rs`.
const STEPS: usize = 4;
/// As in `daemon/agent/src/node.rs`.
const ROUNDS: usize = 8;
/// As in `daemon/agent/src/run.rs`.
const BURST: Duration = Duration::from_millis(20);

impl World {
    /// The daemon starts, and asks for lists.
    pub(crate) fn start(&mut self, place: usize) {
        let machine = &mut self.machines[place];
        if !machine.is_powered || machine.is_gone || machine.daemon.is_some() {
            return;
        }
        machine.lives += 1;
        let life = machine.lives;
        let gate =
            if self.rules == Rules::ForgetsWhoWasClosed { Gate::default() } else { machine.gate.clone() };
        machine.daemon = Some(Daemon::new(place, NAMES[place], life, machine.kept.as_ref(), gate));
        self.note(|| format!("{}: daemon {life} starts", NAMES[place]));
        for stream in [Stream::Nodes, Stream::Mesh] {
            let wait = self.millis(5, 400);
            self.after(wait, Event::List(place, life, stream));
        }
        self.begin(place);
    }

    /// Ends the daemon without a word.
    pub(crate) fn kill(&mut self, place: usize) {
        if let Some(daemon) = self.machines[place].daemon.take() {
            self.figures.kills += 1;
            self.figures.unkept += u64::from(matches!(daemon.stage, Some(Stage::Keep)));
            self.ledger.disturbed(place);
            self.note(|| format!("{}: daemon killed", NAMES[place]));
        }
        self.machines[place].fuse = None;
    }

    /// A list is answered, unless nobody answers: then it is asked for again.
    pub(crate) fn list(&mut self, place: usize, life: u32, stream: Stream) {
        let is_answered = self.is_answered(place) && self.now >= self.machines[place].deaf_until;
        let past =
            self.machines[place].past.filter(|(_, until)| self.now < *until && stream == Stream::Nodes);
        let Self { machines, api, .. } = self;
        let Some(daemon) = machines[place].daemon.as_mut().filter(|daemon| daemon.life == life) else {
            return;
        };
        if !is_answered {
            let wait = self.millis(500, 2000);
            return self.after(wait, Event::List(place, life, stream));
        }
        match past {
            // What is older than what it has heard it does not believe.
            Some((_, until)) if daemon.store.has_listed(stream) => {
                return self.after(until - self.now, Event::List(place, life, stream));
            }
            Some((version, until)) => {
                daemon.store.list_of(api, version);
                self.after(until - self.now, Event::List(place, life, stream));
            }
            None => daemon.store.list(api, stream),
        }
        self.news(place, life);
    }

    /// A watch tells of all up to `version`; one that is broken is begun anew, by a list.
    pub(crate) fn watch(&mut self, place: usize, life: u32, stream: Stream, version: usize) {
        if !self.is_answered(place) || self.now < self.machines[place].deaf_until {
            let wait = self.millis(200, 1500);
            return self.after(wait, Event::List(place, life, stream));
        }
        let is_past = self.machines[place].past.is_some_and(|(_, until)| self.now < until);
        if is_past && stream == Stream::Nodes {
            return;
        }
        let Self { machines, api, .. } = self;
        let Some(daemon) = machines[place].daemon.as_mut().filter(|daemon| daemon.life == life) else {
            return;
        };
        if daemon.store.watch(api, stream, version) {
            self.figures.deliveries += 1;
            self.news(place, life);
        }
    }

    /// The store has changed: who publishes looks at once, the node's thread after the rest of the burst.
    fn news(&mut self, place: usize, life: u32) {
        self.after(Duration::from_micros(100), Event::Publish(place, life));
        self.stir(place);
    }

    /// Something has changed that the node's thread is woken for.
    pub(crate) fn stir(&mut self, place: usize) {
        let Some(daemon) = self.machines[place].daemon.as_mut() else { return };
        if daemon.stage.is_some() {
            daemon.is_stirred = true;
        } else {
            self.wake_in(place, BURST);
        }
    }

    fn wake_in(&mut self, place: usize, wait: Duration) {
        let Some(daemon) = self.machines[place].daemon.as_mut() else { return };
        daemon.alarm += 1;
        let (life, alarm) = (daemon.life, daemon.alarm);
        self.after(wait, Event::Wake(place, life, alarm));
    }

    /// A way round begins.
    pub(crate) fn begin(&mut self, place: usize) {
        let (now, rules) = (self.now, self.rules);
        let Some(daemon) = self.machines[place].daemon.as_mut() else { return };
        daemon.began = now;
        daemon.is_stirred = false;
        daemon.read(rules);
        daemon.stage = Some(Stage::Keys(0));
        self.figures.rounds += 1;
        self.soon(place);
    }

    /// The next step, a little later; now and then much later.
    fn soon(&mut self, place: usize) {
        let wait = if self.once_in(200) { self.millis(0, 3000) } else { self.millis(0, 2) };
        if let Some(daemon) = &self.machines[place].daemon {
            self.after(wait, Event::Step(place, daemon.life));
        }
    }

    /// One step.
    pub(crate) fn step(&mut self, place: usize) {
        if let Some(fuse) = &mut self.machines[place].fuse {
            *fuse = fuse.saturating_sub(1);
            if *fuse == 0 {
                self.kill(place);
                let wait = self.millis(50, 8000);
                return self.after(wait, Event::Start(place));
            }
        }
        let stage = self.machines[place].daemon.as_mut().and_then(|daemon| daemon.stage.take());
        let next = match stage {
            Some(Stage::Keys(done)) => self.keys(place, done),
            Some(Stage::Round(round)) => self.round(place, round),
            Some(Stage::Act(round, actions, failed)) => self.act(place, round, actions, failed),
            Some(Stage::Publish) => self.speak(place),
            Some(Stage::Keep) => return self.conclude(place),
            None => return,
        };
        if let Some(daemon) = self.machines[place].daemon.as_mut() {
            daemon.stage = Some(next);
            self.soon(place);
        }
    }

    /// A key is made or given up.
    fn keys(&mut self, place: usize, done: usize) -> Stage {
        let rules = self.rules;
        let (now, is_full) = (self.now, self.machines[place].is_full(self.now));
        let machine = &mut self.machines[place];
        let Some(daemon) = machine.daemon.as_mut() else { return Stage::Round(0) };
        daemon.next = Outcome::default();
        let step = (done < STEPS && daemon.is_open()).then(|| daemon.step(&machine.disk, rules)).flatten();
        let is_left_out = daemon.mesh().left_out & 1 << place != 0;
        match step {
            // Its device goes before the next of its name comes.
            Some(Step::Make(generation))
                if is_left_out
                    && !machine.disk.is_empty()
                    && !daemon.has_room(generation)
                    && rules != Rules::TakesADeviceOver =>
            {
                Stage::Round(0)
            }
            Some(Step::Make(generation)) if !is_full => {
                daemon.made = Some(now);
                self.make(place, generation, is_left_out);
                Stage::Keys(done + 1)
            }
            Some(Step::Retire(generation)) => {
                self.retire(place, generation);
                Stage::Keys(done + 1)
            }
            _ => Stage::Round(0),
        }
    }

    /// A key is made, or that which there is serves the next generation too.
    fn make(&mut self, place: usize, generation: Generation, is_left_out: bool) {
        let same = self.machines[place].disk.values().next_back().copied().filter(|_| is_left_out);
        let old = self.ledger.old_key(place, generation).filter(|_| self.rules == Rules::UsesAnOldKeyAgain);
        let key = same.or(old).unwrap_or_else(|| self.new_key(place, generation));
        if same.is_some() {
            self.ledger.reuse(key, generation.parity());
        }
        let disk = &mut self.machines[place].disk;
        disk.insert(generation, key);
        let parities: Vec<usize> = disk.keys().map(|generation| generation.parity()).collect();
        self.note(|| format!("{}: makes the key of generation {generation}", NAMES[place]));
        let now = self.now;
        self.ledger.makes(place, parities.len() > 1, now);
        if parities.len() > 2 || parities.len() == 2 && parities[0] == parities[1] {
            self.fail(
                "no two generations share a device",
                format_args!("{} has {parities:?} by parity", NAMES[place]),
            );
        }
    }

    /// A key goes for ever. Where somebody's deed ends it, those are wounded who still go by it.
    fn retire(&mut self, place: usize, generation: Generation) {
        let machine = &mut self.machines[place];
        let Some(daemon) = &machine.daemon else { return };
        let mesh = daemon.mesh();
        let view = daemon.view(&machine.disk, &daemon.last, &mesh.revoked, Rules::Ours);
        let is_forced = generation.number() < mesh.retire_before && !holdups(generation, &view).is_empty();
        let Some(key) = machine.disk.remove(&generation) else { return };
        let is_last = machine.disk.values().all(|other| *other != key);
        let is_revoked = mesh.revoked.contains(&key);
        self.note(|| format!("{}: gives the key of generation {generation} up", NAMES[place]));
        let now = self.now;
        self.ledger.retire(place, Some(key).filter(|_| is_last), now);
        if is_forced || is_revoked {
            self.ledger.destroy(key, generation.parity());
            for other in 0..self.machines.len() {
                let uses =
                    |from: usize, to: usize| self.machines[from].kernel.way(from, to, self.moment(from));
                let is_by = |way: Option<Way>| {
                    way.is_some_and(|way| {
                        way.parity == generation.parity() && (way.keys.0 == key || way.keys.1 == key)
                    })
                };
                if is_by(uses(place, other)) || is_by(uses(other, place)) {
                    self.ledger.wound(place, other);
                }
            }
        }
    }

    /// A look, and a plan.
    fn round(&mut self, place: usize, round: usize) -> Stage {
        let (rules, wall) = (self.rules, self.wall(place));
        let is_full = self.machines[place].is_full(self.now);
        let machine = &mut self.machines[place];
        let Some(daemon) = machine.daemon.as_mut() else { return Stage::Round(round) };
        let observed = machine.kernel.look();
        daemon.tunnels.observe(&observed, daemon.began, wall);
        let (mut wanted, mut ways) = desired(daemon, &machine.disk, &observed, rules);
        if daemon.adopts(&observed, &wanted, wall, (&mut machine.gate, is_full), rules) {
            (wanted, ways) = desired(daemon, &machine.disk, &observed, rules);
        }
        let synced = Snapshot::default().attest_whole();
        let is_synced = daemon.is_whole || rules == Rules::RemovesBeforeSync;
        let mut actions =
            VecDeque::from(plan(&wanted, &observed, is_synced.then_some(&synced), &Endpoints::new()));
        actions.retain(|action| !matches!(action, Action::RaiseBackstop(_) | Action::RemoveBackstop(_)));
        daemon.next = Outcome { observed, ways, settled: actions.is_empty() };
        if actions.is_empty() || round >= ROUNDS { Stage::Publish } else { Stage::Act(round, actions, false) }
    }

    /// One action. What fails does not stop the others, but nothing is planned again in this way round.
    fn act(&mut self, place: usize, round: usize, mut actions: VecDeque<Action>, failed: bool) -> Stage {
        let Some(action) = actions.pop_front() else {
            return if failed { Stage::Publish } else { Stage::Round(round + 1) };
        };
        self.note(|| format!("{}: {action}", NAMES[place]));
        if let Action::ConfigureTunnel { key: Some((generation, key)), .. } = &action
            && self.ledger.is_retired(key)
        {
            self.fail(
                "no key is used after it was given up",
                format_args!("{} sets that of generation {generation}", NAMES[place]),
            );
        }
        self.parts(place, &action);
        let machine = &mut self.machines[place];
        let done = machine.kernel.perform(&action, &machine.disk);
        if done.is_ok() {
            self.is_held_by(place, &action);
        }
        match &action {
            Action::SetPeer(index, _) if done.is_ok() => {
                // The first packet by the new way comes at once.
                let to = place_of_index(*index);
                if !self.is_silent(place, to) {
                    self.send(place, to);
                }
            }
            Action::AddPeer { device, .. } | Action::SetEndpoint(device, ..) => self.rouse(place, device),
            Action::SetKeepalive(device, key, seconds) => {
                self.rouse(place, device);
                if *seconds != 0 && done.is_ok() {
                    self.remind(place, device, *key);
                }
            }
            Action::SetUp(_) => {
                kubeveil_abi::DEVICE_NAMES.iter().for_each(|device| self.rouse(place, device));
            }
            _ => {}
        }
        if let Err(error) = done {
            self.note(|| format!("{}: that fails: {error}", NAMES[place]));
        }
        Stage::Act(round, actions, failed || done.is_err())
    }

    /// Who goes by a revoked key and hears of it has no way any more that the other must expect.
    fn parts(&mut self, place: usize, action: &Action) {
        let to = match action {
            Action::SetPeer(index, _) => place_of_index(*index),
            Action::RemovePeer(_, key) => match self.ledger.owner(key) {
                Some(owner) => owner,
                None => return,
            },
            _ => return,
        };
        let way = self.machines[place].kernel.way(place, to, self.moment(place));
        if way.is_some_and(|way| self.ledger.is_void(&way.keys, way.parity)) {
            self.ledger.part(place, to);
        }
    }

    /// Keepalives that are set go out at once.
    fn rouse(&mut self, place: usize, name: &str) {
        let Some(device) = self.machines[place].kernel.seen.tunnels.get(name) else { return };
        let (ifindex, parity) = (device.ifindex, usize::from(name == kubeveil_abi::DEVICE_NAMES[1]));
        if !self.machines[place].kernel.seen.links.get(&ifindex).is_some_and(|link| link.up) {
            return;
        }
        // The long ones say nothing more while this lasts, once there is a session.
        let says = |peer: &Peer| {
            peer.keepalive == PROVING_KEEPALIVE || peer.keepalive != 0 && peer.last_handshake.is_none()
        };
        let keys: Vec<PublicKey> =
            device.peers.iter().filter(|(_, peer)| says(peer)).map(|(key, _)| *key).collect();
        for key in keys {
            let since = self.now;
            if self.machines[place].kernel.begins(ifindex, key, since) {
                self.after(Duration::from_micros(50), Event::Keepalive(place, parity, ifindex, key, since));
            }
        }
    }

    /// One that is set where there is a session goes out at once by that.
    fn remind(&mut self, place: usize, name: &str, key: PublicKey) {
        let kernel = &self.machines[place].kernel;
        let Some(device) = kernel.seen.tunnels.get(name) else { return };
        let peer = device.peers.get(&key).filter(|peer| peer.last_handshake.is_some());
        let (ifindex, parity) = (device.ifindex, usize::from(name == kubeveil_abi::DEVICE_NAMES[1]));
        let is_up = kernel.seen.links.get(&ifindex).is_some_and(|link| link.up);
        let to = peer.and_then(|peer| peer.endpoint).and_then(place_of).filter(|_| is_up);
        if let Some((to, own)) = to.zip(device.public_key) {
            let way = Way { parity, ifindex, keys: (own, key), wants_handshake: false };
            self.dispatch(place, to, &way, None);
        }
    }

    /// The others are told.
    fn speak(&mut self, place: usize) -> Stage {
        let rules = self.rules;
        let machine = &mut self.machines[place];
        let Some(daemon) = machine.daemon.as_mut() else { return Stage::Keep };
        let life = daemon.life;
        if let Some(said) = daemon.says(&machine.disk, rules) {
            let said = Rc::new(said);
            let is_new = daemon.publication.want(Rc::clone(&said));
            let retired = said.generations.iter().find(|entry| self.ledger.is_retired(&entry.public_key));
            if let Some(entry) = retired.copied() {
                self.fail(
                    "no key is used after it was given up",
                    format_args!("{} announces that of generation {}", NAMES[place], entry.generation),
                );
            }
            if is_new {
                self.after(Duration::from_micros(100), Event::Publish(place, life));
            }
        }
        Stage::Keep
    }

    /// What is known is kept, and the way round is over.
    fn conclude(&mut self, place: usize) {
        let (rules, is_full) = (self.rules, self.machines[place].is_full(self.now));
        let machine = &mut self.machines[place];
        let Some(daemon) = machine.daemon.as_mut() else { return };
        daemon.last = std::mem::take(&mut daemon.next);
        let is_settled = daemon.last.settled;
        if daemon.is_whole && !is_full {
            machine.kept = Some(daemon.keeps());
        }
        let wait = daemon.wait(&machine.disk, rules);
        let wait = if std::mem::take(&mut daemon.is_stirred) { BURST } else { wait };
        self.wake_in(place, wait);
        if is_settled {
            self.is_held_by_all(place);
        }
    }

    /// Whoever publishes looks whether there is something to write.
    pub(crate) fn publish(&mut self, place: usize, life: u32) {
        let is_answered = self.is_answered(place);
        let uid = self.machines[place].uid;
        let Some(daemon) = self.daemon(place, life) else { return };
        let own = daemon.store.nodes.get(daemon.name);
        let Some(said) = daemon.publication.due(own).filter(|_| !daemon.publication.is_writing) else {
            return;
        };
        if !is_answered {
            let wait = self.millis(500, 1500);
            return self.after(wait, Event::Publish(place, life));
        }
        daemon.publication.is_writing = true;
        let wait = self.millis(2, 150);
        self.after(wait, Event::Arrives(place, life, uid, said));
    }

    /// The request arrives, though the daemon may have ended.
    pub(crate) fn arrives(&mut self, place: usize, life: u32, uid: u32, said: Rc<Saying>) {
        let version =
            self.is_answered(place).then(|| self.api.say(NAMES[place], uid, Rc::clone(&said))).flatten();
        if version.is_some() {
            self.note(|| {
                let generations: Vec<String> =
                    said.generations.iter().map(|entry| entry.generation.to_string()).collect();
                format!(
                    "{} says: generations {}, not flipped: {}",
                    NAMES[place],
                    generations.join(" and "),
                    said.not_flipped
                )
            });
            self.figures.writes += 1;
            if let Some(most) = self.ledger.writes(place, self.now) {
                self.fail(
                    "writes are bounded",
                    format_args!("{} wrote more than {most} times", NAMES[place]),
                );
            }
            self.tell(Stream::Nodes);
        }
        let wait = self.millis(2, 100);
        self.after(wait, Event::Answered(place, life, said, version));
    }

    /// It is answered.
    pub(crate) fn answered(&mut self, place: usize, life: u32, said: &Rc<Saying>, version: Option<usize>) {
        let Some(daemon) = self.daemon(place, life) else { return };
        daemon.publication.is_writing = false;
        if let Some(version) = version {
            daemon.publication.is_written(said, version);
        }
        let wait = if version.is_some() { Duration::ZERO } else { Duration::from_millis(500) };
        self.after(wait, Event::Publish(place, life));
    }
}
