//! The kernel of a node, as far as WireGuard and our maps go. It outlives the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use kubeveil_abi::{BASE_PORT, DEVICE_NAMES, Reason};
use kubeveil_core::{
    action::Action,
    observed::{Datapath, Link, Observed, Peer, TunnelDevice},
    plan::TUNNEL_ADDRESS,
};
use kubeveil_keys::{Generation, PublicKey};

use crate::maps::{Course, UNDERLAY, course};

/// MTU of every device, bytes.
pub(crate) const MTU: u32 = 1440;
/// A session is made anew when something is sent by one that is older (`drivers/net/wireguard/messages.h`, `REKEY_AFTER_TIME`).
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Nothing is sent by a session that is older (`REJECT_AFTER_TIME`): who has something to say, and be it a keepalive, greets anew
/// (`send.c`, `wg_packet_send_staged_packets`).
pub(crate) const REJECT_AFTER: Duration = Duration::from_secs(180);

/// What was sent and has had no answer for so long is followed by a new handshake (`timers.c`, `wg_timers_data_sent`:
/// `KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`).
pub(crate) const UNANSWERED: Duration = Duration::from_secs(15);

/// The first message of a handshake goes out no more often than this (`REKEY_TIMEOUT`).
pub(crate) const GREETS_EVERY: Duration = Duration::from_secs(5);

/// Where a packet goes, and under which keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) parity: usize,
    pub(crate) ifindex: u32,
    /// The sender's key, and that of who is to decrypt.
    pub(crate) keys: (PublicKey, PublicKey),
    /// No session is there that a packet could go by as it is.
    pub(crate) wants_handshake: bool,
}

/// What becomes of a packet.
pub(crate) enum Fate {
    /// WireGuard has it.
    Tunnel(Way),
    /// It goes as it is, for this reason; none: no program was asked.
    Plain(Option<Reason>),
    /// It is dropped.
    Nowhere,
}

/// When it is, at a node.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    /// Since boot.
    pub(crate) now: Duration,
    /// Since 1970.
    pub(crate) wall: Duration,
}

/// Keys that a handshake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// The device at the other end, which alone can decrypt what goes by it.
    pub(crate) with: u32,
    /// Which handshake that was.
    pub(crate) begun: Begun,
}

/// The node that began a handshake, the device there, and the number of the first message to that peer.
pub(crate) type Begun = (usize, u32, u64);

/// The last first message to a peer.
#[derive(Clone, Copy, Debug, Default)]
struct Greeting {
    number: u64,
    at: Duration,
    /// An answer to it would be taken.
    is_open: bool,
}

/// Devices, peers, maps.
pub(crate) struct Kernel {
    pub(crate) seen: Observed,
    made: u32,
    /// The newest time in a first handshake message, by device and peer: an older one is a replay.
    newest: BTreeMap<(u32, PublicKey), Duration>,
    /// The last first message to each, by device and peer. An answer to one before is none, nor is a second one.
    greetings: BTreeMap<(u32, PublicKey), Greeting>,
    /// What is sent by, by device and peer.
    sessions: BTreeMap<(u32, PublicKey), Session>,
    /// What was answered to, and is no session before something arrives by it (`noise.c`, `next_keypair`), by device and peer.
    answered: BTreeMap<(u32, PublicKey), Session>,
    /// Since when data that was sent has had no answer, by device and peer.
    unanswered: BTreeMap<(u32, PublicKey), Duration>,
    /// Data came, and nothing has gone back yet, by device and peer.
    owed: BTreeSet<(u32, PublicKey)>,
    /// Devices that somebody deleted: who has a session with one can't know.
    pub(crate) lost: BTreeSet<u32>,
    /// Keepalives that go out, by device and peer: since when.
    beats: BTreeMap<(u32, PublicKey), Duration>,
}

impl Kernel {
    pub(crate) fn new() -> Self {
        let underlay = Link { name: "eth0".to_owned(), up: true, ..Link::default() };
        let seen = Observed {
            links: [(UNDERLAY, underlay)].into(),
            datapath: Some(Datapath::default()),
            ..Observed::default()
        };
        Self {
            seen,
            made: 0,
            newest: BTreeMap::new(),
            greetings: BTreeMap::new(),
            sessions: BTreeMap::new(),
            answered: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            owed: BTreeSet::new(),
            lost: BTreeSet::new(),
            beats: BTreeMap::new(),
        }
    }

    /// After the node was switched off: no device has an index that another had before.
    pub(crate) fn reboot(&mut self) {
        let (made, mut lost) = (self.made, std::mem::take(&mut self.lost));
        lost.extend(self.seen.tunnels.values().map(|device| device.ifindex));
        *self = Self { made, lost, ..Self::new() };
    }

