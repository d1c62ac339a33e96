//! Who is behind which port of a bridge: the kernel's neighbour and forwarding tables, over rtnetlink.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use kubeveil_core::observed::{HardwareAddress, Neighbours};
use rtnetlink::packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use crate::{KernelError, link::Links, link::io_error};

impl Links {
    /// Both tables.
    pub(crate) fn neighbours(&self) -> Result<Neighbours, KernelError> {
        let dump = |family| async move {
            let request = self.handle.neighbours().get().set_address_family(family);
            request.execute().try_collect::<Vec<NeighbourMessage>>().await
        };
        let read = self.runtime.block_on(async {
            Ok::<_, rtnetlink::Error>((
                dump(AddressFamily::Unspec).await?,
                dump(AddressFamily::Bridge).await?,
            ))
        });
        let (reached, forwarded) = read.map_err(|e| KernelError::new("list", "neighbours", io_error(e)))?;
        Ok(Neighbours {
            hardware: reached.iter().filter_map(reached_by).collect(),
            ports: forwarded.iter().filter_map(behind_port).collect(),
        })
    }
}

fn reached_by(message: &NeighbourMessage) -> Option<((u32, IpAddr), HardwareAddress)> {
    // What failed to answer has no address, or an old one.
    if matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    Some(((message.header.ifindex, address), hardware(message)?))
}

fn behind_port(message: &NeighbourMessage) -> Option<((u32, HardwareAddress), u32)> {
    // The bridge's and its ports' own addresses are not behind a port.
    if message.header.state == NeighbourState::Permanent || message.header.flags.contains(NeighbourFlags::Own)
    {
        return None;
    }
    let bridge = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Controller(index) => Some(*index),
        _ => None,
    })?;
    Some(((bridge, hardware(message)?), message.header.ifindex))
}

fn hardware(message: &NeighbourMessage) -> Option<HardwareAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}
