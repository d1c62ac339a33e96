//! The shape of WireGuard's packets (whitepaper, section 5.4; Linux `drivers/net/wireguard/messages.h`).

/// The ports of the two generations.
pub const PORTS: [u16; 2] = [51871, 51872];

const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE: usize = 64;
/// Type, receiver and counter; then the tag of an empty packet.
const KEEPALIVE: usize = 32;
/// The plaintext is padded to a multiple of this, or to the MTU, whichever is less.
const PADDING: usize = 16;

/// Whether a UDP payload of `length` bytes, of which `bytes` are there, is a packet of WireGuard.
///
/// Whoever sends a pod's packet in plain to one of these ports fails here: an IP header begins with
/// 0x4 or 0x6, VXLAN's with 0x08 and Geneve's with zero.
pub(super) fn is_packet(bytes: &[u8], length: usize) -> bool {
    match bytes {
        [1, 0, 0, 0, ..] => length == INITIATION,
        [2, 0, 0, 0, ..] => length == RESPONSE,
        [3, 0, 0, 0, ..] => length == COOKIE,
        [4, 0, 0, 0, ..] => length >= KEEPALIVE && length.is_multiple_of(PADDING),
        _ => false,
    }
}
