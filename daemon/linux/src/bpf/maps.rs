//! The maps, typed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    os::fd::AsFd as _,
    path::Path,
};

use aya::{
    Pod,
    maps::{
        Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
        xdp::{DevMapHash, XdpMapError},
    },
};
use ipnet::IpNet;
use kubeveil_abi::{
    Address, Asked, Config, Counter, DeviceKind, Direction, FlowKey, FlowMode, FlowValue, MAX_SLOTS, Origin,
    PeerValue, PrefixKind, PrefixValue, Reason, Seen, SeenKey, WatchKey, counter_index, is_settled, names,
    v4_mapped_length,
};
use kubeveil_core::observed::Prefix;

use super::{Pins, batch, peers::PeerArray, watches::Watches};
use crate::{Count, KernelError};

/// A structure of the ABI, for aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: the ABI's structures are `repr(C)`, of unsigned words, without padding; their sizes are asserted there.
unsafe impl Pod for Raw<Config> {}
// SAFETY: as above.
unsafe impl Pod for Raw<PrefixValue> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Origin> {}
// SAFETY: as above.
unsafe impl Pod for Raw<FlowKey> {}
// SAFETY: as above.
unsafe impl Pod for Raw<FlowValue> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Counter> {}
// SAFETY: as above.
unsafe impl Pod for Raw<WatchKey> {}
// SAFETY: as above.
unsafe impl Pod for Raw<SeenKey> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Seen> {}

/// All maps of the datapath.
pub struct Maps {
    config: Array<MapData, Raw<Config>>,
    prefixes: LpmTrie<MapData, Address, Raw<PrefixValue>>,
    peers: PeerArray,
    slots: Array<MapData, u32>,
    devices: HashMap<MapData, u32, u32>,
    origins: HashMap<MapData, Address, Raw<Origin>>,
    alive: DevMapHash<MapData>,
    flows: HashMap<MapData, Raw<FlowKey>, Raw<FlowValue>>,
    counters: PerCpuArray<MapData, Raw<Counter>>,
    epoch: Array<MapData, u32>,
    /// What somebody watches.
    pub watches: Watches,
    /// We have made the epoch odd: thousands of prefixes in a row need not ask for it again.
    unsettled: bool,
}

pub(super) fn failed(operation: &'static str, map: &str) -> impl FnOnce(MapError) -> KernelError {
    move |e| KernelError::new(operation, format!("map {map}"), e)
}

/// Writes one entry: what the map says is the same, whatever its type.
pub(super) fn written(map: &str, done: Result<(), MapError>) -> Result<(), KernelError> {
    done.map_err(failed("write", map))
}

