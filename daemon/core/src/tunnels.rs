//! Which peers are proven to answer.
//!
//! WireGuard tells nobody of a handshake, and an idle tunnel is silent, so what counts is a completed
//! handshake on this life of the device, and whether what was sent since got an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kubeveil_api::status::TunnelState;
use kubeveil_keys::PublicKey;

use crate::{
    action::Action,
    observed::{Observed, Peer},
};

/// No data is accepted under keys older than this (kernel `drivers/net/wireguard/messages.h`, `REJECT_AFTER_TIME`).
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// A peer that answers does so within this: WireGuard itself starts a new handshake after 15 seconds without
/// an answer (`KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`), and repeats it every 5.
const GIVE_UP: Duration = Duration::from_secs(25);
/// How long the peer with the lower key has the first word.
const SECOND_WORD: Duration = Duration::from_secs(3);
/// The same where an older tunnel carries packets meanwhile, so that nobody waits: the first word may have come before the other had a
/// peer for it, and is said again by then (`REKEY_TIMEOUT` and a jitter: 5.3 s).
const SECOND_WORD_AT_LEISURE: Duration = Duration::from_secs(7);
/// How old a handshake is whose end the other still does not know of, by what it says: longer than it takes to say so. The first packet under
/// the new keys was lost, and nobody had another one to send.
const LAST_WORD: Duration = Duration::from_secs(30);
/// How long WireGuard alone repeats the first word; it does so for 90 seconds (`REKEY_ATTEMPT_TIME`).
const FIRST_WORDS: Duration = Duration::from_secs(15);
/// The longest keepalive that there is, seconds: 18 hours.
const LONGEST_KEEPALIVE: u16 = u16::MAX;
/// Interval of keepalives while a handshake is wanted that did not come by itself, seconds.
pub const PROVING_KEEPALIVE: u16 = 5;
/// How often to look while something is unproven: at first, after [`PATIENCE`], and until [`RESIGNATION`];
/// then the daemon's regular round has to do, since among thousands of nodes one is always down.
const LOOK_OFTEN: Duration = Duration::from_millis(250);
const LOOK_SELDOM: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);
const RESIGNATION: Duration = Duration::from_secs(120);

/// How a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No handshake yet, since so long.
    Never(Duration),
    /// Handshake this long ago, less than [`REJECT_AFTER`].
    Up(Duration),
    /// Older, and nothing that was sent since is overdue for an answer: nobody knows and nobody needs to.
    Idle(Duration),
    /// Older, and what was sent since has had no answer for [`GIVE_UP`].
    Stale(Duration),
}

impl Health {
    /// Has it ever answered on this life of the device?
    pub const fn is_proven(self) -> bool {
        !matches!(self, Self::Never(_))
    }

    /// The same without the time, for people.
    pub const fn state(self) -> TunnelState {
        match self {
            Self::Never(_) => TunnelState::Never,
            Self::Up(_) => TunnelState::Up,
            Self::Idle(_) => TunnelState::Idle,
            Self::Stale(_) => TunnelState::Stale,
        }
    }
}

#[derive(Clone, Debug)]
struct Track {
    first_seen: Duration,
    /// The kernel's time of it, only ever compared with itself.
    handshake: Option<Duration>,
    /// One that took place under another key of the device: it proves nothing, and the kernel still tells of it.
    void: Option<Duration>,
    /// On our own monotonic clock.
    handshake_at: Duration,
    sent: u64,
    received: u64,
    /// When the first packet was sent that nothing has come back for.
    unanswered_since: Option<Duration>,
}

/// A peer to whom a handshake may have to be started.
#[derive(Clone, Copy, Debug)]
pub struct To<'a> {
    /// The device that it is a peer of.
    pub device: &'a str,
    /// The device's key.
    pub own: &'a PublicKey,
    /// Its own.
    pub peer: &'a PublicKey,
    /// Another device of ours is older, and carries what there is.
    pub is_at_leisure: bool,
    /// It says of us, by name, that it still sends by that.
    pub is_awaited: bool,
}

/// The keepalive of a peer to whom this node has the first word, seconds: nine to 18 hours, for each peer another, so that not all that are idle
/// are spoken to at once. What it is for is the one that goes out as it is set; then it need not be taken back.
pub fn first_keepalive(peer: &PublicKey) -> u16 {
    let [_, high, low, ..] = *peer.as_bytes();
    LONGEST_KEEPALIVE - (u16::from_be_bytes([high, low]) & LONGEST_KEEPALIVE >> 1)
}

/// The keepalive of a peer that no handshake is wanted of: what is as good as none is left as it is.
pub const fn at_rest(stands: u16) -> u16 {
    if stands > LONGEST_KEEPALIVE / 2 { stands } else { 0 }
}

