//! What a single answer does not show: what is left in the maps.

use anyhow::{Result, ensure};
use kubeveil_abi::{BASE_PORT, Direction, FlowKey, FlowMode, Mode, PrefixKind, Reason, counter_index};
use kubeveil_verdict::testing::{Place, Scene, Situation, Transport, address, ip_of};

use crate::kernel::{Kernel, NEXT, REDIRECT, SHOT, boot_seconds, words};

use Place::{LocalNode, Outside, RemoteNode};

fn calm() -> Scene {
    Scene { now: boot_seconds(), ..Scene::calm(Mode::Require) }
}

fn key(is_v6: bool, local: Place, protocol: u32, ports: [u16; 2]) -> [u32; 10] {
    words(&FlowKey {
        remote: address(RemoteNode(0).ip(is_v6)),
        local: address(local.ip(is_v6)),
        protocol,
        ports: u32::from(ports[0]) << 16 | u32::from(ports[1]),
    })
}

/// A flow out of the tunnel is in the table, with and without its ports, and its answer is tunnelled.
pub(crate) fn flows_are_remembered() -> Result<()> {
    for is_v6 in [false, true] {
        let icmp = if is_v6 { 58 } else { 1 };
        let flows = [
            (Transport::Udp(1_000, 53), Transport::Udp(53, 1_000), 17, [1_000, 53]),
            (Transport::Tcp(1_000, 443, None), Transport::Tcp(443, 1_000, None), 6, [1_000, 443]),
            (Transport::Echo(77, false), Transport::Echo(77, true), icmp, [77, 77]),
        ];
        for (there, back, protocol, ports) in flows {
            let mut kernel = Kernel::with(&calm().world())?;
            // To a Service's address too: whoever answers for it may be this host.
            for local in [LocalNode, Outside] {
                let there = Situation::new(RemoteNode(0), local, is_v6, there.clone()).by(Scene::TUNNELS[0]);
                ensure!(kernel.run(Direction::Tunnel, &there)?.action == NEXT, "{there:?}");
                for ports in [ports, [0, 0]] {
                    let key = key(is_v6, local, protocol, ports);
                    ensure!(kernel.flows()?.contains_key(&key), "{there:?} left no {key:x?}");
                }
            }
            let back = Situation::new(LocalNode, RemoteNode(0), is_v6, back);
            ensure!(kernel.run(Direction::Egress, &back)?.action == REDIRECT, "{back:?}");
            // Another peer's answer is another's.
            let other = back.between(LocalNode, RemoteNode(1));
            ensure!(kernel.run(Direction::Egress, &other)?.action == NEXT, "{other:?}");
        }
        // A flow to WireGuard's port would turn its packets back into the tunnel.
        let mut kernel = Kernel::with(&calm().world())?;
        let transport = Transport::Udp(BASE_PORT, BASE_PORT);
        let probe = Situation::new(RemoteNode(0), LocalNode, is_v6, transport).by(Scene::TUNNELS[0]);
        kernel.run(Direction::Tunnel, &probe)?;
        ensure!(kernel.flows()?.is_empty(), "{probe:?} is remembered");
    }
    Ok(())
}

/// A stream that only goes out must not fall out of the tunnel.
pub(crate) fn a_reply_keeps_its_flow_alive() -> Result<()> {
    for is_v6 in [false, true] {
        let scene = Scene { flows: vec![(0, is_v6, Transport::Udp(1_000, 53), 60)], ..calm() };
        let mut kernel = Kernel::with(&scene.world())?;
        let reply = Situation::new(LocalNode, RemoteNode(0), is_v6, Transport::Udp(53, 1_000));
        ensure!(kernel.run(Direction::Egress, &reply)?.action == REDIRECT, "not tunnelled");
        let seen = kernel.flows()?.get(&key(is_v6, LocalNode, 17, [1_000, 53])).copied();
        ensure!(seen.is_some_and(|seen| seen >= scene.now), "seen at {seen:?}, now {}", scene.now);
    }
    Ok(())
}

