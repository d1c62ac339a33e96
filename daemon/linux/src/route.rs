//! What the kernel's routing says of the way to an address, over rtnetlink.

use std::{collections::BTreeMap, net::IpAddr};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        link::LinkAttribute,
        route::{RouteAttribute, RouteMessage, RouteMetric},
    },
};

use crate::KernelError;

/// A connection to the kernel's routing socket, for the async side. It changes nothing.
#[derive(Clone, Debug)]
pub struct Routes(Handle);

impl Routes {
    /// Connects, in the network namespace of the calling thread. The current tokio runtime drives the socket.
    pub fn connect() -> Result<Self, KernelError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| KernelError::new("open", "rtnetlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Largest packets, bytes, on the ways of packets with `mark` to these addresses: as the route says,
    /// by somebody's hand or learnt from an error message, else as its device has it. Those to which no
    /// route leads are left out.
    pub async fn mtus(&self, to: impl IntoIterator<Item = IpAddr>, mark: u32) -> BTreeMap<IpAddr, u32> {
        let mut devices = BTreeMap::new();
        let mut mtus = BTreeMap::new();
        for address in to {
            let Some(route) = self.lookup(address, mark).await else { continue };
            let mtu = match (metric(&route), out_device(&route)) {
                (Some(mtu), _) => Some(mtu),
                (None, Some(index)) => match devices.get(&index) {
                    Some(mtu) => *mtu,
                    None => *devices.entry(index).or_insert(self.device(index).await),
                },
                (None, None) => None,
            };
            mtus.extend(mtu.map(|mtu| (address, mtu)));
        }
        mtus
    }

    async fn lookup(&self, to: IpAddr, mark: u32) -> Option<RouteMessage> {
        let length = if to.is_ipv4() { 32 } else { 128 };
        let mut message = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, length).ok()?.build();
        message.attributes.push(RouteAttribute::Mark(mark));
        self.0.route().get(message).execute().try_next().await.ok()?
    }

    async fn device(&self, index: u32) -> Option<u32> {
        let link = self.0.link().get().match_index(index).execute().try_next().await.ok()??;
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    }
}

/// `RTAX_MTU`, if the route has one.
fn metric(route: &RouteMessage) -> Option<u32> {
    let metrics = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
        _ => None,
    })
}

fn out_device(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
