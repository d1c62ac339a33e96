//! Network devices, their addresses and the routes by them, over rtnetlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use kubeveil_core::observed::{Link, LinkStatistics};
use rtnetlink::{
    Handle, LinkUnspec, LinkWireguard, MulticastGroup, RouteMessageBuilder,
    packet_core::{DefaultNla, Emitable as _},
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage, AddressScope},
        link::{InfoData, InfoGeneve, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
        tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
    },
};
use tokio::{runtime, sync::watch};

use crate::{KernelError, error::CREATE_WIREGUARD};

/// A connection to the kernel's routing socket. Its calls block and must not be made on an async thread.
#[derive(Debug)]
pub struct Links {
    pub(crate) handle: Handle,
    pub(crate) runtime: runtime::Handle,
}

impl Links {
    /// Connects, in the network namespace of the calling thread. The current tokio runtime drives the socket.
    pub fn connect() -> Result<Self, KernelError> {
        let runtime = runtime::Handle::current();
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| KernelError::new("open", "rtnetlink socket", e))?;
        runtime.spawn(connection);
        Ok(Self { handle, runtime })
    }

    /// Every device.
    pub fn dump(&self) -> Result<BTreeMap<u32, Link>, KernelError> {
        let (links, addresses, routes) = self
            .runtime
            .block_on(async {
                let links: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
                let addresses: Vec<AddressMessage> =
                    self.handle.address().get().execute().try_collect().await?;
                let mut routes = Vec::new();
                let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
                let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
                for family in [v4, v6] {
                    let all: Vec<RouteMessage> =
                        self.handle.route().get(family).execute().try_collect().await?;
                    routes.extend(all.iter().flat_map(leads_to));
                }
                Ok::<_, rtnetlink::Error>((links, addresses, routes))
            })
            .map_err(|e| KernelError::new("list", "network devices", e))?;
        let mut out: BTreeMap<u32, Link> = links.iter().map(|m| (m.header.index, link(m))).collect();
        for message in &addresses {
            if let (Some(link), Some(net)) = (out.get_mut(&message.header.index), address(message)) {
                link.addresses.insert(net);
            }
        }
        for (index, destination) in routes {
            if let Some(link) = out.get_mut(&index) {
                link.routes.push(destination);
            }
        }
        Ok(out)
    }

    /// Programs at XDP, by the index of their device.
    pub(crate) fn xdp(&self) -> Result<BTreeMap<u32, u32>, KernelError> {
        let links: Vec<LinkMessage> = self
            .runtime
            .block_on(self.handle.link().get().execute().try_collect())
            .map_err(|e| KernelError::new("list", "network devices", io_error(e)))?;
        let program = |message: &LinkMessage| {
            let of = message.attributes.iter().filter_map(|attribute| match attribute {
                LinkAttribute::Xdp(xdp) => Some(xdp),
                _ => None,
            });
            of.flatten().find_map(|xdp| match xdp {
                LinkXdp::ProgId(id) if *id != 0 => Some(*id),
                _ => None,
            })
        };
        Ok(links.iter().filter_map(|message| Some((message.header.index, program(message)?))).collect())
    }

    /// Makes a WireGuard device; one of that name that exists already is no error.
    pub fn add_wireguard(&self, name: &str) -> Result<(), KernelError> {
        let done = self.runtime.block_on(self.handle.link().add(LinkWireguard::new(name).build()).execute());
        match done.map_err(io_error) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|e| KernelError::new(CREATE_WIREGUARD, name, e)),
        }
    }

    /// Deletes a device; one that is gone already is no error.
    pub fn delete(&self, index: u32) -> Result<(), KernelError> {
        let done = self.runtime.block_on(self.handle.link().del(index).execute());
        match done.map_err(io_error) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
            other => other.map_err(|e| KernelError::new("delete device", index.to_string(), e)),
        }
    }

    /// Gives a device an address of host scope; one that it has already is no error.
    pub fn add_address(&self, index: u32, address: IpNet) -> Result<(), KernelError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        request.message_mut().header.scope = AddressScope::Host;
        match self.runtime.block_on(request.execute()).map_err(io_error) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|e| KernelError::new("give an address to device", index.to_string(), e)),
        }
    }

    /// Sets the MTU, bytes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), KernelError> {
        self.set(LinkUnspec::new_with_index(index).mtu(mtu).build(), "set MTU of device")
    }

    /// Sets a device up.
    pub fn set_up(&self, index: u32) -> Result<(), KernelError> {
        self.set(LinkUnspec::new_with_index(index).up().build(), "set up device")
    }

    /// Sets values of `/proc/sys/net/ipv4/conf/{device}`, by their numbers (`IPV4_DEVCONF_*`).
    pub(crate) fn set_ipv4_conf(&self, device: &str, values: &[(u16, u32)]) -> Result<(), KernelError> {
        const DEED: &str = "set IPv4 settings of device";
        let index =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
                .and_then(|socket| rustix::net::netdevice::name_to_index(socket, device))
                .map_err(|e| KernelError::new(DEED, device.to_owned(), std::io::Error::from(e)))?;
        let mut message = LinkUnspec::new_with_index(index).build();
        message.attributes.push(ipv4_conf(values));
        self.set(message, DEED)
    }

    /// Gives a device another name. Before Linux 6.2 one that is up has to go down for it.
    pub fn rename(&self, index: u32, name: &str) -> Result<(), KernelError> {
        const RENAME: &str = "rename device";
        let rename = || self.set(LinkUnspec::new_with_index(index).name(name.to_owned()).build(), RENAME);
        match rename() {
            Err(e) if e.errno() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                self.set(LinkUnspec::new_with_index(index).down().build(), RENAME)?;
                rename()
            }
            other => other,
        }
    }

    /// Devices that have a clsact qdisc.
    pub fn with_clsact(&self) -> Result<BTreeSet<u32>, KernelError> {
        let qdiscs: Vec<TcMessage> = self
            .runtime
            .block_on(self.handle.qdisc().get().execute().try_collect())
            .map_err(|e| KernelError::new("list", "qdiscs", io_error(e)))?;
        let is_clsact = |message: &&TcMessage| {
            message.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "clsact"))
        };
        Ok(qdiscs.iter().filter(is_clsact).filter_map(|m| u32::try_from(m.header.index).ok()).collect())
    }

    /// The filters at one side of a device's clsact qdisc, in the order in which they run.
    pub fn filters(&self, index: u32, is_egress: bool) -> Result<Vec<Filter>, KernelError> {
        let name = || index.to_string();
        let Ok(signed) = i32::try_from(index) else {
            return Ok(Vec::new());
        };
        let request = self.handle.traffic_filter(signed).get();
        let request = if is_egress { request.egress() } else { request.ingress() };
        let messages: Result<Vec<TcMessage>, _> = self.runtime.block_on(request.execute().try_collect());
        let gone =
            [rustix::io::Errno::NODEV, rustix::io::Errno::INVAL].map(|errno| Some(errno.raw_os_error()));
        match messages.map_err(io_error) {
            Ok(messages) => Ok(messages.iter().filter_map(filter).collect()),
            // The device is gone, or has no such qdisc.
            Err(e) if gone.contains(&e.raw_os_error()) => Ok(Vec::new()),
            Err(e) => Err(KernelError::new("list the filters of device", name(), e)),
        }
    }

    fn set(&self, message: LinkMessage, operation: &'static str) -> Result<(), KernelError> {
        let index = message.header.index;
        self.runtime
            .block_on(self.handle.link().set(message).execute())
            .map_err(|e| KernelError::new(operation, index.to_string(), io_error(e)))
    }
}