/// A packet above 64 KiB says that its length is 0. Nothing else may.
pub(crate) fn big_tcp_is_counted_whole() -> Result<()> {
    for (is_v6, at) in [(false, 16), (true, 18)] {
        let mut kernel = Kernel::with(&calm().world())?;
        let transport = Transport::Tcp(443, 40_000, None);
        let ends = (Place::LocalPod, Place::RemotePod(0));
        let mut big = Situation::new(ends.0, ends.1, is_v6, transport).by(Scene::POD_DEVICE);
        big.build.payload = 1_000;
        let mut frame = big.build.frame();
        frame[at..at + 2].fill(0);
        let ran = kernel.run_frame(Direction::Egress, &big, &frame, 4)?;
        let counter =
            kernel.counter(counter_index(Direction::Egress, FlowMode::Require, Reason::Tunnelled))?;
        ensure!(ran.action == REDIRECT && counter.packets == 1, "{counter:?}");
        ensure!(counter.bytes == u64::try_from(frame.len())?, "{} of {}", counter.bytes, frame.len());
        if !is_v6 {
            kernel.run_frame(Direction::Egress, &big, &frame, 0)?;
            let index = counter_index(Direction::Egress, FlowMode::Require, Reason::Unparsable);
            ensure!(kernel.counter(index)?.packets == 1, "one segment without a length passes");
        }
    }
    Ok(())
}

/// What the programs keep of their look-ups is in force for its own epoch only.
pub(crate) fn prefixes_are_kept_for_an_epoch() -> Result<()> {
    for is_v6 in [false, true] {
        let pod = Situation::new(Place::LocalPod, Place::RemotePod(0), is_v6, Transport::Udp(1, 2));
        let pod = pod.by(Scene::POD_DEVICE);
        let (known, mut unknown) = (calm().world(), calm().world());
        let is_remote = |kind| kind == PrefixKind::RemotePods as u8;
        unknown.prefixes.retain(|(_, _, value)| !is_remote(value.kind));
        let mut kernel = Kernel::with(&known)?;
        let ask = |kernel: &mut Kernel| kernel.run(Direction::Egress, &pod).map(|ran| ran.action);
        ensure!(ask(&mut kernel)? == REDIRECT, "not tunnelled");
        // Behind the programs' back, to see that they do keep it.
        kernel.replace_prefixes(&unknown)?;
        ensure!(ask(&mut kernel)? == REDIRECT, "looked up again in the same epoch");
        kernel.settle()?;
        ensure!(ask(&mut kernel)? == SHOT, "kept from another epoch");
        for clear in [false, true] {
            if clear {
                kernel.clear_epoch()?
            } else {
                kernel.unsettle()?
            };
            for (world, action) in [(&known, REDIRECT), (&unknown, SHOT)] {
                kernel.replace_prefixes(world)?;
                ensure!(ask(&mut kernel)? == action, "kept in an epoch that is not settled");
            }
        }
    }
    Ok(())
}

/// Two addresses that share a place in the table are not taken for each other.
pub(crate) fn addresses_that_share_a_place() -> Result<()> {
    let pod = Situation::new(Place::LocalPod, Place::RemotePod(0), true, Transport::Udp(1, 2));
    let pod = pod.by(Scene::POD_DEVICE);
    // The programs rotate the words by 21, 14, 7 and 0 bits and combine them by exclusive or.
    let [a, b, c, d] = address(pod.build.destination);
    let places = [[a ^ 1 << 11, b ^ 1 << 18, c, d], [a ^ 1 << 11, b, c ^ 1 << 25, d]];
    for place in places {
        let mut kernel = Kernel::with(&calm().world())?;
        ensure!(kernel.run(Direction::Egress, &pod)?.action == REDIRECT, "not tunnelled");
        let mut other = pod.clone();
        other.build.destination = ip_of(place);
        ensure!(kernel.run(Direction::Egress, &other)?.action == NEXT, "{other:?} is taken for {pod:?}");
    }
    Ok(())
}
