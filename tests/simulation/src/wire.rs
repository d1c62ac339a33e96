//! Packets and handshakes.

use std::{cell::Cell, rc::Rc, time::Duration};

use kubeveil_api::announcement::GenerationEntry;
use kubeveil_core::rotation::STILL;
use kubeveil_keys::PublicKey;

use crate::{
    kernel::{Begun, Fate, GREETS_EVERY, REJECT_AFTER, Session, UNANSWERED, Way, has_session, place_of},
    world::{Event, NAMES, World},
};

/// WireGuard answers data by a keepalive of its own after this (`KEEPALIVE_TIMEOUT`).
const ANSWERS_AFTER: Duration = Duration::from_secs(10);
/// The first message of a handshake is sent again for so long (`REKEY_ATTEMPT_TIME`, `messages.h`).
const AT_MOST: Duration = Duration::from_secs(90);

/// What is on its way.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// The first message of a handshake.
    Hello,
    /// The second.
    Reply,
    /// WireGuard's own first packet under the new keys.
    Confirm,
    /// Any other.
    Packet,
}

/// What the network does to single messages, by [`Kind`]: one in so many gets lost, or arrives twice; 0: none does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) lost: [u32; 4],
    pub(crate) doubled: [u32; 4],
}

/// A packet on its way.
#[derive(Clone)]
pub(crate) struct Packet {
    from: usize,
    to: usize,
    parity: usize,
    keys: (PublicKey, PublicKey),
    /// Somebody's, which must not be lost; else WireGuard's own.
    is_data: bool,
    /// As of when it was sent: the pair was connected, and had been wounded so often.
    connected: bool,
    wounds: u32,
    sent: Duration,
    /// The sender had heard all that it said itself.
    is_sure: bool,
    /// What it goes by, as the sender last saw.
    session: Option<Session>,
    /// It has arrived: the same once more is a replay, which WireGuard drops before it counts it (`receive.c`, `counter_validate`).
    has_arrived: Rc<Cell<bool>>,
}

/// An answer to what was sent since then is overdue.
pub(crate) struct Overdue {
    from: usize,
    way: Way,
    since: Duration,
}

/// A handshake under way: from who began it.
#[derive(Clone, Copy)]
pub(crate) struct Hello {
    from: usize,
    to: usize,
    parity: usize,
    keys: (PublicKey, PublicKey),
    ifindex: u32,
    number: u64,
    /// The device that answered.
    answered: u32,
    wall: Duration,
}

impl Hello {
    /// Which of all the handshakes of these two keys it is.
    fn begun(&self) -> Begun {
        (self.from, self.ifindex, self.number)
    }
}

impl World {
    /// Somebody sends to somebody, and again soon.
    pub(crate) fn traffic(&mut self) {
        let count = self.machines.len();
        for _ in 0..2 {
            let (from, to) = (self.random.usize(0..count), self.random.usize(0..count));
            if from != to && self.talk(from, to) {
                self.send(from, to);
            }
        }
        let wait = self.millis(1, 60);
        self.after(wait, Event::Traffic);
    }

    /// Has neither of them ever anything to tell the other?
    pub(crate) fn is_silent(&self, from: usize, to: usize) -> bool {
        self.has_silent && (from + to).is_multiple_of(3)
    }

    /// Has one something to tell the other these seconds? Most have not.
    fn talk(&self, from: usize, to: usize) -> bool {
        if self.is_silent(from, to) {
            return false;
        }
        let span = usize::try_from(self.now.as_secs() / 8).unwrap_or(0);
        (from * 5 + to * 3 + span * 7 + self.machines.len()).is_multiple_of(4)
    }

