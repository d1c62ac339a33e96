//! What is done to a packet on its way into the tunnel, read back by another parser.

use anyhow::{Context, Result, bail, ensure};
use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};
use kubeveil_abi::{Direction, Mode, PeerValue};
use kubeveil_verdict::testing::{Place, Scene, Situation, Transport};

use crate::kernel::{Kernel, NEXT, REDIRECT, boot_seconds};

use TcpOptionElement::{MaximumSegmentSize, Noop, SelectiveAcknowledgementPermitted, WindowScale};

/// The largest segment that the tunnel takes, as [`Scene::world`] has it.
const fn limit(is_v6: bool) -> u16 {
    if is_v6 { 1348 } else { 1400 }
}

/// Options of a SYN with this segment size, as stacks send them and as they might.
fn arrangements(mss: u16) -> Vec<Vec<TcpOptionElement>> {
    vec![
        vec![MaximumSegmentSize(mss)],
        vec![MaximumSegmentSize(mss), SelectiveAcknowledgementPermitted, Noop, WindowScale(7)],
        // At an odd offset, where it lies across two words of the checksum.
        vec![Noop, MaximumSegmentSize(mss), WindowScale(7)],
        vec![WindowScale(7), MaximumSegmentSize(mss)],
        vec![Noop, Noop, Noop, MaximumSegmentSize(mss)],
    ]
}

fn syn(is_v6: bool, options: Vec<TcpOptionElement>) -> Situation {
    let transport = Transport::Tcp(40_000, 443, Some(options));
    Situation::new(Place::LocalPod, Place::RemotePod(0), is_v6, transport).by(Scene::POD_DEVICE)
}

/// The same, and the answer to one that came from there.
fn both(is_v6: bool, options: &[TcpOptionElement]) -> [Situation; 2] {
    let mut answer = syn(is_v6, options.to_vec());
    answer.build.transport = Transport::Tcp(443, 40_000, Some(options.to_vec()));
    answer.build.answer = true;
    [syn(is_v6, options.to_vec()), answer]
}

/// Steers the packet; gives the frame that the tunnel gets.
fn steered(kernel: &mut Kernel, situation: &Situation) -> Result<Vec<u8>> {
    let ran = kernel.run(Direction::Egress, situation)?;
    ensure!(ran.action == REDIRECT, "answered {} for {situation:?}", ran.action);
    Ok(ran.frame)
}

/// The segment size in a frame whose checksum is right.
fn segment_size(frame: &[u8]) -> Result<u16> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { bail!("no TCP in {packet:?}") };
    ensure!(tcp.checksum() == checksum(&packet, tcp)?, "wrong checksum");
    let mut sizes = tcp.options_iterator().filter_map(|option| match option {
        Ok(MaximumSegmentSize(size)) => Some(size),
        _ => None,
    });
    sizes.next().context("no segment size")
}

fn checksum(packet: &SlicedPacket, tcp: &TcpSlice) -> Result<u16> {
    Ok(match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())?
        }
        Some(NetSlice::Ipv6(ip)) => {
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())?
        }
        _ => bail!("no IP"),
    })
}

pub(crate) fn long_is_lowered() -> Result<()> {
    let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
    for is_v6 in [false, true] {
        for old in [limit(is_v6) + 1, 1460, 8960, u16::MAX] {
            for situation in arrangements(old).iter().flat_map(|options| both(is_v6, options)) {
                let size = segment_size(&steered(&mut kernel, &situation)?)
                    .with_context(|| format!("{situation:?}"))?;
                ensure!(size == limit(is_v6), "{size} for {situation:?}");
            }
        }
    }
    Ok(())
}

