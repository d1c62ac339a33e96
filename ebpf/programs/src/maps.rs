use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, DevMapHash, HashMap, PerCpuArray},
    helpers::bpf_ktime_get_boot_ns,
    macros::btf_map,
};
use kubeveil_abi::{
    Address, COUNTERS as COUNTERS_LEN, Config, Counter, DeviceKind, FlowKey, FlowValue, MAX_DEVICES,
    MAX_FLOWS, MAX_ORIGINS, MAX_PEERS, MAX_SLOTS, Origin, PeerValue, PrefixValue,
};
use kubeveil_verdict::{Ask, Held, Owner, Route, Sight, Tables};

use crate::prefixes;

const NANOSECONDS: u64 = 1_000_000_000;

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

/// In the daemon's memory too, so that it can change a peer by one atomic store.
#[btf_map]
static PEERS: Array<u64, MAX_PEERS, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static SLOTS: Array<u32, MAX_SLOTS> = Array::new();

#[btf_map]
static DEVICES: HashMap<u32, u32, MAX_DEVICES> = HashMap::new();

#[btf_map]
static ALIVE: DevMapHash<MAX_ORIGINS> = DevMapHash::new();

/// Preallocated: an insertion fails when the table is full, never because an allocation in the midst of
/// a burst did. An element freed while a program looks at it may by then be another flow's; all that is
/// read is when it was last seen, and a moment too fresh only sends a packet through the tunnel.
#[btf_map]
static FLOWS: HashMap<FlowKey, FlowValue, MAX_FLOWS> = HashMap::new();

#[btf_map]
static COUNTERS: PerCpuArray<Counter, COUNTERS_LEN> = PerCpuArray::new();

/// The configuration, where it lies: a copy would take a good part of the stack. An array of one has it always.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Adds a packet to a counter of this CPU.
#[inline(always)]
pub fn count(index: u32, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own memory. A program that interrupts this one here may lose a count.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// How strict a flow is. A global function to the verifier, as `find_owner` is: which mode it was matters to nothing but the outcome.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn held(ask: u32) -> u32 {
    // An array of one has it always.
    config().map_or(u32::MAX, |config| kubeveil_verdict::held(Ask(ask), config).0)
}

/// How a packet to a peer travels now: a global function, as `held` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn route(index: u32, ask: u32) -> u64 {
    Route::of(Maps.peer(index), Held(held(ask)), &Maps).0
}

/// Notes a packet of a flow: a global function, as `held` is, and for the room that a flow takes on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow(
    remote_upper: u64,
    remote_lower: u64,
    local_upper: u64,
    local_lower: u64,
    rest: u64,
) -> u32 {
    let key = FlowKey {
        remote: prefixes::whole(&[remote_upper, remote_lower]),
        local: prefixes::whole(&[local_upper, local_lower]),
        protocol: (rest >> 32) as u32 & 0xff,
        ports: rest as u32,
    };
    let sight = Sight((rest >> 40) as u32);
    // An array of one has it always.
    config().map_or(0, |config| u32::from(kubeveil_verdict::follow(&key, sight, &Maps, config)))
}

/// The maps, as the decision sees them.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn prefix(&self, address: &Address) -> Option<PrefixValue> {
        prefixes::ask(address)
    }

    #[inline(always)]
    fn owner(&self, address: &Address) -> Option<Owner> {
        prefixes::owner_of(address)
    }

    #[inline(always)]
    fn held(&self, ask: Ask, _: &Config) -> Held {
        Held(held(ask.0))
    }

    #[inline(always)]
    fn peer(&self, index: u32) -> PeerValue {
        match PEERS.get_ptr(index) {
            // SAFETY: an aligned word of the map. One load, since the daemon stores to it meanwhile.
            Some(value) => PeerValue(unsafe { value.read_volatile() }),
            None => PeerValue::NO_TUNNEL,
        }
    }

    #[inline(always)]
    fn route(&self, index: u32, ask: Ask, _: &Config) -> Route {
        Route(route(index, ask.0))
    }

    #[inline(always)]
    fn slot(&self, slot: u8) -> u32 {
        SLOTS.get(u32::from(slot)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<DeviceKind> {
        // SAFETY: copied at once.
        let raw = unsafe { DEVICES.get(ifindex) }.copied()?;
        DeviceKind::from_raw(raw)
    }

    #[inline(always)]
    fn origin(&self, address: &Address) -> Origin {
        prefixes::find_origin(address)
    }

    #[inline(always)]
    fn is_alive(&self, origin: &Origin) -> bool {
        // Two that share a key can't both be there.
        ALIVE.get_ifindex(origin.key()) == Some(origin.device)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
        // SAFETY: copied at once; see `FLOWS` for an element that is freed meanwhile.
        unsafe { FLOWS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, value: FlowValue) -> bool {
        FLOWS.insert(key, value, 0).is_ok()
    }

    #[inline(always)]
    fn follow(&self, key: &FlowKey, sight: Sight, _: &Config) -> bool {
        let rest = u64::from(key.ports) | u64::from(key.protocol) << 32 | u64::from(sight.0) << 40;
        let ([remote_upper, remote_lower], [local_upper, local_lower]) =
            (prefixes::halves(&key.remote), prefixes::halves(&key.local));
        follow(remote_upper, remote_lower, local_upper, local_lower, rest) != 0
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: no argument, no side effect.
        let nanoseconds = unsafe { bpf_ktime_get_boot_ns() };
        (nanoseconds / NANOSECONDS) as u32
    }
}
