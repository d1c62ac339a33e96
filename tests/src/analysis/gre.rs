//! GRE, which the library does not read (RFC 2784, RFC 2890).

/// What GRE carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inner<'a> {
    /// An IP packet.
    Ip(&'a [u8]),
    /// An Ethernet frame.
    Ethernet(&'a [u8]),
}

const CHECKSUM: u8 = 0x80;
const ROUTING: u8 = 0x40;
const KEY: u8 = 0x20;
const SEQUENCE: u8 = 0x10;
/// The three low bits of the second byte; version 1 is PPTP's.
const VERSION: u8 = 0x07;

/// What is inside, unless it is something else or too short.
pub(super) fn open(bytes: &[u8]) -> Option<Inner<'_>> {
    let &[flags, version, high, low, ..] = bytes else { return None };
    if version & VERSION != 0 || flags & ROUTING != 0 {
        return None;
    }
    let optional = [CHECKSUM, KEY, SEQUENCE].iter().filter(|&&flag| flags & flag != 0).count();
    let inner = bytes.get(4 + 4 * optional..)?;
    match u16::from_be_bytes([high, low]) {
        0x0800 | 0x86dd => Some(Inner::Ip(inner)),
        0x6558 => Some(Inner::Ethernet(inner)),
        _ => None,
    }
}
