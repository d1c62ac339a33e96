//! What somebody watches: packets between addresses that are named, by verdict. As long as nobody does, a packet costs one
//! look into an array.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, PerCpuHashMap},
    helpers::bpf_ktime_get_boot_ns,
    macros::btf_map,
};
use kubeveil_abi::{
    Address, MAX_SEEN, MAX_WATCHED, Seen, SeenKey, WATCH_FLOWS, WATCH_LOST, WATCH_WORDS, WatchKey,
};

use crate::skb::Skb;

#[btf_map]
static WATCH: Array<u32, { WATCH_WORDS as usize }> = Array::new();

#[btf_map]
static WATCHED: HashMap<WatchKey, u32, MAX_WATCHED, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
static SEEN: PerCpuHashMap<SeenKey, Seen, MAX_SEEN, { BPF_F_NO_PREALLOC as usize }> = PerCpuHashMap::new();

/// Is anything watched?
#[inline(always)]
pub fn is_on() -> bool {
    WATCH.get(WATCH_FLOWS).is_some_and(|flows| *flows != 0)
}

/// Adds a packet of `length` bytes, counted at `counter`, to what was seen of its flow. A global function to the verifier, as
/// `find_owner` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn watch(skb: *mut __sk_buff, counter: u32, length: u32) -> u32 {
    let skb = Skb { raw: skb };
    if let Some(ends) = kubeveil_verdict::ends(skb.meta().protocol, &skb) {
        see(ends, counter, length);
    }
    // Such a function has to return something.
    0
}

/// The same of a packet whose ends are known.
#[inline(always)]
pub fn see([source, destination]: [Address; 2], counter: u32, length: u32) {
    // SAFETY: copied at once.
    let Some(watch) = unsafe { WATCHED.get(WatchKey { source, destination }) }.copied() else {
        return;
    };
    let key = SeenKey { watch, counter };
    // SAFETY: no argument, no side effect.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if add(&key, length, now) {
        return;
    }
    let first = Seen { packets: 1, bytes: u64::from(length), last: now };
    // Another CPU may have been first. Else there was no memory, or no room for another verdict, and whoever reads it is told.
    if SEEN.insert(key, first, BPF_NOEXIST.into()).is_err()
        && !add(&key, length, now)
        && let Some(lost) = WATCH.get_ptr_mut(WATCH_LOST)
    {
        // SAFETY: an aligned word of the map, to which all write the same.
        unsafe { lost.write_volatile(1) };
    }
}

#[inline(always)]
fn add(key: &SeenKey, length: u32, now: u64) -> bool {
    let Some(seen) = SEEN.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: this CPU's own memory, which lives until the program ends. A program that interrupts this one here may lose a count.
    unsafe {
        (*seen).packets += 1;
        (*seen).bytes += u64::from(length);
        (*seen).last = now;
    }
    true
}
