use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use kubeveil_abi::{
    Address, Asked, Config, DeviceKind, FlowKey, FlowValue, MAX_FLOWS, MAX_SLOTS, Origin, PeerValue,
    PrefixKind, PrefixValue,
};

use crate::{Bytes, Tables};

/// A packet in memory, from its network header on.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Length of a link header that the kernel would count too.
    pub link: u32,
    /// See [`Bytes::segment`].
    pub segment: u32,
    /// See [`Bytes::port`].
    pub port: u16,
}

impl<'a> Slice<'a> {
    /// A plain packet without a link header.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, link: 0, segment: 0, port: 0 }
    }
}

impl Bytes for Slice<'_> {
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let bytes = self.bytes.get(usize::try_from(offset).ok()?..)?.get(..N * 4)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        Some(words)
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX) + self.link
    }

    fn segment(&self) -> u32 {
        self.segment
    }

    fn port(&self) -> u16 {
        self.port
    }
}

/// The maps, as plain collections.
#[derive(Clone, Debug)]
pub struct World {
    /// The one entry of `CONFIG`.
    pub config: Config,
    /// `PREFIXES`: address, length in bits, value.
    pub prefixes: Vec<(Address, u32, PrefixValue)>,
    /// `PEERS`.
    pub peers: BTreeMap<u32, PeerValue>,
    /// `SLOTS`.
    pub slots: [u32; MAX_SLOTS],
    /// `DEVICES`.
    pub devices: BTreeMap<u32, DeviceKind>,
    /// `ORIGINS`.
    pub origins: BTreeMap<Address, Origin>,
    /// Keys of `ALIVE`.
    pub alive: BTreeSet<u32>,
    /// `FLOWS`.
    pub flows: RefCell<Vec<(FlowKey, FlowValue)>>,
    /// How many flows there is room for.
    pub room: usize,
    /// Seconds since boot.
    pub now: u32,
}

impl Default for World {
    fn default() -> Self {
        Self {
            config: Config::default(),
            prefixes: Vec::new(),
            peers: BTreeMap::new(),
            slots: [0; MAX_SLOTS],
            devices: BTreeMap::new(),
            origins: BTreeMap::new(),
            alive: BTreeSet::new(),
            flows: RefCell::default(),
            room: MAX_FLOWS,
            now: 0,
        }
    }
}

impl World {
    /// Adds a prefix; `length` counts among the 128 bits of a mapped address.
    pub fn add(&mut self, address: Address, length: u32, kind: PrefixKind, peer: u32) {
        self.prefixes.push((address, length, PrefixValue::new(kind, peer)));
    }

    /// From now on this is asked for of whoever has an address of that kind, `peer`'s if it is a peer's.
    pub fn ask(&mut self, kind: PrefixKind, peer: u32, asked: Asked, until: u32) {
        for (_, _, value) in &mut self.prefixes {
            if (value.kind, u32::from(value.peer)) == (kind as u8, peer) {
                *value = value.asking(asked, until);
            }
        }
    }
}

impl World {
    /// Its pod is one whose device is there, and whose packets come in by the one that [`Scene`](super::Scene) gives to pods.
    pub fn bind_pod(&mut self) {
        let device = super::Scene::POD_DEVICE;
        let origin = Origin { device, via: device, pod: [1, 2] };
        self.bind_pod_to(origin);
        self.alive.insert(origin.key());
    }

    /// Its pod was found to speak by this device.
    pub fn bind_pod_to(&mut self, origin: Origin) {
        for is_v6 in [false, true] {
            self.origins.insert(super::address(super::Place::LocalPod.ip(is_v6)), origin);
        }
    }
}

impl Tables for World {
    fn prefix(&self, address: &Address) -> Option<PrefixValue> {
        let wanted = bits(address);
        self.prefixes
            .iter()
            .filter(|(prefix, length, _)| {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                (wanted ^ bits(prefix)) & mask == 0
            })
            .max_by_key(|(_, length, _)| *length)
            .map(|(_, _, value)| *value)
    }

    fn peer(&self, index: u32) -> PeerValue {
        self.peers.get(&index).copied().unwrap_or(PeerValue::NO_TUNNEL)
    }

    fn slot(&self, slot: u8) -> u32 {
        self.slots.get(usize::from(slot)).copied().unwrap_or(0)
    }

    fn device(&self, ifindex: u32) -> Option<DeviceKind> {
        self.devices.get(&ifindex).copied()
    }

    fn origin(&self, address: &Address) -> Origin {
        self.origins.get(address).copied().unwrap_or(Origin::NONE)
    }

    fn is_alive(&self, origin: &Origin) -> bool {
        self.alive.contains(&origin.key())
    }

    fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
        let flows = self.flows.borrow();
        flows.iter().find(|(other, _)| other == key).map(|(_, value)| *value)
    }

    fn remember(&self, key: &FlowKey, value: FlowValue) -> bool {
        let mut flows = self.flows.borrow_mut();
        if let Some((_, known)) = flows.iter_mut().find(|(other, _)| other == key) {
            *known = value;
            return true;
        }
        let fits = flows.len() < self.room;
        if fits {
            flows.push((*key, value));
        }
        fits
    }

    fn now(&self) -> u32 {
        self.now
    }
}

fn bits(address: &Address) -> u128 {
    address.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
}