    pub(crate) fn device(&self, parity: usize) -> Option<&TunnelDevice> {
        self.seen.tunnels.get(DEVICE_NAMES[parity])
    }

    /// The device, if it is up.
    fn up(&self, parity: usize) -> Option<&TunnelDevice> {
        self.device(parity).filter(|device| self.seen.links.get(&device.ifindex).is_some_and(|link| link.up))
    }

    /// A look at everything.
    pub(crate) fn look(&self) -> Observed {
        self.seen.clone()
    }

    /// What becomes of a packet of a pod of this node, which is at `from`, to one of the node at `to`.
    pub(crate) fn fate(&self, from: usize, to: usize, at: Moment) -> Fate {
        let Some(datapath) = &self.seen.datapath else { return Fate::Plain(None) };
        let now = u32::try_from(at.now.as_secs()).unwrap_or(u32::MAX);
        match course(datapath, from, to, now) {
            Course::Tunnel(ifindex) => self.way_by(ifindex, to, at.wall).map_or(Fate::Nowhere, Fate::Tunnel),
            Course::Plain(reason) => Fate::Plain(reason),
            Course::Nowhere => Fate::Nowhere,
        }
    }

    /// The way of such a packet, if WireGuard has it.
    pub(crate) fn way(&self, from: usize, to: usize, at: Moment) -> Option<Way> {
        match self.fate(from, to, at) {
            Fate::Tunnel(way) => Some(way),
            Fate::Plain(_) | Fate::Nowhere => None,
        }
    }

    /// The same by the device with this index.
    fn way_by(&self, ifindex: u32, to: usize, wall: Duration) -> Option<Way> {
        let parity =
            (0..2).find(|parity| self.up(*parity).is_some_and(|device| device.ifindex == ifindex))?;
        let device = self.device(parity)?;
        let (address, own) = (address(to), device.public_key?);
        let (key, peer) = device.peers.iter().find(|(_, peer)| peer.allowed_ips.contains(&address))?;
        let wants_handshake = !has_session(peer, REKEY_AFTER, wall);
        Some(Way { parity, ifindex, keys: (own, *key), wants_handshake })
    }

    /// Does the device of `parity` have `own`, and `peer` among its peers? Both parts are needed to take anything from it.
    pub(crate) fn takes(&self, parity: usize, own: PublicKey, peer: PublicKey) -> bool {
        let device = self.up(parity).filter(|device| device.public_key == Some(own));
        device.is_some_and(|device| device.peers.contains_key(&peer))
    }

    /// The same, for what goes by a session with the device `with`.
    pub(crate) fn decrypts(&self, parity: usize, own: PublicKey, peer: PublicKey, with: Option<u32>) -> bool {
        let is_its = |device: &TunnelDevice| with.is_none_or(|with| with == device.ifindex);
        self.takes(parity, own, peer) && self.device(parity).is_some_and(is_its)
    }

    /// Something came by the device of `parity` from `peer`.
    pub(crate) fn received(&mut self, parity: usize, peer: PublicKey) {
        if let Some(ifindex) = self.device(parity).map(|device| device.ifindex) {
            self.unanswered.remove(&(ifindex, peer));
        }
        self.peer(parity, peer, |peer| peer.received += 100);
    }

    /// Data goes to the peer of `way`. True if an answer is awaited from here on.
    pub(crate) fn sent(&mut self, way: &Way, now: Duration) -> bool {
        self.peer(way.parity, way.keys.1, |peer| peer.sent += 100);
        let is_awaited = self.unanswered.contains_key(&(way.ifindex, way.keys.1));
        self.unanswered.entry((way.ifindex, way.keys.1)).or_insert(now);
        !is_awaited
    }

    /// Is that what has had no answer since?
    pub(crate) fn is_unanswered(&self, way: &Way, since: Duration) -> bool {
        self.unanswered.get(&(way.ifindex, way.keys.1)) == Some(&since)
    }

    /// Nothing more is expected of what was sent.
    pub(crate) fn gives_up(&mut self, way: &Way) {
        self.unanswered.remove(&(way.ifindex, way.keys.1));
    }

    /// Data came by the device of `parity`: true if an answer is owed from here on.
    pub(crate) fn owes(&mut self, parity: usize, peer: PublicKey) -> bool {
        let ifindex = self.device(parity).map(|device| device.ifindex);
        ifindex.is_some_and(|ifindex| self.owed.insert((ifindex, peer)))
    }