/// What came and went by a device.
#[derive(Debug, Default)]
struct Passed {
    bytes: u64,
    /// When they were first seen to be so many, by the time at which that way round began.
    seen: Duration,
    /// The beginning of the first way round after that which finds them the same: more may have passed between the beginning of the one
    /// before and its look.
    still: Option<Duration>,
}

/// All peers of all our devices. `now` is monotonic, `wall` is time since the epoch.
#[derive(Debug, Default)]
pub struct Tunnels {
    tracks: BTreeMap<(String, PublicKey), Track>,
    /// The key of each device.
    own: BTreeMap<String, PublicKey>,
    /// What came and went by each device.
    passed: BTreeMap<String, Passed>,
}

impl Tunnels {
    /// Takes in what the kernel says now.
    pub fn observe(&mut self, observed: &Observed, now: Duration, wall: Duration) {
        let mut present = BTreeSet::new();
        for (device, tunnel) in &observed.tunnels {
            let before = tunnel.public_key.and_then(|key| self.own.insert(device.clone(), key));
            let is_rekeyed = before.is_some() && before != tunnel.public_key;
            for (key, peer) in &tunnel.peers {
                let id = (device.clone(), *key);
                present.insert(id.clone());
                let track = self.tracks.entry(id).or_insert_with(|| Track::new(peer, now, wall));
                if is_rekeyed {
                    *track = Track { void: track.handshake.or(track.void), ..Track::unproven(now) };
                }
                track.update(peer, now);
            }
        }
        self.tracks.retain(|id, _| present.contains(id));
        self.passed.retain(|device, _| observed.tunnels.contains_key(device));
        for (device, tunnel) in &observed.tunnels {
            let bytes = tunnel.peers.values().map(|peer| peer.received.wrapping_add(peer.sent)).sum();
            let passed = self.passed.entry(device.clone()).or_default();
            if passed.bytes != bytes {
                *passed = Passed { bytes, seen: now, still: None };
            } else if now > passed.seen {
                passed.still.get_or_insert(now);
            }
        }
    }

    /// How long nothing has come or gone by `device`, as far as it was looked at.
    pub fn quiet(&self, device: &str, now: Duration) -> Duration {
        let still = self.passed.get(device).and_then(|passed| passed.still);
        still.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// `action` was carried out. Says when to look for what comes of it, if anything is to come.
    pub fn expect(&mut self, action: &Action, now: Duration) -> Option<Duration> {
        match action {
            Action::AddPeer { device, key, .. } => {
                self.tracks.entry((device.clone(), *key)).or_insert_with(|| Track::unproven(now));
                Some(LOOK_OFTEN)
            }
            Action::RemovePeer(device, key) => {
                self.tracks.remove(&(device.clone(), *key));
                None
            }
            _ => None,
        }
    }

    /// How `key` is on `device`; a peer that was never seen there is new.
    pub fn health(&self, device: &str, key: &PublicKey, now: Duration) -> Health {
        match self.tracks.get(&(device.to_owned(), *key)) {
            None => Health::Never(Duration::ZERO),
            Some(track) => track.health(now),
        }
    }

    /// The keepalive of a peer, seconds, which has one of `stands`: one that is set starts a handshake without waiting for traffic. The
    /// lower key has the first word; the other joins in when nothing came of that, since it may be the lower one that has an old session
    /// and sees no reason to speak.
    pub fn keepalive(&self, to: &To<'_>, stands: u16, now: Duration) -> u16 {
        let is_first = to.own < to.peer;
        let second_word = if to.is_at_leisure { SECOND_WORD_AT_LEISURE } else { SECOND_WORD };
        match self.health(to.device, to.peer, now) {
            Health::Never(since) if since >= if is_first { FIRST_WORDS } else { second_word } => {
                PROVING_KEEPALIVE
            }
            // What an earlier daemon began goes on.
            Health::Never(_) if stands == PROVING_KEEPALIVE => PROVING_KEEPALIVE,
            Health::Never(_) if is_first && at_rest(stands) != 0 => stands,
            Health::Never(_) if is_first => first_keepalive(to.peer),
            Health::Never(_) => 0,
            Health::Stale(_) => PROVING_KEEPALIVE,
            Health::Up(age) | Health::Idle(age) if to.is_awaited && age >= LAST_WORD => PROVING_KEEPALIVE,
            Health::Up(_) | Health::Idle(_) => at_rest(stands),
        }
    }

    /// When to look again; `None` if nothing is awaited.
    pub fn next_look(&self, now: Duration) -> Option<Duration> {
        self.tracks
            .values()
            .filter_map(|track| match track.health(now) {
                Health::Never(since) if since < PATIENCE => Some(LOOK_OFTEN),
                Health::Never(since) if since < RESIGNATION => Some(LOOK_SELDOM),
                Health::Stale(_) => Some(LOOK_SELDOM),
                Health::Never(_) | Health::Up(_) | Health::Idle(_) => None,
            })
            .min()
    }
}

impl Track {
    fn unproven(now: Duration) -> Self {
        Self {
            first_seen: now,
            handshake: None,
            void: None,
            handshake_at: now,
            sent: 0,
            received: 0,
            unanswered_since: None,
        }
    }