    /// A packet of a pod.
    pub(crate) fn send(&mut self, from: usize, to: usize) {
        if !self.machines[from].is_powered || !self.machines[to].is_powered {
            return;
        }
        let (connected, wounds) = self.ledger.pair(from, to);
        let way = match self.machines[from].kernel.fate(from, to, self.moment(from)) {
            Fate::Tunnel(way) => way,
            // That it arrives is nothing that is promised here.
            Fate::Plain(why) => return self.goes_in_plain(from, to, why),
            Fate::Nowhere => {
                if connected {
                    self.fail(
                        "no packet is lost",
                        format_args!("{} knows no way to {} any more", NAMES[from], NAMES[to]),
                    );
                }
                return;
            }
        };
        self.figures.packets += 1;
        if self.machines[from].kernel.sent(&way, self.now) {
            self.after(UNANSWERED, Event::Overdue(Overdue { from, way, since: self.now }));
        }
        if way.wants_handshake {
            self.greet(from, &way);
        }
        self.dispatch(from, to, &way, Some((connected, wounds)));
    }

    /// A packet goes out: somebody's, with how the pair is, or WireGuard's own.
    pub(crate) fn dispatch(&mut self, from: usize, to: usize, way: &Way, data: Option<(bool, u32)>) {
        self.dispatch_as(Kind::Packet, (from, to), way, data);
    }

    fn dispatch_as(&mut self, kind: Kind, (from, to): (usize, usize), way: &Way, data: Option<(bool, u32)>) {
        if self.is_blocked(from, to, way.parity) {
            return;
        }
        let (connected, wounds) = data.unwrap_or_default();
        let packet = Packet {
            from,
            to,
            parity: way.parity,
            keys: way.keys,
            is_data: data.is_some(),
            connected,
            wounds,
            sent: self.now,
            is_sure: self.knows_itself(from),
            session: self.machines[from].kernel.session(way),
            has_arrived: Rc::default(),
        };
        self.put(kind, || Event::Packet(packet.clone()));
    }

    /// Onto the network, which may lose it, or deliver it twice.
    fn put(&mut self, kind: Kind, event: impl Fn() -> Event) {
        let Faults { lost, doubled } = self.faults;
        if self.happens(lost[kind as usize]) {
            self.figures.lost += 1;
            return;
        }
        let wait = self.transit();
        self.after(wait, event());
        if self.happens(doubled[kind as usize]) {
            self.figures.doubled += 1;
            let wait = self.transit();
            self.after(wait, event());
        }
    }

    fn happens(&mut self, once_in: u32) -> bool {
        once_in != 0 && self.once_in(once_in)
    }

    /// How long something is on its way.
    fn transit(&mut self) -> Duration {
        let longest = u64::try_from(self.longest.min(STILL).as_millis()).unwrap_or(0);
        if self.once_in(8) { self.millis(1, longest) } else { self.millis(1, 30.min(longest)) }
    }

    fn is_blocked(&self, from: usize, to: usize, parity: usize) -> bool {
        let pair = (from.min(to), from.max(to));
        self.blocked.get(&pair).is_some_and(|until| self.now < until[parity])
    }

    pub(crate) fn arrive(&mut self, packet: &Packet) {
        let Packet { from, to, parity, keys, .. } = *packet;
        let was_wounded = self.ledger.pair(from, to).1 != packet.wounds;
        if self.is_blocked(from, to, parity) || !self.machines[to].is_powered || packet.has_arrived.get() {
            return;
        }
        let kernel = &self.machines[to].kernel;
        let with = packet.session.map(|session| session.with);
        if !kernel.decrypts(parity, keys.1, keys.0, with) {
            let is_lost = with.is_some_and(|with| kernel.lost.contains(&with));
            let is_excused = was_wounded || self.ledger.is_void(&keys, parity) || is_lost;
            if packet.is_data && packet.connected && !is_excused {
                let generation = self.ledger.generation(&keys.1);
                self.fail(
                    "no packet is lost",
                    format_args!(
                        "{} sent to {} by generation {generation}, which was gone when it arrived {} ms later",
                        NAMES[from],
                        NAMES[to],
                        (self.now - packet.sent).as_millis()
                    ),
                );
            }
            return;
        }
        packet.has_arrived.set(true);
        let wall = self.wall(to);
        let kernel = &mut self.machines[to].kernel;
        kernel.received(parity, keys.0);
        // The first that arrives by a session tells who answered to it that it is one.
        if packet.session.is_some_and(|session| kernel.confirms(parity, keys.0, session, wall)) {
            self.note(|| format!("{}: handshake with {} on device {parity}", NAMES[to], NAMES[from]));
        }
        if packet.is_data {
            self.figures.delivered += 1;
            self.connect(packet, was_wounded || !packet.is_sure);
            self.owe(packet);
        }
    }

