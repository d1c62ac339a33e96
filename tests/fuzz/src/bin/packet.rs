//! What becomes of any bytes, in any state of the maps.
#![no_main]

use std::net::IpAddr;

use kubeveil_abi::{Asked, BYPASS_GRACE, FWMARK, Mode, PeerState, PrefixKind, Reason, Verdict};
use kubeveil_tests_fuzz::{Case, DEVICES, NOW, Program, case};
use kubeveil_verdict::{
    Decision, Hop, Tables as _, backstop, deliver, guard, replace, steer,
    testing::{Slice, address},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(case) = case(data) else { return };
    let bytes = Slice { segment: case.segment, ..Slice::new(case.bytes) };
    let (meta, world, config) = (&case.meta, &case.world, &case.world.config);
    let decision = match case.program {
        Program::Steer => steer(meta, &bytes, world, config),
        Program::Replace => replace(meta, &bytes, world, config),
        Program::Guard => guard(meta, &bytes, world, config),
        Program::Deliver => deliver(meta, &bytes, world, config),
        Program::Backstop => {
            let ingress_ifindex = meta.ingress_ifindex;
            let hop = Hop { ingress_ifindex, egress_ifindex: DEVICES[3], has_programs: true };
            match backstop(hop, &bytes, world, config) {
                Some(decision) => decision,
                None => return assert!(!is_secret(&case, false), "a pod's packet is left alone"),
            }
        }
    };
    holds(&case, &decision);
});

/// What must hold of a decision.
fn holds(case: &Case<'_>, decision: &Decision) {
    let tunnel = case.world.slots[0];
    match decision.verdict() {
        Verdict::Tunnel | Verdict::Wrap | Verdict::Replace => {
            assert!(decision.ifindex == tunnel && tunnel != 0, "{decision:?}");
            assert!(matches!(case.program, Program::Steer | Program::Replace), "{decision:?}");
        }
        Verdict::Pass if Mode::from_raw(case.world.config.mode) != Mode::Observe => {
            // Its own packets, of which nobody but the host can make one.
            let is_outer = decision.reason == Reason::Outer;
            assert!(!is_outer || case.program == Program::Guard || is_hosts_marked(case), "{decision:?}");
            assert!(is_outer || !is_secret(case, case.program == Program::Guard), "{decision:?}");
        }
        Verdict::Pass | Verdict::Drop => {}
    }
}

fn is_hosts_marked(case: &Case<'_>) -> bool {
    case.meta.ingress_ifindex == 0 && case.meta.mark == FWMARK
}

/// Is it a packet that must not pass in plain: to a remote pod, or with `inward` from one? By a reading of the header of
/// our own; what that can't read it does not judge.
fn is_secret(case: &Case<'_>, inward: bool) -> bool {
    if matches!(case.program, Program::Deliver) || case.program == Program::Backstop && inward {
        return false;
    }
    let Some((source, destination)) = addresses(case) else { return false };
    let (end, other) = if inward { (source, destination) } else { (destination, source) };
    let Some(prefix) = case.world.prefix(&address(end)) else { return false };
    // What is required of one end by policy, whatever the mesh asks for.
    let is_asked =
        case.world.prefix(&address(other)).is_some_and(|other| other.asked == Asked::Require as u8);
    if Mode::from_raw(case.world.config.mode) != Mode::Require && !is_asked {
        return false;
    }
    let peer = case.world.peer(prefix.peer.into());
    let lives = NOW < peer.bypass_until();
    let grace = if inward { BYPASS_GRACE } else { 0 };
    let is_open = match peer.state() {
        PeerState::Adopting => lives,
        PeerState::Bypass | PeerState::BypassedTunnel => NOW < peer.bypass_until() + grace,
        PeerState::Tunnel | PeerState::BypassHeard => inward && lives,
        PeerState::NoTunnel => false,
    };
    match PrefixKind::from_raw(prefix.kind) {
        Some(PrefixKind::RemotePods) => is_asked || !is_open,
        Some(PrefixKind::UnownedPods) => true,
        _ => false,
    }
}

/// Source and destination (RFC 791, section 3.1; RFC 8200, section 3), behind any VLAN tags (IEEE 802.1Q, 802.1ad). The
/// backstop sees none, and no EtherType.
fn addresses(case: &Case<'_>) -> Option<(IpAddr, IpAddr)> {
    let (mut bytes, mut protocol) = (case.bytes, case.meta.protocol);
    let is_backstop = case.program == Program::Backstop;
    while !is_backstop && matches!(protocol, 0x8100 | 0x88a8) {
        let (tag, rest) = bytes.split_first_chunk::<4>()?;
        (bytes, protocol) = (rest, u16::from_be_bytes([tag[2], tag[3]]));
    }
    let version = bytes.first()? >> 4;
    let is_v4 = version == 4 && (protocol == 0x0800 || is_backstop);
    let is_v6 = version == 6 && (protocol == 0x86dd || is_backstop);
    let v4 = |at: usize| Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<4>()?));
    let v6 = |at: usize| Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<16>()?));
    match (is_v4, is_v6) {
        (true, _) => Some((v4(12)?, v4(16)?)),
        (_, true) => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}