    fn new(peer: &Peer, now: Duration, wall: Duration) -> Self {
        // The one use of the wall clock: the age of a handshake that took place before we looked.
        let age = peer.last_handshake.map_or(Duration::ZERO, |at| wall.saturating_sub(at));
        Self {
            handshake: peer.last_handshake,
            handshake_at: now.saturating_sub(age),
            sent: peer.sent,
            received: peer.received,
            ..Self::unproven(now)
        }
    }

    fn update(&mut self, peer: &Peer, now: Duration) {
        let handshake = peer.last_handshake.filter(|at| Some(*at) != self.void);
        let shaken = handshake != self.handshake;
        if shaken {
            if handshake.is_none() {
                // The device or the peer was made again between two looks.
                *self = Self::new(peer, now, now);
            }
            self.handshake = handshake;
            self.handshake_at = now;
        }
        if shaken || peer.received != self.received {
            self.unanswered_since = None;
        } else if peer.sent > self.sent {
            self.unanswered_since.get_or_insert(now);
        }
        (self.sent, self.received) = (peer.sent, peer.received);
    }

    fn health(&self, now: Duration) -> Health {
        if self.handshake.is_none() {
            return Health::Never(now.saturating_sub(self.first_seen));
        }
        let age = now.saturating_sub(self.handshake_at);
        if age < REJECT_AFTER {
            Health::Up(age)
        } else if self.unanswered_since.is_some_and(|at| now.saturating_sub(at) >= GIVE_UP) {
            Health::Stale(age)
        } else {
            Health::Idle(age)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::TunnelDevice;

    const DEVICE: &str = "kubeveil0";

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn with(handshake: Option<u64>, sent: u64) -> Observed {
        let peer = Peer { last_handshake: handshake.map(seconds), sent, ..Peer::default() };
        let device = TunnelDevice { peers: [(key(7), peer)].into(), ..TunnelDevice::default() };
        Observed { tunnels: [(DEVICE.to_owned(), device)].into(), ..Observed::default() }
    }

    #[test]
    fn a_life() {
        let mut tunnels = Tunnels::default();
        let wall = seconds(1_000_000);
        let health = |t: &Tunnels, now| t.health(DEVICE, &key(7), seconds(now));
        tunnels.observe(&with(None, 0), seconds(10), wall);
        assert_eq!(health(&tunnels, 12), Health::Never(seconds(2)));
        let first = first_keepalive(&key(7));
        let keepalive = |t: &Tunnels, own: u8, stands, now| {
            let (own, peer) = (key(own), key(7));
            let to = |is_at_leisure| To {
                device: DEVICE,
                own: &own,
                peer: &peer,
                is_at_leisure,
                is_awaited: false,
            };
            [false, true].map(|is_at_leisure| t.keepalive(&to(is_at_leisure), stands, seconds(now)))
        };
        assert_eq!(keepalive(&tunnels, 1, 0, 12), [first; 2]);
        assert_eq!(keepalive(&tunnels, 1, first, 24), [first; 2]);
        assert_eq!(keepalive(&tunnels, 1, first, 25), [PROVING_KEEPALIVE; 2]);
        assert_eq!(keepalive(&tunnels, 9, 0, 12), [0; 2]);
        assert_eq!(keepalive(&tunnels, 9, 0, 13), [PROVING_KEEPALIVE, 0]);
        assert_eq!(keepalive(&tunnels, 9, 0, 17), [PROVING_KEEPALIVE; 2]);
        assert_eq!(
            keepalive(&tunnels, 1, PROVING_KEEPALIVE, 12),
            [PROVING_KEEPALIVE; 2],
            "an earlier daemon's"
        );
        assert_eq!(tunnels.next_look(seconds(12)), Some(LOOK_OFTEN));
        assert_eq!(tunnels.next_look(seconds(40)), Some(LOOK_SELDOM));
        assert_eq!(tunnels.next_look(seconds(140)), None);

        tunnels.observe(&with(Some(1_000_003), 100), seconds(13), wall);
        assert_eq!(health(&tunnels, 20), Health::Up(seconds(7)));
        // What was set for the first word stays; what was set since goes, and is nobody else's to set.
        for (stands, rests) in [(0, 0), (first, first), (PROVING_KEEPALIVE, 0), (25, 0)] {
            assert_eq!(keepalive(&tunnels, 1, stands, 20), [rests; 2]);
        }
        assert_eq!(tunnels.next_look(seconds(20)), None);
        // Whoever does not know of it is told again, once it has had the time to say that it does.
        let awaited = |stands, now| {
            let (own, peer) = (key(1), key(7));
            let to = To { device: DEVICE, own: &own, peer: &peer, is_at_leisure: true, is_awaited: true };
            tunnels.keepalive(&to, stands, seconds(now))
        };
        assert_eq!([awaited(0, 42), awaited(first, 42)], [0, first]);
        assert_eq!([43, 192, 500].map(|now| awaited(first, now)), [PROVING_KEEPALIVE; 3]);
        // Silence is no fault …
        assert_eq!(health(&tunnels, 500), Health::Idle(seconds(487)));
        // … sending without an answer is.
        tunnels.observe(&with(Some(1_000_003), 200), seconds(500), wall);
        // … once it has had the time to answer.
        assert_eq!(health(&tunnels, 524), Health::Idle(seconds(511)));
        tunnels.observe(&with(Some(1_000_003), 400), seconds(524), wall);
        assert_eq!(health(&tunnels, 525), Health::Stale(seconds(512)));
        assert_eq!(keepalive(&tunnels, 9, 0, 525), [PROVING_KEEPALIVE; 2]);
        tunnels.observe(&with(Some(1_000_504), 500), seconds(530), wall);
        assert_eq!(health(&tunnels, 530), Health::Up(Duration::ZERO));
    }

    /// What went a moment ago is still on its way, and its sender's key is needed there.
    #[test]
    fn what_comes_and_what_goes_is_no_silence() {
        let mut tunnels = Tunnels::default();
        let mut look = |sent: u64, received: u64, at: u64| {
            let mut observed = with(Some(1_000), sent);
            observed
                .tunnels
                .get_mut(DEVICE)
                .expect("device")
                .peers
                .get_mut(&key(7))
                .expect("peer")
                .received = received;
            tunnels.observe(&observed, seconds(at), seconds(1_000 + at));
            tunnels.quiet(DEVICE, seconds(at))
        };
        let looks =
            [(10, 10, 1, 0), (10, 10, 1, 0), (10, 10, 4, 0), (10, 10, 6, 2), (20, 10, 7, 0), (20, 10, 7, 0)];
        for (sent, received, at, quiet) in
            looks.into_iter().chain([(20, 10, 8, 0), (20, 10, 9, 1), (20, 20, 10, 0)])
        {
            assert_eq!(look(sent, received, at), seconds(quiet), "{sent} {received} {at}");
        }
    }

    #[test]
    fn a_clock_that_jumps_changes_nothing() {
        let mut tunnels = Tunnels::default();
        tunnels.observe(&with(Some(1_000), 0), seconds(10), seconds(1_010));
        for wall in [0, 5_000_000] {
            tunnels.observe(&with(Some(1_000), 0), seconds(20), seconds(wall));
            assert_eq!(tunnels.health(DEVICE, &key(7), seconds(20)), Health::Up(seconds(20)));
        }
    }

    #[test]
    fn a_handshake_under_another_key_of_the_device_proves_nothing() {
        let of = |own: u8, handshake| {
            let mut observed = with(Some(handshake), 0);
            observed.tunnels.get_mut(DEVICE).expect("device").public_key = Some(key(own));
            observed
        };
        let mut tunnels = Tunnels::default();
        let proven = |t: &Tunnels, now| t.health(DEVICE, &key(7), seconds(now)).is_proven();
        tunnels.observe(&of(1, 1_000), seconds(10), seconds(1_010));
        assert!(proven(&tunnels, 10));
        for now in [11, 12] {
            tunnels.observe(&of(2, 1_000), seconds(now), seconds(1_011));
            assert!(!proven(&tunnels, now));
        }
        // Twice another key, and nothing in between.
        tunnels.observe(&of(3, 1_000), seconds(13), seconds(1_012));
        assert!(!proven(&tunnels, 13));
        tunnels.observe(&of(3, 1_013), seconds(14), seconds(1_014));
        assert!(proven(&tunnels, 14));
    }

    #[test]
    fn a_device_made_again_has_proven_nothing() {
        let mut tunnels = Tunnels::default();
        tunnels.observe(&with(Some(1_000), 0), seconds(10), seconds(1_010));
        tunnels.observe(&with(None, 0), seconds(20), seconds(1_020));
        assert_eq!(tunnels.health(DEVICE, &key(7), seconds(20)), Health::Never(Duration::ZERO));
    }
}
