use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_skb_pull_data},
    programs::TcContext,
};
use kubeveil_abi::Config;
use kubeveil_verdict::{Bytes, Content, Fitting, Meta, Packet, Tables, Transport, is_vlan};

use crate::maps::{self, Maps};

/// How much is made contiguous when a header is not: two VLAN tags, both IP headers of an ICMP error
/// and generous extension headers.
const PULL: u32 = 256;
/// Length of an Ethernet header (`ETH_HLEN`).
const ETHERNET: u32 = 14;

/// The packet at hand.
pub struct Skb {
    pub raw: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.skb.skb }
    }

    #[inline(always)]
    pub fn meta(&self) -> Meta {
        // SAFETY: the kernel hands a valid context in; these fields may be read by tc programs.
        unsafe {
            Meta {
                protocol: u16::from_be((*self.raw).protocol as u16),
                ingress_ifindex: (*self.raw).ingress_ifindex,
                mark: (*self.raw).mark,
            }
        }
    }

    /// Whether a VLAN tag lies in the metadata (offloaded) or at the head of the packet.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: as in `meta`.
        unsafe { (*self.raw).vlan_present != 0 || is_vlan(u16::from_be((*self.raw).protocol as u16)) }
    }

    /// Whether it is IPv6; a VLAN tag must have been popped before.
    #[inline(always)]
    pub fn is_v6(&self) -> bool {
        /// `ETH_P_IPV6` (`include/uapi/linux/if_ether.h`).
        const IPV6: u16 = 0x86dd;
        self.meta().protocol == IPV6
    }

    /// `size` bytes at `offset` from the packet's beginning, if they lie in its linear part. Not to be held over a
    /// call that may move the packet.
    #[inline(always)]
    pub fn contiguous(&self, offset: u32, size: u32) -> Option<*const u8> {
        // SAFETY: as in `meta`; the verifier knows these two for the bounds of the packet.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let chunk = start + offset as usize;
        (chunk + size as usize <= end).then_some(chunk as *const u8)
    }

    /// From the network header on, in what is contiguous.
    #[inline(always)]
    pub fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: the helper fills all of `words`, or fails.
        unsafe {
            let to = words.as_mut_ptr().cast();
            let size = size_of::<[u32; N]>() as u32;
            match bpf_skb_load_bytes_relative(self.raw.cast(), offset, to, size, BPF_HDR_START_NET) {
                0 => Some(words.assume_init()),
                _ => None,
            }
        }
    }

    /// Length of the link header, if it can be told: the network header lies either behind an Ethernet
    /// header, or (WireGuard, TUN, IPIP) at the very beginning. Its first 20 bytes say which. A packet
    /// made to look like both misleads us about nobody's bytes but its own.
    #[inline(always)]
    pub fn link_header(&self) -> Option<u32> {
        let header = self.load::<5>(0)?;
        for length in [ETHERNET, 0] {
            let mut words = MaybeUninit::<[u32; 5]>::uninit();
            // SAFETY: as in `load`.
            let words = unsafe {
                let to = words.as_mut_ptr().cast();
                match bpf_skb_load_bytes(self.raw.cast(), length, to, 20) {
                    0 => words.assume_init(),
                    _ => continue,
                }
            };
            // Word by word: the comparison of arrays is a call of a byte-wise memcmp.
            if (0..5).all(|i| words[i] == header[i]) {
                return Some(length);
            }
        }
        None
    }
}

/// IPv6 extension headers. A global function to the verifier, as `find_owner` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk(skb: *mut __sk_buff, next: u32, at: u32) -> u64 {
    Transport::pack(kubeveil_verdict::walk(&Skb { raw: skb }, next, at))
}

/// What a packet needs on its way into the tunnel; its outline and the answer are packed into words.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fitting(skb: *mut __sk_buff, outline: u64) -> u64 {
    let Some(config) = maps::config() else {
        return Fitting::NOT.pack();
    };
    kubeveil_verdict::fitting(&Skb { raw: skb }, &Packet::of_outline(outline), config).pack()
}

/// What is inside of an envelope.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn inside(skb: *mut __sk_buff, transport: u64) -> u64 {
    let (Some(transport), Some(config)) = (Transport::unpack(transport), maps::config()) else {
        return Content::Unreadable.pack();
    };
    kubeveil_verdict::inside(&Skb { raw: skb }, &transport, &Maps, config).pack()
}

impl Bytes for Skb {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        if let Some(words) = self.load(offset) {
            return Some(words);
        }
        // Some drivers leave headers in page fragments, where the helper does not look.
        let length = self.length();
        // SAFETY: takes the context and a length; we hold no pointer into the packet.
        unsafe { bpf_skb_pull_data(self.raw, if length < PULL { length } else { PULL }) };
        self.load(offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: as in `meta`.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: as in `meta`.
        unsafe { (*self.raw).gso_size }
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        // SAFETY: as in `meta`.
        unsafe { (*self.raw).tc_index as u16 }
    }

    #[inline(always)]
    fn walk(&self, next: u32, at: u32) -> Option<Transport> {
        Transport::unpack(walk(self.raw, next, at))
    }

    #[inline(always)]
    fn fitting(&self, packet: &Packet, _: &Config) -> Fitting {
        Fitting::unpack(fitting(self.raw, packet.outline()))
    }

    #[inline(always)]
    fn inside(&self, transport: &Transport, _: &impl Tables, _: &Config) -> Content {
        Content::unpack(inside(self.raw, Transport::pack(Some(*transport))))
    }
}