/// The kernel's answer to who puts a device into a devmap that is not there (`kernel/bpf/devmap.c`, `__dev_map_alloc_node`: EINVAL).
fn is_no_device(error: &std::io::Error) -> bool {
    [rustix::io::Errno::INVAL, rustix::io::Errno::NODEV]
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

/// A key that is gone already was what we wanted.
pub(super) fn removed(map: &str, done: Result<(), MapError>) -> Result<(), KernelError> {
    match done {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove from", map)),
    }
}

impl Maps {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let data = |name| MapData::from_pin(pins.map(name)).map_err(failed("open", name));
        macro_rules! typed {
            ($variant:ident, $name:expr) => {
                Map::$variant(data($name)?).try_into().map_err(failed("open", $name))?
            };
        }
        Ok(Self {
            config: typed!(Array, names::CONFIG),
            prefixes: typed!(LpmTrie, names::PREFIXES),
            peers: PeerArray::map(&data(names::PEERS)?)?,
            slots: typed!(Array, names::SLOTS),
            devices: typed!(HashMap, names::DEVICES),
            origins: typed!(HashMap, names::ORIGINS),
            alive: typed!(DevMapHash, names::ALIVE),
            flows: typed!(HashMap, names::FLOWS),
            counters: typed!(PerCpuArray, names::COUNTERS),
            epoch: typed!(Array, names::EPOCH),
            watches: Watches::open(pins)?,
            unsettled: false,
        })
    }

    /// The settings.
    pub fn config(&self) -> Result<Config, KernelError> {
        self.config.get(&0, 0).map(|raw| raw.0).map_err(failed("read", names::CONFIG))
    }

    /// Writes the settings.
    pub fn set_config(&mut self, config: Config) -> Result<(), KernelError> {
        written(names::CONFIG, self.config.set(0, Raw(config), 0))
    }

    /// All prefixes. An entry that this version can't read is left out, so it will be written anew.
    pub fn prefixes(&self) -> Result<BTreeMap<IpNet, Prefix>, KernelError> {
        let read = batch::entries(self.prefixes.map().fd().as_fd());
        let entries = read.map_err(|e| KernelError::new("read", format!("map {}", names::PREFIXES), e))?;
        let prefix = |([length, address @ ..], [first, until]): ([u32; 5], [u32; 2])| {
            let [kind, asked, peer @ ..] = first.to_ne_bytes();
            let value = PrefixValue { kind, asked, peer: u16::from_ne_bytes(peer), until };
            let asked = Asked::from_raw(value.asked.into());
            let prefix =
                Prefix { asked, until, ..Prefix::new(PrefixKind::from_raw(value.kind)?, value.peer.into()) };
            (value == value_of(prefix)).then_some((net(length, address)?, prefix))
        };
        Ok(entries.into_iter().filter_map(prefix).collect())
    }

    /// Before prefixes change: the programs look every address up anew until [`Maps::settle`].
    fn unsettle(&mut self) -> Result<(), KernelError> {
        if self.unsettled {
            return Ok(());
        }
        let epoch = self.epoch.get(&0, 0).map_err(failed("read", names::EPOCH))?;
        if is_settled(epoch) {
            written(names::EPOCH, self.epoch.set(0, epoch.wrapping_add(1), 0))?;
        }
        self.unsettled = true;
        Ok(())
    }

    /// The prefixes stand: the programs may keep what they look up, under a number that was never used.
    pub fn settle(&mut self) -> Result<(), KernelError> {
        self.unsettled = false;
        let epoch = self.epoch.get(&0, 0).map_err(failed("read", names::EPOCH))?;
        if is_settled(epoch) {
            return Ok(());
        }
        let next = epoch.wrapping_add(1).next_multiple_of(2).max(2);
        written(names::EPOCH, self.epoch.set(0, next, 0))
    }

    /// Writes a prefix.
    pub fn put_prefix(&mut self, net: IpNet, prefix: Prefix) -> Result<(), KernelError> {
        self.unsettle()?;
        written(names::PREFIXES, self.prefixes.insert(&key(net), Raw(value_of(prefix)), 0))
    }

    /// Takes a prefix out.
    pub fn remove_prefix(&mut self, net: IpNet) -> Result<(), KernelError> {
        self.unsettle()?;
        removed(names::PREFIXES, self.prefixes.remove(&key(net)))
    }

    /// Peers other than [`PeerValue::NO_TUNNEL`].
    pub fn peers(&self) -> BTreeMap<u32, PeerValue> {
        self.peers.set_ones().collect()
    }

    /// One atomic store.
    pub fn set_peer(&mut self, index: u32, value: PeerValue) {
        self.peers.store(index, value);
    }

    /// ifindex by slot.
    pub fn slots(&self) -> Result<[u32; MAX_SLOTS], KernelError> {
        let mut out = [0; MAX_SLOTS];
        for (index, slot) in (0u32..).zip(&mut out) {
            *slot = self.slots.get(&index, 0).map_err(failed("read", names::SLOTS))?;
        }
        Ok(out)
    }

    /// Points a slot to a device.
    pub fn set_slot(&mut self, slot: u8, ifindex: u32) -> Result<(), KernelError> {
        written(names::SLOTS, self.slots.set(u32::from(slot), ifindex, 0))
    }

    /// Devices by ifindex.
    pub fn devices(&self) -> Result<BTreeMap<u32, DeviceKind>, KernelError> {
        let mut out = BTreeMap::new();
        for entry in self.devices.iter() {
            let (index, kind) = entry.map_err(failed("read", names::DEVICES))?;
            if let Some(kind) = DeviceKind::from_raw(kind) {
                out.insert(index, kind);
            }
        }
        Ok(out)
    }

    /// Says what a device is.
    pub fn put_device(&mut self, ifindex: u32, kind: DeviceKind) -> Result<(), KernelError> {
        written(names::DEVICES, self.devices.insert(ifindex, kind as u32, 0))
    }

    /// Forgets a device.
    pub fn remove_device(&mut self, ifindex: u32) -> Result<(), KernelError> {
        removed(names::DEVICES, self.devices.remove(&ifindex))
    }

    /// The devices of this node's pods, by their addresses.
    pub fn origins(&self) -> Result<BTreeMap<IpAddr, Origin>, KernelError> {
        let read = batch::entries(self.origins.map().fd().as_fd());
        let entries = read.map_err(|e| KernelError::new("read", format!("map {}", names::ORIGINS), e))?;
        let origin = |(address, [device, via, uid, since]): (Address, [u32; 4])| {
            Some((net(128, address)?.addr(), Origin { device, via, pod: [uid, since] }))
        };
        Ok(entries.into_iter().filter_map(origin).collect())
    }

    /// Keys of those of their devices that are there.
    pub fn alive(&self, origins: &BTreeMap<IpAddr, Origin>) -> Result<BTreeSet<u32>, KernelError> {
        let mut out = BTreeSet::new();
        for origin in origins.values() {
            match self.alive.get(origin.key(), 0) {
                Ok(there) if there.if_index == origin.device => drop(out.insert(origin.key())),
                Ok(_) | Err(MapError::KeyNotFound) => {}
                Err(e) => return Err(failed("read", names::ALIVE)(e)),
            }
        }
        Ok(out)
    }

    /// Says by which device a pod speaks. One that is not there any more is not told of, and is no error.
    pub fn put_origin(&mut self, address: IpAddr, origin: Origin) -> Result<(), KernelError> {
        // That it is there first: what is said of the address holds only then.
        match self.alive.insert(origin.key(), origin.device, None, 0) {
            Ok(()) => {}
            // It went while we looked, and the next look shows it.
            Err(XdpMapError::MapError(MapError::SyscallError(e))) if is_no_device(&e.io_error) => {
                return Ok(());
            }
            Err(XdpMapError::MapError(e)) => return Err(failed("write", names::ALIVE)(e)),
            Err(other) => {
                let other = std::io::Error::other(other);
                return Err(KernelError::new("write", format!("map {}", names::ALIVE), other));
            }
        }
        self.unsettle()?;
        written(names::ORIGINS, self.origins.insert(self::address(address), Raw(origin), 0))
    }

    /// Forgets by which device an address speaks.
    pub fn remove_origin(&mut self, address: IpAddr) -> Result<(), KernelError> {
        self.unsettle()?;
        removed(names::ORIGINS, self.origins.remove(&self::address(address)))
    }

    /// Counters that are not zero, over all CPUs.
    pub fn counters(&self) -> Result<Vec<Count>, KernelError> {
        let mut out = Vec::new();
        for direction in Direction::ALL {
            for mode in FlowMode::ALL {
                for reason in Reason::ALL.iter().copied() {
                    let index = counter_index(direction, mode, reason);
                    let cpus = self.counters.get(&index, 0).map_err(failed("read", names::COUNTERS))?;
                    let packets = cpus.iter().map(|c| c.0.packets).sum();
                    let bytes = cpus.iter().map(|c| c.0.bytes).sum();
                    if packets != 0 {
                        out.push(Count { direction, mode, reason, packets, bytes });
                    }
                }
            }
        }
        Ok(out)
    }

    /// Takes over the flows of another version's map, so that replies to them go on through the tunnel. A version with
    /// other keys would have to be translated here.
    pub(super) fn take_flows(&mut self, pin: &Path) -> Result<(), KernelError> {
        /// `BPF_NOEXIST`: what we have seen ourselves is newer.
        const NOT_OVER: u64 = 1;
        if !pin.exists() {
            return Ok(());
        }
        let other = MapData::from_pin(pin).map_err(failed("open", names::FLOWS))?;
        let info = other.info().map_err(failed("look at", names::FLOWS))?;
        if (info.key_size() as usize, info.value_size() as usize)
            != (size_of::<FlowKey>(), size_of::<FlowValue>())
        {
            tracing::warn!(
                "flows of another version can't be read ({}): the host's replies to them pass in plain until the peer's next packet",
                pin.display()
            );
            return Ok(());
        }
        let other: HashMap<_, Raw<FlowKey>, Raw<FlowValue>> =
            Map::HashMap(other).try_into().map_err(failed("open", names::FLOWS))?;
        for entry in other.iter() {
            let (flow, value) = entry.map_err(failed("read", names::FLOWS))?;
            match self.flows.insert(flow, value, NOT_OVER) {
                // Taken over before: what the other version's programs saw since counts, unless ours have seen more.
                Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let Raw(theirs) = value;
                    if self.flows.get(&flow, 0).is_ok_and(|Raw(ours)| ours.seen < theirs.seen) {
                        self.flows.insert(flow, value, 0).map_err(failed("write", names::FLOWS))?;
                    }
                }
                done => done.map_err(failed("write", names::FLOWS))?,
            }
        }
        Ok(())
    }

    /// Forgets flows last seen too long before `now` (seconds since boot); says how many are left.
    pub fn sweep_flows(&mut self, now: u32) -> Result<usize, KernelError> {
        let config = self.config()?;
        let is_over = |flow: &FlowKey, value: &FlowValue| value.is_over(flow.protocol, &config, now);
        let mut over = Vec::new();
        let mut left = 0;
        for entry in self.flows.iter() {
            let (Raw(flow), Raw(value)) = entry.map_err(failed("read", names::FLOWS))?;
            if is_over(&flow, &value) { over.push(flow) } else { left += 1 }
        }
        for flow in over {
            // Looked at again at the last moment: a packet may have come since.
            match self.flows.get(&Raw(flow), 0) {
                Ok(Raw(value)) if is_over(&flow, &value) => {
                    removed(names::FLOWS, self.flows.remove(&Raw(flow)))?;
                }
                _ => left += 1,
            }
        }
        Ok(left)
    }
}