    /// The answer goes out, if the device is still there.
    pub(crate) fn answers(&mut self, ifindex: u32, peer: PublicKey) {
        self.owed.remove(&(ifindex, peer));
    }

    /// A handshake with `peer` is complete, as far as this side can know.
    pub(crate) fn shaken(&mut self, parity: usize, peer: PublicKey, wall: Duration, session: Session) {
        if let Some(ifindex) = self.device(parity).map(|device| device.ifindex) {
            self.sessions.insert((ifindex, peer), session);
        }
        self.peer(parity, peer, |peer| peer.last_handshake = Some(wall));
    }

    /// Something came from `peer` by `session`, as that one sees it; true if that completes a handshake here.
    pub(crate) fn confirms(
        &mut self,
        parity: usize,
        peer: PublicKey,
        session: Session,
        wall: Duration,
    ) -> bool {
        let Some(ifindex) = self.device(parity).map(|device| device.ifindex) else { return false };
        let answered = self.answered.get(&(ifindex, peer)).copied();
        let Some(answered) = answered.filter(|answered| answered.begun == session.begun) else {
            return false;
        };
        self.answered.remove(&(ifindex, peer));
        self.shaken(parity, peer, wall, answered);
        true
    }

    /// A first message came from `peer`, and is answered. There is one handshake at a time: what this side began with it is over
    /// (`noise.c`, `wg_noise_handshake_consume_initiation`).
    pub(crate) fn is_greeted(&mut self, ifindex: u32, peer: PublicKey, session: Session) {
        self.answered.insert((ifindex, peer), session);
        if let Some(greeting) = self.greetings.get_mut(&(ifindex, peer)) {
            greeting.is_open = false;
        }
    }

    fn peer(&mut self, parity: usize, key: PublicKey, change: impl FnOnce(&mut Peer)) {
        let device = self.seen.tunnels.get_mut(DEVICE_NAMES[parity]);
        if let Some(peer) = device.and_then(|device| device.peers.get_mut(&key)) {
            change(peer);
        }
    }

    /// The first message of a handshake is to go out: its number, if it is time for another.
    pub(crate) fn greets(&mut self, way: &Way, now: Duration) -> Option<u64> {
        let last = self.greetings.entry((way.ifindex, way.keys.1)).or_default();
        if last.number != 0 && now < last.at + GREETS_EVERY {
            return None;
        }
        *last = Greeting { number: last.number + 1, at: now, is_open: true };
        Some(last.number)
    }

    /// An answer came: is that the number of the last one, and the first answer to it?
    pub(crate) fn is_answered(&mut self, ifindex: u32, peer: PublicKey, number: u64) -> bool {
        let last = self.greetings.get_mut(&(ifindex, peer)).filter(|last| last.number == number);
        last.is_some_and(|last| std::mem::take(&mut last.is_open))
    }

    /// What goes by `way` is encrypted by this, as far as is known.
    pub(crate) fn session(&self, way: &Way) -> Option<Session> {
        self.sessions.get(&(way.ifindex, way.keys.1)).copied()
    }

    /// Is the first message of a handshake, told to be of `wall`, newer than all before?
    pub(crate) fn is_newer(&mut self, ifindex: u32, peer: PublicKey, wall: Duration) -> bool {
        let newest = self.newest.entry((ifindex, peer)).or_default();
        let is_newer = wall > *newest;
        *newest = wall.max(*newest);
        is_newer
    }

    /// Keepalives begin; false if they go out already.
    pub(crate) fn begins(&mut self, ifindex: u32, peer: PublicKey, now: Duration) -> bool {
        let is_new = !self.beats.contains_key(&(ifindex, peer));
        self.beats.entry((ifindex, peer)).or_insert(now);
        is_new
    }

    /// Do those still go out that began `at` that time?
    pub(crate) fn goes_on(&self, ifindex: u32, peer: PublicKey, at: Duration) -> bool {
        self.beats.get(&(ifindex, peer)) == Some(&at)
    }

    /// Somebody deletes the device of `parity`.
    pub(crate) fn delete(&mut self, parity: usize) -> bool {
        let device = self.seen.tunnels.remove(DEVICE_NAMES[parity]);
        device.is_some_and(|device| {
            self.lost.insert(device.ifindex);
            self.seen.links.remove(&device.ifindex).is_some()
        })
    }

