//! Packets of any make, sent past the socket layer, and seen at any device.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt,
    socket, sockopt::RcvBufForce,
};
use rustix::net::{SendFlags, ipproto, sendto};

use crate::analysis::MARKER;
use crate::namespace;

/// Room for what is seen until somebody looks: more than any batch here.
const ROOM: usize = 64 << 20;

/// Payload by which a packet is known wherever its bytes are seen, also from its middle on.
pub fn content(id: u32) -> Vec<u8> {
    [&MARKER[..], &id.to_be_bytes(), &id.to_be_bytes()].concat()
}

/// Whose packet these bytes are a part of, if they show one.
fn id_in(frame: &[u8]) -> Option<u32> {
    let at = memchr::memmem::find(frame, MARKER)? + MARKER.len();
    let (first, rest) = frame.get(at..)?.split_first_chunk()?;
    (rest.first_chunk::<4>() == Some(first)).then(|| u32::from_be_bytes(*first))
}

/// One device, by its link layer.
pub struct Tap {
    socket: OwnedFd,
    index: u32,
}

impl Tap {
    /// At a device in a namespace.
    pub fn at(namespace: &str, device: &str) -> Result<Self> {
        let tap = namespace::within(namespace, || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, RcvBufForce, &ROOM)?;
            // Those without a hardware address are not in that list; they are seen among all others.
            if let Some(link) = link(device)? {
                bind(socket.as_raw_fd(), &link)?;
            }
            Ok(Self { socket, index: if_nametoindex(device)? })
        });
        tap.with_context(|| format!("a packet socket at {device} in {namespace}"))
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).context("send a frame")?;
        Ok(())
    }

    /// What has been seen since the last call: how many frames that show each packet.
    pub fn seen(&self) -> Result<BTreeMap<u32, u64>> {
        let mut seen = BTreeMap::new();
        let mut frame = vec![0; 1 << 16];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok((length, from)) => {
                    let is_here = from.is_some_and(|from| from.ifindex() == self.index as usize);
                    if let Some(id) = id_in(&frame[..length]).filter(|_| is_here) {
                        *seen.entry(id).or_default() += 1;
                    }
                }
                Err(Errno::EAGAIN) => return Ok(seen),
                // The device went down and came again, say; nothing of it is lost.
                Err(Errno::ENETDOWN) => {}
                Err(error) => return Err(error).context("read from a packet socket"),
            }
        }
    }
}

fn link(device: &str) -> Result<Option<LinkAddr>> {
    let all = getifaddrs().context("list the devices")?;
    let ours = all.filter(|found| found.interface_name == device);
    Ok(ours.filter_map(|found| found.address?.as_link_addr().copied()).next())
}

/// The host's own packets, headers and all.
pub struct Host {
    sockets: [OwnedFd; 2],
}

impl Host {
    /// In this namespace.
    pub fn in_namespace(name: &str) -> Result<Self> {
        let raw = |family| {
            rustix::net::socket(family, rustix::net::SocketType::RAW, Some(ipproto::RAW))
                .context("make a raw socket")
        };
        let sockets = namespace::within(name, || {
            Ok([raw(rustix::net::AddressFamily::INET)?, raw(rustix::net::AddressFamily::INET6)?])
        })?;
        Ok(Self { sockets })
    }

    /// Sends a packet, from its IP header on, to the address that it bears.
    pub fn send(&self, packet: &[u8], to: IpAddr) -> Result<()> {
        let [v4, v6] = &self.sockets;
        let sent = match to {
            IpAddr::V4(_) => sendto(v4, packet, SendFlags::empty(), &SocketAddr::new(to, 0)),
            IpAddr::V6(to) => sendto(v6, packet, SendFlags::empty(), &SocketAddrV6::new(to, 0, 0, 0)),
        };
        match sent {
            Ok(length) if length == packet.len() => Ok(()),
            // What a program at the device drops is told to the host itself.
            Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::PERM) => Ok(()),
            Ok(length) => bail!("{length} of {} bytes sent to {to}", packet.len()),
            Err(error) => Err(error).with_context(|| format!("send {} bytes to {to}", packet.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_known_from_its_middle_on() {
        let payload: Vec<u8> = content(0x0102_0304).into_iter().cycle().take(100).collect();
        assert_eq!(id_in(&payload), Some(0x0102_0304));
        assert_eq!(id_in(&payload[30..]), Some(0x0102_0304));
        assert_eq!(id_in(&payload[..18]), None);
        assert_eq!(id_in(b"nothing of ours"), None);
    }
}
