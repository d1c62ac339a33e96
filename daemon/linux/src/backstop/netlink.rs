//! Messages of nf_tables over netlink, no more of them than the backstop needs
//! (kernel `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`).

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
        sockopt,
    },
};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NLMSG_ERROR` and `NLMSG_DONE`; `NLM_F_*`; `NLA_F_NESTED` (`include/uapi/linux/netlink.h`).
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const NESTED: u16 = 1 << 15;
/// May be there already; for rules: behind the last.
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
/// `NFPROTO_INET`.
pub(super) const INET: u8 = 1;
/// `struct nlmsghdr` and `struct nfgenmsg`, bytes.
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// Room for one answer; the kernel gives at most this much at once to who asks with a large buffer.
const ANSWER: usize = 1 << 16;
/// Least room that is asked for in the socket.
const ROOM: usize = 1 << 20;

/// A list of attributes as it is written. All numbers of nf_tables are in network order.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    #[cfg(test)]
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn word(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }
}

/// The attributes of a list as it is read; it ends where they make no sense.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & !NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// One of them.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// One of them, a number.
pub(super) fn word(bytes: &[u8], kind: u16) -> Option<u32> {
    attribute(bytes, kind)?.first_chunk().copied().map(u32::from_be_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

/// A transaction: all of it happens, at one moment, or nothing.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    /// Adds a message; `NFT_MSG_*`.
    pub(super) fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        if self.bytes.is_empty() {
            self.boundary(BATCH_BEGIN);
        }
        self.messages += 1;
        self.bytes.extend(message(SUBSYSTEM << 8 | kind, flags | ACK, self.messages, INET, 0, fill));
    }

    fn boundary(&mut self, kind: u16) {
        // In network order; it stands where other messages have the family's version.
        self.bytes.extend(message(kind, 0, 0, 0, SUBSYSTEM.to_be(), |_| {}));
    }

    /// Sends it. The error is that of the first message that was refused.
    pub(super) fn send(mut self) -> io::Result<()> {
        self.boundary(BATCH_END);
        let socket = open(self.bytes.len())?;
        send(&socket, &self.bytes, SendFlags::empty())?;
        // When the call returns the kernel has carried the batch out: all answers are there.
        let mut left = self.messages;
        let mut answers = Answers::default();
        while left > 0 {
            for answer in answers.more(&socket)? {
                let (_, kind, _) = answer?;
                left -= u32::from(kind == ERROR);
            }
        }
        Ok(())
    }
}

/// Asks for one object, or with `all` for all there are; gives the attributes of each.
pub(super) fn ask(kind: u16, all: bool, fill: impl FnOnce(&mut Attributes)) -> io::Result<Vec<Vec<u8>>> {
    ask_of(INET, kind, all, fill)
}

/// The same of the tables of a family (`NFPROTO_*`).
pub(super) fn ask_of(
    family: u8,
    kind: u16,
    all: bool,
    fill: impl FnOnce(&mut Attributes),
) -> io::Result<Vec<Vec<u8>>> {
    let socket = open(0)?;
    let flags = if all { DUMP } else { ACK };
    send(&socket, &message(SUBSYSTEM << 8 | kind, flags, 1, family, 0, fill), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut answers = Answers::default();
    loop {
        for answer in answers.more(&socket)? {
            match answer? {
                (_, ERROR | DONE, _) => return Ok(found),
                (_, _, payload) => found.push(payload.get(GENERIC..).unwrap_or_default().to_vec()),
            }
        }
    }
}

fn open(room: usize) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    let room = (room * 2).max(ROOM);
    sockopt::set_socket_send_buffer_size_force(&socket, room)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, room)?;
    // Never waited for without end, whatever the kernel does.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(std::time::Duration::from_secs(5)))?;
    Ok(socket)
}

fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    fill: impl FnOnce(&mut Attributes),
) -> Vec<u8> {
    let mut attributes = Attributes::default();
    fill(&mut attributes);
    let length = u32::try_from(HEADER + GENERIC + attributes.0.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(length as usize);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((REQUEST | flags).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([family, 0]);
    out.extend(resource.to_ne_bytes());
    out.extend(attributes.0);
    out
}

/// Sequence number, type and payload.
type Answer<'a> = (u32, u16, &'a [u8]);

/// What the kernel says.
struct Answers(Vec<u8>);

impl Default for Answers {
    fn default() -> Self {
        Self(vec![0; ANSWER])
    }
}

impl Answers {
    /// Some more. An error of the kernel's is one of this.
    fn more(&mut self, socket: &OwnedFd) -> io::Result<Vec<io::Result<Answer<'_>>>> {
        let (length, _) = loop {
            match recv(socket, &mut self.0[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        Ok(split(&self.0[..length]).collect())
    }
}

fn split(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Answer<'_>>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let (kind, sequence) = (half(bytes, 4)?, u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?));
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let errno = match kind {
            ERROR => i32::from_ne_bytes(*payload.first_chunk()?),
            _ => 0,
        };
        Some(if errno == 0 {
            Ok((sequence, kind, payload))
        } else {
            Err(io::Error::from_raw_os_error(-errno))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut list = Attributes::default();
        list.text(1, "kubeveil");
        list.nest(4, |inner| {
            inner.word(1, 4);
            inner.bytes(2, &[1, 2, 3]);
        });
        list.word(5, 200);
        assert_eq!(attribute(&list.0, 1), Some(&b"kubeveil\0"[..]));
        let inner = attribute(&list.0, 4).expect("nested");
        assert_eq!((word(inner, 1), attribute(inner, 2)), (Some(4), Some(&[1, 2, 3][..])));
        assert_eq!(word(&list.0, 5), Some(200));
        assert_eq!(attribute(&list.0, 9), None);
    }

    #[test]
    fn what_is_cut_off_ends_the_list() {
        let mut list = Attributes::default();
        list.word(1, 7);
        list.text(2, "more");
        for length in 0..list.0.len() {
            assert!(attributes(&list.0[..length]).count() <= 2);
        }
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0, "a length of nothing");
    }

    #[test]
    fn an_error_is_told_and_an_acknowledgement_is_none() {
        let answer = |errno: i32| {
            let mut bytes = message(ERROR, 0, 3, 0, 0, |_| {});
            bytes[HEADER..].copy_from_slice(&errno.to_ne_bytes());
            let found: Vec<_> = split(&bytes)
                .map(|a| a.map(|(sequence, ..)| sequence).map_err(|e| e.raw_os_error()))
                .collect();
            found
        };
        assert_eq!(answer(0), [Ok(3)]);
        assert_eq!(answer(-17), [Err(Some(17))]);
        assert_eq!(split(&[1, 2, 3]).count(), 0);
    }
}
