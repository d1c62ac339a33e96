//! What somebody watches: the kernel's part of `kubeveil explain --watch`.

use std::{collections::BTreeMap, io, time::Duration};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap};
use kubeveil_abi::{Seen, SeenKey, WATCH_FLOWS, WATCH_LOST, WatchKey, counted, names};

use super::{
    Pins,
    maps::{Raw, address, failed, removed, written},
};
use crate::{Count, Flow, KernelError, Sighting, Sightings};

/// The maps of it.
pub struct Watches {
    words: Array<MapData, u32>,
    watched: HashMap<MapData, Raw<WatchKey>, u32>,
    seen: PerCpuHashMap<MapData, Raw<SeenKey>, Raw<Seen>>,
    /// By their numbers.
    flows: BTreeMap<u32, Flow>,
    /// No number is given twice: a program that is at work may still add to one that is gone.
    next: u32,
}

impl Watches {
    /// Opens them, and forgets what a daemon that was killed had watched.
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let data = |name| MapData::from_pin(pins.map(name)).map_err(failed("open", name));
        let mut watches = Self {
            words: Map::Array(data(names::WATCH)?).try_into().map_err(failed("open", names::WATCH))?,
            watched: Map::HashMap(data(names::WATCHED)?)
                .try_into()
                .map_err(failed("open", names::WATCHED))?,
            seen: Map::PerCpuHashMap(data(names::SEEN)?).try_into().map_err(failed("open", names::SEEN))?,
            flows: BTreeMap::new(),
            next: 0,
        };
        if watches.word(WATCH_FLOWS)? != 0 {
            watches.set(&[])?;
        }
        Ok(watches)
    }

    fn word(&self, at: u32) -> Result<u32, KernelError> {
        self.words.get(&at, 0).map_err(failed("read", names::WATCH))
    }

    fn set_word(&mut self, at: u32, value: u32) -> Result<(), KernelError> {
        written(names::WATCH, self.words.set(at, value, 0))
    }

    /// Watches these flows from now on, and no others; what was seen is forgotten.
    pub fn set(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        self.set_word(WATCH_FLOWS, 0)?;
        self.flows.clear();
        for key in keys(names::WATCHED, self.watched.keys())? {
            removed(names::WATCHED, self.watched.remove(&key))?;
        }
        for key in keys(names::SEEN, self.seen.keys())? {
            removed(names::SEEN, self.seen.remove(&key))?;
        }
        self.set_word(WATCH_LOST, 0)?;
        for flow in flows {
            let key = WatchKey { source: address(flow.source), destination: address(flow.destination) };
            written(names::WATCHED, self.watched.insert(Raw(key), self.next, 0))?;
            self.flows.insert(self.next, *flow);
            self.next = self.next.wrapping_add(1);
        }
        self.set_word(WATCH_FLOWS, u32::try_from(flows.len()).unwrap_or(u32::MAX))
    }

    /// What was seen of them.
    pub fn seen(&self) -> Result<Sightings, KernelError> {
        if self.flows.is_empty() {
            let lost = io::Error::other("its maps were made anew meanwhile; ask again");
            return Err(KernelError::new("read", "what is watched", lost));
        }
        let mut found = Vec::new();
        for entry in self.seen.iter() {
            let (Raw(key), cpus) = entry.map_err(failed("read", names::SEEN))?;
            let Some((flow, (direction, mode, reason))) =
                self.flows.get(&key.watch).zip(counted(key.counter))
            else {
                continue;
            };
            let packets = cpus.iter().map(|cpu| cpu.0.packets).sum();
            let bytes = cpus.iter().map(|cpu| cpu.0.bytes).sum();
            let last = cpus.iter().map(|cpu| cpu.0.last).max().unwrap_or_default();
            let count = Count { direction, mode, reason, packets, bytes };
            found.push(Sighting { flow: *flow, count, last: Duration::from_nanos(last) });
        }
        found
            .sort_by_key(|seen| (seen.flow, seen.count.direction as u32, seen.count.reason, seen.count.mode));
        Ok(Sightings { found, is_short: self.word(WATCH_LOST)? != 0 })
    }
}

fn keys<K>(map: &str, keys: impl Iterator<Item = Result<K, MapError>>) -> Result<Vec<K>, KernelError> {
    keys.collect::<Result<_, _>>().map_err(failed("read", map))
}