pub(crate) fn short_is_left_alone() -> Result<()> {
    let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
    for is_v6 in [false, true] {
        let mut untouched: Vec<_> = [536, limit(is_v6)].into_iter().flat_map(arrangements).collect();
        untouched.extend([vec![], vec![WindowScale(7)]]);
        for situation in untouched.iter().flat_map(|options| both(is_v6, options)) {
            ensure!(steered(&mut kernel, &situation)? == situation.build.frame(), "{situation:?}");
        }
    }
    // What the daemon has not set is no limit.
    let mut world = Scene::calm(Mode::Require).world();
    (world.config.mss_v4, world.config.mss_v6) = (0, 0);
    kernel.install(&world)?;
    let situation = syn(false, vec![MaximumSegmentSize(8960)]);
    ensure!(steered(&mut kernel, &situation)? == situation.build.frame(), "clamped without a limit");
    Ok(())
}

/// A connection that outlives the bypass has to fit into the tunnel; what is observed, or tagged, is as it was.
pub(crate) fn lowered_while_bypassed() -> Result<()> {
    let now = boot_seconds();
    let scene = |mode, value| Scene { now, peers: [value; Scene::PEERS as usize], ..Scene::calm(mode) };
    let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
    for is_v6 in [false, true] {
        for value in [PeerValue::bypass(now + 600), PeerValue::tunnel(0, 3).bypassed(now + 600)] {
            kernel.install(&scene(Mode::Require, value).world())?;
            for situation in arrangements(8960).iter().flat_map(|options| both(is_v6, options)) {
                let ran = kernel.run(Direction::Egress, &situation)?;
                ensure!(ran.action == NEXT, "answered {} for {situation:?}", ran.action);
                ensure!(segment_size(&ran.frame)? == limit(is_v6), "{situation:?}");
            }
            let mut tagged = syn(is_v6, vec![MaximumSegmentSize(8960)]);
            tagged.build.tags = 1;
            let ran = kernel.run(Direction::Egress, &tagged)?;
            ensure!(ran.action == NEXT && ran.frame == tagged.build.frame(), "changed: {tagged:?}");
            kernel.install(&scene(Mode::Observe, value).world())?;
            let situation = syn(is_v6, vec![MaximumSegmentSize(8960)]);
            let ran = kernel.run(Direction::Egress, &situation)?;
            ensure!(ran.action == NEXT && ran.frame == situation.build.frame(), "changed: {situation:?}");
        }
    }
    Ok(())
}

/// Bytes that look like the option, in a segment that is no SYN.
pub(crate) fn only_a_syn() -> Result<()> {
    let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
    for is_v6 in [false, true] {
        let situation = syn(is_v6, vec![MaximumSegmentSize(8960)]);
        let mut frame = situation.build.frame();
        let flags = 14 + if is_v6 { 40 } else { 20 } + 13;
        // ACK alone.
        frame[flags] = 0x10;
        let ran = kernel.run_frame(Direction::Egress, &situation, &frame, 0)?;
        ensure!(ran.action == REDIRECT && ran.frame == frame, "changed");
    }
    Ok(())
}

/// The tunnel gets no VLAN tag, and the clamp finds its way behind those that were there.
pub(crate) fn tags_are_popped() -> Result<()> {
    let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
    for is_v6 in [false, true] {
        for (tags, provider_tags) in [(1, 0), (2, 0), (1, 1), (2, 1), (2, 2)] {
            let mut situation = syn(is_v6, vec![MaximumSegmentSize(8960)]);
            (situation.build.tags, situation.build.provider_tags) = (tags, provider_tags);
            let frame = steered(&mut kernel, &situation)?;
            let packet = SlicedPacket::from_ethernet(&frame)?;
            let has_tag = packet.link_exts.iter().any(|e| matches!(e, LinkExtSlice::Vlan(_)));
            ensure!(!has_tag, "{tags} tags, {provider_tags} a provider's: {packet:?}");
            let size = segment_size(&frame)?;
            ensure!(size == limit(is_v6), "{tags} tags, {provider_tags} a provider's: not clamped");
        }
    }
    Ok(())
}
