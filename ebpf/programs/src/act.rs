use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_store_bytes, bpf_skb_vlan_pop},
};
use kubeveil_abi::{Direction, FlowMode, Reason, Verdict, counter_index};
use kubeveil_verdict::{Decision, MssClamp};

use crate::{answer, maps, skb::Skb, watch};

/// The next program of the device decides: `TCX_NEXT`, and for clsact `TC_ACT_UNSPEC`; both are -1
/// (`include/uapi/linux/bpf.h`, `enum tcx_action_base`).
pub const NEXT: i32 = TC_ACT_UNSPEC;

/// VLAN tags of one packet: two in its bytes (the parser allows no more), one in its metadata.
const MAX_TAGS: usize = 3;

/// Counts the decision and does what it says.
#[inline(always)]
pub fn carry_out(skb: &Skb, direction: Direction, decision: &Decision) -> i32 {
    let verdict = decision.verdict();
    let is_tunnelled = matches!(verdict, Verdict::Tunnel | Verdict::Wrap | Verdict::Replace);
    let is_answered = matches!(verdict, Verdict::Drop) && decision.tell_mtu != 0;
    // A tag would go into the tunnel with the packet, and the far end knows none.
    if (is_tunnelled || is_answered) && !pop_tags(skb) {
        // Whatever it was held to, it does not pass.
        note(skb, counter_index(direction, FlowMode::Require, Reason::Unparsable), decision.length);
        return TC_ACT_SHOT;
    }
    note(skb, counter_index(direction, decision.mode, decision.reason), decision.length);
    match verdict {
        Verdict::Pass => {
            let is_bypassed = matches!((direction, decision.reason), (Direction::Egress, Reason::Bypassed));
            if is_bypassed && !decision.observed() {
                lower_mss_of_bypassed(skb.raw);
            }
            NEXT
        }
        Verdict::Drop if is_answered => answer::too_big(skb, decision),
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Tunnel | Verdict::Wrap | Verdict::Replace => {
            if decision.clamp.is_needed() {
                lower_mss(skb, &decision.clamp);
            }
            // SAFETY: takes an index; 0 is the egress of that device. The kernel takes the link
            // header off on the way into a device that has none.
            unsafe { bpf_redirect(decision.ifindex, 0) as i32 }
        }
    }
}

/// Counts the packet, and shows it to whoever watches.
#[inline(always)]
fn note(skb: &Skb, counter: u32, length: u32) {
    maps::count(counter, length);
    if watch::is_on() {
        watch::watch(skb.raw, counter, length);
    }
}

#[inline(always)]
fn pop_tags(skb: &Skb) -> bool {
    for _ in 0..MAX_TAGS {
        if !skb.is_tagged() {
            return true;
        }
        // SAFETY: takes the context only; we hold no pointer into the packet.
        if unsafe { bpf_skb_vlan_pop(skb.raw) } != 0 {
            return false;
        }
    }
    !skb.is_tagged()
}

/// A global function to the verifier: looked at once, and apart from what most packets go through.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lower_mss_of_bypassed(skb: *mut __sk_buff) -> u32 {
    let skb = Skb { raw: skb };
    if let Some(config) = maps::config() {
        let clamp = kubeveil_verdict::clamp_of_bypassed(&skb.meta(), &skb, config);
        if clamp.is_needed() {
            lower_mss(&skb, &clamp);
        }
    }
    // Such a function has to return something.
    0
}

/// Rewrites the option. A failure leaves it as it was: the packet is none the worse for it.
#[inline(always)]
fn lower_mss(skb: &Skb, clamp: &MssClamp) {
    let Some(link) = skb.link_header() else {
        return;
    };
    let (old, new) = clamp.checksum_words();
    let value = clamp.new.to_be();
    // SAFETY: both helpers check the offsets against the packet; `value` outlives the call. A checksum
    // that the device is to compute (CHECKSUM_PARTIAL) is left to it by the second.
    unsafe {
        let from = (&raw const value).cast();
        if bpf_skb_store_bytes(skb.raw.cast(), link + clamp.offset, from, 2, 0) == 0 {
            let size = size_of::<u16>() as u64;
            bpf_l4_csum_replace(skb.raw, link + clamp.checksum, old.into(), new.into(), size);
        }
    }
}
