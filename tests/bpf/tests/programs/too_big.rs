//! What becomes of a packet that does not fit into the tunnel, read back by another parser.

use anyhow::{Result, bail, ensure};
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice, icmpv4};
use kubeveil_abi::{Direction, FlowMode, Mode, Reason, counter_index};
use kubeveil_verdict::testing::{Place, Scene, Situation, Transport};

use crate::kernel::{Kernel, REDIRECT, SEGMENT};

/// The tunnel's, as [`Scene::world`] has it.
const MTU: usize = 1_440;

fn packet(is_v6: bool, transport: Transport, length: usize) -> Situation {
    let ends = (Place::LocalPod, Place::RemotePod(0));
    let mut situation = Situation::new(ends.0, ends.1, is_v6, transport).by(Scene::POD_DEVICE);
    situation.build.payload = 0;
    situation.build.payload = length - situation.build.network().len();
    situation
}

/// One byte too many: the message is right in every field, for every kind of packet, with VLAN tags and without.
pub(crate) fn its_sender_is_told() -> Result<()> {
    for is_v6 in [false, true] {
        for transport in
            [Transport::Udp(4_000, 53), Transport::Tcp(4_000, 443, None), Transport::Echo(7, false)]
        {
            for (length, tags) in [(MTU + 1, 0), (MTU + 1, 1), (MTU + 1, 2), (3_000, 0)] {
                let mut situation = packet(is_v6, transport.clone(), length);
                let untagged = situation.build.network();
                situation.build.tags = tags;
                let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
                let ran = kernel.run(Direction::Egress, &situation)?;
                ensure!(ran.action == REDIRECT, "answered {} for {situation:?}", ran.action);
                read(&ran.frame, &situation, &untagged)?;
            }
            let mut kernel = Kernel::with(&Scene::calm(Mode::Require).world())?;
            let fits = packet(is_v6, transport, MTU);
            let ran = kernel.run(Direction::Egress, &fits)?;
            ensure!(ran.frame == fits.build.frame(), "a packet that fits is changed");
        }
    }
    Ok(())
}

/// Holds the message against the packet that it is about.
fn read(frame: &[u8], about: &Situation, packet: &[u8]) -> Result<()> {
    let message = SlicedPacket::from_ethernet(frame)?;
    let quoted = match (&message.net, &message.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header();
            ensure!(header.source_addr() == about.build.destination, "from {:?}", header.source_addr());
            ensure!(header.destination_addr() == about.build.source, "to {:?}", header.destination_addr());
            let ip = header.to_header();
            ensure!(ip.header_checksum == ip.calc_header_checksum(), "wrong header checksum");
            let Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            }) = icmp.header().icmp_type
            else {
                bail!("{:?}", icmp.header())
            };
            ensure!(usize::from(next_hop_mtu) == MTU, "MTU {next_hop_mtu}");
            let sum = icmp.header().icmp_type.calc_checksum(icmp.payload());
            ensure!(icmp.header().checksum == sum, "wrong checksum");
            icmp.payload()
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let header = ip.header();
            ensure!(header.source_addr() == about.build.destination, "from {:?}", header.source_addr());
            ensure!(header.destination_addr() == about.build.source, "to {:?}", header.destination_addr());
            let Icmpv6Type::PacketTooBig { mtu } = icmp.header().icmp_type else {
                bail!("{:?}", icmp.header())
            };
            ensure!(usize::try_from(mtu)? == MTU, "MTU {mtu}");
            ensure!(icmp.is_checksum_valid(header.source(), header.destination()), "wrong checksum");
            ensure!(frame.len() - 14 <= 1_280, "{} bytes (RFC 4443, section 3.2)", frame.len());
            icmp.payload()
        }
        other => bail!("{other:?}"),
    };
    let least = if about.build.source.is_ipv6() { 1_200 } else { 500 };
    ensure!(quoted.len() > least && packet.starts_with(quoted), "{} bytes quoted", quoted.len());
    Ok(())
}

/// A large packet of many segments is as big as one of them.
pub(crate) fn segments_are_judged() -> Result<()> {
    for is_v6 in [false, true] {
        let tcp = packet(is_v6, Transport::Tcp(4_000, 443, None), 3_000);
        let headers = if is_v6 { 60 } else { 40 };
        for (mtu, reason) in [(headers + SEGMENT, Reason::Tunnelled), (headers + SEGMENT - 1, Reason::TooBig)]
        {
            let mut world = Scene::calm(Mode::Require).world();
            world.config.mtu = mtu;
            let mut kernel = Kernel::with(&world)?;
            kernel.run_frame(Direction::Egress, &tcp, &tcp.build.frame(), 3)?;
            let counted = kernel.counter(counter_index(Direction::Egress, FlowMode::Require, reason))?;
            ensure!(counted.packets == 1, "MTU {mtu} is not {reason:?}: {:?}", kernel.counters()?);
        }
    }
    Ok(())
}