    /// Carries `action` out; `keys` are those that the daemon holds.
    pub(crate) fn perform(
        &mut self,
        action: &Action,
        keys: &BTreeMap<Generation, PublicKey>,
    ) -> Result<(), &'static str> {
        match action {
            Action::CreateTunnel(name) => return self.create(name),
            Action::DeleteTunnel(index, name) => {
                let is_it = self.seen.tunnels.get(name).is_some_and(|device| device.ifindex == *index);
                if !is_it {
                    return Err("no such device");
                }
                self.seen.tunnels.remove(name);
                self.seen.links.remove(index);
            }
            Action::ConfigureTunnel { device, key, port, fwmark } => {
                let device = self.seen.tunnels.get_mut(device).ok_or("no such device")?;
                if let Some((generation, public)) = key {
                    if keys.get(generation) != Some(public) {
                        return Err("no such key");
                    }
                    device.public_key = Some(*public);
                    device.peers.remove(public);
                }
                device.port = port.unwrap_or(device.port);
                device.fwmark = fwmark.unwrap_or(device.fwmark);
            }
            Action::SetUp(index) => self.seen.links.get_mut(index).ok_or("no such device")?.up = true,
            Action::SetSlot(..)
            | Action::SetConfig(_)
            | Action::PutPrefix(..)
            | Action::RemovePrefix(_)
            | Action::PutDevice(..)
            | Action::RemoveDevice(_)
            | Action::Attach(_) => {
                write(self.seen.datapath.as_mut().ok_or("not loaded")?, action);
            }
            Action::AddPeer { device, .. }
            | Action::SetEndpoint(device, ..)
            | Action::AddAllowedIps(device, ..)
            | Action::ReplaceAllowedIps(device, ..)
            | Action::SetKeepalive(device, ..)
            | Action::RemovePeer(device, _) => {
                let ifindex = self.seen.tunnels.get(device).ok_or("no such device")?.ifindex;
                if let Action::SetKeepalive(_, key, 0) | Action::RemovePeer(_, key) = action {
                    self.beats.remove(&(ifindex, *key));
                }
                self.seen.expect(action);
            }
            other => self.seen.expect(other),
        }
        Ok(())
    }

    fn create(&mut self, name: &str) -> Result<(), &'static str> {
        if self.seen.tunnels.contains_key(name) {
            return Err("it exists");
        }
        self.made += 1;
        let link = Link {
            name: name.to_owned(),
            kind: Some("wireguard".to_owned()),
            mtu: MTU,
            addresses: [TUNNEL_ADDRESS].into(),
            ..Link::default()
        };
        let device = TunnelDevice { ifindex: self.made, sysctls_right: true, ..TunnelDevice::default() };
        self.seen.links.insert(self.made, link);
        self.seen.tunnels.insert(name.to_owned(), device);
        Ok(())
    }
}

/// Writes a map, or attaches a program.
fn write(datapath: &mut Datapath, action: &Action) {
    match action {
        Action::SetSlot(slot, index) => datapath.slots[usize::from(*slot)] = *index,
        Action::SetConfig(config) => datapath.config = *config,
        Action::PutPrefix(prefix, value) => drop(datapath.prefixes.insert(*prefix, *value)),
        Action::RemovePrefix(prefix) => drop(datapath.prefixes.remove(prefix)),
        Action::PutDevice(index, kind) => drop(datapath.devices.insert(*index, *kind)),
        Action::RemoveDevice(index) => drop(datapath.devices.remove(index)),
        Action::Attach(hook) => drop(datapath.attached.insert(*hook, Vec::new())),
        _ => {}
    }
}

/// What pods have addresses of.
pub(crate) const RANGE: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16));

/// A node's index in the maps; 0 is nobody's.
pub(crate) fn index(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX).saturating_add(1)
}

/// Whose index that is.
pub(crate) fn place_of_index(index: u32) -> usize {
    usize::try_from(index).unwrap_or(1).saturating_sub(1)
}

/// What a node owns.
pub(crate) fn address(place: usize) -> IpNet {
    Ipv4Net::from(Ipv4Addr::from(0x0af4_0000 + index(place))).into()
}

/// Where a node listens for `generation`.
pub(crate) fn endpoint(place: usize, generation: Generation) -> SocketAddr {
    let port = generation.port(BASE_PORT).unwrap_or(BASE_PORT);
    (Ipv4Addr::from(0xc000_0200 + index(place)), port).into()
}

/// Has it a session with the peer that is no older than `most`?
pub(crate) fn has_session(peer: &Peer, most: Duration, wall: Duration) -> bool {
    let is_fresh = |at: Duration| wall.checked_sub(at).is_some_and(|age| age < most);
    peer.last_handshake.is_some_and(is_fresh)
}

/// Whose endpoint it is.
pub(crate) fn place_of(endpoint: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = endpoint else { return None };
    let index = u32::from(*v4.ip()).checked_sub(0xc000_0201)?;
    usize::try_from(index).ok()
}