    /// What came is answered, by WireGuard itself.
    fn owe(&mut self, packet: &Packet) {
        let Packet { from, to, parity, keys, .. } = *packet;
        let Some(ifindex) = self.machines[to].kernel.device(parity).map(|device| device.ifindex) else {
            return;
        };
        if self.machines[to].kernel.owes(parity, keys.0) {
            let way = Way { parity, ifindex, keys: (keys.1, keys.0), wants_handshake: false };
            self.after(ANSWERS_AFTER, Event::Answer(to, from, way));
        }
    }

    /// The answer goes out, if that device is still there.
    pub(crate) fn answer(&mut self, from: usize, to: usize, way: &Way) {
        let kernel = &mut self.machines[from].kernel;
        kernel.answers(way.ifindex, way.keys.1);
        let is_there = kernel.device(way.parity).is_some_and(|device| device.ifindex == way.ifindex);
        if self.machines[from].is_powered && is_there {
            self.dispatch(from, to, way, None);
        }
    }

    /// Nothing came back: the other may have lost the session.
    pub(crate) fn overdue(&mut self, overdue: Overdue) {
        let Overdue { from, way, since } = &overdue;
        let kernel = &mut self.machines[*from].kernel;
        if !kernel.is_unanswered(way, *since) {
            return;
        }
        let is_there = kernel.device(way.parity).is_some_and(|device| device.ifindex == way.ifindex);
        if !is_there || self.now >= *since + UNANSWERED + AT_MOST {
            return kernel.gives_up(way);
        }
        self.greet(*from, way);
        let wait = GREETS_EVERY + self.jitter();
        self.after(wait, Event::Overdue(overdue));
    }

    /// A packet arrived: the pair is connected from here on, if the receiver knows from what the sender said that it may come.
    fn connect(&mut self, packet: &Packet, is_void: bool) {
        let Packet { from, to, parity, keys, .. } = *packet;
        if is_void || self.ledger.pair(from, to).0 || self.ledger.is_void(&keys, parity) {
            return;
        }
        let heard = self.machines[to].daemon.as_ref().and_then(|daemon| daemon.heard.get(NAMES[from]));
        let Some(said) = heard.and_then(|heard| heard.said.as_deref()) else { return };
        // One key may serve two.
        let is_by =
            |entry: &&GenerationEntry| entry.public_key == keys.0 && entry.generation.parity() == parity;
        let Some(generation) = said.generations.iter().find(is_by).map(|entry| entry.generation) else {
            return;
        };
        let is_expected = said.lets_expect(NAMES[to], generation);
        // A daemon that has not looked since goes on as if its device stood.
        let has_looked = |place: usize| {
            let machine = &self.machines[place];
            machine.daemon.as_ref().is_some_and(|daemon| daemon.began > machine.hurt)
        };
        if is_expected && has_looked(from) && has_looked(to) {
            self.ledger.connect(from, to);
            self.note(|| format!("{} -> {} connected by {generation}", NAMES[from], NAMES[to]));
        }
    }

    /// Has the sender heard all that it said itself?
    fn knows_itself(&self, from: usize) -> bool {
        let written = self.api.nodes.get(NAMES[from]).and_then(|node| node.said.as_ref());
        let sender = self.machines[from].daemon.as_ref();
        sender.is_some_and(|sender| {
            let known = sender.heard.get(NAMES[from]).and_then(|heard| heard.said.as_ref());
            known == written && sender.publication.is_wanted(known)
        })
    }

