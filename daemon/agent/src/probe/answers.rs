//! Sockets of a probe: where it answers others, and from where it asks them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use kubeveil_api::probe::{Clock, MOST_LISTED, Probe, Target};
use tokio::{
    net::UdpSocket,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
};

use super::wire::{self, LENGTH};

/// After so many questions in a row …
const IN_A_ROW: usize = 64;
/// … whoever carries them gets so much time.
const REST: Duration = Duration::from_millis(1);
/// A clock that is farther off is told.
const CLOCK: u64 = 1_000;

/// Where questions are heard, as long as the process lives.
pub(super) struct Doors(BTreeMap<u16, Option<io::Error>>);

impl Doors {
    /// At each port of each of this node's own addresses (of all where none is named); only who is `known` is answered.
    pub(super) async fn open(own: &[IpAddr], ports: &[u16], known: BTreeSet<IpAddr>) -> Self {
        // WireGuard takes a port of both families, where there are both.
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let addresses = if own.is_empty() { &any } else { own };
        let known = Arc::new(known);
        let mut doors = BTreeMap::new();
        for port in ports {
            let mut refused = None;
            for address in addresses {
                match UdpSocket::bind(SocketAddr::new(*address, *port)).await {
                    Ok(socket) => drop(tokio::spawn(hear(socket, known.clone()))),
                    Err(e) => refused = Some(e),
                }
            }
            doors.insert(*port, refused);
        }
        Self(doors)
    }

    /// Why nobody can be heard at this port, if so.
    pub(super) fn refused(&self, port: u16) -> Option<&io::Error> {
        self.0.get(&port)?.as_ref()
    }
}

async fn hear(socket: UdpSocket, known: Arc<BTreeSet<IpAddr>>) {
    let mut packet = [0; LENGTH + 1];
    loop {
        // What goes wrong is an error that the last answer met; who asked asks again.
        let Ok((length, from)) = socket.recv_from(&mut packet).await else { continue };
        if !known.contains(&from.ip().to_canonical()) {
            continue;
        }
        if let Some(answer) = wire::answer(&packet[..length], now()) {
            drop(socket.send_to(&answer, from).await);
        }
    }
}

/// An answer, as it came in.
struct Heard {
    from: SocketAddr,
    word: u64,
    clock: u64,
    at: u64,
}

/// What was asked, and who has answered.
pub(super) struct Answers {
    targets: Vec<Target>,
    /// By the target's place: when it was asked last, milliseconds since 1970.
    asked: Vec<u64>,
    answered: Vec<bool>,
    ahead: BTreeMap<String, i64>,
    /// Words are this and the target's place: nobody else can know them.
    salt: u64,
    sockets: Vec<Arc<UdpSocket>>,
    heard: UnboundedReceiver<Heard>,
    own: Vec<IpAddr>,
    teller: UnboundedSender<Heard>,
}

impl Answers {
    /// Nobody is asked yet. Questions come from ports of their own, so that answers to our port's packets open no firewall for them.
    pub(super) fn begin(own: &[IpAddr], targets: Vec<Target>) -> Self {
        let (teller, heard) = mpsc::unbounded_channel();
        Self {
            asked: vec![0; targets.len()],
            answered: vec![false; targets.len()],
            targets,
            ahead: BTreeMap::new(),
            salt: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), Instant::now()),
            sockets: Vec::new(),
            heard,
            own: own.to_vec(),
            teller,
        }
    }

    async fn open(&mut self) {
        for address in &self.own {
            let Ok(socket) = UdpSocket::bind(SocketAddr::new(*address, 0)).await else { continue };
            let socket = Arc::new(socket);
            self.sockets.push(socket.clone());
            let teller = self.teller.clone();
            tokio::spawn(async move {
                let mut packet = [0; LENGTH + 1];
                loop {
                    let Ok((length, from)) = socket.recv_from(&mut packet).await else { continue };
                    let Some((word, clock)) = wire::answered(&packet[..length]) else { continue };
                    if teller.send(Heard { from, word, clock, at: now() }).is_err() {
                        return;
                    }
                }
            });
        }
    }

    /// Asks all who have not answered.
    pub(super) async fn ask_again(&mut self) {
        if self.sockets.is_empty() {
            self.open().await;
        }
        let mut row = 0;
        for (at, target) in self.targets.iter().enumerate().filter(|(at, _)| !self.answered[*at]) {
            let of_family = |socket: &&Arc<UdpSocket>| {
                socket.local_addr().is_ok_and(|own| own.is_ipv4() == target.address.is_ipv4())
            };
            let Some(socket) = self.sockets.iter().find(of_family) else { continue };
            self.asked[at] = now();
            let question = wire::question(self.word(at));
            // Refused: it is asked again.
            drop(socket.send_to(&question, SocketAddr::new(target.address, target.port)).await);
            row += 1;
            if row % IN_A_ROW == 0 {
                tokio::time::sleep(REST).await;
            }
        }
    }

    fn word(&self, at: usize) -> u64 {
        self.salt ^ at as u64
    }

    /// What has come back so far.
    pub(super) fn tell(&mut self, probe: &mut Probe) {
        while let Ok(heard) = self.heard.try_recv() {
            self.take(&heard);
        }
        let silent = || self.targets.iter().zip(&self.answered).filter(|(_, answered)| !**answered);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        probe.asked = count(self.targets.len());
        probe.unanswered = count(silent().count());
        probe.silent = silent().take(MOST_LISTED).map(|(target, _)| target.clone()).collect();
        let off = self.ahead.iter().filter(|(_, ahead)| ahead.unsigned_abs() > CLOCK);
        let clock = |(node, ahead): (&String, &i64)| Clock { node: node.clone(), ahead: *ahead };
        probe.clocks = off.take(MOST_LISTED).map(clock).collect();
    }

    fn take(&mut self, heard: &Heard) {
        let Ok(at) = usize::try_from(heard.word ^ self.salt) else { return };
        let Some(target) = self.targets.get(at) else { return };
        if heard.from.ip().to_canonical() != target.address || self.answered[at] {
            return;
        }
        self.answered[at] = true;
        // As if the answer had been given in the middle of the way.
        let middle = self.asked[at].midpoint(heard.at);
        let ahead = i64::try_from(i128::from(heard.clock) - i128::from(middle)).unwrap_or(i64::MAX);
        self.ahead.insert(target.node.clone(), ahead);
    }
}

/// Wall clock, milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
