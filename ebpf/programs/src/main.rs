//! The tc programs: thin shells around `kubeveil-verdict`, which decides.
//!
//! A shell reads the packet and the maps for it, counts, and carries the decision out. The names of
//! maps and programs are those of `kubeveil_abi::names`. Without a configuration it drops, and has nowhere to
//! count: that is for the verifier alone, since an array of one entry lacks none.
#![no_std]
#![no_main]

mod act;
mod answer;
mod backstop;
mod maps;
mod prefixes;
mod skb;
mod watch;

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use kubeveil_abi::{Direction, port_number};

use crate::{act::NEXT, maps::Maps, skb::Skb};

/// Egress of underlay devices.
#[classifier]
pub fn steer(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let Some(config) = maps::config() else {
        return TC_ACT_SHOT;
    };
    let decision = kubeveil_verdict::steer(&skb.meta(), &skb, &Maps, config);
    act::carry_out(&skb, Direction::Egress, &decision)
}

/// Egress of overlays' devices that the tunnel replaces.
#[classifier]
pub fn replace(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let Some(config) = maps::config() else {
        return TC_ACT_SHOT;
    };
    let decision = kubeveil_verdict::replace(&skb.meta(), &skb, &Maps, config);
    act::carry_out(&skb, Direction::Egress, &decision)
}

/// Ingress of underlay devices.
#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let Some(config) = maps::config() else {
        return TC_ACT_SHOT;
    };
    let decision = kubeveil_verdict::guard(&skb.meta(), &skb, &Maps, config);
    act::carry_out(&skb, Direction::Ingress, &decision)
}

/// Ingress of our WireGuard devices.
#[classifier]
pub fn deliver(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let Some(config) = maps::config() else {
        return TC_ACT_SHOT;
    };
    let decision = kubeveil_verdict::deliver(&skb.meta(), &skb, &Maps, config);
    act::carry_out(&skb, Direction::Tunnel, &decision)
}

/// Ingress of bridges' ports with pods behind them: which port it was. Whatever stands there already a pod may have written.
#[classifier]
pub fn origin(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context in; tc programs may read the one field and write the other.
    unsafe { (*skb).tc_index = u32::from(port_number((*skb).ifindex)) };
    NEXT
}

/// The kernel asks for GPL compatibility and knows a handful of strings only
/// (`include/linux/license.h`): our Apache-2.0 OR GPL-2.0-only is "GPL" to it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse a program from which this can be reached.
    loop {}
}
