//! Whose an address is.
//!
//! In a large cluster the trie takes some 100 ns an address, and `steer` asks for two. So what it has
//! answered is kept, a table for each CPU, for as long as `EPOCH` stands at the same settled value
//! (`kubeveil_abi::is_settled`).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use kubeveil_abi::{Address, MAX_ORIGINS, MAX_PREFIXES, Origin, PrefixValue, is_settled};
use kubeveil_verdict::Owner;

use crate::maps::Maps;

/// Answers that are kept on each CPU: 2^11 of 48 bytes, which its second cache holds.
const RECENT_BITS: u32 = 11;

#[btf_map]
static PREFIXES: LpmTrie<Address, PrefixValue, MAX_PREFIXES> = LpmTrie::new();

/// Few, so allocated as they come. The memory of one that is taken out while a program looks at it may be another's then: for that
/// moment a pod that is gone counts as one that is there.
#[btf_map]
static ORIGINS: HashMap<Address, Origin, MAX_ORIGINS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
static EPOCH: Array<u32, 1> = Array::new();

/// Not of the ABI and not pinned: every load of the programs begins with an empty one.
#[btf_map]
static RECENT: PerCpuArray<Recent, { 1 << RECENT_BITS }> = PerCpuArray::new();

/// Whose an address is, and by which device it speaks if it is a pod of this node.
type Found = (PrefixValue, Origin);

/// An answer of both maps. Addresses without an owner are not kept: traffic with the internet would
/// push the cluster's out, and the trie is quick to say no.
#[repr(C)]
#[derive(Clone, Copy)]
struct Recent {
    address: Halves,
    value: PrefixValue,
    /// Whether it lives is asked for every packet.
    origin: Origin,
    /// In force only while `EPOCH` is the same.
    epoch: u32,
    reserved: u32,
}

/// Who has the address.
#[inline(always)]
pub fn owner_of(address: &Address) -> Option<Owner> {
    let [upper, lower] = halves(address);
    Owner::unpack(find_owner(upper, lower))
}

/// As it lies in memory: half as many words to keep, and to compare.
pub type Halves = [u64; 2];

#[inline(always)]
pub fn halves(&[a, b, c, d]: &Address) -> Halves {
    let half = |first: u32, second: u32| u64::from(first) | u64::from(second) << 32;
    [half(a, b), half(c, d)]
}

#[inline(always)]
pub fn whole(&[upper, lower]: &Halves) -> Address {
    [upper as u32, (upper >> 32) as u32, lower as u32, (lower >> 32) as u32]
}

/// A global function to the verifier, which looks at it once, by itself, and not anew in every state that leads to
/// it (kernel `kernel/bpf/verifier.c`, `do_check_subprogs`): so address and answer are plain numbers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_owner(upper: u64, lower: u64) -> u64 {
    Owner::pack(find(&[upper, lower]).map(|(value, origin)| Owner::of(value, origin, &Maps)))
}

/// The longest prefix that holds the address, and its device.
#[inline(always)]
fn find(address: &Halves) -> Option<Found> {
    // Read before the trie is: what is kept is then at least as new as the epoch that it is kept under.
    let epoch = match EPOCH.get_ptr(0) {
        // SAFETY: an aligned word of the map. One load, since the daemon stores to it meanwhile.
        Some(epoch) => unsafe { epoch.read_volatile() },
        None => 0,
    };
    let kept = if is_settled(epoch) { RECENT.get_ptr_mut(place(address)) } else { None };
    // SAFETY: this CPU's own memory, and tc programs don't interrupt each other (they run with
    // softirqs off).
    let kept = kept.map(|recent| unsafe { &mut *recent });
    // Half by half: the comparison of arrays is a call of a byte-wise memcmp.
    if let Some(recent) = &kept
        && recent.epoch == epoch
        && (0..2).all(|i| recent.address[i] == address[i])
    {
        return Some((recent.value, recent.origin));
    }
    let found = ask_both(&whole(address))?;
    if let Some(recent) = kept {
        let (value, origin) = found;
        *recent = Recent { address: *address, value, origin, epoch, reserved: 0 };
    }
    Some(found)
}

/// In this order: the daemon says who has an address now, and then by which device.
#[inline(always)]
fn ask_both(address: &Address) -> Option<Found> {
    let origin = find_origin(address);
    Some((ask(address)?, origin))
}

/// The device of a pod of this node.
#[inline(always)]
pub fn find_origin(address: &Address) -> Origin {
    // SAFETY: copied at once; see `ORIGINS` for one that is taken out meanwhile.
    unsafe { ORIGINS.get(address) }.copied().unwrap_or(Origin::NONE)
}

/// The same without what is kept: for whoever runs where softirqs may interrupt it.
#[inline(always)]
pub fn ask(address: &Address) -> Option<PrefixValue> {
    PREFIXES.get(&Key::new(128, *address)).copied()
}

/// Where an address is kept. Somebody who picks addresses that share a place slows down nobody but
/// those who use them.
#[inline(always)]
fn place(address: &Halves) -> u32 {
    // 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4).
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let [upper, lower] = *address;
    let mixed = upper.rotate_left(21) ^ lower;
    (mixed.wrapping_mul(MULTIPLIER) >> (64 - RECENT_BITS)) as u32
}
