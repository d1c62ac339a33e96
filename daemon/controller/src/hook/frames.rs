//! Frames as they leave a node, past all that would look at packets.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::if_indextoname,
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
        sockopt::RcvBuf,
    },
};

/// Room for what is seen until somebody looks, bytes.
const ROOM: usize = 16 << 20;
/// `PACKET_OUTGOING` of the kernel's `include/uapi/linux/if_packet.h`.
const OUTGOING: u8 = 4;

/// All frames that leave by any device, from now on.
pub(super) struct Frames(OwnedFd);

impl Frames {
    /// Needs CAP_NET_RAW.
    pub(super) fn begin() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
        let socket = socket.context("read frames (needs CAP_NET_RAW)")?;
        setsockopt(&socket, RcvBuf, &ROOM).context("make room for frames")?;
        Ok(Self(socket))
    }

    /// How many of those seen since the last look hold one of `words`, by the device that they left by.
    pub(super) fn holding(&self, words: &[String]) -> Result<BTreeMap<String, u64>> {
        let mut seen = BTreeMap::new();
        let mut frame = vec![0; 1 << 16];
        loop {
            match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut frame) {
                Ok((length, Some(from))) if from.pkttype() == OUTGOING && holds(&frame[..length], words) => {
                    let index = u32::try_from(from.ifindex()).unwrap_or_default();
                    let name = if_indextoname(index).map(|name| name.to_string_lossy().into_owned());
                    *seen.entry(name.unwrap_or_else(|_| format!("#{index}"))).or_default() += 1;
                }
                Ok(_) | Err(Errno::ENETDOWN) => {}
                Err(Errno::EAGAIN) => return Ok(seen),
                Err(e) => return Err(e).context("read frames"),
            }
        }
    }
}

fn holds(frame: &[u8], words: &[String]) -> bool {
    words.iter().any(|word| memchr::memmem::find(frame, word.as_bytes()).is_some())
}

/// Devices that have one of these addresses: by which this node speaks with others.
pub(super) fn devices_of(addresses: &[IpAddr]) -> Result<Vec<String>> {
    let has_one = |address: &nix::ifaddrs::InterfaceAddress| {
        let address = address.address.as_ref();
        let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::from(a.ip()));
        let v6 = address.and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::from(a.ip()));
        v4.or(v6).is_some_and(|ip| addresses.contains(&ip))
    };
    let all = getifaddrs().context("list the devices' addresses")?;
    let mut names: Vec<String> = all.filter(has_one).map(|address| address.interface_name).collect();
    names.sort();
    names.dedup();
    Ok(names)
}