/// `IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF { number: value, … } } }`, as `inet_set_link_af` in the kernel's
/// `net/ipv4/devinet.c` reads it. The library writes the form in which the kernel answers, which is another one.
fn ipv4_conf(values: &[(u16, u32)]) -> LinkAttribute {
    const IFLA_AF_SPEC: u16 = 26;
    const AF_INET: u16 = 2;
    const IFLA_INET_CONF: u16 = 1;
    let attribute = |kind: u16, value: Vec<u8>| {
        let nla = DefaultNla::new(kind, value);
        let mut bytes = vec![0; nla.buffer_len()];
        nla.emit(&mut bytes);
        bytes
    };
    let each = values.iter().flat_map(|(number, value)| attribute(*number, value.to_ne_bytes().to_vec()));
    let conf = attribute(IFLA_INET_CONF, each.collect());
    LinkAttribute::Other(DefaultNla::new(IFLA_AF_SPEC, attribute(AF_INET, conf)))
}

/// A filter of a clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The lowest runs first.
    pub priority: u16,
    /// Tells it from others of the same priority.
    pub handle: u32,
    /// Name of the program, as its owner has given it; of a filter without one, its kind.
    pub name: String,
    /// The program; 0 if there is none.
    pub program: u32,
}

/// The filter of a message. A priority is told once more without a filter, with handle 0.
fn filter(message: &TcMessage) -> Option<Filter> {
    let handle = message.header.handle;
    let handle = u32::from(handle.major) << 16 | u32::from(handle.minor);
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    });
    let mut filter = Filter {
        // `TC_H_MAJ` of `tcm_info` (kernel `include/uapi/linux/pkt_sched.h`).
        priority: u16::try_from(message.header.info >> 16).unwrap_or_default(),
        handle,
        name: kind.unwrap_or_default(),
        program: 0,
    };
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = *id,
            _ => {}
        }
    }
    (handle != 0).then_some(filter)
}