fn value_of(prefix: Prefix) -> PrefixValue {
    PrefixValue::new(prefix.kind, prefix.peer).asking(prefix.asked, prefix.until)
}

/// An address as the ABI has it.
pub(super) fn address(address: IpAddr) -> Address {
    key(IpNet::from(address)).data()
}

fn key(net: IpNet) -> Key<Address> {
    let (bytes, length) = match net {
        IpNet::V4(v4) => (v4.network().to_ipv6_mapped().octets(), v4_mapped_length(v4.prefix_len())),
        IpNet::V6(v6) => (v6.network().octets(), u32::from(v6.prefix_len())),
    };
    let mut words = [0; 4];
    for (word, part) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([part[0], part[1], part[2], part[3]]);
    }
    Key::new(length, words)
}

fn net(length: u32, words: Address) -> Option<IpNet> {
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_exact_mut(4).zip(words) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    let address = Ipv6Addr::from(bytes);
    match address.to_ipv4_mapped().zip(length.checked_sub(96)) {
        Some((v4, length)) => IpNet::new(IpAddr::V4(v4), u8::try_from(length).ok()?).ok(),
        None => IpNet::new(IpAddr::V6(address), u8::try_from(length).ok()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_comes_back_from_its_key() {
        for text in
            ["10.244.1.0/24", "0.0.0.0/0", "192.0.2.1/32", "fd00:244:1::/64", "2001:db8::1/128", "::/0"]
        {
            let given: IpNet = text.parse().expect("net");
            let key = key(given);
            assert_eq!(net(key.prefix_len(), key.data()), Some(given));
        }
    }
}
