//! A case for every reason, in both families: what the kernel does, what it counts, and that the
//! decision on the host is the same.

mod table;

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use kubeveil_abi::{Asked, Direction, Mode, Reason, Verdict, counter_index, names};
use kubeveil_verdict::{
    Decision, deliver, guard, steer,
    testing::{Place, Scene, Situation, Slice, Transport, World},
};

use crate::kernel::{Kernel, NEXT, REDIRECT, Ran, SHOT, boot_seconds};

use Direction::{Egress, Ingress, Tunnel};
pub(crate) use table::cases;

/// Changes the state of the world, or the packet.
type Change = fn(&mut Scene, &mut World, &mut Situation);

/// One packet, and what is to become of it.
pub(crate) struct Case {
    what: &'static str,
    pub(crate) direction: Direction,
    mode: Mode,
    ends: (Place, Place),
    ingress: u32,
    change: Change,
    pub(crate) expected: Reason,
}

/// The link header, which the kernel counts in its length.
pub(crate) const LINK: u32 = 14;

impl Case {
    pub(crate) fn name(&self) -> String {
        let mode = match self.mode {
            Mode::Require => "require",
            Mode::Prefer => "prefer",
            Mode::Observe => "observe",
        };
        format!("{}/{}/{mode}/{}", self.direction.name(), self.expected.name(), self.what)
    }

    pub(crate) fn run(&self) -> Result<()> {
        for is_v6 in [false, true] {
            let (world, situation) = self.situation(is_v6);
            let mut kernel = Kernel::with(&world)?;
            let is_overlay = self.expected == Reason::Replaced;
            // No router cuts IPv6.
            let expected = match self.expected {
                Reason::TunnelledInFragments if is_v6 => Reason::TooBig,
                expected => expected,
            };
            let decision = if is_overlay {
                at_overlay(&situation, &world)
            } else {
                on_host(self.direction, &situation, &world)
            };
            ensure!(decision.reason == expected, "on the host: {decision:?} (IPv6: {is_v6})");
            let ran = self.send(&mut kernel, &situation)?;
            let counters = kernel.counters()?;
            let index = counter_index(self.direction, decision.mode, expected);
            ensure!(
                counters.len() == 1 && counters.get(&index).is_some_and(|c| c.packets == 1),
                "counted {counters:?} instead of {index} (IPv6: {is_v6})"
            );
            let bytes = counters.get(&index).map(|c| c.bytes);
            ensure!(bytes == Some(decision.length.into()), "{bytes:?} bytes for {decision:?}");
            ensure!(ran.action == action(&decision), "answered {} for {decision:?}", ran.action);
            let should = if asks(&world) { expected.verdict() } else { self.verdict(expected) };
            ensure!(decision.verdict() == should, "{decision:?} is carried out otherwise");
        }
        Ok(())
    }

    /// Through the program that it is for.
    pub(crate) fn send(&self, kernel: &mut Kernel, situation: &Situation) -> Result<Ran> {
        if self.expected == Reason::Replaced {
            kernel.run_program(names::REPLACE, situation, &situation.build.frame(), 0, 1)
        } else {
            kernel.run(self.direction, situation)
        }
    }

    /// `prefer` drops nothing but what came out of a tunnel.
    fn verdict(&self, expected: Reason) -> Verdict {
        match (self.mode, expected.verdict()) {
            (Mode::Observe, _) => Verdict::Pass,
            (Mode::Prefer, Verdict::Drop) if !matches!(expected, Reason::TunnelToPlain | Reason::TooBig) => {
                Verdict::Pass
            }
            (_, verdict) => verdict,
        }
    }

    pub(crate) fn situation(&self, is_v6: bool) -> (World, Situation) {
        let mut scene = Scene { now: boot_seconds(), ..Scene::calm(self.mode) };
        let transport = Transport::Udp(40_000, 53);
        let mut situation = Situation::new(self.ends.0, self.ends.1, is_v6, transport).by(self.ingress);
        // Twice: a change of the scene has to come before its world is made, one of the world after.
        (self.change)(&mut scene, &mut World::default(), &mut situation.clone());
        let mut world = scene.world();
        (self.change)(&mut scene, &mut world, &mut situation);
        (world, situation)
    }
}

/// Do policies ask for encryption of anybody? In such a case it is one end of the packet.
fn asks(world: &World) -> bool {
    let require = Asked::Require as u8;
    world.config.unknown == u32::from(require)
        || world.prefixes.iter().any(|(_, _, value)| value.asked == require)
}

/// What the decision says on the host.
pub(crate) fn on_host(direction: Direction, situation: &Situation, world: &World) -> Decision {
    on_host_of(direction, situation, &situation.build.network(), world)
}

/// The same of these bytes, from the network header on.
pub(crate) fn on_host_of(
    direction: Direction,
    situation: &Situation,
    bytes: &[u8],
    world: &World,
) -> Decision {
    let slice = Slice { link: LINK, ..Slice::new(bytes) };
    let meta = situation.meta();
    match direction {
        Egress => steer(&meta, &slice, world, &world.config),
        Ingress => guard(&meta, &slice, world, &world.config),
        Tunnel => deliver(&meta, &slice, world, &world.config),
        Direction::Backstop => unreachable!("it is no program of a device; see backstop.rs"),
    }
}

/// The same at an overlay's device.
fn at_overlay(situation: &Situation, world: &World) -> Decision {
    let bytes = situation.build.network();
    let slice = Slice { link: LINK, ..Slice::new(&bytes) };
    kubeveil_verdict::replace(&situation.meta(), &slice, world, &world.config)
}

/// What the kernel is to be told. A message to the sender of what is too big is redirected too.
pub(crate) fn action(decision: &Decision) -> u32 {
    match decision.verdict() {
        Verdict::Pass => NEXT,
        Verdict::Drop if decision.tell_mtu != 0 => REDIRECT,
        Verdict::Drop => SHOT,
        Verdict::Tunnel | Verdict::Wrap | Verdict::Replace => REDIRECT,
    }
}

/// No reason may be added without a test that produces it.
pub(crate) fn every_reason_has_a_case() -> Result<()> {
    let tested: BTreeSet<Reason> = cases().iter().map(|case| case.expected).collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !tested.contains(reason)).collect();
    // The backstop's alone has its cases in backstop.rs.
    let missing: Vec<_> = missing.into_iter().filter(|reason| **reason != Reason::UnguardedDevice).collect();
    ensure!(missing.is_empty(), "no case for {missing:?}");
    Ok(())
}