    /// A keepalive is due; it begins a handshake where there is no session, which WireGuard repeats for a while.
    pub(crate) fn keepalive(
        &mut self,
        place: usize,
        parity: usize,
        ifindex: u32,
        key: PublicKey,
        since: Duration,
    ) {
        let wall = self.wall(place);
        let machine = &self.machines[place];
        let device = machine.kernel.device(parity).filter(|device| device.ifindex == ifindex);
        let peer = device.and_then(|device| Some((device.public_key?, device.peers.get(&key)?)));
        let Some((own, peer)) = peer.filter(|_| machine.kernel.goes_on(ifindex, key, since)) else {
            return;
        };
        let is_up = machine.kernel.seen.links.get(&ifindex).is_some_and(|link| link.up);
        // With a session, too, once that is too old to send by.
        let wants_handshake = !has_session(peer, REJECT_AFTER, wall);
        let is_repeated = wants_handshake && self.now < since + AT_MOST;
        let seconds = Duration::from_secs(u64::from(peer.keepalive));
        let to = peer.endpoint.and_then(place_of);
        if let Some(to) = to.filter(|_| is_up) {
            let way = Way { parity, ifindex, keys: (own, key), wants_handshake };
            if wants_handshake {
                self.greet(place, &way);
            } else {
                self.dispatch(place, to, &way, None);
            }
        }
        let wait = if is_repeated { GREETS_EVERY + self.jitter() } else { seconds };
        self.after(wait, Event::Keepalive(place, parity, ifindex, key, since));
    }

    /// The first message of a handshake goes out.
    fn greet(&mut self, from: usize, way: &Way) {
        let device = self.machines[from].kernel.device(way.parity);
        let peer = device.and_then(|device| device.peers.get(&way.keys.1));
        let Some(to) = peer.and_then(|peer| peer.endpoint).and_then(place_of) else { return };
        if to >= self.machines.len() || self.is_blocked(from, to, way.parity) {
            return;
        }
        let (parity, keys, ifindex, wall) = (way.parity, way.keys, way.ifindex, self.wall(from));
        let Some(number) = self.machines[from].kernel.greets(way, self.now) else { return };
        let hello = Hello { from, to, parity, keys, ifindex, number, answered: 0, wall };
        self.put(Kind::Hello, || Event::Hello(hello));
    }

    /// What WireGuard waits longer before it says the same again (`timers.c`, `REKEY_TIMEOUT_JITTER_MAX_JIFFIES`), so that two that greet each
    /// other at once do not do so for ever.
    fn jitter(&mut self) -> Duration {
        self.millis(0, 333)
    }

    /// It arrives.
    pub(crate) fn hello(&mut self, hello: Hello) {
        let Hello { from, to, parity, keys, .. } = hello;
        let machine = &mut self.machines[to];
        if !machine.is_powered || !machine.kernel.takes(parity, keys.1, keys.0) {
            return;
        }
        let answered = machine.kernel.device(parity).map_or(0, |device| device.ifindex);
        if self.is_blocked(from, to, parity)
            || !self.machines[to].kernel.is_newer(answered, keys.0, hello.wall)
        {
            return;
        }
        let kernel = &mut self.machines[to].kernel;
        kernel.received(parity, keys.0);
        kernel.is_greeted(answered, keys.0, Session { with: hello.ifindex, begun: hello.begun() });
        self.put(Kind::Reply, || Event::Reply(Hello { answered, ..hello }));
    }

    /// The answer arrives: who began knows now that the other can decrypt, and says something by the new keys. The session is that of the
    /// device that answered: another one in its place knows nothing of it.
    pub(crate) fn reply(&mut self, hello: Hello) {
        let Hello { from, to, parity, keys, ifindex, answered, .. } = hello;
        let (wall, session) = (self.wall(from), Session { with: answered, begun: hello.begun() });
        let machine = &mut self.machines[from];
        let is_same = machine.kernel.device(parity).is_some_and(|device| device.ifindex == ifindex);
        if !machine.is_powered
            || !is_same
            || !machine.kernel.takes(parity, keys.0, keys.1)
            || self.is_blocked(from, to, parity)
            || !self.machines[from].kernel.is_answered(ifindex, keys.1, hello.number)
        {
            return;
        }
        let kernel = &mut self.machines[from].kernel;
        kernel.received(parity, keys.1);
        kernel.shaken(parity, keys.1, wall, session);
        self.note(|| format!("{}: handshake with {} on device {parity}", NAMES[from], NAMES[to]));
        let way = Way { parity, ifindex, keys, wants_handshake: false };
        self.dispatch_as(Kind::Confirm, (from, to), &way, None);
    }
}
