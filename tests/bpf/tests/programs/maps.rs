//! The maps of the object against the ABI.

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Map, MapData, MapType};
use kubeveil_abi as abi;
use kubeveil_verdict::testing::World;

use crate::kernel::Kernel;

/// Flags of a map (`include/uapi/linux/bpf.h`).
const NO_PREALLOC: u32 = 1;
/// The kernel sets it itself: a program that wrote to a device's entry could give it any device.
const READ_ONLY_BY_PROGRAMS: u32 = 1 << 7;
const MMAPABLE: u32 = 1 << 10;

/// Type, sizes of key and value, entries and flags of every map.
fn expected() -> [(&'static str, MapType, usize, usize, usize, u32); 13] {
    let address = size_of::<abi::Address>();
    [
        (abi::names::CONFIG, MapType::Array, 4, size_of::<abi::Config>(), 1, 0),
        (
            abi::names::PREFIXES,
            MapType::LpmTrie,
            4 + address,
            size_of::<abi::PrefixValue>(),
            abi::MAX_PREFIXES,
            NO_PREALLOC,
        ),
        // The daemon stores to it by itself.
        (abi::names::PEERS, MapType::Array, 4, size_of::<abi::PeerValue>(), abi::MAX_PEERS, MMAPABLE),
        (abi::names::SLOTS, MapType::Array, 4, 4, abi::MAX_SLOTS, 0),
        (abi::names::DEVICES, MapType::Hash, 4, 4, abi::MAX_DEVICES, 0),
        (
            abi::names::ORIGINS,
            MapType::Hash,
            address,
            size_of::<abi::Origin>(),
            abi::MAX_ORIGINS,
            NO_PREALLOC,
        ),
        // The kernel's own layout: ifindex, and a program that is none (`struct bpf_devmap_val`).
        (abi::names::ALIVE, MapType::DevMapHash, 4, 8, abi::MAX_ORIGINS, READ_ONLY_BY_PROGRAMS),
        (
            abi::names::FLOWS,
            MapType::Hash,
            size_of::<abi::FlowKey>(),
            size_of::<abi::FlowValue>(),
            abi::MAX_FLOWS,
            0,
        ),
        (abi::names::COUNTERS, MapType::PerCpuArray, 4, size_of::<abi::Counter>(), abi::COUNTERS, 0),
        (abi::names::EPOCH, MapType::Array, 4, 4, 1, 0),
        (abi::names::WATCH, MapType::Array, 4, 4, abi::WATCH_WORDS as usize, 0),
        (abi::names::WATCHED, MapType::Hash, size_of::<abi::WatchKey>(), 4, abi::MAX_WATCHED, NO_PREALLOC),
        (
            abi::names::SEEN,
            MapType::PerCpuHash,
            size_of::<abi::SeenKey>(),
            size_of::<abi::Seen>(),
            abi::MAX_SEEN,
            NO_PREALLOC,
        ),
    ]
}

pub(crate) fn are_as_the_abi_says() -> Result<()> {
    let mut kernel = Kernel::with(&World::default())?;
    ensure!(expected().map(|map| map.0) == abi::names::MAPS, "another set of maps");
    for (name, kind, key, value, entries, flags) in expected() {
        let info = data(kernel.map(name)?)?.info()?;
        let found = (
            info.map_type()?,
            usize::try_from(info.key_size())?,
            usize::try_from(info.value_size())?,
            usize::try_from(info.max_entries())?,
            info.map_flags(),
        );
        ensure!(found == (kind, key, value, entries, flags), "{name} is {found:?}");
        let short = info.name_as_str().context("a map without a name")?;
        ensure!(short == name, "{name} is named {short}");
    }
    Ok(())
}

fn data(map: &Map) -> Result<&MapData> {
    Ok(match map {
        Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data) => data,
        Map::DevMapHash(data) | Map::PerCpuHashMap(data) => data,
        other => bail!("{other:?}"),
    })
}
