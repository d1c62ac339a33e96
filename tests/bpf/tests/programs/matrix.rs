//! The matrix of conditions, in full, in this kernel: every kind of packet on every way in every mode.

use anyhow::{Context, Result, bail, ensure};
use kubeveil_abi::{Direction, Mode, PeerValue, Reason, Verdict, is_observed, names};
use kubeveil_verdict::testing::{
    Scene,
    conditions::{Fate, Hook, Kind, Table, Tunnels, Way, conditions, fate},
};

use crate::kernel::{Kernel, SEGMENT, boot_seconds};

/// Holds them all against what is to become of them; prints what was found in `require`.
pub(crate) fn every_condition() -> Result<()> {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for tunnels in [Tunnels::Proven, Tunnels::Unproven] {
        for mode in [Mode::Require, Mode::Prefer, Mode::Observe] {
            let mut scene = Scene { now: boot_seconds(), ..Scene::calm(mode) };
            if tunnels == Tunnels::Unproven {
                scene.peers = [PeerValue::NO_TUNNEL; Scene::PEERS as usize];
            }
            let world = scene.world();
            let mut kernel = Kernel::with(&world)?;
            let mut table = Table::default();
            // The backstop is no program of a device: `backstop.rs`, and `lab-matrix`.
            for (way, kind, is_v6) in conditions().filter(|(way, ..)| way.hook != Hook::Unguarded) {
                let found = found(&mut kernel, way, kind, is_v6)
                    .with_context(|| format!("{}, {}, IPv6: {is_v6}", way.name, kind.name()))?;
                let wanted = fate(way, kind, is_v6, tunnels, mode);
                if found != wanted {
                    let family = if is_v6 { "IPv6" } else { "IPv4" };
                    let (way, kind) = (way.name, kind.name());
                    wrong.push(format!(
                        "{way}, {kind}, {family}, {tunnels:?}, {mode:?}: {found:?}, not {wanted:?}"
                    ));
                }
                table.add(way.name, kind, is_v6, found);
            }
            tried += table.len();
            if mode == Mode::Require {
                println!("require, tunnels {tunnels:?}:\n{table}");
            }
        }
    }
    println!("{tried} conditions");
    ensure!(wrong.is_empty(), "{} of {tried} conditions are wrong:\n  {}", wrong.len(), wrong.join("\n  "));
    Ok(())
}

/// What the kernel does to the packet, by what it counts.
fn found(kernel: &mut Kernel, way: &Way, kind: Kind, is_v6: bool) -> Result<Fate> {
    let situation = kind.on(way, is_v6);
    let frame = situation.build.frame();
    let segments = if kind == Kind::Segments { 2_400_u32.div_ceil(SEGMENT) } else { 0 };
    let (program, direction) = match way.hook {
        Hook::Underlay => (names::STEER, Direction::Egress),
        Hook::Overlay => (names::REPLACE, Direction::Egress),
        Hook::Wire => (names::GUARD, Direction::Ingress),
        Hook::Tunnel => (names::DELIVER, Direction::Tunnel),
        Hook::Unguarded => bail!("the backstop is no program that can be run like this"),
    };
    kernel.run_program(program, &situation, &frame, segments, 1)?;
    let moved = kernel.moved(direction)?;
    let [(mode, reason)] = moved[..] else {
        bail!("counted as {moved:?}");
    };
    Ok(match reason.verdict() {
        _ if is_observed(mode, reason) => Fate::Alone,
        Verdict::Tunnel | Verdict::Wrap | Verdict::Replace => Fate::Encrypted,
        Verdict::Drop => Fate::Dropped,
        Verdict::Pass if way.hook == Hook::Tunnel && reason == Reason::Delivered => Fate::Encrypted,
        Verdict::Pass => Fate::Alone,
    })
}