/// Counts up whenever a device, an address or a route changes. Call within a tokio runtime.
pub fn watch_changes() -> Result<watch::Receiver<u64>, KernelError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)
        .map_err(|e| KernelError::new("listen on", "rtnetlink socket", e))?;
    tokio::spawn(connection);
    let (changed, receiver) = watch::channel(0);
    tokio::spawn(async move {
        // The handle must live as long as the connection.
        let _handle = _handle;
        while messages.next().await.is_some() {
            changed.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// By which devices a route leaves, and where it leads. Nothing for routes that lead nowhere else: to this host
/// itself, to all, or into a hole.
fn leads_to(message: &RouteMessage) -> Vec<(u32, IpNet)> {
    if message.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let length = message.header.destination_prefix_length;
    let destination = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    let everywhere = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let Ok(destination) = IpNet::new(destination.unwrap_or(everywhere), length) else {
        return Vec::new();
    };
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => devices.push((*index, destination)),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| (hop.interface_index, destination)));
            }
            _ => {}
        }
    }
    devices
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link_info(info, &mut link)),
            LinkAttribute::Stats64(stats) => {
                link.statistics = LinkStatistics {
                    tx_dropped: stats.tx_dropped,
                    tx_errors: stats.tx_errors,
                    rx_dropped: stats.rx_dropped,
                    rx_errors: stats.rx_errors,
                    rx_frame_errors: stats.rx_frame_errors,
                };
            }
            _ => {}
        }
    }
    link
}

fn link_info(info: &LinkInfo, link: &mut Link) {
    match info {
        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
        LinkInfo::Data(InfoData::Vxlan(details)) => {
            for detail in details {
                match detail {
                    InfoVxlan::Port(port) => link.port = Some(*port),
                    InfoVxlan::CollectMetadata(external) => link.external |= external,
                    _ => {}
                }
            }
        }
        LinkInfo::Data(InfoData::Geneve(details)) => {
            for detail in details {
                match detail {
                    InfoGeneve::Port(port) => link.port = Some(*port),
                    InfoGeneve::CollectMetadata => link.external = true,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// The address of a message: on point-to-point devices `Local` is our own end.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    let ip: IpAddr = find(true).or_else(|| find(false))?;
    IpNet::new(ip, message.header.prefix_len).ok()
}

/// The error number that the kernel answered with.
pub(crate) fn io_error(error: rtnetlink::Error) -> std::io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => std::io::Error::other(other),
    }
}
