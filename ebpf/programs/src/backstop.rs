//! The netfilter program (`BPF_PROG_TYPE_NETFILTER`, kernel 6.4 and later) at POST_ROUTING of both families.
//!
//! aya knows no such programs, so this one stands in the section `classifier` for the parser's sake, and whoever
//! loads it gives the kernel the right type. It can call no kfunc, so no dynptr: the packet's address is read
//! as a number and followed by `bpf_probe_read_kernel`, which wants `CAP_PERFMON` and a kernel that is not locked
//! down for confidentiality.
//!
//! It may run in a process' context, where softirqs interrupt it: what the tc programs keep of their look-ups is
//! not for it.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use kubeveil_abi::{
    Address, DeviceKind, Direction, FlowKey, FlowValue, Origin, PeerValue, PrefixValue, Verdict,
    counter_index,
};
use kubeveil_verdict::{Bytes, Hop, Tables};

use crate::{
    maps::{self, Maps},
    prefixes, watch,
};

/// Verdicts of netfilter (`include/uapi/linux/netfilter.h`).
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;

/// The program's one argument (`struct bpf_nf_ctx`, `include/linux/netfilter.h`): pointers that the verifier follows by type.
#[repr(C)]
pub struct Context {
    state: usize,
    skb: usize,
}

/// Offsets in the kernel's structures, see [`kubeveil_abi::names::FIELDS`]. In a map that is read-only and frozen
/// they are constants to the verifier, as an offset has to be.
#[unsafe(no_mangle)]
static STATE_OUT: u32 = 0;
#[unsafe(no_mangle)]
static DEVICE_IFINDEX: u32 = 0;
#[unsafe(no_mangle)]
static DEVICE_EGRESS: u32 = 0;
#[unsafe(no_mangle)]
static SKB_DATA: u32 = 0;
#[unsafe(no_mangle)]
static SKB_LEN: u32 = 0;
#[unsafe(no_mangle)]
static SKB_DATA_LEN: u32 = 0;
#[unsafe(no_mangle)]
static SKB_IIF: u32 = 0;
#[unsafe(no_mangle)]
static SKB_TC_INDEX: u32 = 0;

/// POST_ROUTING.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub extern "C" fn backstop(context: *const Context) -> i32 {
    // SAFETY: the kernel hands a valid context in; the offsets are those of its own structures, and the verifier
    // holds every access to them.
    let (hop, packet) = unsafe {
        let Context { state, skb } = *context;
        let out = field::<usize>(state, &STATE_OUT);
        let hop = Hop {
            ingress_ifindex: field::<i32>(skb, &SKB_IIF) as u32,
            egress_ifindex: field(out, &DEVICE_IFINDEX),
            has_programs: field::<usize>(out, &DEVICE_EGRESS) != 0,
        };
        let length: u32 = field(skb, &SKB_LEN);
        let beyond: u32 = field(skb, &SKB_DATA_LEN);
        let contiguous = length.saturating_sub(beyond);
        let port = field(skb, &SKB_TC_INDEX);
        (hop, Packet { data: field(skb, &SKB_DATA), length, contiguous, port })
    };
    let Some(config) = maps::config() else {
        return NF_DROP;
    };
    let Some(decision) = kubeveil_verdict::backstop(hop, &packet, &Uncached, config) else {
        return NF_ACCEPT;
    };
    let counter = counter_index(Direction::Backstop, decision.mode, decision.reason);
    maps::count(counter, decision.length);
    if watch::is_on()
        && let Some(ends) = kubeveil_verdict::ends_of_ip(&packet)
    {
        watch::see(ends, counter, decision.length);
    }
    match decision.verdict() {
        Verdict::Drop => NF_DROP,
        _ => NF_ACCEPT,
    }
}

/// A field of a kernel's structure.
///
/// # Safety
/// `structure` is what the verifier takes for a pointer to a structure that has a `T` there.
#[inline(always)]
unsafe fn field<T: Copy>(structure: usize, offset: &'static u32) -> T {
    // SAFETY: of the offset: it is initialised memory. Volatile, or the compiler takes the zero that stands in the
    // source. Of the field: the caller's word.
    unsafe {
        let offset = core::ptr::read_volatile(offset) as usize;
        *((structure + offset) as *const T)
    }
}

/// The packet: at this hook it begins with its IP header.
struct Packet {
    data: usize,
    length: u32,
    /// Bytes in one piece. The kernel's own IP code has made the header so.
    contiguous: u32,
    port: u16,
}

impl Bytes for Packet {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let size = size_of::<[u32; N]>() as u32;
        if offset + size > self.contiguous {
            return None;
        }
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: the helper fills all of `words`, or fails; an address that can't be read is an error of its.
        unsafe {
            let from = (self.data + offset as usize) as *const _;
            match bpf_probe_read_kernel(words.as_mut_ptr().cast(), size, from) {
                0 => Some(words.assume_init()),
                _ => None,
            }
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.length
    }

    /// Not asked: no header's length is held against the packet's.
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        self.port
    }
}

/// [`Maps`], but every address is looked up anew.
struct Uncached;

impl Tables for Uncached {
    #[inline(always)]
    fn prefix(&self, address: &Address) -> Option<PrefixValue> {
        prefixes::ask(address)
    }

    #[inline(always)]
    fn peer(&self, index: u32) -> PeerValue {
        Maps.peer(index)
    }

    #[inline(always)]
    fn slot(&self, slot: u8) -> u32 {
        Maps.slot(slot)
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<DeviceKind> {
        Maps.device(ifindex)
    }

    #[inline(always)]
    fn origin(&self, address: &Address) -> Origin {
        Maps.origin(address)
    }

    #[inline(always)]
    fn is_alive(&self, origin: &Origin) -> bool {
        Maps.is_alive(origin)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
        Maps.flow(key)
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, value: FlowValue) -> bool {
        Maps.remember(key, value)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        Maps.now()
    }
}
