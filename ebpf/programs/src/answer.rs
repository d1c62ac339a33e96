//! Turns a packet that does not fit into the tunnel into the message that says so to its sender.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_store_bytes},
};
use kubeveil_verdict::{Decision, too_big};

use crate::skb::Skb;

/// Longest run of bytes that `bpf_csum_diff` sums (kernel `net/core/filter.c`, `MAX_BPF_STACK`).
const CHUNK: u32 = 512;

/// The message comes in by the tunnel's device, as if the far end had sent it: so the kernel routes it to the
/// sender, through a translation of addresses if there was one. Whatever fails, the packet is dropped.
#[inline(always)]
pub fn too_big(skb: &Skb, decision: &Decision) -> i32 {
    let done = if skb.is_v6() { tell_v6(skb, decision.tell_mtu) } else { tell_v4(skb, decision.tell_mtu) };
    match done {
        // SAFETY: takes an index.
        Some(()) => unsafe { bpf_redirect(decision.ifindex, BPF_F_INGRESS.into()) as i32 },
        None => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn tell_v4(skb: &Skb, mtu: u32) -> Option<()> {
    let packet = skb.load::<5>(0)?;
    let link = cut(skb, too_big::QUOTE_V4)?;
    let quote = checksum::<{ too_big::QUOTE_V4 }>(skb, link)?;
    prepend(skb, link, &too_big::head_v4(&packet, mtu, quote))
}

#[inline(always)]
fn tell_v6(skb: &Skb, mtu: u32) -> Option<()> {
    let packet = skb.load::<10>(0)?;
    let link = cut(skb, too_big::QUOTE_V6)?;
    let quote = checksum::<{ too_big::QUOTE_V6 }>(skb, link)?;
    prepend(skb, link, &too_big::head_v6(&packet, mtu, quote))
}

/// Leaves `length` bytes of the packet, all in one piece. Returns the link header's length.
#[inline(always)]
fn cut(skb: &Skb, length: u32) -> Option<u32> {
    let link = skb.link_header()?;
    // SAFETY: takes the context; we hold no pointer into the packet.
    let done = unsafe { bpf_skb_change_tail(skb.raw, link + length, 0) };
    (done == 0).then_some(link)
}

/// The sum over `LENGTH` bytes behind the link header.
#[inline(always)]
fn checksum<const LENGTH: u32>(skb: &Skb, link: u32) -> Option<u32> {
    let mut sum = 0;
    let mut at = 0;
    while at < LENGTH {
        let size = if LENGTH - at < CHUNK { LENGTH - at } else { CHUNK };
        let chunk = skb.contiguous(link + at, size)?;
        // SAFETY: `size` bytes from `chunk` on were held against the end of the packet.
        let done = unsafe { bpf_csum_diff(ptr::null_mut(), 0, chunk.cast_mut().cast(), size, sum) };
        sum = u32::try_from(done).ok()?;
        at += size;
    }
    Some(sum)
}

#[inline(always)]
fn prepend<const WORDS: usize>(skb: &Skb, link: u32, head: &[u32; WORDS]) -> Option<()> {
    let size = size_of::<[u32; WORDS]>() as u32;
    // SAFETY: the helpers take the context and check offsets against the packet; `head` outlives the calls.
    let done = unsafe {
        match bpf_skb_adjust_room(skb.raw, size as i32, BPF_ADJ_ROOM_MAC, 0) {
            0 => bpf_skb_store_bytes(skb.raw.cast(), link, head.as_ptr().cast(), size, 0),
            failed => failed,
        }
    };
    (done == 0).then_some(())
}
